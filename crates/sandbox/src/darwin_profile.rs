//! The sandbox profile of macOS: which files a builder there may reach, in the language of
//! `sandbox-exec`.
//!
//! Pure, so that it is tested where it cannot run: who has looked at the paths says what they are.
//!
//! ```text
//! (version 1)
//! (deny default …)              everything not named below
//! (allow … outputs)
//! (allow … inputs and sandbox paths)
//! (allow file-read* … all directories above them, so that paths can be resolved)
//! whatever the derivation adds in `__sandboxProfile`
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use store_model::settings::SandboxMode;
use store_model::{StoreDir, StorePath};

/// The program that applies a profile to a builder.
pub const SANDBOX_EXEC: &str = "/usr/bin/sandbox-exec";

/// The parameter by which profiles name the directory for temporary files.
const GLOBAL_TMP_DIR: &str = "_GLOBAL_TMP_DIR";

/// What lies at a path of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A directory: all that is below is meant too.
    Directory,
    /// Anything else.
    Other,
    /// Nothing.
    Missing,
}

/// A path of the host that builders may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    /// Where it really is; without mounts it must be where builders find it.
    pub source: PathBuf,
    /// Whether it may be missing.
    pub is_optional: bool,
    /// What is there now.
    pub kind: PathKind,
}

/// What becomes of violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violations {
    /// They go to the system's log (`darwin-log-sandbox-violations`).
    Logged,
    /// They only fail.
    Silent,
}

/// What a builder may reach.
#[derive(Debug, Clone)]
pub struct DarwinSandbox<'a> {
    /// For printing store paths.
    pub store_dir: &'a StoreDir,
    /// What becomes of violations.
    pub violations: Violations,
    /// The outputs that are to be built.
    pub outputs: &'a BTreeSet<StorePath>,
    /// The closure of the inputs, and what each is.
    pub inputs: &'a BTreeMap<StorePath, PathKind>,
    /// Paths of the host, by where builders find them: those of the settings, the build directory.
    pub host_paths: &'a BTreeMap<PathBuf, HostPath>,
    /// What the derivation adds (`__sandboxProfile`); only to be used where that is allowed, see
    /// [`check_profile_allowed`].
    pub additional: &'a str,
}

/// Why there is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Without mounts nothing can be found elsewhere than it is.
    #[error(
        "can't map '{}' to '{}': mismatched impure paths not supported on Darwin",
        .target.display(), .origin.display()
    )]
    Mismatched {
        /// Where builders would find it.
        target: PathBuf,
        /// Where it is.
        origin: PathBuf,
    },
    /// A builder would fail later, and nobody would know why.
    #[error("sandbox path '{}' does not exist", .path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The profile could come to mean something else.
    #[error("sandbox path '{}' is not text", .path.display())]
    NotText {
        /// The path.
        path: PathBuf,
    },
    /// The derivation would decide what it may reach.
    #[error(
        "derivation '{drv_path}' specifies a sandbox profile, but this is only allowed when \
         'sandbox' is 'relaxed'"
    )]
    ProfileNotAllowed {
        /// The derivation, in full.
        drv_path: String,
    },
}

/// Checks that a derivation adds nothing to its profile where that is not allowed: where the
/// setting `sandbox` says that nothing may be built without the sandbox.
///
/// # Errors
/// [`Error::ProfileNotAllowed`].
pub fn check_profile_allowed(
    additional: &str,
    mode: SandboxMode,
    drv_path: &StorePath,
    store_dir: &StoreDir,
) -> Result<(), Error> {
    if additional.is_empty() || mode != SandboxMode::Always {
        return Ok(());
    }
    Err(Error::ProfileNotAllowed {
        drv_path: store_dir.print(drv_path),
    })
}

/// Returns the arguments of [`SANDBOX_EXEC`], from its own name on, up to the builder; the
/// builder's arguments follow.
///
/// `tmp_dir` is where programs put temporary files that do not heed `TMPDIR`, without links.
#[must_use]
pub fn sandbox_exec_args(profile_file: &Path, tmp_dir: &Path, builder: &Path) -> Vec<OsString> {
    // Rules about everything below a directory do not hold if its name ends in a slash.
    let tmp_dir = tmp_dir.as_os_str().as_bytes();
    let tmp_dir = tmp_dir.strip_suffix(b"/").unwrap_or(tmp_dir);
    let mut parameter = OsString::from(format!("{GLOBAL_TMP_DIR}="));
    parameter.push(OsStr::from_bytes(tmp_dir));
    vec![
        "sandbox-exec".into(),
        "-f".into(),
        profile_file.into(),
        "-D".into(),
        parameter,
        builder.into(),
    ]
}

/// Returns the profile.
///
/// # Errors
/// [`Error::Mismatched`], [`Error::Missing`] or [`Error::NotText`] for a path of the host.
pub fn darwin_profile(sandbox: &DarwinSandbox<'_>) -> Result<String, Error> {
    let mut profile = String::from("(version 1)\n");
    profile.push_str(match sandbox.violations {
        Violations::Logged => "(deny default)\n",
        Violations::Silent => "(deny default (with no-log))\n",
    });

    let outputs = sandbox.outputs.iter();
    let outputs = outputs.map(|path| (sandbox.store_dir.print(path), PathKind::Directory));
    allow(&mut profile, "file-read* file-write* process-exec", outputs);

    // Writing must be allowed for inputs too: else access(2) says that they cannot be read. What
    // protects them are their owners and modes.
    let reachable = reachable(sandbox)?;
    allow(
        &mut profile,
        "file-read* file-write* process-exec",
        reachable,
    );

    let ancestry = ancestry(sandbox)?;
    let ancestry = ancestry.into_iter().map(|path| (path, PathKind::Other));
    allow(&mut profile, "file-read*", ancestry);

    profile.push_str(sandbox.additional);
    Ok(profile)
}

/// Adds a rule; what is not a directory is meant alone, and what is missing is left out.
fn allow(
    profile: &mut String,
    operations: &str,
    paths: impl IntoIterator<Item = (String, PathKind)>,
) {
    // Writing to a string cannot fail.
    let _infallible = writeln!(profile, "(allow {operations}");
    for (path, kind) in paths {
        let filter = match kind {
            PathKind::Directory => "subpath",
            PathKind::Other => "literal",
            PathKind::Missing => continue,
        };
        let escaped = path.replace('\\', "\\\\").replace('"', "\\\"");
        let _infallible = writeln!(profile, "\t({filter} \"{escaped}\")");
    }
    profile.push_str(")\n");
}

/// Returns the inputs and the paths of the host, sorted by their text.
fn reachable(sandbox: &DarwinSandbox<'_>) -> Result<BTreeMap<String, PathKind>, Error> {
    let mut reachable = BTreeMap::new();
    for (target, host_path) in sandbox.host_paths {
        if *target != host_path.source {
            return Err(Error::Mismatched {
                target: target.clone(),
                origin: host_path.source.clone(),
            });
        }
        if host_path.kind == PathKind::Missing && !host_path.is_optional {
            return Err(Error::Missing {
                path: target.clone(),
            });
        }
        reachable.insert(text(target)?, host_path.kind);
    }
    for (path, kind) in sandbox.inputs {
        let path = sandbox.store_dir.print(path);
        if *kind == PathKind::Missing {
            return Err(Error::Missing { path: path.into() });
        }
        reachable.insert(path, *kind);
    }
    Ok(reachable)
}

/// Returns every directory above a path of the host, and the store with those above it but the
/// root: many programs fail if they cannot look at the directories that lead to a file.
fn ancestry(sandbox: &DarwinSandbox<'_>) -> Result<BTreeSet<String>, Error> {
    let mut ancestry = BTreeSet::new();
    for target in sandbox.host_paths.keys() {
        for directory in target.ancestors().skip(1) {
            ancestry.insert(text(directory)?);
        }
    }
    let root = Path::new("/");
    for directory in Path::new(sandbox.store_dir.as_str()).ancestors() {
        if directory != root {
            ancestry.insert(text(directory)?);
        }
    }
    Ok(ancestry)
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(ToOwned::to_owned)
        .ok_or_else(|| Error::NotText {
            path: path.to_owned(),
        })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        format!("xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-{name}")
            .parse()
            .unwrap()
    }

    fn host_paths(paths: &[(&str, PathKind)]) -> BTreeMap<PathBuf, HostPath> {
        paths
            .iter()
            .map(|(path, kind)| {
                let host_path = HostPath {
                    source: path.into(),
                    is_optional: false,
                    kind: *kind,
                };
                (PathBuf::from(path), host_path)
            })
            .collect()
    }

    fn profile(
        host_paths: &BTreeMap<PathBuf, HostPath>,
        violations: Violations,
        additional: &str,
    ) -> Result<String, Error> {
        darwin_profile(&DarwinSandbox {
            store_dir: &StoreDir::default(),
            violations,
            outputs: &[path("out"), path("dev")].into(),
            inputs: &[
                (path("src.tar"), PathKind::Other),
                (path("bash"), PathKind::Directory),
            ]
            .into(),
            host_paths,
            additional,
        })
    }

    #[test]
    fn outputs_inputs_host_paths_and_their_ancestry_are_allowed() {
        let host_paths = host_paths(&[
            ("/private/tmp/nix-build-x-0", PathKind::Directory),
            ("/System/Library", PathKind::Directory),
            ("/usr/lib/libSystem.B.dylib", PathKind::Other),
        ]);
        let expected = r#"(version 1)
(deny default (with no-log))
(allow file-read* file-write* process-exec
	(subpath "/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-dev")
	(subpath "/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-out")
)
(allow file-read* file-write* process-exec
	(subpath "/System/Library")
	(subpath "/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-bash")
	(literal "/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-src.tar")
	(subpath "/private/tmp/nix-build-x-0")
	(literal "/usr/lib/libSystem.B.dylib")
)
(allow file-read*
	(literal "/")
	(literal "/System")
	(literal "/nix")
	(literal "/nix/store")
	(literal "/private")
	(literal "/private/tmp")
	(literal "/usr")
	(literal "/usr/lib")
)
"#;
        assert_eq!(
            profile(&host_paths, Violations::Silent, "").unwrap(),
            expected
        );
    }

    #[test]
    fn without_host_paths_the_store_can_still_be_found() {
        let found = profile(&BTreeMap::new(), Violations::Silent, "").unwrap();
        let expected = "(allow file-read*\n\t(literal \"/nix\")\n\t(literal \"/nix/store\")\n)\n";
        assert!(found.ends_with(expected), "{found}");
    }

    #[test]
    fn violations_are_logged_if_asked_for() {
        let found = profile(&BTreeMap::new(), Violations::Logged, "").unwrap();
        assert!(
            found.starts_with("(version 1)\n(deny default)\n(allow "),
            "{found}"
        );
    }

    #[test]
    fn what_the_derivation_adds_stands_last_and_as_it_is() {
        let added = "(allow network*)\n(import \"/x.sb\")";
        let found = profile(&BTreeMap::new(), Violations::Silent, added).unwrap();
        assert!(found.ends_with(&format!(")\n{added}")), "{found}");
    }

    #[test]
    fn what_may_be_missing_is_left_out_but_its_ancestry_is_not() {
        let mut host_paths = host_paths(&[("/opt/local", PathKind::Missing)]);
        let error = profile(&host_paths, Violations::Silent, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "sandbox path '/opt/local' does not exist"
        );
        for host_path in host_paths.values_mut() {
            host_path.is_optional = true;
        }
        let found = profile(&host_paths, Violations::Silent, "").unwrap();
        assert!(!found.contains("/opt/local"), "{found}");
        assert!(found.contains("\t(literal \"/opt\")\n"), "{found}");
    }

    #[test]
    fn a_path_cannot_be_found_elsewhere() {
        let mut host_paths = host_paths(&[("/bin/sh", PathKind::Other)]);
        for host_path in host_paths.values_mut() {
            host_path.source = "/bin/bash".into();
        }
        let error = profile(&host_paths, Violations::Silent, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "can't map '/bin/sh' to '/bin/bash': mismatched impure paths not supported on Darwin"
        );
    }

    #[test]
    fn a_path_cannot_end_its_string() {
        let host_paths = host_paths(&[("/a\") (allow default) (\"\\", PathKind::Directory)]);
        let found = profile(&host_paths, Violations::Silent, "").unwrap();
        let expected = "\t(subpath \"/a\\\") (allow default) (\\\"\\\\\")\n";
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn a_derivation_adds_to_its_profile_only_where_that_is_allowed() {
        let check = |additional: &str, mode: SandboxMode| {
            check_profile_allowed(additional, mode, &path("x.drv"), &StoreDir::default())
        };
        assert_eq!(check("", SandboxMode::Always), Ok(()));
        assert_eq!(check("(x)", SandboxMode::Relaxed), Ok(()));
        let error = check("(x)", SandboxMode::Always).unwrap_err();
        assert_eq!(
            error.to_string(),
            "derivation '/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-x.drv' specifies a sandbox \
             profile, but this is only allowed when 'sandbox' is 'relaxed'"
        );
    }

    #[test]
    fn the_directory_for_temporary_files_has_no_trailing_slash() {
        for tmp_dir in ["/private/var/folders/x/T/", "/private/var/folders/x/T"] {
            let args = sandbox_exec_args(
                Path::new("/nix/store/x.drv.sb"),
                Path::new(tmp_dir),
                Path::new("/bin/sh"),
            );
            let expected = [
                "sandbox-exec",
                "-f",
                "/nix/store/x.drv.sb",
                "-D",
                "_GLOBAL_TMP_DIR=/private/var/folders/x/T",
                "/bin/sh",
            ];
            assert_eq!(args, expected);
        }
    }
}
