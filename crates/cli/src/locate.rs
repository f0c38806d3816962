//! Which store a command works on (SPEC §10).
//!
//! `--store ROOT` decides; else `NIX_REMOTE`; else `NIX_STORE_DIR`, `NIX_STATE_DIR` and
//! `NIX_LOG_DIR`; else `/nix` where it exists and may be written; else a store of the user's own.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use store_model::StoreDir;
use store_model::settings::StoreLayout;

use crate::environment::Environment;
use crate::failure::{Failure, Result};

/// Whether this machine's `/nix` can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemStore {
    /// It is there, and we may write to it.
    Usable,
    /// It is absent, or belongs to somebody else.
    Unusable,
}

impl SystemStore {
    /// Looks at `/nix`.
    #[must_use]
    pub(crate) fn of_this_machine() -> Self {
        let may_write = |path: &str| access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
        // A directory that is not there yet is made in its parent.
        let usable = |path: &str, parent: &str| {
            may_write(path) || (!Path::new(path).exists() && may_write(parent))
        };
        if Path::new("/nix").is_dir()
            && usable("/nix/store", "/nix")
            && usable("/nix/var", "/nix")
            && usable("/nix/var/nix", "/nix/var")
        {
            Self::Usable
        } else {
            Self::Unusable
        }
    }
}

/// Finds the store.
///
/// # Errors
/// The store that is named is not a local one, or none can be found.
pub(crate) fn locate(
    flag: Option<&Path>,
    environment: &Environment,
    system_store: SystemStore,
) -> Result<StoreLayout> {
    if let Some(root) = flag
        && root.as_os_str() != "auto"
    {
        return under_root(root, "--store", environment);
    }
    if let Some(remote) = environment.path("NIX_REMOTE")
        && !matches!(remote.to_str(), Some("auto" | "local"))
    {
        return under_root(&remote, "NIX_REMOTE", environment);
    }
    if let Some(layout) = named_by_directories(environment)? {
        return Ok(layout);
    }
    if system_store == SystemStore::Usable {
        return Ok(StoreLayout::under_root(Path::new("/")));
    }
    environment
        .xdg_dir("XDG_DATA_HOME", ".local/share")
        .map(|data| StoreLayout::under_root(&data.join("goalctl/root")))
        .ok_or_else(|| {
            Failure::message("there is no store: '/nix' cannot be written, and HOME is not set")
                .advise("name a directory for a store of your own with '--store ROOT'")
        })
}

fn under_root(root: &Path, named_by: &str, environment: &Environment) -> Result<StoreLayout> {
    let text = root.to_string_lossy();
    if matches!(&*text, "daemon" | "local" | "dummy") || text.contains("://") || text.contains('?')
    {
        return Err(Failure::message(format!(
            "{named_by} names the store '{text}', and goalctl works on local stores only, \
             not through a daemon or another machine"
        ))
        .advise("name the directory above 'nix/store' instead, with '--store ROOT'"));
    }
    if text.is_empty() {
        return Err(Failure::message(format!("{named_by} names no directory")));
    }
    let root = environment.absolute(root);
    if root.exists() && !root.is_dir() {
        return Err(Failure::message(format!(
            "{named_by} names '{}', which is not a directory",
            root.display()
        )));
    }
    // The real path, so that a build's bind mounts and the file system agree on it. A root that
    // does not exist yet has nothing to resolve.
    Ok(StoreLayout::under_root(
        &root.canonicalize().unwrap_or(root),
    ))
}

fn named_by_directories(environment: &Environment) -> Result<Option<StoreLayout>> {
    let dir = |name: &str| environment.path(name);
    let (store, state, log) = (
        dir("NIX_STORE_DIR"),
        dir("NIX_STATE_DIR"),
        dir("NIX_LOG_DIR"),
    );
    if store.is_none() && state.is_none() && log.is_none() {
        return Ok(None);
    }
    for (name, path) in [("NIX_STATE_DIR", &state), ("NIX_LOG_DIR", &log)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return Err(Failure::message(format!(
                "{name} is '{}', which is not an absolute path",
                path.display()
            )));
        }
    }
    let store = store.unwrap_or_else(|| PathBuf::from("/nix/store"));
    let store_dir = StoreDir::new(&store.to_string_lossy()).map_err(|_| {
        Failure::message(format!(
            "NIX_STORE_DIR is '{}', which is not an absolute path in canonical form",
            store.display()
        ))
    })?;
    Ok(Some(StoreLayout {
        real_store_dir: PathBuf::from(store_dir.as_str()),
        store_dir,
        state_dir: state.unwrap_or_else(|| PathBuf::from("/nix/var/nix")),
        log_dir: log.unwrap_or_else(|| PathBuf::from("/nix/var/log/nix")),
    }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn located(flag: Option<&str>, variables: &[(&str, &str)], system: SystemStore) -> StoreLayout {
        locate(flag.map(Path::new), &Environment::of(variables), system).unwrap()
    }

    #[test]
    fn a_named_root_keeps_the_logical_directory() {
        let layout = located(
            Some("/no/such/root"),
            &[("NIX_STORE_DIR", "/x")],
            SystemStore::Usable,
        );
        assert_eq!(layout.store_dir.as_str(), "/nix/store");
        assert_eq!(layout.real_store_dir, Path::new("/no/such/root/nix/store"));
        assert_eq!(layout.state_dir, Path::new("/no/such/root/nix/var/nix"));
        let relative = located(Some("no-such-root"), &[], SystemStore::Usable);
        assert_eq!(
            relative.real_store_dir,
            Path::new("/no-such-root/nix/store")
        );
    }

    #[test]
    fn a_store_behind_a_daemon_is_refused_and_names_who_asked_for_it() {
        for url in [
            "daemon",
            "unix:///run/nix",
            "ssh://host",
            "https://cache",
            "local?root=/x",
        ] {
            let variables = Environment::of(&[("NIX_REMOTE", url)]);
            let failure = locate(None, &variables, SystemStore::Usable).unwrap_err();
            let text = failure.render(crate::render::Style::Plain);
            assert!(text.contains("NIX_REMOTE") && text.contains(url), "{text}");
            let flag = locate(
                Some(Path::new(url)),
                &Environment::default(),
                SystemStore::Usable,
            );
            assert!(
                flag.unwrap_err()
                    .render(crate::render::Style::Plain)
                    .contains("--store")
            );
        }
        let layout = located(None, &[("NIX_REMOTE", "auto")], SystemStore::Usable);
        assert_eq!(layout.real_store_dir, Path::new("/nix/store"));
    }

    #[test]
    fn three_variables_name_the_directories_one_by_one() {
        let layout = located(None, &[("NIX_STATE_DIR", "/s")], SystemStore::Unusable);
        assert_eq!(layout.real_store_dir, Path::new("/nix/store"));
        assert_eq!(layout.state_dir, Path::new("/s"));
        let layout = located(
            None,
            &[("NIX_STORE_DIR", "/gnu/store")],
            SystemStore::Usable,
        );
        assert_eq!(layout.store_dir.as_str(), "/gnu/store");
        assert!(!layout.is_relocated());
        for (name, value) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STORE_DIR", "/a/../b"),
            ("NIX_LOG_DIR", "l"),
        ] {
            let variables = Environment::of(&[(name, value)]);
            assert!(
                locate(None, &variables, SystemStore::Usable).is_err(),
                "{name}={value}"
            );
        }
    }

    #[test]
    fn without_a_name_the_systems_store_is_used_or_else_the_users_own() {
        let home = &[("HOME", "/home/a")];
        assert!(!located(None, home, SystemStore::Usable).is_relocated());
        assert_eq!(
            located(None, home, SystemStore::Unusable).real_store_dir,
            Path::new("/home/a/.local/share/goalctl/root/nix/store")
        );
        let xdg = &[("HOME", "/home/a"), ("XDG_DATA_HOME", "/data")];
        assert_eq!(
            located(None, xdg, SystemStore::Unusable).state_dir,
            Path::new("/data/goalctl/root/nix/var/nix")
        );
        assert!(locate(None, &Environment::default(), SystemStore::Unusable).is_err());
    }
}
