//! What must be true of a store whenever nobody works on it: the invariants of `docs/security.md`.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::processes;
use crate::snapshot::{self, FileFacts, Snapshot};
use crate::store::TestStore;

/// Fails unless the store is sound and nothing is left of any work on it: no process, mount, lock,
/// temporary file or build directory.
///
/// # Panics
///
/// If something is left, or something is wrong.
#[track_caller]
pub fn assert_clean(store: &TestStore) {
    let processes = processes::touching(store.dir());
    assert!(processes.is_empty(), "left running: {processes:#?}");
    let mounts = processes::mounts_below(store.dir());
    assert!(mounts.is_empty(), "left mounted: {mounts:#?}");
    assert_sound(store);
    assert_only_valid_objects(store);
    for name in ["builds", "temproots"] {
        assert_empty(&store.state().join(name));
    }
    assert_empty(&store.temporary());
}

/// Fails unless the database is whole and every valid path is on the disk as a store must hold it.
///
/// # Panics
///
/// If something is wrong.
#[track_caller]
pub fn assert_sound(store: &TestStore) {
    let database = snapshot::open(&store.database());
    let answer: String = database
        .query_row("pragma integrity_check", [], |row| row.get(0))
        .expect("a database can be checked");
    assert_eq!(answer, "ok", "integrity_check");
    let has_orphans = database
        .prepare("pragma foreign_key_check")
        .and_then(|mut check| check.exists([]))
        .expect("a database can be checked");
    assert!(!has_orphans, "foreign_key_check");

    let uid = store.profile().uid();
    for (path, object) in &Snapshot::of(store).objects {
        for (name, file) in &object.files {
            assert_canonical(&format!("{path}/{name}"), file, uid);
        }
    }
}

/// Has genuine Nix read every valid path and compare it with the database.
///
/// # Panics
///
/// If Nix finds fault.
pub fn assert_verifies(store: &TestStore) {
    let finished = store
        .nix_store(["--verify", "--check-contents"])
        .succeed()
        .error();
    assert!(
        !finished.contains("error") && !finished.contains("modified"),
        "genuine Nix finds fault:\n{finished}"
    );
}

/// Fails unless a file's metadata are what a store gives to every file.
#[track_caller]
fn assert_canonical(path: &str, file: &FileFacts, uid: u32) {
    let permissions = file.mode & 0o7777;
    match file.mode & nix::libc::S_IFMT {
        nix::libc::S_IFREG => assert!(
            permissions == 0o444 || permissions == 0o555,
            "{path} has mode {permissions:o}"
        ),
        nix::libc::S_IFDIR => assert_eq!(permissions, 0o555, "mode of {path}"),
        nix::libc::S_IFLNK => {}
        other => panic!("{path} is a special file, {other:o}"),
    }
    assert_eq!(file.modified, (1, 0), "time of {path}");
    assert_eq!(file.owner.0, uid, "owner of {path}");
}

#[track_caller]
fn assert_only_valid_objects(store: &TestStore) {
    let valid: BTreeSet<String> = Snapshot::of(store)
        .objects
        .keys()
        .filter_map(|path| path.rsplit('/').next().map(str::to_owned))
        .collect();
    let left: Vec<String> = names_in(&store.objects())
        .into_iter()
        .filter(|name| name != ".links" && !valid.contains(name))
        .collect();
    assert!(left.is_empty(), "left in the store: {left:#?}");
}

#[track_caller]
fn assert_empty(folder: &Path) {
    let left = names_in(folder);
    assert!(left.is_empty(), "left in {}: {left:#?}", folder.display());
}

/// Returns the names in a folder, none if there is no such folder.
#[must_use]
pub fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Returns the files below a folder that another user could run with somebody's rights, or write.
#[must_use]
pub fn dangerous_files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut remaining = vec![folder.to_owned()];
    while let Some(path) = remaining.pop() {
        // What is being built may vanish while one looks.
        let Ok(facts) = path.symlink_metadata() else {
            continue;
        };
        let kind = facts.file_type();
        let is_special =
            kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device();
        if !kind.is_symlink() && (is_special || facts.mode() & 0o6002 != 0) {
            found.push(format!("{} {:o}", path.display(), facts.mode()));
        }
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            remaining.extend(entries.map(|entry| entry.path()));
        }
    }
    found
}
