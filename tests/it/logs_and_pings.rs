//! Logs that caches have, and whether caches can be used, beside genuine Nix (SPEC E3, F7).

use std::fs;

use it::cache_server::{CacheServer, Files};
use it::web::Answer;
use it::{BinaryCache, Finished, Invocation, TestStore, requirement};

/// A derivation that says something while it is built.
const TALKING: &str =
    "mk \"talking\" \"printf 'plain\\n\\\\033[31mred\\\\033[0m\\\\a\\n'; echo x > $out\" { }";

/// A store that Nix has built in, a cache of it with logs, and a store that has neither.
struct Scene {
    origin: TestStore,
    other: TestStore,
    cache: BinaryCache,
    drv: String,
    output: String,
}

impl Scene {
    fn new() -> Option<Self> {
        if !requirement::genuine_nix() {
            return None;
        }
        let (origin, other) = (TestStore::new(), TestStore::new());
        let drv = origin.instantiate_one(TALKING);
        // Nix wants to know a derivation whose log it is to find.
        assert_eq!(drv, other.instantiate_one(TALKING));
        let output = origin.nix_store(["--realise", &drv]).succeed().output();
        let output = output.trim().to_owned();
        let cache = BinaryCache::beside(&origin);
        cache.fill(&origin, [&output]);
        let nix = requirement::find_program("nix").expect("it comes with Nix");
        let log = origin
            .program(&nix)
            .args(["log", "--store"])
            .arg(origin.root())
            .arg(&drv)
            .succeed();
        fs::create_dir_all(cache.dir().join("log")).expect("the cache is ours");
        let name = drv.rsplit('/').next().expect("a path has a name");
        fs::write(cache.dir().join("log").join(name), log.output_bytes()).expect("it is ours");
        Some(Self {
            origin,
            other,
            cache,
            drv,
            output,
        })
    }

    /// Asks both programs on the store that has no log.
    fn logs(&self, address: &str, path: &str) -> [Finished; 2] {
        let nix = requirement::find_program("nix").expect("it comes with Nix");
        let nix = self.other.program(&nix);
        let nix = nix
            .args(["log", "--store"])
            .arg(self.other.root())
            .arg(path);
        let ours = self.other.goalctl(["log", path]);
        [nix, ours].map(|invocation: Invocation| invocation.option("substituters", address).run())
    }

    /// Checks that both print the log, byte for byte.
    #[track_caller]
    fn assert_found(&self, address: &str, path: &str) {
        let [nix, ours] = self.logs(address, path);
        nix.expect_status(0);
        ours.expect_status(0);
        assert_eq!(nix.output_bytes(), ours.output_bytes());
        let bytes = ours.output_bytes();
        assert!(bytes.starts_with(b"plain\n\x1b[31mred"), "{bytes:?}");
    }
}

#[test]
fn a_log_that_is_not_here_comes_from_a_cache_as_with_nix() {
    let Some(scene) = Scene::new() else { return };
    let server = CacheServer::start(scene.cache.dir());
    let local = format!("local?root={}", scene.origin.root().display());
    for address in [scene.cache.url(), server.url(), local] {
        scene.assert_found(&address, &scene.drv);
        scene.assert_found(&address, &scene.output);
    }
    // Here it need not be known.
    let stranger = TestStore::new();
    let found = stranger.goalctl(["log", &scene.drv]);
    found.option("substituters", scene.cache.url()).succeed();
    let nobody = scene.other.goalctl(["log", &scene.drv]).run();
    nobody.expect_status(1);
    nobody.expect_error(&format!("there is no log of '{}'", scene.drv));
}

#[test]
fn a_log_that_a_server_gives_packed_is_unpacked_as_with_nix() {
    let Some(scene) = Scene::new() else { return };
    let server = CacheServer::start(scene.cache.dir());
    server.play(Files::Logs, |asked| {
        let pack = |log: Vec<u8>| {
            let mut packed = Vec::new();
            let mut encoder = xz2::read::XzEncoder::new(&log[..], 1);
            std::io::copy(&mut encoder, &mut packed).expect("memory can be written to");
            packed
        };
        asked.honest().map_body(pack).with("Content-Encoding", "xz")
    });
    scene.assert_found(&server.url(), &scene.drv);
}

#[test]
fn a_cache_that_fails_keeps_no_log_of_another_from_being_found() {
    let Some(scene) = Scene::new() else { return };
    let broken = CacheServer::start(scene.cache.dir());
    broken.play(Files::All, |_| Answer::error(404));
    let both = format!("{} {}", broken.url(), scene.cache.url());
    let found = scene.other.goalctl(["log", &scene.drv]);
    let found = found.option("substituters", both).succeed();
    assert!(found.output_bytes().starts_with(b"plain"));
    found.expect_error(&broken.url());
}

#[test]
fn a_ping_tells_what_a_cache_says_and_fails_for_what_is_none() {
    let Some(scene) = Scene::new() else { return };
    let info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 31\n";
    fs::write(scene.cache.dir().join("nix-cache-info"), info).expect("the cache is ours");
    let ping = |address: &str| scene.other.goalctl(["store", "ping", address]);
    let server = CacheServer::start(scene.cache.dir());
    for address in [scene.cache.url(), server.url()] {
        let lines = ping(&address).succeed().output_lines();
        let (last, lines) = lines.split_last().expect("there are lines");
        let wanted = [
            format!("Store URL: {address}"),
            "Store directory: /nix/store".to_owned(),
            "Priority: 31".to_owned(),
            "Wants mass queries: yes".to_owned(),
            "Signatures asked for: yes".to_owned(),
        ];
        assert_eq!(lines, wanted);
        assert!(last.starts_with("Answered in: "), "{last}");
        // Nix says the address, too, on standard error.
        let nix = requirement::find_program("nix").expect("it comes with Nix");
        let nix = scene.other.program(&nix);
        let nix = nix.args(["store", "ping", "--store", &address]).succeed();
        nix.expect_error(&wanted[0]);
    }
    let root = scene.origin.root();
    let trusted = format!("{}?trusted=1", root.display());
    let lines = ping(&trusted).succeed().output_lines();
    assert_eq!(
        lines[0],
        format!("Store URL: local?root={}", root.display())
    );
    assert_eq!(lines[4], "Signatures asked for: no");
    let own = scene.other.goalctl(["store", "ping"]).succeed();
    assert_eq!(own.output_lines()[0], "Store URL: local");
    server.play(Files::All, |_| Answer::welcome_page());
    let foreign = scene.origin.dir().join("foreign");
    fs::create_dir(&foreign).expect("a fresh folder can be made");
    fs::write(foreign.join("nix-cache-info"), "StoreDir: /else\n").expect("it is ours");
    for (address, reason) in [
        (server.url(), "nix-cache-info"),
        (format!("file://{}", foreign.display()), "'/else'"),
        ("file:///no/such/folder".to_owned(), "no answer"),
        ("/no/such/store".to_owned(), "local?root=/no/such/store"),
        ("daemon".to_owned(), "no daemon is asked"),
        ("s3://bucket".to_owned(), "'s3' are not supported"),
    ] {
        let refused = ping(&address).run();
        refused.expect_status(1).expect_error(reason);
        assert!(refused.output().is_empty());
    }
}
