//! Where a builder works: its `/build` and its `/tmp`.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bstr::BString;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use store_model::StorePath;

use super::outer::{Outer, Owner, Parent, Traits, give_to};
use super::{BUILD_PREFIX, IDLE_NAME, KEPT_SUFFIX, Reuse};
use crate::Error;
use crate::remove_tree::{remove_contents, remove_tree};

/// The builder's working directory within its outer directory.
const BUILD: &str = "build";

/// The builder's `/tmp` within its outer directory.
const TMP: &str = "tmp";

/// A build directory, with everything around the builder's own.
#[derive(Debug)]
pub(super) struct BuildPlace {
    pub(super) outer: Outer,
    build: OwnedFd,
    owner: Owner,
    /// What the working directory was like before the builder had it.
    traits: Traits,
    /// The builder's `/tmp`, and what that was like.
    tmp: Option<(OwnedFd, Traits)>,
}

impl BuildPlace {
    /// Makes the directories.
    pub(super) fn create(
        builds: &Parent,
        drv_path: &StorePath,
        owner: Owner,
    ) -> Result<Self, Error> {
        let outer = Outer::create(builds, |n| build_name(drv_path, n))?;
        let build = outer.make(BUILD, 0o700, Some(owner))?;
        let traits = Traits::of(&build).map_err(Error::file(
            "looking at the directory",
            outer.path.join(BUILD),
        ))?;
        Ok(Self {
            tmp: Some(make_tmp(&outer)?),
            outer,
            build,
            owner,
            traits,
        })
    }

    /// Makes an idle one that of another build.
    pub(super) fn take_up(
        mut self,
        builds: &Parent,
        drv_path: &StorePath,
        owner: Owner,
    ) -> Result<Self, Error> {
        self.outer.move_to(builds, |n| build_name(drv_path, n))?;
        if self.owner != owner {
            let give = || {
                give_to(&self.build, owner)?;
                Traits::of(&self.build)
            };
            let path = self.outer.path.join(BUILD);
            self.traits = give().map_err(Error::file("giving the builder", path))?;
            self.owner = owner;
        }
        if self.tmp.is_none() {
            self.tmp = Some(make_tmp(&self.outer)?);
        }
        Ok(self)
    }

    /// Empties it for another build; deletes it if the builder left any trace that stays.
    pub(super) fn clear(mut self, builds: &Parent, reuse: Reuse) -> Option<Self> {
        // Everybody may write it.
        if reuse < Reuse::Everything {
            self.tmp = None;
            remove_tree(&self.outer.directory, c"tmp").ok()?;
        }
        let build = (&self.build, self.traits);
        let tmp = self.tmp.as_ref().map(|(tmp, traits)| (tmp, *traits));
        for (directory, traits) in tmp.into_iter().chain([build]) {
            remove_contents(directory, |_| false).ok()?;
            if Traits::of(directory).ok()? != traits {
                return None;
            }
        }
        self.outer
            .move_to(builds, |n| format!("{IDLE_NAME}-{n}"))
            .ok()?;
        Some(self)
    }

    /// Returns the builder's working directory on the host.
    pub(super) fn build_dir(&self) -> PathBuf {
        self.outer.path.join(BUILD)
    }

    /// Returns the builder's `/tmp` on the host.
    pub(super) fn tmp_dir(&self) -> PathBuf {
        self.outer.path.join(TMP)
    }

    /// Returns the builder's working directory.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.build
    }

    /// Writes files for the builder into its working directory.
    pub(super) fn write_files(&self, files: &BTreeMap<String, BString>) -> Result<(), Error> {
        for (name, content) in files {
            let failed =
                |errno: std::io::Error| Error::file("writing", self.build_dir().join(name))(errno);
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            let file = rustix::fs::openat(&self.build, name.as_str(), flags, mode)
                .map_err(|errno| failed(errno.into()))?;
            // By descriptor: by name it could be a link by now (CVE-2025-52993).
            give_to(&file, self.owner).map_err(|errno| failed(errno.into()))?;
            std::fs::File::from(file)
                .write_all(content)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Deletes everything but the builder's working directory; puts what there is of the outputs
    /// beside it, and gives the directory its lasting name.
    pub(super) fn keep(
        mut self,
        builds: &Parent,
        scratch: &OwnedFd,
        outputs: &[&StorePath],
    ) -> Result<PathBuf, Error> {
        let kept = self.outer.make("outputs", 0o700, None)?;
        for output in outputs {
            let name = output.base_name();
            // Usually there is none, and on another disk it has to be given up.
            let _ = rustix::fs::renameat(scratch, name, &kept, name);
        }
        for name in [c"tmp", c"goalctl-store", c"work"] {
            // What stays of these is only in the way.
            drop(remove_tree(&self.outer.directory, name));
        }
        let stem = self
            .outer
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.outer.move_to(builds, |n| match n {
            0 => format!("{stem}{KEPT_SUFFIX}"),
            n => format!("{stem}-{n}{KEPT_SUFFIX}"),
        })?;
        Ok(self.outer.leave())
    }
}

fn make_tmp(outer: &Outer) -> Result<(OwnedFd, Traits), Error> {
    let tmp = outer.make(TMP, 0o1777, None)?;
    let traits = Traits::of(&tmp).map_err(Error::file(
        "looking at the directory",
        outer.path.join(TMP),
    ))?;
    Ok((tmp, traits))
}

fn build_name(drv_path: &StorePath, n_taken: u64) -> String {
    format!("{BUILD_PREFIX}{}-{n_taken}", drv_path.name())
}

/// Returns whether a disk has so little left that a builder may have failed of it.
pub(super) fn is_nearly_full(directory: &OwnedFd) -> bool {
    /// Nix's limit.
    const NEARLY_FULL_BYTES: u64 = 8 << 20;
    let disk: Result<_, Errno> = rustix::fs::fstatvfs(directory);
    disk.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_bsize) < NEARLY_FULL_BYTES)
}
