//! `build -o LINK`: links to what was built, which also keep it from the garbage collector.

use std::path::{Path, PathBuf};

use registry::AddIndirectRoot;
use store_model::{OutputName, StorePath};

use crate::failure::{Failure, Result};
use crate::store::Store;

/// Returns the link's name for one output of one wanted thing, as Nix names them: `result`,
/// `result-dev`, `result-2`, `result-2-dev`.
pub(super) fn link_name(link: &Path, idx: usize, output: &OutputName) -> PathBuf {
    let mut name = link.as_os_str().to_owned();
    if idx > 0 {
        name.push(format!("-{}", idx + 1));
    }
    if output.as_str() != "out" {
        name.push(format!("-{output}"));
    }
    name.into()
}

/// Makes `link`, an absolute path, point to a store path, in place of an earlier link.
///
/// # Errors
/// Something that is not a link is there, or the file system refuses.
pub(super) async fn make(store: &Store, link: PathBuf, target: StorePath) -> Result<()> {
    refuse_to_replace(&link)?;
    store.ask(AddIndirectRoot { link, target }).await
}

fn refuse_to_replace(link: &Path) -> Result<()> {
    let parent = link.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(Failure::message(format!(
            "the link '{}' cannot be made: there is no directory '{}'",
            link.display(),
            parent.display()
        )));
    }
    if link
        .symlink_metadata()
        .is_ok_and(|there| !there.is_symlink())
    {
        return Err(Failure::message(format!(
            "'{}' exists and is not a link; it was left alone",
            link.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("result");
        assert!(refuse_to_replace(&link).is_ok());
        std::os::unix::fs::symlink("/nix/store/anything", &link).unwrap();
        assert!(refuse_to_replace(&link).is_ok());
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        for path in [
            &file,
            &dir.path().to_owned(),
            &dir.path().join("none/result"),
        ] {
            assert!(refuse_to_replace(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn further_outputs_and_targets_get_suffixes() {
        let name =
            |idx, output: &str| link_name(Path::new("result"), idx, &output.parse().unwrap());
        assert_eq!(name(0, "out"), Path::new("result"));
        assert_eq!(name(0, "dev"), Path::new("result-dev"));
        assert_eq!(name(1, "out"), Path::new("result-2"));
        assert_eq!(name(1, "dev"), Path::new("result-2-dev"));
    }
}
