//! Large files: resumed, changed, ended, slow.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::testing::server::{Request, Server, Step, answer, head};

const N_BYTES: usize = 3 << 20;

/// A file whose bytes all tell where they are. Made once, since a server is not to be slow.
#[derive(Clone)]
struct Original(Arc<[u8]>);

impl Original {
    fn new() -> Self {
        let numbers = 0..u32::try_from(N_BYTES / 4).unwrap();
        Self(numbers.flat_map(u32::to_le_bytes).collect())
    }

    /// Says that the whole file comes, sends so many bytes of it, and hangs up.
    fn broken_off(&self, headers: &[(&str, &str)], n_bytes: usize) -> Vec<Step> {
        let length = N_BYTES.to_string();
        let headers = [headers, &[("Content-Length", &length)]].concat();
        vec![
            Step::Send(head(200, &headers)),
            Step::Send(self.0[..n_bytes].to_vec()),
            Step::HangUp,
        ]
    }

    /// Sends the part that is asked for.
    fn part(&self, request: &Request, headers: &[(&str, &str)]) -> Vec<Step> {
        let start = start_of_range(request).unwrap();
        let range = format!("bytes {start}-{}/{N_BYTES}", N_BYTES - 1);
        let headers = [headers, &[("Content-Range", &range)]].concat();
        answer(206, &headers, &self.0[start..])
    }

    /// Sends the file.
    fn whole(&self, headers: &[(&str, &str)]) -> Vec<Step> {
        answer(200, headers, &self.0)
    }

    /// Asserts that a user gets the file.
    #[track_caller]
    fn assert_comes(&self, user: &User, file: &str) {
        assert!(user.download(file).unwrap() == *self.0, "{file}");
    }
}

fn start_of_range(request: &Request) -> Option<usize> {
    let range = request.headers.get("range")?;
    range
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

#[test]
fn a_large_file_comes_as_it_is() {
    let original = Original::new();
    let sent = original.clone();
    let server = Server::start(move |request| match request.target.as_str() {
        "/chunked" => {
            let mut body = head(200, &[("Transfer-Encoding", "chunked")]);
            for piece in sent.0.chunks(70_000) {
                body.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                body.extend(piece);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            vec![Step::Send(body)]
        }
        "/empty" => answer(200, &[], b""),
        "/told" => sent.whole(&[]),
        _ => answer(404, &[], b"no"),
    });
    let user = User::at(&server);
    for file in ["told", "chunked"] {
        original.assert_comes(&user, file);
    }
    assert_eq!(user.download("empty").unwrap(), b"");
    let (mut body, _guard) = user.open("told").unwrap();
    let mut buffer = [1; 4];
    assert_eq!(body.read(&mut []).unwrap(), 0);
    assert_eq!(body.read(&mut buffer).unwrap(), 4);
    assert_eq!(buffer, [0; 4]);
    drop(body);
    let Err(missing) = user.open("nowhere") else {
        panic!("it is not there");
    };
    assert!(matches!(missing, TransportError::Missing { .. }));
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_where_it_was() {
    let tag = [("ETag", "\"one\"")];
    let original = Original::new();
    let sent = original.clone();
    let server = Server::start(move |request| match request.n_before {
        0 => sent.broken_off(&tag, 1_000_000),
        1 => answer(503, &[], b"sorry"),
        _ => sent.part(request, &tag),
    });
    original.assert_comes(&User::at(&server), "x");
    let requests = server.requests();
    assert!(!requests[0].headers.contains_key("range"));
    for again in &requests[1..] {
        assert_eq!(again.headers["range"], "bytes=1000000-");
        assert_eq!(again.headers["if-range"], "\"one\"");
    }
    assert_eq!(requests.len(), 3);
}

#[test]
fn a_file_that_breaks_off_again_and_again_still_comes_while_it_advances() {
    // More often than a server is asked for nothing.
    let original = Original::new();
    let sent = original.clone();
    let server = Server::start(move |request| {
        let [headers, bytes] = {
            let length = N_BYTES.to_string();
            let start = start_of_range(request).unwrap_or(0);
            let end = N_BYTES.min(start + (1 << 20));
            let rest = (N_BYTES - start).to_string();
            let range = format!("bytes {start}-{}/{N_BYTES}", N_BYTES - 1);
            let headers = if start == 0 {
                head(200, &[("Content-Length", &length)])
            } else {
                head(206, &[("Content-Length", &rest), ("Content-Range", &range)])
            };
            [headers, sent.0[start..end].to_vec()]
        };
        vec![Step::Send(headers), Step::Send(bytes), Step::HangUp]
    });
    let provisions = Provisions {
        n_attempts: 2,
        ..provisions()
    };
    let user = User::of(&server.url("/"), provisions);
    original.assert_comes(&user, "x");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_server_without_ranges_may_send_the_same_version_again() {
    let date = [("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let original = Original::new();
    let sent = original.clone();
    let server = Server::start(move |request| match request.n_before {
        0 => sent.broken_off(&date, 1_000_001),
        _ => sent.whole(&date),
    });
    original.assert_comes(&User::at(&server), "x");
    assert_eq!(server.requests()[1].headers["if-range"], date[0].1);
}

#[test]
fn a_file_that_changed_meanwhile_is_not_patched_together() {
    let one = [("ETag", "\"one\"")];
    let two = [("ETag", "\"two\"")];
    let sent = Original::new();
    let server = Server::start(move |request| {
        let is_first = !request.headers.contains_key("range");
        match request.target.as_str() {
            "/unnamed" if is_first => sent.broken_off(&[], 1000),
            _ if is_first => sent.broken_off(&one, 1000),
            "/whole" => sent.whole(&two),
            "/part" => sent.part(request, &two),
            "/shorter" => answer(416, &[("Content-Range", "bytes */5")], b""),
            "/gone" => answer(404, &[], b""),
            "/other-part" => answer(
                206,
                &[("Content-Range", "bytes 1001-3145727/3145728")],
                b"x",
            ),
            _ => sent.whole(&[]),
        }
    });
    let user = User::at(&server);
    for file in ["whole", "part", "shorter", "unnamed"] {
        let error = user.download(file).unwrap_err();
        assert!(
            error.ends_with("contents changed while it was downloaded"),
            "{file}: {error}"
        );
        assert!(error.contains(&server.url("/")), "{error}");
    }
    assert!(user.download("gone").unwrap_err().ends_with("is not there"));
    let error = user.download("other-part").unwrap_err();
    assert!(
        error.ends_with("another part of the file than it was asked for"),
        "{error}"
    );
}

#[test]
fn a_transfer_ends_at_once_under_a_reader_who_waits() {
    let (is_gone, gone) = mpsc::channel();
    let server = Server::start(move |_| {
        let is_gone = is_gone.clone();
        vec![
            Step::Send(head(200, &[("Content-Length", "10")])),
            Step::Send(b"hello".to_vec()),
            Step::Call(Box::new(move |mut connection| {
                // Until the client hangs up.
                drop(connection.read(&mut [0]));
                is_gone.send(()).unwrap();
            })),
            Step::HangUp,
        ]
    });
    let user = User::at(&server);
    let (mut body, guard) = user.open("x").unwrap();
    body.read_exact(&mut [0; 5]).unwrap();
    let (waits, is_waiting) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        waits.send(()).unwrap();
        body.read(&mut [0]).unwrap_err()
    });
    is_waiting.recv().unwrap();
    let error = within(Duration::from_secs(1), || {
        drop(guard);
        reader.join().unwrap()
    });
    assert!(error.to_string().contains("nobody wants"), "{error}");
    gone.recv_timeout(SOON).unwrap();
    // And so it does when the reader loses interest.
    let (body, _guard) = user.open("x").unwrap();
    drop(body);
    gone.recv_timeout(SOON).unwrap();
}

#[test]
fn one_who_waits_between_attempts_can_be_ended_too() {
    let sent = Original::new();
    let server = Server::start(move |request| match request.n_before {
        0 => sent.broken_off(&[("ETag", "\"one\"")], 1000),
        _ => answer(503, &[("Retry-After", "50")], b""),
    });
    let user = User::at(&server);
    let (mut body, guard) = user.open("x").unwrap();
    body.read_exact(&mut [0; 1000]).unwrap();
    let reader = std::thread::spawn(move || body.read(&mut [0]).unwrap_err());
    let asked_again = || server.requests().len() == 2;
    while !asked_again() {
        std::thread::yield_now();
    }
    within(Duration::from_secs(1), || {
        drop(guard);
        reader.join().unwrap()
    });
}

#[test]
fn a_stall_in_the_midst_of_a_file_is_found_and_overcome() {
    let tag = [("ETag", "\"one\"")];
    let original = Original::new();
    let sent = original.clone();
    let server = Server::start(move |request| match request.n_before {
        0 => {
            let mut steps = sent.broken_off(&tag, 1000);
            steps.pop();
            steps.push(Step::Stall);
            steps
        }
        _ => sent.part(request, &tag),
    });
    let user = User::of(&server.url("/"), impatient());
    within(SOON, || original.assert_comes(&user, "x"));
}

#[test]
fn one_who_never_sends_a_file_is_not_asked_again() {
    let server = Server::start(|request| match request.target.as_str() {
        "/silent" => vec![Step::Stall],
        _ => vec![
            Step::Drip(b"HTTP/1.1 200 So\r\n".repeat(20), Duration::from_millis(20)),
            Step::Stall,
        ],
    });
    let user = User::of(&server.url("/"), impatient());
    for file in ["silent", "slow-headers"] {
        let error = within(Duration::from_secs(9), || user.download(file).unwrap_err());
        assert!(error.contains("almost nothing, for 1000 ms"), "{error}");
    }
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_reader_who_takes_his_time_holds_up_the_server_and_fills_no_memory() {
    const PIECE: usize = 1 << 20;
    const N_PIECES: usize = 64;
    let (paused, pause) = mpsc::channel();
    let server = Server::start(move |_| {
        let length = (PIECE * N_PIECES).to_string();
        let paused = paused.clone();
        vec![
            Step::Send(head(200, &[("Content-Length", &length)])),
            Step::Call(Box::new(move |mut connection| {
                let piece = vec![b'x'; PIECE];
                let mut n_sent = 0;
                // Longer than the client thinks that a server may be silent for.
                let patience = Some(Duration::from_millis(2500));
                connection.set_write_timeout(patience).unwrap();
                while n_sent < PIECE * N_PIECES {
                    let n_left = PIECE.min(PIECE * N_PIECES - n_sent);
                    match connection.write(&piece[..n_left]) {
                        Ok(n) => n_sent += n,
                        // Nobody reads.
                        Err(_) => drop(paused.send(n_sent)),
                    }
                }
            })),
        ]
    });
    let user = User::of(&server.url("/"), impatient());
    let (mut body, _guard) = user.open("x").unwrap();
    let n_sent = pause.recv_timeout(SOON).unwrap();
    assert!(n_sent < PIECE * N_PIECES / 2, "{n_sent}");
    let n_read = std::io::copy(&mut body, &mut std::io::sink()).unwrap();
    assert_eq!(n_read, (PIECE * N_PIECES) as u64);
    assert_eq!(server.requests().len(), 1);
}
