//! What the garbage collector must leave alone: paths that this process is about to use, and links
//! that a user keeps.
//!
//! Temporary roots are lent: whoever is about to use paths gets a lease, and gives it back by
//! dropping it. A path stays in the file while a lease of it is out.
//!
//! ```text
//! lend ─► appended, unless the file has the path ─► lease
//! last lease of a path dropped ─► idle ─► more idle than lent: the file is rewritten without them
//! ```
//!
//! Each rewriting is paid for by at least as many returned paths as it writes, so all of them
//! together cost no more than the appending did.

mod file;
mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, mpsc};

use rustix::fs::FlockOperation;
use store_model::StorePath;

use crate::Error;
use crate::layout::Layout;
use crate::messages::RootsLease;
use crate::workers::{WeakWorkQueue, spawn};

use self::file::{Rewriting, RootsFile, open_gc_lock, remove_stale};
pub(crate) use self::link::add_indirect_root;

/// The temporary roots of this registry, in a file named after its process.
#[derive(Debug)]
pub(crate) struct TempRoots {
    layout: Arc<Layout>,
    /// Made with the first root.
    file: Option<RootsFile>,
    /// Kept until the registry stops, for itself.
    own: Vec<StorePath>,
    /// The other paths that the file has, and how many leases of each are out.
    lent: BTreeMap<StorePath, usize>,
    /// How many of them nobody has a lease of.
    n_idle: usize,
    /// Where leases come back. A channel of its own, without a bound, since a lease is dropped
    /// wherever it may be.
    returns: mpsc::Sender<Vec<StorePath>>,
    returned: mpsc::Receiver<Vec<StorePath>>,
    /// Whether a thread waits for the end of a collection.
    awaits_collector: bool,
}

/// The thread that has the roots, as leases see it.
pub(crate) type RootsQueue = WeakWorkQueue<TempRoots>;

/// Paths that are lent together.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) paths: Vec<StorePath>,
    returns: mpsc::Sender<Vec<StorePath>>,
    queue: RootsQueue,
}

impl Drop for Loan {
    fn drop(&mut self) {
        // A registry that has stopped has removed the whole file.
        if self.returns.send(std::mem::take(&mut self.paths)).is_ok()
            && let Some(queue) = self.queue.upgrade()
        {
            let again = self.queue.clone();
            // Where the queue is full, every job that is in it settles as well.
            queue.try_submit(move |roots| roots.settle(&again));
        }
    }
}

impl TempRoots {
    /// Removes what dead processes have left; the file itself is made with the first root.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn open(layout: Arc<Layout>) -> Result<Self, Error> {
        remove_stale(&layout.state("temproots"))?;
        let (returns, returned) = mpsc::channel();
        Ok(Self {
            layout,
            file: None,
            own: Vec::new(),
            lent: BTreeMap::new(),
            n_idle: 0,
            returns,
            returned,
            awaits_collector: false,
        })
    }

    /// Keeps what the registry itself needs from the garbage collector until it stops.
    ///
    /// # Errors
    /// The root cannot be written; the path may go at any time.
    pub(crate) fn keep(&mut self, path: &StorePath) -> Result<(), Error> {
        self.write(std::slice::from_ref(path))?;
        self.own.push(path.clone());
        Ok(())
    }

    /// Keeps `paths` from the garbage collector until the lease is dropped.
    ///
    /// # Errors
    /// The roots cannot be written; the paths may go at any time.
    pub(crate) fn lend(
        &mut self,
        paths: Vec<StorePath>,
        queue: &RootsQueue,
    ) -> Result<RootsLease, Error> {
        // What is idle is in the file still, where every collector has seen it.
        let new: BTreeSet<&StorePath> = paths
            .iter()
            .filter(|path| !self.lent.contains_key(path))
            .collect();
        let new: Vec<StorePath> = new.into_iter().cloned().collect();
        self.write(&new)?;
        for path in &paths {
            match self.lent.get_mut(path) {
                Some(n_leases) => {
                    self.n_idle -= usize::from(*n_leases == 0);
                    *n_leases += 1;
                }
                None => {
                    self.lent.insert(path.clone(), 1);
                }
            }
        }
        self.settle(queue);
        let loan = Loan {
            paths,
            returns: self.returns.clone(),
            queue: queue.clone(),
        };
        Ok(RootsLease {
            loans: vec![Arc::new(loan)],
        })
    }

    /// Takes back what was returned, and forgets what nobody has a lease of once that is more than
    /// half. Every job of the roots' thread ends with this.
    pub(crate) fn settle(&mut self, queue: &RootsQueue) {
        while let Ok(paths) = self.returned.try_recv() {
            for path in paths {
                if let Some(n_leases) = self.lent.get_mut(&path) {
                    *n_leases -= 1;
                    self.n_idle += usize::from(*n_leases == 0);
                }
            }
        }
        if self.n_idle * 2 <= self.lent.len() {
            return;
        }
        match self.rewrite() {
            Ok(Rewriting::Done) => {}
            Ok(Rewriting::CollectorAtWork) => self.await_collector(queue),
            // The next job tries again.
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn write(&mut self, new: &[StorePath]) -> Result<(), Error> {
        if self.file.as_ref().is_some_and(RootsFile::is_torn) {
            self.rewrite()?;
        }
        if new.is_empty() {
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => RootsFile::create(&self.layout)?,
        };
        let written = file.append(&self.layout, new);
        self.file = Some(file);
        written
    }

    /// Takes idle paths out of the file, and out of memory.
    fn rewrite(&mut self) -> Result<Rewriting, Error> {
        let Some(file) = &mut self.file else {
            return Ok(Rewriting::Done);
        };
        let live = self.lent.iter().filter(|(_, n_leases)| **n_leases > 0);
        let left = self.own.iter().chain(live.map(|(path, _)| path));
        let rewriting = file.rewrite(&self.layout, left)?;
        if rewriting == Rewriting::Done {
            self.lent.retain(|_, n_leases| *n_leases > 0);
            self.n_idle = 0;
        }
        Ok(rewriting)
    }

    /// Settles again when the collector has ended, in case nobody else gives a reason to.
    fn await_collector(&mut self, queue: &RootsQueue) {
        if self.awaits_collector {
            return;
        }
        let queue = queue.clone();
        let waiting = open_gc_lock(&self.layout).and_then(|lock| {
            // The thread is left to itself: nothing but the collector can end its wait.
            spawn("collector", move || {
                let shared = FlockOperation::LockShared;
                // Whatever it answers, the roots' thread looks for itself.
                let _free = rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, shared));
                drop(lock);
                if let Some(roots) = queue.upgrade() {
                    roots.submit_blocking(move |roots| {
                        roots.awaits_collector = false;
                        roots.settle(&queue);
                    });
                }
            })
        });
        match waiting {
            Ok(_left_to_itself) => self.awaits_collector = true,
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // While it is locked nobody else removes it. If this fails the next start does.
            let _left_for_the_next_start = fs::remove_file(&file.path);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
