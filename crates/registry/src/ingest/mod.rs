//! Turning a tree into a valid object.
//!
//! ```text
//! outputs of a build    check ─► (copy, if fixed) ─► make canonical, hash, scan ─┐
//! outputs of a check    check ─► (copy, if fixed) ─► make canonical, hash, scan ─► compare
//! text, source          write or copy ─► make canonical, hash ─► name            ├─► move into the store,
//! archive               unpack, canonical from the beginning, and hash ─► check ─┘   or exchange with what is broken
//!                                                                                    ─► hand to the writer
//! ```
//!
//! Archives are unpacked by threads of their own, since they may be long in coming; all else runs
//! on the ingest threads. None of them waits for the writer: it answers the asker, or takes the
//! object out of the store again.

mod canonical;
mod compare;
mod copy;
mod hash_scan;
mod open_tree;
mod optimise;
mod outputs;
pub(crate) mod place;
mod present;
mod repair;
mod restore;
mod sources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use store_model::signature::SecretKey;
use store_model::{NarHash, Realisation, StorePath};
use tokio::sync::oneshot;

use crate::db::Database;
use crate::db::write::Registration;
use crate::layout::Layout;
use crate::staging::{Staging, c_name};
use crate::workers::WorkQueue;
use crate::writer::{Commit, CommitQueue, ContentSync};
use crate::{CancelFlag, Error};

use self::canonical::Canonical;
pub use self::compare::RoundOutputs;
use self::copy::{Mentions, Place, RequiredOwner, copy_tree};
pub(crate) use self::hash_scan::ReadBuffer;
use self::hash_scan::{ContentHash, Contents, Metadata, Question, read_tree};
pub(crate) use self::outputs::{FoundOutput, Present};
use self::repair::Displaced;
pub(crate) use self::restore::RestoredFacts;
pub(crate) use self::sources::NewText;

/// What one ingest thread works with.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) layout: Arc<Layout>,
    pub(crate) commits: CommitQueue,
    pub(crate) trash: Trash,
    pub(crate) good_paths: GoodPaths,
    pub(crate) content_sync: ContentSync,
    /// Asked for closures; they never wait for these threads.
    pub(crate) readers: WorkQueue<Database>,
    /// Sign what was built here.
    pub(crate) secret_keys: Arc<[SecretKey]>,
    pub(crate) sharing: FileSharing,
    /// File systems of which no file can share its contents with one of the store's.
    pub(crate) unshareable: BTreeSet<u64>,
    pub(crate) buffer: ReadBuffer,
    /// Raised when the registry stops: what nobody waits for then is not read to its end.
    pub(crate) stopping: CancelFlag,
}

/// Whether equal files of the store are one file with many names (`auto-optimise-store`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSharing {
    /// A file that is added becomes another name of an equal one.
    Linked,
    /// Each is its own.
    None,
}

/// What to find out about something in our own directory.
#[derive(Clone, Copy)]
struct StagedQuestion<'a> {
    /// Paths whose mention is a reference.
    candidates: &'a BTreeSet<StorePath>,
    content_hash: Option<ContentHash<'a>>,
    cancel: &'a CancelFlag,
}

/// The thread that deletes.
#[derive(Debug, Clone)]
pub(crate) struct Trash {
    pub(crate) staging: Arc<Staging>,
    pub(crate) queue: WorkQueue<()>,
}

impl Trash {
    /// Takes an object out of the store at once, and has it deleted when there is time.
    ///
    /// # Errors
    /// It cannot be moved.
    pub(crate) fn discard(&self, path: &StorePath) -> Result<(), Error> {
        let real_path = self.staging.real_path(path);
        self.discard_named(&c_name(path.base_name()), &real_path)
    }

    /// The same, of something in the store directory whose name is no path's.
    fn discard_named(&self, name: &CStr, path: &Path) -> Result<(), Error> {
        if let Some(name) = self.staging.take_out(name, path)? {
            let staging = Arc::clone(&self.staging);
            self.queue.submit_blocking(move |()| staging.delete(&name));
        }
        Ok(())
    }
}

/// Which valid paths have the contents that the database says (SPEC A10).
#[derive(Debug, Clone, Default)]
pub(crate) struct GoodPaths(Arc<Mutex<HashMap<StorePath, bool>>>);

impl GoodPaths {
    /// Returns what is remembered of a path.
    pub(crate) fn get(&self, path: &StorePath) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(path).copied()
    }

    /// Forgets everything.
    pub(crate) fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }

    /// Remembers whether a path is good.
    pub(crate) fn set(&self, path: StorePath, is_good: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(path, is_good);
    }
}

/// Something in our own directory, deleted when the value is dropped before it is in its place.
#[derive(Debug)]
pub(crate) struct Staged {
    trash: Trash,
    name: CString,
    is_there: bool,
}

impl Staged {
    /// Chooses a name for something that is about to be made.
    fn new(trash: Trash) -> Self {
        Self {
            name: trash.staging.fresh_name(),
            trash,
            is_there: true,
        }
    }

    /// Returns where it is.
    pub(crate) fn place(&self) -> (BorrowedFd<'_>, &CStr) {
        (self.trash.staging.dir(), &self.name)
    }

    /// Deletes it now. For threads that may wait.
    fn delete(mut self) {
        self.is_there = false;
        self.trash.staging.delete(&self.name);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.is_there {
            let staging = Arc::clone(&self.trash.staging);
            let name = std::mem::take(&mut self.name);
            // May happen on an actor's thread. Where the queue is full the next start deletes it.
            self.trash.queue.try_submit(move |()| staging.delete(&name));
        }
    }
}

impl Ingest {
    /// Returns whether the object has the contents that the database says. What cannot be read
    /// has not.
    pub(crate) fn is_good(&mut self, path: &StorePath, wanted: NarHash) -> bool {
        // Somebody else may have asked meanwhile.
        if let Some(is_good) = self.good_paths.get(path) {
            return is_good;
        }
        let question = Question {
            metadata: Metadata::Keep,
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: &self.stopping,
        };
        let name = c_name(path.base_name());
        let real_path = self.layout.real_path(path);
        let store = self.layout.store.as_fd();
        let is_good = match read_tree(store, &name, &real_path, question, &mut self.buffer) {
            Ok(contents) => contents.nar.nar_hash == wanted,
            // Nothing is known of it, so nothing is remembered.
            Err(Error::Cancelled) => return false,
            Err(error) => {
                tracing::info!("{error}");
                false
            }
        };
        if !is_good {
            let path = self.layout.print(path);
            tracing::warn!("path '{path}' is corrupted or missing");
        }
        self.good_paths.set(path.clone(), is_good);
        is_good
    }

    /// Makes a fresh copy in our own directory.
    fn copy_in(
        &self,
        from: Place<'_>,
        owner: RequiredOwner,
        cancel: &CancelFlag,
    ) -> Result<Staged, Error> {
        self.copy_redirected(from, owner, Mentions::Same, cancel)
    }

    /// Makes a fresh copy in our own directory, which may mention other paths.
    fn copy_redirected(
        &self,
        from: Place<'_>,
        owner: RequiredOwner,
        mentions: Mentions<'_>,
        cancel: &CancelFlag,
    ) -> Result<Staged, Error> {
        let copy = Staged::new(self.trash.clone());
        let path = self.trash.staging.path_of(&copy.name);
        let to = Place {
            dir: self.trash.staging.dir(),
            name: &copy.name,
            path: &path,
        };
        copy_tree(from, to, owner, mentions, cancel)?;
        Ok(copy)
    }

    /// Makes something in our own directory canonical, and reads it. `path` is for messages.
    fn read_staged(
        &mut self,
        staged: &Staged,
        path: &Path,
        question: StagedQuestion<'_>,
    ) -> Result<Contents, Error> {
        let mut canonical = Canonical::new(&self.layout, self.layout.owner_uid);
        let question = Question {
            metadata: Metadata::Set(&mut canonical, self.content_sync),
            candidates: question.candidates,
            content_hash: question.content_hash,
            cancel: question.cancel,
        };
        let dir = self.trash.staging.dir();
        read_tree(dir, &staged.name, path, question, &mut self.buffer)
    }

    /// Moves something from our own directory to its place in the store.
    fn place_staged(&self, staged: &mut Staged, path: &StorePath) -> Result<(), Error> {
        let moved = place::rename(
            (self.trash.staging.dir(), &staged.name),
            (self.layout.store.as_fd(), &c_name(path.base_name())),
        );
        match moved {
            Ok(()) => {
                staged.is_there = false;
                Ok(())
            }
            Err(Errno::EXIST) => Err(Error::PathExists {
                path: self.layout.real_path(path),
            }),
            Err(errno) => Err(Error::file("moving to", self.layout.real_path(path), errno)),
        }
    }

    /// Signs that an output is realised by a path.
    pub(crate) fn sign_realisation(&self, realisation: &mut Realisation) {
        let fingerprint = realisation.fingerprint();
        let signatures = self.secret_keys.iter().map(|key| key.sign(&fingerprint));
        realisation.signatures.extend(signatures);
    }

    /// Returns an object's path as messages have it.
    fn logical_path(&self, path: &StorePath) -> PathBuf {
        PathBuf::from(self.layout.print(path))
    }

    /// Has realisations of valid paths recorded.
    pub(crate) fn record(
        &self,
        realisations: Vec<Realisation>,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        self.commit(Vec::new(), realisations, (), reply);
    }

    /// Hands objects that are in place to the writer, who answers in our stead. What cannot be
    /// registered is taken away again.
    fn commit<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        registrations: Vec<Registration>,
        realisations: Vec<Realisation>,
        answer: T,
        reply: oneshot::Sender<Result<T, E>>,
    ) {
        self.commit_over(registrations, realisations, Vec::new(), answer, reply);
    }

    /// The same, where some of the objects are in the place of others, which are deleted in the end.
    fn commit_over<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        registrations: Vec<Registration>,
        realisations: Vec<Realisation>,
        displaced: Vec<Displaced>,
        answer: T,
        reply: oneshot::Sender<Result<T, E>>,
    ) {
        let paths: Vec<StorePath> = registrations
            .iter()
            .map(|registration| registration.info.path.clone())
            .collect();
        let trash = self.trash.clone();
        let good_paths = self.good_paths.clone();
        let done = Box::new(move |outcome: Result<(), Error>| {
            let outcome = outcome.map(|()| {
                for path in paths.iter().cloned() {
                    good_paths.set(path, true);
                }
                answer
            });
            if outcome.is_err() {
                // What was repaired stays: it is valid, and better than what was there.
                let is_new = |path: &&StorePath| displaced.iter().all(|old| old.path != **path);
                discard_all(&trash, paths.iter().filter(is_new));
            }
            drop(displaced);
            // A cancelled goal no longer listens; the paths are valid all the same.
            let _listener_gone = reply.send(outcome.map_err(E::from));
        });
        self.commits.submit_blocking(Commit {
            registrations,
            realisations,
            signatures: BTreeMap::new(),
            done,
        });
    }
}

/// Takes away what was put in place for a registration that failed.
fn discard_all<'a>(trash: &Trash, paths: impl IntoIterator<Item = &'a StorePath>) {
    for path in paths {
        if let Err(error) = trash.discard(path) {
            tracing::warn!("{error}");
        }
    }
}
