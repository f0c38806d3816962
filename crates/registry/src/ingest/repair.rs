//! Putting what was made again in the place of a valid object that is corrupt or missing.
//!
//! Nobody who looks at the path finds nothing there: the two objects exchange their names. What made
//! way lies in our own directory then, and is deleted once the new one is on the disk and in the
//! database. Whenever this ends half-way, there is one of the two at the path, and the row still
//! tells whether it is what it should be.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use rustix::io::Errno;
use store_model::{NarHash, OutputName, PathInfo, StorePath};

use super::outputs::Ready;
use super::{Ingest, Staged, place};
use crate::messages::RegisterOutputs;
use crate::staging::c_name;
use crate::writer::ContentSync;
use crate::{Error, sync};

/// An object that made way for another one, deleted when this is dropped.
#[derive(Debug)]
pub(super) struct Displaced {
    pub(super) path: StorePath,
    _old: Staged,
}

impl Ingest {
    /// Puts an output where a valid object is corrupt or missing; returns what made way.
    ///
    /// # Errors
    /// The kernel refuses; what was at the path is there again.
    pub(super) fn repair_output(
        &mut self,
        request: &RegisterOutputs,
        ready: Ready<'_>,
    ) -> Result<Option<Displaced>, Error> {
        let path = ready.output.path.clone();
        let staged = self.take_in(&request.scratch, ready, &request.cancel)?;
        self.put_in_place_of(staged, path)
    }

    /// Puts something of our own directory where a valid object is corrupt or missing; returns what
    /// made way.
    ///
    /// # Errors
    /// The kernel refuses; what was at the path is there again.
    pub(super) fn put_in_place_of(
        &self,
        mut staged: Staged,
        path: StorePath,
    ) -> Result<Option<Displaced>, Error> {
        if self.content_sync == ContentSync::Durable {
            // A power cut must not leave less than there was: most of a corrupt object is whole.
            let logical = self.logical_path(&path);
            sync::sync_tree(self.trash.staging.dir(), &staged.name, &logical)?;
        }
        let store = (&self.layout.store, c_name(path.base_name()));
        let ours = (self.trash.staging.dir(), &*staged.name);
        match place::exchange(ours, (store.0.as_fd(), &store.1)) {
            Ok(()) => Ok(Some(Displaced { path, _old: staged })),
            Err(Errno::NOENT) => {
                self.place_staged(&mut staged, &path)?;
                Ok(None)
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                self.replace_in_two_steps(staged, path)
            }
            Err(errno) => Err(Error::file(
                "moving to",
                self.layout.real_path(&path),
                errno,
            )),
        }
    }

    /// The same where the file system cannot exchange names.
    fn replace_in_two_steps(
        &self,
        mut staged: Staged,
        path: StorePath,
    ) -> Result<Option<Displaced>, Error> {
        let mut old = Staged::new(self.trash.clone());
        let name = c_name(path.base_name());
        let there = (self.layout.store.as_fd(), &*name);
        match place::rename(there, (self.trash.staging.dir(), &old.name)) {
            Ok(()) => {}
            Err(errno) => {
                old.is_there = false;
                if errno == Errno::NOENT {
                    self.place_staged(&mut staged, &path)?;
                    return Ok(None);
                }
                let real_path = self.layout.real_path(&path);
                return Err(Error::file("putting aside", real_path, errno));
            }
        }
        if let Err(error) = self.place_staged(&mut staged, &path) {
            // What is broken may still be of more use than nothing.
            if place::rename((self.trash.staging.dir(), &old.name), there).is_ok() {
                old.is_there = false;
            }
            return Err(error);
        }
        Ok(Some(Displaced { path, _old: old }))
    }

    /// Says which outputs were made otherwise than what the database knows under their names: they
    /// replace that all the same, as in Nix, for what was there could not be used.
    pub(super) fn tell_changes(
        &self,
        infos: &BTreeMap<OutputName, PathInfo>,
        earlier: &[PathInfo],
    ) {
        let print = |hash: NarHash| hash.to_hash().to_sri();
        for info in infos.values() {
            let before = earlier.iter().find(|before| before.path == info.path);
            if let Some(before) = before.filter(|before| before.nar_hash != info.nar_hash) {
                tracing::warn!(
                    "'{}' was made again, but not as it was: its hash is {} now, and was {}; it \
                     replaces the corrupt path and is registered as what it is, since its \
                     derivation may not be deterministic",
                    self.layout.print(&info.path),
                    print(info.nar_hash),
                    print(before.nar_hash)
                );
            }
        }
    }
}

/// Keeps the signatures of an object that was made again as it was: they are as true as before.
pub(super) fn keep_signatures(info: &mut PathInfo, earlier: &[PathInfo]) {
    let same = earlier.iter().find(|before| {
        before.path == info.path
            && before.nar_hash == info.nar_hash
            && before.references == info.references
    });
    if let Some(before) = same {
        info.signatures.extend(before.signatures.iter().cloned());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
