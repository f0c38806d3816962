//! What a built-in builder may do, when it ends, and whom it asks and tells passwords.

use std::fs;
use std::path::Path;
use std::time::Duration;

use it::processes::Watched;
use it::web::{Answer, Authority, WebServer};
use it::{Invocation, Profile, TestStore, debris, processes, requirement};
use nix::sys::signal::Signal;
use store_model::{Hash, HashAlgorithm};

use super::{assert_alike, download, fetch};

/// How long a program may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_download_ends_with_its_time_or_with_goalctl() {
    if !requirement::genuine_nix() {
        return;
    }
    let server = WebServer::start(|_| Answer::file("x").stalling_after(0));
    let expression = fetch("x", &server.url("/x"), b"x", "");
    let (finished, _) = assert_alike(Profile::native(), &expression, |invocation| {
        invocation.option("timeout", "1")
    });
    finished.expect_status(101);
    let store = TestStore::new();
    // Nix's own progress, which nobody sees, counts as something said.
    download(&store, &server.url("/x"), b"x")
        .option("max-silent-time", "1")
        .run()
        .expect_status(101);
    let mut running = download(&store, &server.url("/x"), b"x").start();
    running.await_line(|line| line.contains("downloading"));
    let builders = processes::descendants(running.pid());
    let watched: Vec<Watched> = builders
        .iter()
        .filter_map(|builder| Watched::new(builder.pid))
        .collect();
    running.signal(Signal::SIGINT);
    assert_ne!(running.finish().code(), 0);
    assert!(watched.iter().all(|builder| builder.await_end(PATIENCE)));
    debris::assert_clean(&store);
}

#[test]
fn a_builtin_runs_with_no_more_than_a_builder_has() {
    let server = WebServer::start(|_| Answer::file("x").stalling_after(0));
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let mut running = download(&store, &server.url("/x"), b"x").start();
        running.await_line(|line| line.contains("downloading"));
        // The launcher, the build's first process, the builder.
        let all = processes::descendants(running.pid());
        let parents: Vec<u32> = all.iter().map(|process| process.parent).collect();
        let builder = all.iter().find(|process| !parents.contains(&process.pid));
        let builder = builder.expect("the builder runs").pid;
        let proc = |name: &str| Path::new("/proc").join(builder.to_string()).join(name);
        let status = fs::read_to_string(proc("status")).expect("the builder runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in\n{status}"));
            line.trim().to_owned()
        };
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(name), "0000000000000000", "{name}");
        }
        assert_eq!(
            (field("NoNewPrivs:"), field("Seccomp:")),
            ("1".into(), "2".into())
        );
        let uid = field("Uid:");
        let uids: Vec<&str> = uid.split_whitespace().collect();
        let own = profile.uid().to_string();
        assert!(uids.iter().all(|uid| *uid == uids[0]), "{uids:?}");
        assert_eq!(uids[0] == own, profile == Profile::Ordinary, "{uids:?}");
        for namespace in ["mnt", "pid", "user", "ipc", "uts"] {
            let of = |file: std::path::PathBuf| fs::read_link(file).expect("it has namespaces");
            let host = Path::new("/proc/self/ns").join(namespace);
            assert_ne!(of(proc("ns").join(namespace)), of(host), "{namespace}");
        }
        // Nothing is open but its three and what it downloads.
        let open = fs::read_dir(proc("fd")).expect("it has descriptors");
        let open: Vec<_> = open
            .filter_map(|found| fs::read_link(found.ok()?.path()).ok())
            .collect();
        assert!(open.len() <= 5, "{open:?}");
        let root = fs::read_dir(proc("root")).expect("it has a root");
        let root: Vec<_> = root
            .filter_map(|found| Some(found.ok()?.file_name()))
            .collect();
        assert!(
            !root.iter().any(|name| name == "home" || name == "root"),
            "{root:?}"
        );
        running.signal(Signal::SIGINT);
        assert_ne!(running.finish().code(), 0);
        debris::assert_clean(&store);
    }
}

#[test]
fn only_a_server_that_is_vouched_for_is_asked_and_told_a_password() {
    let (trusted, stranger) = (Authority::new(), Authority::new());
    let plain = WebServer::start(|_| Answer::file("plain"));
    let elsewhere = plain.url("/elsewhere");
    let by_number = plain.url_by_number("/elsewhere");
    let serve = move |request: &it::web::Request| match request.path.as_str() {
        "/plain" => Answer::redirect(302, &elsewhere),
        "/other" => Answer::redirect(302, &by_number),
        _ => Answer::file("secure"),
    };
    let server = WebServer::start_with_tls(&trusted, serve);
    let imposter = WebServer::start_with_tls(&stranger, |_| Answer::file("secure"));
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let certificates = store.dir().join("conf/certificates.pem");
        fs::write(&certificates, trusted.certificate()).expect("the folder is ours");
        fs::write(
            store.dir().join("conf/netrc"),
            "machine localhost login me password secret\n",
        )
        .expect("the folder is ours");
        let named = |invocation: Invocation| invocation.option("ssl-cert-file", &certificates);
        named(download(&store, &server.url("/file"), b"secure")).succeed();
        let request = server.requests().pop().expect("it was asked");
        let told = request.headers.get("authorization");
        assert_eq!(told.map(String::as_str), Some("Basic bWU6c2VjcmV0"));

        // The name is another, and nobody vouches for that.
        for (url, kind) in [
            (imposter.url("/file"), "certificate is not trusted"),
            (server.url_by_number("/file"), "certificate is not trusted"),
        ] {
            let n_before = server.requests().len();
            let refused = named(download(&store, &url, b"never"))
                .option("keep-failed", "true")
                .run();
            refused.expect_status(1).expect_error(kind);
            assert_eq!(server.requests().len(), n_before);
            debris::assert_clean(&store);
        }
        assert_eq!(imposter.requests(), []);

        // Whoever listens on a plain connection hears no password, also after a redirect.
        for (name, path) in [("plain", "/plain"), ("other", "/other")] {
            let drv = store.instantiate_one(&fetch(name, &server.url(path), b"plain", ""));
            named(store.goalctl(["build", &drv])).succeed();
        }
        let drv = store.instantiate_one(&fetch("direct", &plain.url("/direct"), b"plain", ""));
        named(store.goalctl(["build", &drv])).succeed();
        let heard = plain.requests();
        assert!(heard.len() >= 3);
        for request in heard {
            assert_eq!(request.headers.get("authorization"), None, "{request:?}");
        }
    }
}

#[test]
fn certificates_are_found_where_the_environment_says_and_without_any_nothing_is_asked() {
    let authority = Authority::new();
    let server = WebServer::start_with_tls(&authority, |_| Answer::file("secure"));
    for variable in ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"] {
        let store = TestStore::new();
        let certificates = store.dir().join("certificates.pem");
        fs::write(&certificates, authority.certificate()).expect("the folder is ours");
        download(&store, &server.url("/file"), b"secure")
            .env(variable, &certificates)
            .succeed();
    }
    let n_asked = server.requests().len();
    let store = TestStore::new();
    download(&store, &server.url("/file"), b"secure")
        .env("NIX_SSL_CERT_FILE", "/no/such/file")
        .run()
        .expect_status(1)
        .expect_error("ssl-cert-file");
    assert_eq!(server.requests().len(), n_asked);
    debris::assert_clean(&store);
}

#[test]
fn mirrors_are_asked_first_in_their_order_and_failing_ones_are_passed_over() {
    if !requirement::genuine_nix() {
        return;
    }
    let content = b"mirrored";
    let file = format!(
        "/good/sha256/{}",
        Hash::digest(HashAlgorithm::Sha256, content).to_base16()
    );
    let server = WebServer::start(move |request| {
        if request.path == file || request.path == "/origin" {
            Answer::file("mirrored")
        } else {
            Answer::error(404)
        }
    });
    let fetch = fetch("mirrored", &server.url("/origin"), content, "");
    let (bad, good) = (server.url("/bad"), server.url("/good/"));
    let (finished, _) = assert_alike(Profile::native(), &fetch, |invocation| {
        invocation.option("hashed-mirrors", format!("{bad} {good}"))
    });
    finished.expect_status(0);
    assert_eq!(server.n_requests("/origin"), 0);
    let (finished, _) = assert_alike(Profile::native(), &fetch, |invocation| {
        invocation.option("hashed-mirrors", &bad)
    });
    finished.expect_status(0);
    assert_eq!(server.n_requests("/origin"), 2);
}

#[test]
fn a_proxy_is_used_where_the_environment_names_one() {
    let server = WebServer::start(|_| Answer::file("direct"));
    let store = TestStore::new();
    let dead = "http://127.0.0.1:1";
    download(&store, &server.url("/file"), b"direct")
        .env("http_proxy", dead)
        .option("download-attempts", "1")
        .run()
        .expect_status(1);
    assert_eq!(server.requests(), []);
    download(&store, &server.url("/file"), b"direct")
        .env("http_proxy", dead)
        .env("no_proxy", "localhost")
        .succeed();
    let proxy = WebServer::start(|_| Answer::file("through the proxy"));
    let far = "http://host.invalid/far";
    download(&store, far, b"through the proxy")
        .env("http_proxy", proxy.url(""))
        .succeed();
    let tunnels: Vec<_> = proxy
        .requests()
        .into_iter()
        .map(|request| request.tunnel)
        .collect();
    assert_eq!(tunnels, [Some("host.invalid:80".to_owned())]);
    debris::assert_clean(&store);
}
