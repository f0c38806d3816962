//! Copies that are killed (SECURITY §5).

use it::requirement;

use super::{Scene, assert_tidy, assert_whole};

/// The calls before which goalctl is killed, in groups whose calls are counted together, by each
/// thread: what makes, fills, syncs, names and deletes files.
const CALLS: &[&str] = &[
    "mkdir,mkdirat",
    "openat",
    "write",
    "flock",
    "fsync,syncfs",
    "renameat",
    "unlinkat",
];

#[test]
fn a_copy_that_is_killed_at_any_moment_leaves_whole_paths_and_the_next_one_finishes() {
    let Some(scene) = Scene::new() else { return };
    if !requirement::programs(&["strace"]) {
        return;
    }
    let strace = requirement::find_program("strace").expect("it was found just now");
    for calls in CALLS {
        let mut n_killed = 0;
        for nth in (0_u32..10).map(|power| 1 << power) {
            let cache = it::BinaryCache::beside(&scene.origin);
            let address = format!("{}?compression=none", cache.url());
            let mut wrapper = scene.origin.profile().command(&strace);
            wrapper.args(["-f", "-q", "-o", "/dev/null", "-e"]);
            wrapper.arg(format!("trace={calls}")).arg("-e");
            wrapper.arg(format!("inject={calls}:signal=KILL:when={nth}"));
            let killed = scene.copy_to(&address).under(wrapper).run();
            if cache.dir().exists() {
                assert_whole(cache.dir());
            }
            if killed.code() == 0 {
                assert_tidy(cache.dir());
                break;
            }
            killed.expect_status(128 + 9);
            n_killed += 1;
            scene.copy_to(&address).succeed();
            assert_eq!(assert_whole(cache.dir()), 12);
            assert_tidy(cache.dir());
        }
        requirement::say(&format!("{calls}: killed {n_killed} times"));
        assert!(n_killed > 0, "{calls}: never killed");
    }
}
