//! Getting contents and names onto the disk before anybody is told that they are valid.
//!
//! One `syncfs` for a batch costs 156 µs a path where syncing each file costs 485 µs. But it also
//! waits for whatever else the file system has not written, such as the gigabytes of a builder next
//! door; where there is much of that, the batch's own files are synced one by one.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};

use store_model::StorePath;

use crate::Error;
use crate::layout::Layout;
use crate::tree::{self, Here, Visitor};

/// How many unwritten bytes a `syncfs` may find: half a second of a slow disk.
const DIRTY_LIMIT_BYTES: u64 = 256 << 20;

/// How to make a batch durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// One call for all of the file system.
    WholeFileSystem,
    /// Each file and directory of the batch, then the store directory.
    EachFile,
}

impl Strategy {
    const fn choose(dirty_bytes: u64) -> Self {
        if dirty_bytes > DIRTY_LIMIT_BYTES {
            Self::EachFile
        } else {
            Self::WholeFileSystem
        }
    }
}

/// Waits until the contents and the names of `paths` would survive a power cut.
///
/// # Errors
/// The kernel could not write something; nothing of the batch may become valid then.
pub(crate) fn make_durable<'a>(
    layout: &Layout,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<(), Error> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    apply(Strategy::choose(dirty_bytes(&meminfo)), layout, paths)
}

fn apply<'a>(
    strategy: Strategy,
    layout: &Layout,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<(), Error> {
    let synced = match strategy {
        Strategy::WholeFileSystem => rustix::fs::syncfs(&layout.store),
        Strategy::EachFile => {
            for path in paths {
                let name = CString::new(path.base_name()).unwrap_or_default();
                let real_path = layout.real_path(path);
                tree::walk(layout.store.as_fd(), &name, &real_path, &mut SyncEach)?;
            }
            rustix::fs::fsync(&layout.store)
        }
    };
    synced.map_err(|errno| Error::file("syncing", &layout.paths.real_store_dir, errno))
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
mod tests {
    use super::*;

    #[test]
    fn unwritten_bytes_are_those_dirty_and_those_on_their_way() {
        let meminfo = "MemTotal: 100 kB\nDirty:    10 kB\nWriteback:   2 kB\nWritebackTmp: 9 kB\n";
        assert_eq!(dirty_bytes(meminfo), 12 * 1024);
        assert_eq!(dirty_bytes("nonsense"), 0);
    }

    #[test]
    fn a_builder_that_writes_gigabytes_delays_nobody_elses_registration() {
        assert_eq!(Strategy::choose(0), Strategy::WholeFileSystem);
        assert_eq!(
            Strategy::choose(DIRTY_LIMIT_BYTES),
            Strategy::WholeFileSystem
        );
        assert_eq!(Strategy::choose(4 << 30), Strategy::EachFile);
    }
}
