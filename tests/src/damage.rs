//! Accidents that befall a store.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Flips one bit of an object's first file, and leaves everything else as it was.
#[track_caller]
pub fn flip_a_bit(object: &Path) {
    let file = first_file(object);
    let set_mode = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("the file is ours");
    };
    let mode = file.metadata().expect("it is there").mode();
    set_mode(mode | 0o200);
    let open = fs::OpenOptions::new().read(true).write(true).open(&file);
    let open = open.expect("it can be opened now");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).expect("it has a byte");
    open.write_all_at(&[byte[0] ^ 1], 0).expect("it is ours");
    open.set_modified(UNIX_EPOCH + Duration::from_secs(1))
        .expect("it is ours");
    set_mode(mode);
}

/// Returns an object, or the first file in it.
#[must_use]
pub fn first_file(object: &Path) -> PathBuf {
    if !object.is_dir() {
        return object.to_owned();
    }
    let listed = fs::read_dir(object).expect("it can be read");
    let files = listed.map(|listed| listed.expect("it can be read").path());
    let file = files.filter(|path| path.is_file()).min();
    file.expect("it has a file")
}

/// Deletes an object, as an accident does.
#[track_caller]
pub fn lose(object: &Path) {
    let writable = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    };
    if object.is_dir() {
        // Nobody but root removes what is in a directory that may not be written to.
        for entry in walk_directories(object) {
            writable(&entry);
        }
        fs::remove_dir_all(object).expect("it is ours");
    } else {
        fs::remove_file(object).expect("it is ours");
    }
}

/// Returns a directory and all below it, each before those in it.
fn walk_directories(root: &Path) -> Vec<PathBuf> {
    let mut directories = vec![root.to_owned()];
    let mut idx = 0;
    while let Some(directory) = directories.get(idx).cloned() {
        idx += 1;
        let listed = fs::read_dir(&directory).expect("it can be read");
        let entries = listed.map(|entry| entry.expect("it can be read"));
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.extend(below.map(|entry| entry.path()));
    }
    directories
}
