//! Caches that send whoever asks them elsewhere (SECURITY N01, N07, N08).

use std::sync::Arc;

use it::web::{Answer, Authority, Flaw, WebServer};

use super::lie::{File, Lie};
use super::scene::{Found, Row};

/// Starts a server that a cache has no business to send anybody to, though it would give an archive.
fn bystander() -> WebServer {
    WebServer::start(|_| Answer::file("a secret of the network"))
}

#[test]
fn an_address_that_leads_out_of_the_cache_is_not_followed() {
    let bystander = bystander();
    let other = bystander.url("");
    let elsewhere = other.trim_start_matches("http:").to_owned();
    let urls = [
        format!("{other}/nar/x"),
        format!("{elsewhere}/nar/x"),
        format!("http:{elsewhere}/nar/x"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://localhost/x".to_owned(),
        "/etc/passwd".to_owned(),
        "nar/../../secret".to_owned(),
        "..".to_owned(),
        "nar/%2e%2e/%2e%2e/secret".to_owned(),
        "nar/..%2f..%2fsecret".to_owned(),
        "nar\\..\\..\\secret".to_owned(),
        format!("nar/{}", "x".repeat(8192)),
    ];
    let in_urls = urls.into_iter().map(|url| {
        Lie::in_the_middle(url.chars().take(40).collect::<String>(), move |narinfo| {
            narinfo.with("URL", &url)
        })
    });
    let secret = Lie::narinfo("a secret of the host", |truth| {
        let url = format!("file://{}", truth.canary.display());
        truth.narinfo().with("URL", &url).to_string()
    });
    Row::of(in_urls.chain([secret])).assert_found(Found::InAnswer);
    assert_eq!(bystander.requests(), []);
}

#[test]
fn a_redirect_in_a_ring_or_off_the_web_is_no_answer() {
    let lies = [
        redirect(File::Narinfo, "in a ring", str::to_owned),
        redirect(File::Narinfo, "further and further", |own| {
            format!("{own}x")
        }),
        redirect(File::Narinfo, "to a file", |_| {
            "file:///etc/passwd".to_owned()
        }),
        redirect(File::Narinfo, "to another protocol", |_| {
            "gopher://localhost/x".to_owned()
        }),
        redirect(File::Narinfo, "nowhere", |_| String::new()),
    ];
    Row::of(lies).assert_found(Found::InAnswer);
    let lies = [
        redirect(File::Archive, "in a ring", str::to_owned),
        redirect(File::Archive, "to a file", |_| {
            "file:///etc/passwd".to_owned()
        }),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

/// Redirects from one kind of files to what is made of the file's own address.
fn redirect(file: File, name: &str, to: fn(&str) -> String) -> Lie {
    Lie::new(name, move |asked| {
        // Also what is not there, since it was redirected to.
        let is_redirected = asked.file == File::Unknown && asked.request.path.ends_with('x');
        if asked.file == file || is_redirected {
            Answer::redirect(302, &to(&asked.request.path))
        } else {
            asked.honest()
        }
    })
}

#[test]
fn what_a_redirect_brings_from_another_server_is_believed_only_if_it_is_signed() {
    let bystander = bystander();
    let url = bystander.url("/x");
    let to = url.clone();
    let answers = Lie::of("answers", File::Narinfo, move |_| {
        Answer::redirect(302, &to)
    });
    Row::of([answers]).assert_found(Found::InAnswer);
    let archives = Lie::of("archives", File::Archive, move |_| {
        Answer::redirect(307, &url)
    });
    Row::of([archives]).assert_found(Found::InArchive);
}

#[test]
fn a_server_that_nobody_trusted_vouches_for_and_an_open_door_behind_one_are_no_caches() {
    let [known, unknown] = [(); 2].map(|()| Arc::new(Authority::new()));
    let bystander = bystander();
    let lies = [
        Lie::none().over_tls(&known, Flaw::Expired),
        Lie::none().over_tls(&known, Flaw::OtherName),
        Lie::none().over_tls(&unknown, Flaw::None),
    ];
    let row = Row::of(lies).trusting(&known);
    row.assert_found(Found::Unanswered);

    let url = bystander.url("/x");
    let opened = [File::Info, File::Narinfo].map(|file| {
        let url = url.clone();
        let lie = Lie::of("an open door", file, move |_| Answer::redirect(302, &url));
        lie.over_tls(&known, Flaw::None)
    });
    let row = Row::of(opened).trusting(&known);
    row.assert_found(Found::Unanswered);
    assert_eq!(bystander.requests(), []);

    let honest = Lie::none().over_tls(&known, Flaw::None);
    Row::of([honest]).trusting(&known).assert_harmless();
}
