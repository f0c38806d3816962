//! Taking a tree from another store of this machine without copying its contents.
//!
//! ```text
//! tree ─► names and links made anew, contents shared ─► canonical, read, hashed ─► as promised?
//! ```
//!
//! What is hashed is what was made, in our own directory: from the moment that a file shares contents
//! with another one, writing to either leaves the other alone. So nothing has to be believed of the
//! tree, which may be somebody else's and change at any time.
//!
//! Whatever goes wrong on the way, the archive is read instead, and decides.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use store_model::PathInfo;

use super::{Claim, Digests};
use crate::ingest::copy::{Place, share_tree};
use crate::ingest::{Ingest, Staged, StagedQuestion};
use crate::messages::RestoreError;
use crate::staging::c_name;
use crate::{CancelFlag, Error};

impl Ingest {
    /// Makes what is promised of the tree that lies in `objects` under the path's name, in our own
    /// directory. Returns whether it is there; if not, nothing is.
    ///
    /// # Errors
    /// It is not what was promised, or it was cancelled.
    pub(super) fn share(
        &mut self,
        staged: &Staged,
        promised: &PathInfo,
        claim: Option<&Claim<'_>>,
        objects: &OwnedFd,
        cancel: &CancelFlag,
    ) -> Result<bool, RestoreError> {
        let device = rustix::fs::fstat(objects).map(|stat| stat.st_dev);
        let Ok(device) = device.map_err(|_| ()) else {
            return Ok(false);
        };
        if self.unshareable.contains(&device) {
            return Ok(false);
        }
        let from = Place {
            dir: objects.as_fd(),
            name: &c_name(promised.path.base_name()),
            path: &self.logical_path(&promised.path),
        };
        let to = Place {
            dir: self.trash.staging.dir(),
            name: &staged.name,
            path: &self.trash.staging.path_of(&staged.name),
        };
        match share_tree(from, to, promised.nar_size_bytes, cancel) {
            Ok(()) => {}
            Err(Error::Cancelled) => return Err(RestoreError::Cancelled),
            Err(error) => {
                if is_of_the_file_system(&error) {
                    self.unshareable.insert(device);
                }
                tracing::debug!("reading the archive of '{}': {error}", promised.path);
                self.trash.staging.delete(&staged.name);
                return Ok(false);
            }
        }
        self.check_shared(staged, promised, claim, cancel)?;
        Ok(true)
    }

    /// Reads what was made, and compares it with what was promised.
    fn check_shared(
        &mut self,
        staged: &Staged,
        promised: &PathInfo,
        claim: Option<&Claim<'_>>,
        cancel: &CancelFlag,
    ) -> Result<(), RestoreError> {
        let logical_path = self.logical_path(&promised.path);
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel,
        };
        let contents = self.read_staged(staged, &logical_path, question)?;
        let digests = Digests {
            nar: contents.nar,
            recursive: None,
        };
        self.check_nar(promised, &digests)?;
        if let Some(claim) = claim {
            self.check_claim(&promised.path, claim, None, &digests)?;
        }
        self.optimise_staged(staged, &logical_path, cancel)?;
        Ok(())
    }
}

/// Returns whether no other tree could be shared, either.
fn is_of_the_file_system(error: &Error) -> bool {
    let Error::File { source, .. } = error else {
        return false;
    };
    matches!(
        Errno::from_io_error(source),
        Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTTY)
    )
}
