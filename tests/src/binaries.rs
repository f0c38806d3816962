//! Where the programs under test are.
//!
//! `GOALCTL_BIN` names goalctl, with its launcher beside it; otherwise both are built, in the
//! profile that the tests themselves were built in, which costs nothing when they are up to date.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::requirement;

/// Returns the path of goalctl.
#[must_use]
pub fn goalctl() -> &'static Path {
    // A cache of what is on disk, not state: every test of this process would find the same.
    static GOALCTL: OnceLock<PathBuf> = OnceLock::new();
    GOALCTL.get_or_init(|| {
        requirement::environment("GOALCTL_BIN").map_or_else(build, |named| {
            let path = PathBuf::from(named);
            path.canonicalize()
                .unwrap_or_else(|error| panic!("GOALCTL_BIN={}: {error}", path.display()))
        })
    })
}

/// Returns the launcher that lies beside goalctl.
#[must_use]
pub fn sandbox_init() -> PathBuf {
    goalctl().with_file_name("sandbox-init")
}

/// Returns the folder of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie in a folder of the repository")
}

fn build() -> PathBuf {
    let directory = output_directory();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "-p", "cli", "-p", "sandbox", "--bins"])
        .current_dir(repository())
        .env(
            "CARGO_TARGET_DIR",
            directory.parent().expect("a profile's folder has a parent"),
        );
    // Some build scripts run again when these change, and cargo sets them for this very program.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("CARGO_")) {
        if !["CARGO_HOME", "CARGO_TARGET_DIR"]
            .iter()
            .any(|kept| name == *kept)
        {
            cargo.env_remove(name);
        }
    }
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo can be run");
    assert!(
        output.status.success(),
        "goalctl could not be built:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    directory.join("goalctl")
}

/// Returns the folder where cargo puts this profile's programs: that of the running test, or the
/// one above its `deps`.
fn output_directory() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program knows its path");
    let directory = exe.parent().expect("a program lies in a folder");
    if directory.ends_with("deps") {
        directory
            .parent()
            .expect("deps lies in the profile's folder")
            .to_owned()
    } else {
        directory.to_owned()
    }
}
