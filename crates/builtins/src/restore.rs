//! Makes files as an archive tells them.
//!
//! The reader lets through only names without a slash, sorted and each once; the root is made where
//! nothing was. So every directory that a path goes through was made here, and none is a link.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use bstr::BStr;
use store_model::nar::{FileHeader, NarVisitor, ReadError, read_whole};

/// Why an archive did not become files.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RestoreError(#[from] ReadError<MakeError>);

/// A node that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{operation} '{}'", path.display())]
pub struct MakeError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes what an archive holds at `root`, where nothing may be yet.
///
/// # Errors
/// The archive cannot be read or is none, or a file cannot be made.
pub(crate) fn restore(archive: &mut dyn BufRead, root: &Path) -> Result<(), RestoreError> {
    let mut restorer = Restorer {
        place: root.to_owned(),
        file: None,
    };
    read_whole(archive, &mut restorer)?;
    Ok(())
}

struct Restorer {
    /// The innermost open directory, or the root that is not made yet.
    place: PathBuf,
    file: Option<(PathBuf, File)>,
}

impl Restorer {
    fn path(&self, name: Option<&BStr>) -> PathBuf {
        match name {
            Some(name) => self.place.join(OsStr::from_bytes(name)),
            None => self.place.clone(),
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MakeError {
    let path = path.to_owned();
    move |source| MakeError {
        operation,
        path,
        source,
    }
}

impl NarVisitor for Restorer {
    type Error = MakeError;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), MakeError> {
        let path = self.path(name);
        fs::create_dir(&path).map_err(failed("creating the directory", &path))?;
        self.place = path;
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), MakeError> {
        self.place.pop();
        Ok(())
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), MakeError> {
        let path = self.path(name);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(if header.is_executable { 0o777 } else { 0o666 })
            .open(&path)
            .map_err(failed("creating", &path))?;
        self.file = Some((path, file));
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), MakeError> {
        match &mut self.file {
            Some((path, file)) => file.write_all(chunk).map_err(failed("writing", path)),
            None => Ok(()),
        }
    }

    fn end_file(&mut self) -> Result<(), MakeError> {
        self.file = None;
        Ok(())
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), MakeError> {
        let path = self.path(name);
        symlink(OsStr::from_bytes(target), &path).map_err(failed("creating the link", &path))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use store_model::nar::Tree;

    use super::*;

    #[test]
    fn an_archive_becomes_its_files_and_an_archive_of_one_file_that_file() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::directory([
            (
                "bin",
                Tree::directory([("run", Tree::executable("#!/bin/sh\n"))]),
            ),
            ("empty", Tree::directory::<&str>([])),
            ("link", Tree::symlink("bin/run")),
            ("text", Tree::file("text")),
        ]);
        let root = dir.path().join("out");
        let archive = tree.to_nar().unwrap();
        restore(&mut archive.as_slice(), &root).unwrap();
        let mode = |name: &str| {
            let facts = fs::symlink_metadata(root.join(name)).unwrap();
            facts.permissions().mode() & 0o100
        };
        assert_eq!((mode("bin/run"), mode("text")), (0o100, 0));
        assert_eq!(
            fs::read_to_string(root.join("link")).unwrap(),
            "#!/bin/sh\n"
        );
        assert_eq!(fs::read_dir(root.join("empty")).unwrap().count(), 0);

        let file = dir.path().join("file");
        let archive = Tree::file("alone").to_nar().unwrap();
        restore(&mut archive.as_slice(), &file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "alone");
        // Nothing is written over or through.
        assert!(restore(&mut archive.as_slice(), &file).is_err());
    }

    #[test]
    fn what_is_no_archive_or_ends_early_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Tree::file("alone").to_nar().unwrap();
        for (idx, bytes) in [b"no archive".as_slice(), &archive[..archive.len() - 8]]
            .into_iter()
            .enumerate()
        {
            let root = dir.path().join(idx.to_string());
            assert!(restore(&mut &*bytes, &root).is_err());
        }
    }
}
