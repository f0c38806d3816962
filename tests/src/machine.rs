//! A machine that looks different from this one, to one program and what it starts.
//!
//! It is a mount namespace of the program's own: what is changed there nobody else sees, and it is
//! gone when the program has ended.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::profile::Profile;
use crate::requirement;

/// What is different.
#[derive(Debug, Default)]
pub struct Machine {
    mounts: Vec<(PathBuf, PathBuf)>,
    directories: Vec<PathBuf>,
}

/// Makes a root directory that has everything of this machine's, and one more directory; `$0` is an
/// empty directory.
const NEW_ROOT: &str = r#"
mount -t tmpfs none "$0"
for entry in /*; do
  if [ -L "$entry" ]; then ln -s "$(readlink "$entry")" "$0$entry"
  elif [ -d "$entry" ]; then mkdir "$0$entry"; mount --rbind "$entry" "$0$entry"
  fi
done
while [ "$1" != -- ]; do mkdir "$0$1"; shift; done; shift
mkdir "$0/.old"; cd "$0"
# An ordinary user need not have it on the search path.
PATH="$PATH:/usr/sbin:/sbin" pivot_root . .old; cd /; umount -l /.old; rmdir /.old
"#;

/// Lays one file or directory over another, for each pair of words up to `--`.
const MOUNT: &str = r#"
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift
"#;

impl Machine {
    /// Shows the file or directory `source` at the path `target`, which exists.
    #[must_use]
    pub fn mount(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.mounts.push((source.into(), target.into()));
        self
    }

    /// Has an empty directory, right below the root directory.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directories.push(path.into());
        self
    }

    /// Returns a command that runs the program that it is given there as this profile's user, with
    /// the directory `nix` as `/nix`; `empty` is an empty directory.
    pub(crate) fn wrapper(&self, profile: Profile, empty: &Path, nix: &Path) -> Command {
        let unshare = requirement::find_program("unshare").expect("every system has it");
        let mut wrapper = profile.command(&unshare);
        // Whoever is no root is one to mount, and none again: otherwise builds are those of root.
        let (flags, start) = match profile {
            Profile::Root => ("-m", "exec \"$@\""),
            Profile::Ordinary => ("-Urm", "exec unshare -U --map-user=1 --map-group=1 \"$@\""),
        };
        let new_root = if self.directories.is_empty() {
            ""
        } else {
            NEW_ROOT
        };
        wrapper.args([flags, "sh", "-ec"]);
        wrapper.arg(format!("{new_root}{MOUNT}{start}"));
        wrapper.arg(empty);
        if !self.directories.is_empty() {
            wrapper.args(&self.directories).arg("--");
        }
        wrapper.arg(nix).arg("/nix");
        for (source, target) in &self.mounts {
            wrapper.arg(source).arg(target);
        }
        wrapper.arg("--");
        wrapper
    }
}
