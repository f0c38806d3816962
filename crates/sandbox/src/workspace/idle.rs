//! Directories that wait for another build.

use std::collections::BTreeMap;

use super::build_place::BuildPlace;
use super::scratch_store::{Input, ScratchStore};

/// More wait for nothing: so many builds hardly end at once, and each holds three descriptors.
const MAX_IDLE: usize = 8;

/// So many mount points are made for any build; an overlay costs as much.
const N_FREE: usize = 8;

/// Which way a builder is shown its inputs.
#[derive(Debug)]
pub(super) enum Choice {
    /// Each is mounted on a mount point on the disk: in this store, or in a new one.
    MountPoints(Option<Box<ScratchStore>>),
    /// An overlay is laid over mount points in memory.
    Overlay,
}

/// What waits, and how much has been spent for want of it.
#[derive(Debug, Default)]
pub(super) struct Idle {
    builds: Vec<BuildPlace>,
    stores: Vec<ScratchStore>,
    /// So many mount points could have been made instead of all the overlays so far.
    n_earned: usize,
    is_closed: bool,
}

impl Idle {
    /// Takes a build directory.
    pub(super) fn take_build(&mut self) -> Option<BuildPlace> {
        self.builds.pop()
    }

    /// Decides how to show inputs, and takes the store whose mount points suit them best.
    ///
    /// Mount points on the disk are cheap to use again and dear to make; nobody knows whether there
    /// will be another build. So they are made as soon as overlays have cost as much, which is never
    /// more than twice what the best decision would have cost.
    pub(super) fn choose(&mut self, inputs: &BTreeMap<String, Input>) -> Choice {
        let best = self
            .stores
            .iter()
            .map(|store| store.effort(inputs))
            .enumerate()
            .min_by_key(|(_, effort)| *effort);
        let is_mounted = |input: &&Input| matches!(input, Input::Mounted { .. });
        let n_missing = best.map_or_else(
            || inputs.values().filter(is_mounted).count(),
            |(_, effort)| effort.n_missing,
        );
        match n_missing.saturating_sub(N_FREE) {
            n_dear if n_dear <= self.n_earned => {
                self.n_earned -= n_dear;
                Choice::MountPoints(best.map(|(idx, _)| Box::new(self.stores.swap_remove(idx))))
            }
            _ => {
                // An overlay costs as much as ten mount points, and each input in it a tenth of one.
                self.n_earned += 10 + inputs.len() / 10;
                Choice::Overlay
            }
        }
    }

    /// Keeps a build directory; gives it back if it is not wanted.
    pub(super) fn put_build(&mut self, build: BuildPlace) -> Option<BuildPlace> {
        if self.is_closed || self.builds.len() >= MAX_IDLE {
            return Some(build);
        }
        self.builds.push(build);
        None
    }

    /// Keeps a store; gives it back if it is not wanted.
    pub(super) fn put_store(&mut self, store: ScratchStore) -> Option<ScratchStore> {
        if self.is_closed || self.stores.len() >= MAX_IDLE {
            return Some(store);
        }
        self.stores.push(store);
        None
    }

    /// Takes everything, and keeps nothing any more.
    pub(super) fn close(&mut self) -> (Vec<BuildPlace>, Vec<ScratchStore>) {
        self.is_closed = true;
        (
            std::mem::take(&mut self.builds),
            std::mem::take(&mut self.stores),
        )
    }
}
