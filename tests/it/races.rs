//! Somebody of the builder's rights who changes things while goalctl works on them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use it::{Profile, TestStore, debris, requirement};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// How many folders are swapped, and how many files each holds, so that removing them takes a while.
const N_FOLDERS: usize = 25;
const N_FILES: usize = 200;

/// How often folders are swapped while they are deleted, so that a deletion that starts again for
/// each swap comes to its end.
const MAX_SWAPS: usize = 2_000;

#[test]
fn a_folder_swapped_for_a_link_while_it_is_deleted_costs_nothing_outside() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let precious = store.dir().join("precious");
        make_precious(&precious);
        let before = listing(&precious);
        let mut n_swaps_while_deleting = 0;
        for round in 0..3 {
            n_swaps_while_deleting += delete_and_swap(&store, &precious, round);
            assert_eq!(listing(&precious), before, "something outside was deleted");
        }
        assert!(
            n_swaps_while_deleting > 0,
            "nothing was ever swapped in time"
        );
        // What a swap kept from being deleted goes with the next start.
        let drv = store.script("next", "echo made > $out");
        store.goalctl(["build", &drv]).succeed();
        debris::assert_clean(&store);
    }
}

/// Lets a builder make folders, and swaps them for links to `precious` from before its end until
/// the build's directory is gone or goalctl gives up; returns how often one was swapped after the
/// deletion had begun.
fn delete_and_swap(store: &TestStore, precious: &Path, round: usize) -> usize {
    let names = [format!("ready-{round}"), format!("go-{round}")];
    store.signals().pipes(&names.each_ref().map(String::as_str));
    let drv = store.script(
        &format!("swapped-{round}"),
        &format!(
            "n=0; while [ $n -lt {N_FOLDERS} ]; do mkdir d$n; \
             (cd d$n; seq 1 {N_FILES} | xargs touch); n=$((n + 1)); done; \
             echo here > /signals/{}; read word < /signals/{}; echo made > $out",
            names[0], names[1]
        ),
    );
    let goalctl = store.build_with_signals(&drv).start();
    store.signals().await_word(&names[0]);
    let folder = folder_of("d0", &store.state().join("builds")).expect("the builder made it");
    for idx in 0..N_FOLDERS {
        symlink(precious, folder.join(format!("link{idx}"))).expect("root may write anywhere");
    }
    let is_over = AtomicBool::new(false);
    let n_swaps = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut is_deleting = false;
            let has_swapped_enough = || n_swaps.load(Ordering::Relaxed) >= MAX_SWAPS;
            while !is_over.load(Ordering::Relaxed) && !has_swapped_enough() {
                for idx in 0..N_FOLDERS {
                    let [first, second] =
                        ["d", "link"].map(|kind| folder.join(format!("{kind}{idx}")));
                    match renameat_with(CWD, first, CWD, second, RenameFlags::EXCHANGE) {
                        Ok(()) if is_deleting => {
                            n_swaps.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(()) => {}
                        // One of them is gone.
                        Err(_) => is_deleting = true,
                    }
                }
            }
        });
        let open = store.signals().release(&names[1]);
        let finished = goalctl.finish();
        is_over.store(true, Ordering::Relaxed);
        drop(open);
        // The build is good, whatever became of its directory.
        finished.expect_status(0);
        assert!(!finished.error().contains("panicked"), "{finished}");
    });
    n_swaps.into_inner()
}

/// Returns the folder below `top` that holds `name`.
fn folder_of(name: &str, top: &Path) -> Option<PathBuf> {
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join(name).is_dir() {
            return Some(folder);
        }
        let inner = fs::read_dir(&folder).expect("root may look anywhere");
        folders.extend(
            inner
                .map(|entry| entry.expect("it can be read").path())
                .filter(|path| path.is_dir() && !path.is_symlink()),
        );
    }
    None
}

/// Makes a tree with the names that the builder's folders have, too.
fn make_precious(folder: &Path) {
    for idx in 0..N_FOLDERS {
        let inner = folder.join(format!("d{idx}"));
        fs::create_dir_all(&inner).expect("a fresh folder can be made");
        for name in 1..=20 {
            for place in [folder, &inner] {
                fs::write(place.join(name.to_string()), "precious").expect("it is fresh");
            }
        }
    }
}

/// Returns every path below a folder with its permissions and contents.
fn listing(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is there") {
            let path = entry.expect("it can be read").path();
            let facts = path.symlink_metadata().expect("it was just listed");
            let contents = fs::read_to_string(&path).unwrap_or_default();
            let mode = facts.permissions();
            paths.push(format!("{} {mode:?} {contents}", path.display()));
            if facts.is_dir() {
                folders.push(path);
            }
        }
    }
    paths.sort_unstable();
    paths
}
