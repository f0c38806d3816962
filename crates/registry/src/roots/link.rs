//! Links that a user keeps, and that keep what they point at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use store_model::{Hash, HashAlgorithm, StorePath, base32};

use crate::Error;
use crate::layout::Layout;

/// Makes `link` point at `target`, and the collector follow it.
///
/// # Errors
/// The link is not absolute, something else is there, or it cannot be made.
pub(crate) fn add_indirect_root(
    layout: &Layout,
    link: &Path,
    target: &StorePath,
) -> Result<(), Error> {
    if !link.is_absolute() {
        return Err(Error::RelativeRoot {
            path: link.to_owned(),
        });
    }
    let occupied = || Error::LinkOccupied {
        path: link.to_owned(),
    };
    match fs::symlink_metadata(link) {
        Ok(metadata) if metadata.is_symlink() => {
            let store_dir = layout.paths.store_dir.as_str();
            let old =
                fs::read_link(link).map_err(|error| Error::file("reading link", link, error))?;
            if !old.starts_with(store_dir) {
                return Err(occupied());
            }
        }
        Ok(_) => return Err(occupied()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file("looking at", link, error)),
    }
    replace_link(layout.print(target).as_ref(), link)?;
    let digest = Hash::digest(HashAlgorithm::Sha1, link.as_os_str().as_encoded_bytes());
    let name = base32::encode(digest.as_bytes());
    replace_link(link, &layout.state("gcroots/auto").join(name))
}

/// Makes a link in place of another so that there is always one.
fn replace_link(target: &Path, link: &Path) -> Result<(), Error> {
    let mut new = link.as_os_str().to_owned();
    new.push(format!(".tmp-{}", std::process::id()));
    let new = PathBuf::from(new);
    let failed = |errno| Error::file("making link", link, errno);
    match rustix::fs::unlink(&new) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    rustix::fs::symlink(target, &new).map_err(failed)?;
    rustix::fs::rename(&new, link).map_err(failed)
}
