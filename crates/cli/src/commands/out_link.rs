//! `build -o LINK`: links to what was built, which also keep it from the garbage collector.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use store_model::settings::StoreLayout;
use store_model::{Hash, HashAlgorithm, OutputName, StorePath};

use crate::failure::{Failure, Result};

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

/// Makes `link`, an absolute path, point to a store path, in place of an earlier link; and
/// registers it as an indirect root.
///
/// # Errors
/// Something that is not a link is there, or the file system refuses.
pub(super) fn make(link: &Path, path: &StorePath, layout: &StoreLayout) -> Result<()> {
    if link
        .symlink_metadata()
        .is_ok_and(|there| !there.is_symlink())
    {
        return Err(Failure::message(format!(
            "'{}' exists and is not a link; it was left alone",
            link.display()
        )));
    }
    // The root comes first: a link without one would dangle after the next collection.
    let digest = Hash::digest(HashAlgorithm::Sha1, link.as_os_str().as_encoded_bytes());
    let roots = layout.state_dir.join("gcroots/auto");
    fs::create_dir_all(&roots).map_err(|error| Failure::file("creating", &roots, error))?;
    replace_link(&roots.join(digest.to_base32()), link)?;
    replace_link(link, Path::new(&layout.store_dir.print(path)))
}

/// Makes a link in place of whatever link is there, in one step.
fn replace_link(link: &Path, target: &Path) -> Result<()> {
    let mut beside = link.as_os_str().to_owned();
    beside.push(format!(".tmp-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    symlink(target, &beside)
        .and_then(|()| fs::rename(&beside, link))
        .map_err(|error: io::Error| {
            // What could not be put in place must not stay beside it.
            let _absent = fs::remove_file(&beside);
            Failure::file("making the link", link, error)
        })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const OUT: &str = "l6bcrn7136a8mxanqvnyvrzv3m9xkq6i-diamond-top";

    #[test]
    fn a_link_replaces_a_link_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let layout = StoreLayout::under_root(dir.path());
        let link = dir.path().join("result");
        let path = OUT.parse().unwrap();
        for _ in 0..2 {
            make(&link, &path, &layout).unwrap();
            assert_eq!(link.read_link().unwrap(), Path::new("/nix/store").join(OUT));
        }
        let roots = layout.state_dir.join("gcroots/auto");
        let root = fs::read_dir(roots).unwrap().next().unwrap().unwrap().path();
        assert_eq!(root.read_link().unwrap(), link);

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(make(&file, &path, &layout).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert!(make(&dir.path().join("none/result"), &path, &layout).is_err());
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
