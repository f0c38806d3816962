//! Whom a transport believes, and what it tells to whom.

use super::*;
use crate::testing::server::{Authority, Flaw, Server, answer, redirect};

fn trusting(authority: &Authority) -> Provisions {
    Provisions {
        certificates: authority.certificate.clone().into_bytes(),
        ..provisions()
    }
}

#[test]
fn a_server_is_believed_only_if_somebody_trusted_vouches_for_its_name_today() {
    let (trusted, stranger) = (Authority::new(), Authority::new());
    for (authority, flaw) in [
        (&trusted, Flaw::None),
        (&stranger, Flaw::None),
        (&trusted, Flaw::Expired),
        (&trusted, Flaw::OtherName),
    ] {
        let server = Server::start_with_tls(authority.server(flaw), |_| answer(200, &[], b"hello"));
        let provisions = Provisions {
            netrc: b"machine localhost login me password hidden".to_vec(),
            ..trusting(&trusted)
        };
        let user = User::of(&server.url("/"), provisions);
        if std::ptr::eq(authority, &raw const trusted) && flaw == Flaw::None {
            assert_eq!(user.read("x").unwrap().as_deref(), Some(&b"hello"[..]));
            assert_eq!(user.download("x").unwrap(), b"hello");
            let login = &server.requests()[0].headers["authorization"];
            assert_eq!(login, "Basic bWU6aGlkZGVu");
            continue;
        }
        let error = user.read("x").unwrap_err();
        assert!(matches!(error, TransportError::Broken { .. }), "{flaw:?}");
        let text = chain(&error);
        assert!(
            text.contains("certificate is not trusted: invalid"),
            "{text}"
        );
        let text = user.download("x").unwrap_err();
        assert!(text.contains("certificate is not trusted"), "{text}");
        // Once each, and no request was made.
        assert_eq!(server.n_connections(), 2, "{flaw:?}");
        assert!(server.requests().is_empty(), "{flaw:?}");
    }
}

#[test]
fn without_certificates_no_server_is_asked_that_has_to_be_verified() {
    let authority = Authority::new();
    let server = Server::start_with_tls(authority.server(Flaw::None), |_| answer(200, &[], b""));
    let error = User::at(&server).read_failing("x");
    assert!(
        error.contains("'ssl-cert-file' says where they are"),
        "{error}"
    );
    assert_eq!(server.n_connections(), 0);
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let server = Server::start(|request| {
        let number: usize = request.target[1..].parse().unwrap();
        match number {
            0 => answer(200, &[], b"hello"),
            n => redirect(&format!("{}", n - 1)),
        }
    });
    let user = User::at(&server);
    assert_eq!(user.read("5").unwrap().as_deref(), Some(&b"hello"[..]));
    assert_eq!(user.download("5").unwrap(), b"hello");
    let error = user.read_failing("6");
    assert!(
        error.ends_with("the server redirects without end"),
        "{error}"
    );
    assert!(user.download("6").unwrap_err().contains("without end"));
}

#[test]
fn nobody_is_led_from_an_encrypted_connection_to_an_open_one_or_off_the_web() {
    let authority = Authority::new();
    let open = Server::start(|_| answer(200, &[], b"hello"));
    let open_url = open.url("/x");
    let server = Server::start_with_tls(authority.server(Flaw::None), move |request| match request
        .target
        .as_str()
    {
        "/open" => redirect(&open_url),
        "/file" => redirect("file:///etc/passwd"),
        "/ftp" => redirect("ftp://localhost/x"),
        "/nowhere" => answer(302, &[], b""),
        _ => redirect("http://"),
    });
    let user = User::of(&server.url("/"), trusting(&authority));
    for file in ["open", "file", "ftp", "nowhere", "nonsense"] {
        let error = user.read_failing(file);
        assert!(error.contains("the server redirects "), "{file}: {error}");
        let error = user.download(file).unwrap_err();
        assert!(error.contains("the server redirects "), "{file}: {error}");
    }
    assert_eq!(open.n_connections(), 0);
}

#[test]
fn a_password_goes_to_the_caches_own_server_and_is_never_printed() {
    let server = Server::start(|request| {
        let host = request.headers["host"].clone();
        let (name, port) = host.split_once(':').unwrap();
        match (request.target.as_str(), name) {
            ("/cache/away", "localhost") => redirect(&format!("//127.0.0.1:{port}/back")),
            ("/back", "127.0.0.1") => redirect(&format!("//you:own@localhost:{port}/there")),
            ("/cache/near", _) => redirect("/there"),
            ("/there", _) => answer(200, &[], b"hello"),
            _ => answer(500, &[], b""),
        }
    });
    let netrc = b"machine localhost login me password hidden\ndefault login me password hidden";
    let own = server.url("/cache").replace("://", "://me:hidden@");
    for (address, netrc) in [(own, &b""[..]), (server.url("/cache"), netrc)] {
        let before = server.requests().len();
        let provisions = Provisions {
            netrc: netrc.to_vec(),
            n_attempts: 1,
            ..provisions()
        };
        let user = User::of(&address, provisions);
        assert!(user.read("near").unwrap().is_some());
        assert!(user.read("away").unwrap().is_some());
        let is_told: Vec<bool> = server.requests()[before..]
            .iter()
            .map(|request| request.headers.contains_key("authorization"))
            .collect();
        // Whoever has been elsewhere comes back as a stranger.
        assert_eq!(is_told, [true, true, true, false, false]);
        let debug = format!("{:?}{:?}", user.transport, user.transport.web);
        let error = user.read("broken").unwrap_err();
        for text in [chain(&error), format!("{error:?}"), debug] {
            assert!(!text.contains("hidden"), "{text}");
        }
        assert!(chain(&error).contains("'http://localhost:"));
    }
}

#[test]
fn a_proxy_is_asked_for_those_who_are_not_exempt() {
    let proxy = Server::start(|_| answer(200, &[], b"by proxy"));
    let server = Server::start(|_| answer(200, &[], b"directly"));
    let proxies = store_model::ProxyVariables {
        http: Some(proxy.url("/").replace("://", "://me:hidden@")),
        none: Some("localhost".to_owned()),
        ..store_model::ProxyVariables::default()
    };
    let provisions = Provisions {
        proxies,
        ..provisions()
    };
    let user = User::of("http://cache.invalid/a", provisions.clone());
    assert_eq!(user.read("x").unwrap().as_deref(), Some(&b"by proxy"[..]));
    let asked = &proxy.requests()[0];
    assert_eq!(asked.target, "http://cache.invalid/a/x");
    assert_eq!(asked.headers["proxy-authorization"], "Basic bWU6aGlkZGVu");
    let user = User::of(&server.url("/"), provisions);
    assert_eq!(user.read("x").unwrap().as_deref(), Some(&b"directly"[..]));
    assert_eq!(proxy.requests().len(), 1);
}

#[test]
fn a_server_on_another_host_is_given_no_part_of_a_signed_address() {
    let server = Server::start(|_| answer(404, &[], b""));
    let user = User::of(&server.url_by_number("/cache"), provisions());
    let error = user.download("nar/x.nar?token=hidden").unwrap_err();
    let shown = server.url_by_number("/cache/nar/x.nar");
    assert_eq!(error, format!("'{shown}' is not there"));
    assert_eq!(server.requests()[0].target, "/cache/nar/x.nar?token=hidden");
}
