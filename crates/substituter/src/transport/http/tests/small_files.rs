//! Small files: there, not there, too long, late, encoded.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::testing::server::{BlackHole, Server, Step, answer, head};

#[test]
fn a_connection_serves_many_files_also_those_that_are_not_there() {
    let server = Server::start(|request| match request.target.as_str() {
        "/cache/there" => answer(200, &[], b"hello"),
        "/cache/empty" => answer(200, &[], b""),
        "/cache/hidden" => answer(403, &[], b"<Error>AccessDenied</Error>"),
        "/cache/gone" => answer(410, &[], &[b'x'; 10_000]),
        _ => answer(404, &[], b"404"),
    });
    let user = User::of(&server.url("/cache?priority=3"), provisions());
    assert_eq!(user.read("there").unwrap().as_deref(), Some(&b"hello"[..]));
    assert_eq!(user.read("empty").unwrap().as_deref(), Some(&b""[..]));
    for missing in ["hidden", "gone", "nowhere"] {
        assert!(user.read(missing).unwrap().is_none(), "{missing}");
    }
    for n in 0..100 {
        assert!(user.read(&format!("{n}")).unwrap().is_none());
    }
    // A request that comes before the library knows that the last one is over opens another.
    let n_connections = server.n_connections();
    assert!(n_connections < 20, "{n_connections}");
    let first = &server.requests()[0];
    assert_eq!(first.headers["accept-encoding"], "identity");
    assert!(first.headers["user-agent"].starts_with("goalctl/"));
    assert!(!first.headers.contains_key("authorization"));
}

#[test]
fn a_file_that_is_too_long_is_not_read_to_its_end() {
    let server = Server::start(|request| match request.target.as_str() {
        "/told" => vec![
            Step::Send(head(200, &[("Content-Length", "1000000000000")])),
            Step::Repeat(vec![b'x'; 1000]),
        ],
        _ => vec![
            Step::Send(head(200, &[("Transfer-Encoding", "chunked")])),
            Step::Repeat(b"5\r\nhello\r\n".to_vec()),
        ],
    });
    let user = User::at(&server);
    for file in ["told", "endless"] {
        let error = within(SOON, || user.read_failing(file));
        assert!(
            error.ends_with("the file has more than 1000 bytes"),
            "{error}"
        );
        let error = user.read(file).unwrap_err();
        assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    }
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_server_that_fails_for_a_moment_is_asked_again() {
    let server = Server::start(|request| match request.n_before {
        0 => answer(500, &[], b"sorry"),
        1 => vec![Step::Reset],
        _ => answer(200, &[], b"hello"),
    });
    let user = User::at(&server);
    assert_eq!(user.read("x").unwrap().as_deref(), Some(&b"hello"[..]));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_file_that_breaks_off_is_read_again_and_one_that_is_not_what_it_says_is_no_file() {
    let server = Server::start(|request| match request.n_before {
        0 => vec![
            Step::Send(head(200, &[("Content-Length", "5")])),
            Step::Send(b"hel".to_vec()),
            Step::HangUp,
        ],
        1 => vec![
            Step::Send(head(200, &[("Transfer-Encoding", "chunked")])),
            Step::Send(b"3\r\nhel\r\n".to_vec()),
            Step::HangUp,
        ],
        _ => answer(200, &[], b"hello"),
    });
    let user = User::at(&server);
    assert_eq!(user.read("x").unwrap().as_deref(), Some(&b"hello"[..]));
}

#[test]
fn a_server_is_asked_as_often_as_the_settings_say_and_then_named() {
    let server = Server::start(|_| answer(503, &[], b"sorry"));
    let user = User::of(
        &server.url("/cache"),
        Provisions {
            n_attempts: 2,
            ..provisions()
        },
    );
    let error = user.read_failing("x.narinfo");
    let url = server.url("/cache/x.narinfo");
    let told = format!("no answer from '{url}': HTTP status 503 (Service Unavailable)");
    assert_eq!(error, told);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_says_when_to_come_back_is_heeded_for_a_while_only() {
    let server = Server::start(
        |request| match (request.target.as_str(), request.n_before) {
            ("/soon", 0) => answer(503, &[("Retry-After", "1")], b""),
            ("/soon", _) => answer(200, &[], b"hello"),
            _ => answer(429, &[("Retry-After", "3600")], b""),
        },
    );
    let user = User::at(&server);
    let begun = tokio::time::Instant::now();
    assert!(user.read("soon").unwrap().is_some());
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let error = within(SOON, || user.read("later").unwrap_err());
    let TransportError::NoAnswer { retry_after, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(retry_after, Some(Duration::from_hours(1)));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn one_who_never_answers_costs_a_time_out() {
    let drip = || {
        let headers = head(200, &[("Content-Length", "5")]);
        Step::Drip(headers, Duration::from_millis(50))
    };
    let server = Server::start(move |request| match request.target.as_str() {
        "/silent" => vec![Step::Stall],
        "/slow-headers" => vec![drip(), drip(), Step::Stall],
        _ => vec![
            Step::Send(head(200, &[("Content-Length", "5")])),
            Step::Send(b"hel".to_vec()),
            Step::Stall,
        ],
    });
    let user = User::of(&server.url("/"), impatient());
    for file in ["silent", "slow-headers", "half"] {
        let error = within(Duration::from_secs(9), || user.read_failing(file));
        assert!(error.contains("almost nothing, for 1000 ms"), "{error}");
    }
    // Nobody waited for is asked again.
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn no_attempt_is_waited_for_that_would_come_too_late_for_whoever_asks() {
    let server = Server::start(|_| answer(503, &[("Retry-After", "10")], b""));
    let provisions = Provisions {
        answer_limit: Some(Duration::from_secs(9)),
        ..provisions()
    };
    let user = User::of(&server.url("/"), provisions);
    let error = within(Duration::from_secs(5), || user.read("x").unwrap_err());
    let TransportError::NoAnswer { retry_after, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(retry_after, Some(Duration::from_secs(10)));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_question_that_nobody_waits_for_ends_with_its_connection() {
    let (is_gone, gone) = mpsc::channel();
    let server = Server::start(move |_| {
        let is_gone = is_gone.clone();
        let wait = move |mut connection: &TcpStream| {
            // Until the client hangs up.
            drop(connection.read(&mut [0]));
            is_gone.send(()).unwrap();
        };
        vec![Step::Call(Box::new(wait)), Step::HangUp]
    });
    let user = User::at(&server);
    let file = "x".parse().unwrap();
    user.runtime.block_on(async {
        let read = user.transport.read_small(&file, 10);
        let limit = Duration::from_millis(100);
        assert!(tokio::time::timeout(limit, read).await.is_err());
    });
    gone.recv_timeout(SOON).unwrap();
}

#[test]
fn what_a_server_encodes_unasked_is_decoded_if_it_is_small() {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"a log\n").unwrap();
    let zipped = encoder.finish().unwrap();
    let server = Server::start(move |request| match request.target.as_str() {
        "/identity" => answer(200, &[("Content-Encoding", "identity")], b"a log\n"),
        "/unknown" => answer(200, &[("Content-Encoding", "rot13")], b"n ybt\n"),
        _ => answer(200, &[("Content-Encoding", "gzip")], &zipped),
    });
    let user = User::at(&server);
    for file in ["gzip", "identity"] {
        assert_eq!(user.read(file).unwrap().as_deref(), Some(&b"a log\n"[..]));
    }
    let error = user.read_failing("unknown");
    assert!(error.ends_with("encoded as 'rot13'"), "{error}");
    let error = user.download("gzip").unwrap_err();
    assert!(error.ends_with("encoded as 'gzip'"), "{error}");
    assert_eq!(user.download("identity").unwrap(), b"a log\n");
}

#[test]
fn a_host_that_does_not_take_connections_costs_no_more_than_one_may() {
    let hole = BlackHole::new();
    let limit = Duration::from_millis(300);
    let user = User::of(
        &hole.url(),
        Provisions {
            connect_limit: limit,
            ..provisions()
        },
    );
    let error = within(Duration::from_secs(5), || user.read("x").unwrap_err());
    assert!(
        matches!(error, TransportError::NoAnswer { .. }),
        "{error:?}"
    );
    let text = chain(&error);
    assert!(text.ends_with("no connection within 300 ms"), "{text}");
    let text = within(Duration::from_secs(5), || user.download("x").unwrap_err());
    assert!(text.ends_with("no connection within 300 ms"), "{text}");
}

#[test]
fn a_host_that_refuses_connections_is_asked_again_for_a_second() {
    // Nobody listens on a port that was just bound and given back.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let provisions = Provisions {
        n_attempts: 9,
        ..provisions()
    };
    let user = User::of(&address, provisions);
    let error = within(Duration::from_secs(5), || user.read_failing("x"));
    assert!(
        error.contains("cannot connect: Connection refused"),
        "{error}"
    );
}
