//! The cache server itself, tried on genuine Nix and on bare sockets: a server that can't misbehave as
//! it is told would let every cache pass.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use it::cache_server::{CacheServer, Files};
use it::fixtures::Fixtures;
use it::measure::now;
use it::web::{Answer, Authority, Flaw};
use it::{Finished, TestStore, requirement};

/// A path of the fixture caches that refers to another.
const PATH: &str = "/nix/store/14rxkff69h94v7vw29jrlnynlr9jaars-diamond-left";

/// Has genuine Nix take the path from a cache, without remembering what caches say.
fn realise(store: &TestStore, cache: &CacheServer, fixtures: &Fixtures) -> Finished {
    store
        .nix_store(["--realise", PATH])
        .option("substituters", cache.url())
        .option("trusted-public-keys", fixtures.public_key())
        .option("narinfo-cache-positive-ttl", "0")
        .option("narinfo-cache-negative-ttl", "0")
        .option("download-attempts", "1")
        .run()
}

#[test]
fn genuine_nix_takes_paths_from_an_honest_server_and_from_no_other() {
    let Some(fixtures) = Fixtures::find().filter(|_| requirement::genuine_nix()) else {
        return;
    };
    let cache = CacheServer::start(fixtures.cache("xz"));
    let store = TestStore::new();
    let narinfo = Files::Narinfos;
    let other_hash = "sha256:0000000000000000000000000000000000000000000000000000";
    cache.play(narinfo.clone(), |asked| {
        asked.honest().with_field("NarHash", other_hash)
    });
    assert!(!realise(&store, &cache, &fixtures).status.success());
    cache.play(narinfo.clone(), |_| Answer::welcome_page());
    assert!(!realise(&store, &cache, &fixtures).status.success());
    cache.play(narinfo.clone(), |_| Answer::error(404));
    assert!(!realise(&store, &cache, &fixtures).status.success());
    cache.repent();
    cache.play(Files::Nars, |asked| asked.honest().hanging_up_after(10));
    assert!(!realise(&store, &cache, &fixtures).status.success());
    assert!(!store.real(PATH).exists());
    let n_broken = cache.n_requests(&Files::Nars);
    assert!(n_broken > 0);

    cache.repent();
    cache.delay(Duration::from_millis(20));
    let finished = realise(&store, &cache, &fixtures);
    assert!(finished.status.success(), "{finished:?}");
    assert!(store.real(PATH).exists());
    // One for each path, after those that broke off.
    assert_eq!(cache.n_requests(&Files::Nars) - n_broken, 2);
}

/// A client that asks for one thing after the other over one connection.
struct Client {
    stream: BufReader<TcpStream>,
}

/// A status, headers as they came, and the body.
struct Answered {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Answered {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (known, value) = line.split_once(": ")?;
            (known == name).then_some(value)
        })
    }
}

impl Client {
    fn of(cache: &CacheServer) -> Self {
        let address = cache.url().replace("http://", "");
        let stream = TcpStream::connect(address).expect("the server listens");
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, file: &str, fields: &str) {
        let request = format!("GET /{file} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes()).expect("it listens");
    }

    fn head(&mut self) -> (u16, Vec<String>) {
        let lines = self.stream.by_ref().lines().map_while(Result::ok);
        let mut lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        assert!(!lines.is_empty(), "the server hung up");
        let status = lines.remove(0);
        let status = status.split(' ').nth(1).expect("there is a status");
        (status.parse().expect("it is a number"), lines)
    }

    fn ask(&mut self, file: &str, fields: &str) -> Answered {
        self.send(file, fields);
        let (status, headers) = self.head();
        let mut answered = Answered {
            status,
            headers,
            body: Vec::new(),
        };
        let length = answered.header("Content-Length").expect("it is told");
        let length = length.parse().expect("it is a number");
        let mut body = self.stream.by_ref().take(length);
        body.read_to_end(&mut answered.body).expect("it comes");
        answered
    }
}

/// A cache with one file.
fn shelf() -> (tempfile::TempDir, CacheServer) {
    let dir = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(dir.path().join("nar")).expect("it is ours");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("it is ours");
    };
    file("nix-cache-info", "StoreDir: /nix/store\n");
    file("a.narinfo", "StorePath: a\nURL: nar/a\n");
    file("b.narinfo", "StorePath: b\n");
    file("nar/a", "0123456789");
    let cache = CacheServer::start(dir.path());
    (dir, cache)
}

#[test]
fn one_connection_serves_whole_files_parts_and_what_is_not_there() {
    let (dir, cache) = shelf();
    let mut client = Client::of(&cache);
    let whole = client.ask("nar/a", "");
    assert_eq!((whole.status, &*whole.body), (200, &b"0123456789"[..]));
    let tag = whole.header("ETag").expect("it has one").to_owned();
    let range = format!("Range: bytes=4-\r\nIf-Range: {tag}\r\n");
    let rest = client.ask("nar/a", &range);
    assert_eq!((rest.status, &*rest.body), (206, &b"456789"[..]));
    assert_eq!(rest.header("Content-Range"), Some("bytes 4-9/10"));
    std::fs::write(dir.path().join("nar/a"), "changed").expect("it is ours");
    let changed = client.ask("nar/a", &range);
    assert_eq!((changed.status, &*changed.body), (200, &b"changed"[..]));
    for absent in ["nowhere", "../secret", "nar/../a.narinfo", ""] {
        assert_eq!(client.ask(absent, "").status, 404, "{absent}");
    }
    cache.play(Files::Nars, |asked| {
        asked.whole().with("Accept-Ranges", "none")
    });
    assert_eq!(client.ask("nar/a", &range).status, 200);
    assert_eq!(cache.web().n_connections(), 1);
    assert_eq!(cache.n_requests(&Files::One("nar/a".to_owned())), 4);
    assert_eq!(cache.web().requests()[1].headers["if-range"], tag);
}

#[test]
fn answers_are_forged_as_a_test_wants_and_only_where_it_wants() {
    let (_dir, cache) = shelf();
    cache
        .play(Files::All, |_| Answer::busy(429, Duration::from_secs(9)))
        .play(Files::Narinfos, |asked| {
            asked.honest().with_field("URL", "file:///etc/passwd")
        })
        .play(Files::One("b.narinfo".to_owned()), |asked| {
            asked.other("a.narinfo")
        });
    let mut client = Client::of(&cache);
    let busy = client.ask("nix-cache-info", "");
    assert_eq!((busy.status, busy.header("Retry-After")), (429, Some("9")));
    let forged = client.ask("a.narinfo", "");
    assert_eq!(forged.body, b"StorePath: a\nURL: file:///etc/passwd\n");
    assert_eq!(client.ask("c.narinfo", "").status, 404);
    let spoofed = client.ask("b.narinfo", "");
    assert_eq!(spoofed.body, b"StorePath: a\nURL: nar/a\n");
    cache.play(Files::All, |asked| match asked.request.n_before {
        0 | 1 => Answer::error(500),
        _ => asked.honest(),
    });
    // A burst, of which one request was made above.
    let statuses = [(); 3].map(|()| client.ask("a.narinfo", "").status);
    assert_eq!(statuses, [500, 200, 200]);
}

#[test]
fn a_body_breaks_off_stalls_drips_lies_about_its_length_or_never_ends() {
    let (_dir, cache) = shelf();
    let rest = |client: &mut Client| {
        let (status, _) = client.head();
        assert_eq!(status, 200);
        let mut body = Vec::new();
        client.stream.read_to_end(&mut body).map(|_| body)
    };
    let of = |answer: fn(Answer) -> Answer| {
        cache.play(Files::Nars, move |asked| answer(asked.honest()));
        let mut client = Client::of(&cache);
        client.send("nar/a", "");
        client
    };
    let broken = rest(&mut of(|answer| answer.hanging_up_after(3)));
    assert_eq!(broken.expect("it ends in order"), b"012");
    rest(&mut of(|answer| answer.resetting_after(3))).expect_err("it ends in disorder");

    let mut stalled = of(|answer| answer.stalling_after(3));
    stalled.head();
    stalled.stream.read_exact(&mut [0; 3]).expect("it comes");
    let patience = Some(Duration::from_millis(100));
    let socket = stalled.stream.get_ref();
    socket.set_read_timeout(patience).expect("it is ours");
    stalled.stream.read(&mut [0]).expect_err("nothing comes");

    let mut silent = of(|_| Answer::silence());
    let socket = silent.stream.get_ref();
    socket.set_read_timeout(patience).expect("it is ours");
    silent.stream.read(&mut [0]).expect_err("nothing comes");

    let begun = now();
    let pause = Duration::from_millis(2);
    cache.play(Files::Nars, move |asked| asked.whole().dripping(pause));
    let slow = Client::of(&cache).ask("nar/a", "");
    assert_eq!(slow.body, b"0123456789");
    assert!(begun.elapsed() >= 10 * pause);

    let mut liar = of(|answer| answer.claiming(5));
    let (_, headers) = liar.head();
    assert!(headers.contains(&"Content-Length: 5".to_owned()));

    let mut endless = of(Answer::endless);
    let (_, headers) = endless.head();
    assert!(headers.contains(&"Transfer-Encoding: chunked".to_owned()));
    let mut chunks = vec![0; 1 << 20];
    endless.stream.read_exact(&mut chunks).expect("it goes on");
    assert!(chunks.starts_with(b"a\r\n0123456789\r\na\r\n"));
}

#[test]
fn a_client_notices_a_certificate_that_is_not_good() {
    if !requirement::programs(&["curl"]) {
        return;
    }
    let (dir, _) = shelf();
    let authority = Authority::new();
    let file = dir.path().join("authority");
    std::fs::write(&file, authority.certificate()).expect("it is ours");
    for (flaw, is_trusted) in [
        (Flaw::None, true),
        (Flaw::Expired, false),
        (Flaw::OtherName, false),
    ] {
        let cache = CacheServer::start_with_tls(dir.path(), &authority, flaw);
        let url = format!("{}/nix-cache-info", cache.url());
        let asked = std::process::Command::new("curl")
            .args(["--silent", "--noproxy", "*", "--cacert"])
            .arg(&file)
            .arg(url)
            .output()
            .expect("curl runs");
        assert_eq!(asked.status.success(), is_trusted, "{flaw:?}");
        assert_eq!(cache.web().requests().is_empty(), !is_trusted);
    }
}
