//! Finds the reference fixtures, which lie beside the repository.

use std::fs;
use std::path::{Path, PathBuf};

use bstr::{BStr, BString};
use store_model::StorePath;
use store_model::nar::Tree;

/// Returns the path of a fixture, given below `fixtures/`.
///
/// # Panics
/// It is not there: a test that silently passes without its fixtures proves nothing.
pub(crate) fn fixture(relative: &str) -> PathBuf {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = shared.join("fixtures").join(relative);
    assert!(path.exists(), "no fixture at {}", path.display());
    path
}

/// Returns the files of a fixture directory whose names end in `suffix`, sorted, by name.
pub(crate) fn files(relative: &str, suffix: &str) -> Vec<(String, Vec<u8>)> {
    files_in(&fixture(relative), suffix)
}

/// Returns the files of any directory whose names end in `suffix`, sorted, by name.
pub(crate) fn files_in(directory: &Path, suffix: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(directory)
        .expect("a fixture directory can be listed")
        .map(|entry| entry.expect("a fixture directory can be listed").path())
        .filter_map(|path| {
            let name = path.file_name().expect("an entry has a name");
            let name = name.to_string_lossy().into_owned();
            // There may be directories beside them.
            let is_wanted = name.ends_with(suffix);
            is_wanted.then(|| (name, fs::read(&path).expect("a fixture can be read")))
        })
        .collect();
    files.sort();
    assert!(
        !files.is_empty(),
        "no '{suffix}' files in {}",
        directory.display()
    );
    files
}

/// Returns a file directly inside an output that is a directory, from the archive of it.
pub(crate) fn file_of(path: &StorePath, name: &str) -> BString {
    let archive = fs::read(fixture("nix-2.8/nar").join(format!("{path}.nar")))
        .expect("an archive of the fixtures");
    match Tree::parse(&archive).expect("an archive of Nix is well-formed") {
        Tree::Directory(mut entries) => match entries.remove(BStr::new(name)) {
            Some(Tree::File { contents, .. }) => contents,
            other => panic!("{path}/{name}: {other:?}"),
        },
        other @ (Tree::File { .. } | Tree::Symlink(_)) => panic!("{path}: {other:?}"),
    }
}
