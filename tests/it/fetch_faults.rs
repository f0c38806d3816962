//! Fetches that are killed, interrupted, or done by several processes at once (SECURITY F18, §5).

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use it::cache_server::{CacheServer, Files};
use it::graph::LayeredGraph;
use it::{BinaryCache, Finished, Invocation, TestStore, debris, measure, requirement, snapshot};
use nix::sys::signal::Signal;

/// How long an interrupted fetch may take to be gone.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long a program may take to ask for something.
const PATIENCE: Duration = Duration::from_mins(1);

/// The calls before which goalctl is killed, in groups whose calls are counted together, by each
/// thread: what makes, names, fills, closes, syncs and deletes files, and the database's own.
const CALLS: &[&str] = &[
    "mkdirat",
    "openat",
    "write",
    "pwrite64",
    "renameat2",
    "fchmod,fchown,utimensat",
    "fsync,fdatasync,syncfs",
    "unlink,unlinkat",
];

/// A cache of thirty folders that refer to one another.
struct Scene {
    _origin: TestStore,
    cache: BinaryCache,
    paths: Vec<String>,
}

impl Scene {
    fn new() -> Option<Self> {
        if !requirement::genuine_nix() {
            return None;
        }
        let graph = LayeredGraph {
            n_layers: 5,
            width: 6,
            n_inputs: 2,
            seed: 30,
        };
        let origin = TestStore::new();
        let drvs = origin.instantiate(&graph.expression(""));
        let built = origin.nix_store(["--realise"]).args(&drvs).succeed();
        let mut paths = built.output_lines();
        // What is wanted first is what needs most.
        paths.reverse();
        assert_eq!(paths.len(), graph.len());
        let cache = BinaryCache::beside(&origin);
        cache.fill_with(&origin, "&compression=xz", &paths);
        Some(Self {
            _origin: origin,
            cache,
            paths,
        })
    }

    /// Serves the cache, every answer a little late, so that processes meet.
    fn serve(&self) -> CacheServer {
        let server = CacheServer::start(self.cache.dir());
        server.delay(Duration::from_millis(20));
        server
    }

    /// Prepares goalctl fetching everything.
    fn fetch(&self, store: &TestStore) -> Invocation {
        self.cache
            .used_by(store.goalctl(["ensure"]).args(&self.paths))
    }

    /// Prepares goalctl fetching everything from a server.
    fn fetch_from(&self, server: &CacheServer, store: &TestStore) -> Invocation {
        self.asking(server, store.goalctl(["ensure"]).args(&self.paths))
    }

    /// Has a program ask a server and trust what Nix has signed.
    fn asking(&self, server: &CacheServer, invocation: Invocation) -> Invocation {
        invocation
            .option("substituters", server.url())
            .option("trusted-public-keys", self.cache.public_key())
    }

    /// Fails unless a store has everything and nothing else.
    #[track_caller]
    fn assert_fetched(&self, store: &TestStore) {
        let objects = snapshot::Snapshot::of(store).objects;
        let mut wanted = self.paths.clone();
        wanted.sort();
        assert_eq!(objects.into_keys().collect::<Vec<_>>(), wanted);
        debris::assert_clean(store);
        debris::assert_verifies(store);
    }

    /// Fails unless both ended well, all is there, and no archive was fetched twice.
    #[track_caller]
    fn assert_fetched_once(&self, server: &CacheServer, store: &TestStore, both: &[Finished; 2]) {
        for finished in both {
            finished.expect_status(0);
        }
        let n_archives = server.n_requests(&Files::Nars);
        assert_eq!(n_archives, 30, "{}{}", both[0], both[1]);
        self.assert_fetched(store);
    }
}

#[test]
fn after_a_kill_at_any_moment_of_a_fetch_the_next_run_finishes_and_nothing_is_left() {
    let Some(scene) = Scene::new() else { return };
    if !requirement::programs(&["strace"]) {
        return;
    }
    let strace = requirement::find_program("strace").expect("it was found just now");
    for calls in CALLS {
        let mut n_killed = 0;
        // Ever further apart, since a thread makes up to some thousand calls.
        let moments = (0_u32..14).map(|power| 1 << power);
        for nth in moments {
            let store = TestStore::new();
            let mut wrapper = store.profile().command(&strace);
            wrapper.args(["-f", "-q", "-o", "/dev/null", "-e"]);
            wrapper.arg(format!("trace={calls}")).arg("-e");
            wrapper.arg(format!("inject={calls}:signal=KILL:when={nth}"));
            let killed = scene.fetch(&store).under(wrapper).run();
            if killed.code() == 0 {
                scene.assert_fetched(&store);
                break;
            }
            killed.expect_status(128 + 9);
            n_killed += 1;
            scene.fetch(&store).succeed();
            scene.assert_fetched(&store);
        }
        requirement::say(&format!("{calls}: killed {n_killed} times"));
        // Once before there is anything, and once at least in the midst of it.
        assert!(n_killed > 1, "{calls}: killed {n_killed} times");
    }
}

#[test]
fn genuine_nix_finishes_what_a_killed_goalctl_has_begun() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    let store = TestStore::new();
    let mut goalctl = scene.fetch_from(&server, &store).start();
    for _ in 0..10 {
        goalctl.await_line(|line| line.starts_with("copying path "));
    }
    goalctl.signal(Signal::SIGKILL);
    goalctl.finish().expect_status(128 + 9);
    let realise = store.nix_store(["--realise"]).args(&scene.paths);
    scene.cache.used_by(realise).succeed();
    debris::assert_verifies(&store);
    // What goalctl alone knows of is left to goalctl.
    scene.fetch(&store).succeed();
    scene.assert_fetched(&store);
}

#[test]
fn an_interrupt_in_the_middle_of_a_stalled_download_ends_it_at_once_and_leaves_nothing() {
    type Play = fn(&it::cache_server::Asked<'_>) -> it::web::Answer;
    let stalls: [(Files, Play); 3] = [
        (Files::Nars, |asked| asked.honest().stalling_after(60)),
        (Files::Narinfos, |asked| asked.honest().stalling_after(60)),
        (Files::Info, |_| it::web::Answer::silence()),
    ];
    let Some(scene) = Scene::new() else { return };
    for (files, stall) in stalls {
        for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let server = scene.serve();
            let (sender, asked_for) = channel();
            server.play(files.clone(), told(sender, stall));
            let store = TestStore::new();
            let goalctl = scene.fetch_from(&server, &store).start();
            let asked = asked_for.recv_timeout(PATIENCE);
            asked.expect("goalctl asks for what stalls");
            let signalled_at = measure::now();
            goalctl.signal(signal);
            let finished = goalctl.finish();
            finished.expect_status(status);
            let took = finished.ended_at - signalled_at;
            assert!(took < AT_ONCE, "{files:?}, {signal}: {took:?}");
            debris::assert_clean(&store);
            scene.fetch(&store).succeed();
            scene.assert_fetched(&store);
        }
    }
}

/// Returns an answer that tells the test when it is given.
fn told(
    sender: Sender<()>,
    play: impl Fn(&it::cache_server::Asked<'_>) -> it::web::Answer + Send + Sync + 'static,
) -> impl Fn(&it::cache_server::Asked<'_>) -> it::web::Answer + Send + Sync + 'static {
    move |asked| {
        let _only_the_first_is_waited_for = sender.send(());
        play(asked)
    }
}

#[test]
fn two_goalctls_that_want_one_closure_fetch_each_archive_once() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    let store = TestStore::new();
    let mut paths = scene.paths.clone();
    let first = scene.fetch_from(&server, &store).start();
    // From the other end, so that each comes to what the other has begun.
    paths.reverse();
    let second = scene
        .asking(&server, store.goalctl(["ensure"]).args(&paths))
        .start();
    let both = [first.finish(), second.finish()];
    scene.assert_fetched_once(&server, &store, &both);
    let copied = both.iter().map(n_copied);
    assert_eq!(copied.sum::<usize>(), 30, "{}{}", both[0], both[1]);
}

#[test]
fn goalctl_and_genuine_nix_that_want_one_closure_fetch_each_archive_once() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    let store = TestStore::new();
    let mut paths = scene.paths.clone();
    paths.reverse();
    let theirs = scene
        .asking(&server, store.nix_store(["--realise"]).args(&paths))
        .start();
    let ours = scene.fetch_from(&server, &store).start();
    // Nix says that it copies a path before it looks whether somebody else has.
    scene.assert_fetched_once(&server, &store, &[ours.finish(), theirs.finish()]);
}

/// Returns how many paths a program said that it copied.
fn n_copied(finished: &Finished) -> usize {
    finished.error().matches("copying path ").count()
}
