//! Outputs that were made elsewhere: in what is registered they mention where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::messages::{RegisterError, RegisterOutputs};
use crate::testing::{Canary, Scratch, TestStore, is_root, path};

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// Where an output belongs, and where it was made.
fn places() -> (StorePath, StorePath) {
    (path('a', "out"), path('b', "out"))
}

/// What a builder leaves that was told another place for its output.
fn made_elsewhere(store: &TestStore, make: impl FnOnce(&Path)) -> RegisterOutputs {
    let (here, elsewhere) = places();
    let mut scratch = Scratch::new(store);
    scratch.output("out", &here);
    make(&scratch.dir.join(elsewhere.base_name()));
    let mut request = scratch.finish();
    request.scratch.redirected = BTreeMap::from([places()]);
    request
}

/// Copies a tree as one that was made elsewhere.
fn copy_rewritten(from: &Path, to: &Path) -> Result<(), Error> {
    let (from_dir, to_dir) = (from.parent().unwrap(), to.parent().unwrap());
    let open = |dir: &Path| fs::File::open(dir).unwrap();
    let (from_dir, to_dir) = (open(from_dir), open(to_dir));
    let name = |path: &Path| CString::new(path.file_name().unwrap().as_encoded_bytes()).unwrap();
    let (here, elsewhere) = places();
    copy_tree(
        Place {
            dir: from_dir.as_fd(),
            name: &name(from),
            path: from,
        },
        Place {
            dir: to_dir.as_fd(),
            name: &name(to),
            path: to,
        },
        RequiredOwner::Anybody,
        Mentions::Redirected(&[(elsewhere, here)]),
        &CancelFlag::default(),
    )
}

#[actix::test]
async fn contents_links_and_names_mention_the_real_place() {
    let store = TestStore::new();
    let registry = store.start();
    let (here, elsewhere) = places();
    // The mention lies across the end of what is read at once.
    let padding = "x".repeat(READ_BYTES - 16);
    let request = made_elsewhere(&store, |out| {
        fs::create_dir(out).unwrap();
        fs::write(out.join("long"), format!("{padding}{elsewhere}{padding}")).unwrap();
        fs::write(out.join(format!("{elsewhere}.conf")), "").unwrap();
        symlink(format!("/nix/store/{elsewhere}/long"), out.join("link")).unwrap();
        symlink("nowhere", out.join("other")).unwrap();
    });
    let infos = registry.register(request).await.unwrap();
    assert_eq!(infos[0].path, here);
    assert_eq!(infos[0].references, [here.clone()].into());
    let out = store.real_path(&here);
    let long = fs::read_to_string(out.join("long")).unwrap();
    assert_eq!(long, format!("{padding}{here}{padding}"));
    assert!(out.join(format!("{here}.conf")).exists());
    let target = fs::read_link(out.join("link")).unwrap();
    assert_eq!(target, Path::new(&format!("/nix/store/{here}/long")));
    assert_eq!(
        fs::read_link(out.join("other")).unwrap(),
        Path::new("nowhere")
    );
    registry.stop().await;
}

#[actix::test]
async fn a_hard_link_to_a_secret_is_not_read_to_be_rewritten() {
    if !is_root("a_hard_link_to_a_secret_is_not_read_to_be_rewritten") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let canary = Canary::new(store.root.join("canary"));
    let out = store.root.join("nix/scratch").join(places().1.base_name());
    let request = made_elsewhere(&store, |out| fs::create_dir(out).unwrap());
    fs::hard_link(canary.path(), out.join("foo")).unwrap();
    let answer = registry.register(request).await;
    assert!(
        matches!(answer, Err(RegisterError::Rejected(_))),
        "{answer:?}"
    );
    registry.stop().await;
    canary.check();
    assert_eq!(store.objects(), BTreeSet::new());
}

/// Generates texts full of the two hash parts and of pieces of them.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let piece = (any::<bool>(), 0..32usize, 0..=32usize).prop_map(|(is_here, from, to)| {
        let (here, elsewhere) = places();
        let path = if is_here { here } else { elsewhere };
        path.hash_part().as_bytes()[from.min(to)..to].to_vec()
    });
    let whole = Just(places().1.hash_part().as_bytes().to_vec());
    let noise = proptest::collection::vec(any::<u8>(), 0..4);
    let pieces = proptest::collection::vec(prop_oneof![piece, whole, noise], 0..12);
    pieces.prop_map(|pieces| pieces.concat())
}

/// Replaces the leftmost mention, then the leftmost behind it, and so on.
fn naive_rewrite(text: &[u8]) -> Vec<u8> {
    let (here, elsewhere) = places();
    let mut rewritten = text.to_vec();
    let mut position = 0;
    while position + 32 <= text.len() {
        if &text[position..position + 32] == elsewhere.hash_part().as_bytes() {
            rewritten[position..position + 32].copy_from_slice(here.hash_part().as_bytes());
            position += 32;
        } else {
            position += 1;
        }
    }
    rewritten
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_is_rewritten_as_a_naive_program_would(
        // Around the place where one piece that is read ends and the next begins.
        n_before in READ_BYTES - 64..READ_BYTES,
        text in any_text(),
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let contents = [vec![b'.'; n_before], text].concat();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::write(&from, &contents).unwrap();
        copy_rewritten(&from, &to).unwrap();
        prop_assert_eq!(fs::read(&to).unwrap(), naive_rewrite(&contents));
    }
}
