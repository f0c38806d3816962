//! Disks that fail in the middle.

use std::sync::Arc;

use store_model::Settings;

use super::*;
use crate::testing::{TestStore, path};

/// A roots file that holds `a` and `b`, and a way to make its disk fail.
struct Bench {
    store: TestStore,
    layout: Arc<Layout>,
    file: RootsFile,
    /// The same file, open for reading only: every write to it fails.
    broken: OwnedFd,
}

impl Bench {
    fn new() -> Self {
        let store = TestStore::new();
        let layout = Arc::new(Layout::open(store.layout(), &Settings::default()).unwrap());
        let mut file = RootsFile::create(&layout).unwrap();
        file.append(&layout, &[path('a', "x"), path('b', "x")])
            .unwrap();
        let broken = fs::File::open(&file.path).unwrap().into();
        Self {
            store,
            layout,
            file,
            broken,
        }
    }

    /// Breaks the disk, or mends it.
    fn swap(&mut self) {
        std::mem::swap(&mut self.file.file, &mut self.broken);
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.file.path).unwrap()
    }

    fn expect(&self, digits: &[char]) {
        let roots = digits.iter().map(|digit| path(*digit, "x"));
        let wanted: Vec<String> = roots.map(|path| format!("/nix/store/{path}")).collect();
        let text = self.text();
        assert_eq!(text.split_terminator('\0').collect::<Vec<_>>(), wanted);
        assert!(text.ends_with('\0'));
    }

    /// Returns whether a collector could begin.
    fn lets_collectors_in(&self) -> bool {
        let gc_lock = fs::File::open(self.store.layout().state_dir.join("gc.lock")).unwrap();
        rustix::fs::flock(&gc_lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    }
}

#[test]
fn a_root_that_cannot_be_written_leaves_the_others_readable() {
    let mut bench = Bench::new();
    bench.swap();
    let added = bench.file.append(&bench.layout, &[path('c', "x")]);
    assert!(matches!(added, Err(Error::File { .. })), "{added:?}");
    assert!(bench.lets_collectors_in());
    bench.swap();
    bench.file.append(&bench.layout, &[path('d', "x")]).unwrap();
    bench.expect(&['a', 'b', 'd']);
}

#[test]
fn a_rewriting_that_fails_keeps_collectors_out_until_one_succeeds() {
    let mut bench = Bench::new();
    assert!(bench.lets_collectors_in());
    bench.swap();
    let left = [path('b', "x")];
    let rewritten = bench.file.rewrite(&bench.layout, &left);
    assert!(
        matches!(rewritten, Err(Error::File { .. })),
        "{rewritten:?}"
    );
    assert!(bench.file.is_torn());
    assert!(!bench.lets_collectors_in());
    bench.swap();
    let rewritten = bench.file.rewrite(&bench.layout, &left);
    assert!(matches!(rewritten, Ok(Rewriting::Done)), "{rewritten:?}");
    assert!(!bench.file.is_torn());
    assert!(bench.lets_collectors_in());
    bench.expect(&['b']);
}
