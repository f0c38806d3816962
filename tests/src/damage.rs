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
