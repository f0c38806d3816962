//! The environment variables that goalctl reads, each once, at the start.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bstr::BString;

/// A snapshot of the environment. Nothing after start-up looks at the real one, so that every rule
/// about it can be tested.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<OsString, OsString>,
    current_dir: PathBuf,
}

impl Environment {
    /// Takes the snapshot of this process.
    #[must_use]
    pub(crate) fn of_this_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            // A directory that is gone makes relative paths fail one by one, with their names.
            current_dir: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// Returns a variable; one that is set to nothing counts as unset.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// Returns a variable that names a path.
    #[must_use]
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// Returns all variables as bytes, for builders that may see some of them.
    pub(crate) fn to_bytes(&self) -> BTreeMap<BString, BString> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()))
            .collect()
    }

    /// Returns a path that is absolute, seen from the directory of the start.
    #[must_use]
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        self.current_dir.join(path)
    }

    /// Returns a directory of the XDG base directory specification, which knows absolute paths
    /// only; `fallback` is relative to the home directory.
    #[must_use]
    pub(crate) fn xdg_dir(&self, name: &str, fallback: &str) -> Option<PathBuf> {
        self.path(name)
            .filter(|path| path.is_absolute())
            .or_else(|| {
                self.path("HOME")
                    .filter(|home| home.is_absolute())
                    .map(|home| home.join(fallback))
            })
    }

    /// Returns the directory of what can be found out again; `None` without a home directory.
    #[must_use]
    pub(crate) fn cache_dir(&self) -> Option<PathBuf> {
        let dir = self.xdg_dir("XDG_CACHE_HOME", ".cache")?;
        Some(dir.join("goalctl"))
    }

    /// Returns a snapshot of these variables, in the root directory.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn of(variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            current_dir: PathBuf::from("/"),
        }
    }
}
