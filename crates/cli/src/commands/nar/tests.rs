//! Archives of genuine Nix, there and back.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn fixtures() -> PathBuf {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    shared.join("fixtures/nix-2.8/nar")
}

fn dumped(path: &Path) -> Vec<u8> {
    let (bytes, _summary) = archive(path, NarWriter::new(Vec::new())).unwrap();
    bytes
}

fn restored(mut bytes: &[u8], path: &Path) -> Result<nar::NarSummary> {
    restore_from(&mut bytes, path)
}

#[test]
fn every_archive_of_nix_is_restored_and_dumped_byte_for_byte() {
    let mut n_archives = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "nar") {
            continue;
        }
        let bytes = std::fs::read(&file).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("restored");
        restored(&bytes, &path).unwrap();
        assert_eq!(dumped(&path), bytes, "{}", file.display());
        n_archives += 1;
    }
    assert!(n_archives > 20);
}

#[test]
fn nothing_that_is_there_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::write(&source, "new").unwrap();
    let bytes = dumped(&source);

    let precious = dir.path().join("precious");
    std::fs::write(&precious, "old").unwrap();
    let link = dir.path().join("link");
    symlink(&precious, &link).unwrap();
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("target"), &dangling).unwrap();
    let directory = dir.path().join("directory");
    std::fs::create_dir(&directory).unwrap();

    for path in [&precious, &link, &dangling, &directory] {
        let text = restored(&bytes, path).unwrap_err().render(Style::Plain);
        assert!(text.contains("exists"), "{text}");
    }
    for suffix in ["", "/", "/.", "/..", "/new/"] {
        let path = PathBuf::from(format!(
            "{}{suffix}",
            if suffix.is_empty() { "" } else { "." }
        ));
        assert!(restored(&bytes, &path).is_err(), "{}", path.display());
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "old");
    assert!(!dir.path().join("target").exists());
    assert!(directory.is_dir() && dangling.is_symlink());
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/file"), vec![7; 100_000]).unwrap();
    let bytes = dumped(&tree);
    for cut in [0, 20, bytes.len() / 2, bytes.len() - 1] {
        let path = dir.path().join("restored");
        assert!(restored(&bytes[..cut], &path).is_err());
        assert!(path.symlink_metadata().is_err(), "cut at {cut}");
    }
    let mut longer = bytes;
    longer.push(0);
    let path = dir.path().join("restored");
    assert!(restored(&longer, &path).is_err());
    assert!(path.symlink_metadata().is_err());
}

#[test]
fn the_owners_execute_bit_is_what_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let mut archives = Vec::new();
    for mode in [0o644, 0o655, 0o744] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        archives.push(dumped(&file));
    }
    assert_eq!(archives[0], archives[1]);
    assert_ne!(archives[0], archives[2]);
    let restored_file = dir.path().join("restored");
    restored(&archives[2], &restored_file).unwrap();
    assert_ne!(
        restored_file.metadata().unwrap().permissions().mode() & 0o100,
        0
    );
}

#[test]
fn a_file_that_no_archive_holds_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = archive(dir.path(), NarWriter::new(Vec::new())).unwrap_err();
    let text = error.render(Style::Plain);
    assert!(
        text.contains("socket") && text.contains("neither"),
        "{text}"
    );
}
