//! Stores that are mounted read-only (SPEC E6, SECURITY F62).

use std::path::Path;
use std::process::Command;

use it::cache_server::CacheServer;
use it::canary::Canary;
use it::snapshot::Snapshot;
use it::{BinaryCache, Profile, TestStore, debris, requirement};

/// Returns a command that runs the program that it is given where a directory is read-only.
fn where_read_only(dir: &Path) -> Command {
    let script = "mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; exec \"$@\"";
    let unshare = requirement::find_program("unshare").expect("every system has it");
    let mut wrapper = Command::new(unshare);
    wrapper.arg(match Profile::native() {
        Profile::Root => "-m",
        // Whoever is no root is one to mount.
        Profile::Ordinary => "-Urm",
    });
    wrapper.args(["sh", "-ec", script]).arg(dir);
    wrapper
}

#[test]
fn nothing_is_fetched_built_or_brought_into_a_store_that_is_read_only_and_the_error_says_so() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().tally("runs");
    let drvs = store.instantiate(
        "[ (mk \"there\" \"echo there > $out\" { })
           (mk \"missing\" \"echo missing >> /signals/runs; echo missing > $out\" { }) ]",
    );
    let [there, missing] = [0, 1].map(|idx| store.output_of(&drvs[idx], "out"));
    store.goalctl(["build", &drvs[0]]).succeed();

    // A cache has what is missing, and so has a stream.
    let origin = TestStore::new();
    origin.signals().tally("runs");
    let drv = origin.instantiate_one(
        "mk \"missing\" \"echo missing >> /signals/runs; echo missing > $out\" { }",
    );
    origin.realise_with_signals(&drv).succeed();
    let cache = BinaryCache::beside(&origin);
    cache.fill(&origin, [&missing]);
    let server = CacheServer::start(cache.dir());
    let exported = origin.nix_store(["--export", &missing]).succeed();
    let stream = store.dir().join("stream");
    std::fs::write(&stream, exported.output_bytes()).expect("the folder is ours");
    let file = store.dir().join("file");
    std::fs::write(&file, "text").expect("the folder is ours");
    let file = file.to_str().expect("it has a plain name");

    let commands: [&[&str]; 8] = [
        &["build", &drvs[1]],
        &["build", "--check", &drvs[0]],
        &["ensure", &missing],
        &["ensure", &there],
        &["repair", &there],
        &["add", file],
        &["import"],
        &["register-validity"],
    ];
    let before = Snapshot::of(&store);
    let canary = Canary::plant(&store);
    for dir in [store.root(), store.objects(), store.state().join("db")] {
        for command in commands {
            let stream = std::fs::File::open(&stream).expect("it was written");
            let refused = store
                .goalctl(command)
                .option("substituters", server.url())
                .option("trusted-public-keys", cache.public_key())
                .input(stream)
                .under(where_read_only(&dir))
                .run();
            refused
                .expect_status(1)
                .expect_error("Read-only file system")
                .expect_error(&dir.display().to_string())
                .expect_error("name another one with '--store ROOT'");
            assert_eq!(refused.output(), "", "{refused}");
            before.assert_same_as(&Snapshot::of(&store));
        }
    }
    canary.assert_untouched(&store);
    debris::assert_clean(&store);
    assert_eq!(server.web().requests(), []);
    assert_eq!(store.signals().count("runs"), 0);
    // And it was none of these commands' fault.
    let fetched = store.goalctl(["ensure", &missing]);
    fetched
        .option("substituters", server.url())
        .option("trusted-public-keys", cache.public_key())
        .succeed();
    debris::assert_verifies(&store);
}
