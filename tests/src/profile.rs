//! As whom a test runs: the two ways in which people use goalctl.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::requirement;

/// The user that ordinary stores belong to when the tests run as root.
const ORDINARY_ID: u32 = 65_534;

/// As whom goalctl runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As root, which gives every builder a uid of its own.
    Root,
    /// As a user without any right, who builds in a user namespace.
    Ordinary,
}

impl Profile {
    /// Returns the profiles that can be tried here, and says which can't.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Self::Root, Self::Ordinary]
            .into_iter()
            .filter(|profile| match profile.obstacle() {
                Some(reason) => {
                    requirement::skip(&format!("{profile:?}: {reason}"));
                    false
                }
                None => true,
            })
            .collect()
    }

    /// Returns the profile of the user who runs the tests.
    #[must_use]
    pub fn native() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::Root
        } else {
            Self::Ordinary
        }
    }

    /// Returns a command that runs `program` as this profile's user, in no supplementary group.
    #[must_use]
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(id) = self.foreign_id() {
            // Also drops the supplementary groups.
            command.uid(id).gid(id);
        }
        command
    }

    /// Returns the uid and gid that this profile's files must have, if not the test's own.
    #[must_use]
    pub fn foreign_id(self) -> Option<u32> {
        (self == Self::Ordinary && nix::unistd::geteuid().is_root()).then_some(ORDINARY_ID)
    }

    /// Returns the uid that runs this profile's programs.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.foreign_id()
            .unwrap_or_else(|| nix::unistd::geteuid().as_raw())
    }

    /// Returns why this profile can't be tried here.
    fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::Root if !nix::unistd::geteuid().is_root() => Some("the tests do not run as root"),
            Self::Root => (!self.can_unshare("-mpn")).then_some("root may not make namespaces"),
            Self::Ordinary => (!self.can_unshare("-Urmn"))
                .then_some("an ordinary user may not make user namespaces"),
        }
    }

    fn can_unshare(self, flags: &str) -> bool {
        requirement::find_program("unshare").is_some_and(|unshare| {
            requirement::succeeds(self.command(&unshare).args([flags, "true"]))
        })
    }
}
