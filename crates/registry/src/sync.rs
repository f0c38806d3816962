//! Getting contents and names onto the disk before anybody is told that they are valid.
//!
//! One `syncfs` for a batch costs 156 µs a path where syncing each file costs 485 µs. But it also
//! waits for whatever else the file system has not written, such as the gigabytes of a builder next
//! door; where there is much of that, the batch's own files are synced one by one.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use store_model::StorePath;

use crate::Error;
use crate::layout::Layout;
use crate::staging::c_name;
use crate::tree::{self, Here, Visitor};

/// How many unwritten bytes a `syncfs` may find: half a second of a slow disk.
const DIRTY_LIMIT_BYTES: u64 = 256 << 20;

/// How many more for each path of the batch: what the disk writes while the files of one are synced,
/// at 1.5 ms for each of a few.
const DIRTY_BYTES_PER_PATH: u64 = 4 << 20;

/// How to make a batch durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// One call for all of the file system.
    WholeFileSystem,
    /// Each file and directory of the batch, then the store directory.
    EachFile,
}

impl Strategy {
    const fn choose(dirty_bytes: u64, n_paths: u64) -> Self {
        let limit = DIRTY_LIMIT_BYTES.saturating_add(n_paths.saturating_mul(DIRTY_BYTES_PER_PATH));
        if dirty_bytes > limit {
            Self::EachFile
        } else {
            Self::WholeFileSystem
        }
    }

    /// Chooses by what the machine has not written yet, for a batch of so many paths.
    pub(crate) fn now(n_paths: u64) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::choose(dirty_bytes(&meminfo), n_paths)
    }

    /// Waits until the contents of some paths would survive a power cut, where each path is synced
    /// on its own.
    ///
    /// # Errors
    /// The kernel could not write something; these paths may not become valid then.
    pub(crate) fn sync_each<'a>(
        self,
        layout: &Layout,
        paths: impl Iterator<Item = &'a StorePath>,
    ) -> Result<(), Error> {
        match self {
            Self::WholeFileSystem => Ok(()),
            Self::EachFile => {
                for path in paths {
                    let name = c_name(path.base_name());
                    let real_path = layout.real_path(path);
                    sync_tree(layout.store.as_fd(), &name, &real_path)?;
                }
                Ok(())
            }
        }
    }

    /// Waits until all that is left of a batch would survive a power cut: its names at least.
    ///
    /// # Errors
    /// The kernel could not write something; nothing of the batch may become valid then.
    pub(crate) fn sync_rest(self, layout: &Layout) -> Result<(), Error> {
        match self {
            Self::WholeFileSystem => rustix::fs::syncfs(&layout.store),
            Self::EachFile => rustix::fs::fsync(&layout.store),
        }
        .map_err(|errno| Error::file("syncing", &layout.paths.real_store_dir, errno))
    }
}

/// Waits until the contents of one tree would survive a power cut. `path` is for messages.
///
/// # Errors
/// The kernel could not write something.
pub(crate) fn sync_tree(dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Error> {
    tree::walk(dir, name, path, &mut SyncEach)
}

/// Reads how much of the page cache is not on any disk yet.
fn dirty_bytes(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .filter_map(|line| {
            let (name, amount) = line.split_once(':')?;
            let kib = amount.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            matches!(name, "Dirty" | "Writeback").then_some(kib * 1024)
        })
        .sum()
}

struct SyncEach;

impl Visitor for SyncEach {
    type Error = Error;

    const MAX_DEPTH: usize = usize::MAX;

    const UNLOCK: bool = false;

    fn enter(&mut self, _dir: BorrowedFd<'_>, _here: &Here<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        rustix::fs::fsync(dir).map_err(|errno| here.failed("syncing", errno))
    }

    fn file(&mut self, here: &Here<'_>) -> Result<(), Error> {
        let file = here.open_file(false)?;
        rustix::fs::fsync(file).map_err(|errno| here.failed("syncing", errno))
    }

    fn link(&mut self, _here: &Here<'_>) -> Result<(), Error> {
        // Its target is part of its directory, or of the inode that is written with it.
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use store_model::Settings;

    use super::*;
    use crate::testing::{TestStore, path};

    #[test]
    fn both_ways_sync_whole_trees() {
        let store = TestStore::new();
        let layout = Layout::open(store.layout(), &Settings::default()).unwrap();
        let object = path('a', "x");
        let dir = store.real_path(&object);
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
        for strategy in [Strategy::WholeFileSystem, Strategy::EachFile] {
            strategy.sync_each(&layout, [&object].into_iter()).unwrap();
            strategy.sync_rest(&layout).unwrap();
        }
        let missing = Strategy::EachFile.sync_each(&layout, [&path('b', "x")].into_iter());
        assert!(matches!(missing, Err(Error::File { .. })));
    }

    #[test]
    fn unwritten_bytes_are_those_dirty_and_those_on_their_way() {
        let meminfo = "MemTotal: 100 kB\nDirty:    10 kB\nWriteback:   2 kB\nWritebackTmp: 9 kB\n";
        assert_eq!(dirty_bytes(meminfo), 12 * 1024);
        assert_eq!(dirty_bytes("nonsense"), 0);
    }

    #[test]
    fn a_builder_that_writes_gigabytes_delays_nobody_elses_registration() {
        let limit = DIRTY_LIMIT_BYTES + DIRTY_BYTES_PER_PATH;
        assert_eq!(Strategy::choose(0, 1), Strategy::WholeFileSystem);
        assert_eq!(Strategy::choose(limit, 1), Strategy::WholeFileSystem);
        assert_eq!(Strategy::choose(limit + 1, 1), Strategy::EachFile);
        assert_eq!(Strategy::choose(4 << 30, 100), Strategy::EachFile);
    }

    #[test]
    fn many_small_paths_share_a_sync_though_somebody_writes_a_little_more() {
        let limit = DIRTY_LIMIT_BYTES + DIRTY_BYTES_PER_PATH;
        assert_eq!(Strategy::choose(limit + 1, 100), Strategy::WholeFileSystem);
    }
}
