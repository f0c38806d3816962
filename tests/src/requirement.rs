//! What a test needs of the machine, and what happens where the machine lacks it.
//!
//! A test that cannot run says why and returns. With `GOAL_REQUIRE_SANDBOX=1`, as in CI, it fails
//! instead, so that a missing program can not pass for a proof.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Says on standard error that the running test proves nothing here.
///
/// # Panics
///
/// With `GOAL_REQUIRE_SANDBOX=1`.
pub fn skip(reason: &str) {
    assert!(
        environment("GOAL_REQUIRE_SANDBOX").as_deref() != Some("1"),
        "this machine must be able to run every test, but {reason}"
    );
    say(&format!("skipped: {reason}"));
}

/// Returns whether genuine Nix can be run, and says so where it can't.
#[must_use]
pub fn genuine_nix() -> bool {
    programs(&["nix-store", "nix-instantiate"])
}

/// Returns whether all these programs are on the search path, and says which is not.
#[must_use]
pub fn programs(names: &[&str]) -> bool {
    for name in names {
        if find_program(name).is_none() {
            skip(&format!("there is no program {name}"));
            return false;
        }
    }
    true
}

/// Returns whether the test runs as root, and says so where it doesn't.
#[must_use]
pub fn root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        skip("only root can do this");
    }
    is_root
}

/// Returns the path of a program on the search path.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&environment("PATH")?)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// Returns whether a command can be run here and succeeds.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Returns a variable of the environment.
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the harness is told by the environment where things are"
    )]
    std::env::var(name).ok()
}

/// Writes a line for whoever reads the test's output.
pub fn say(line: &str) {
    #[expect(clippy::print_stderr, reason = "a test talks on standard error")]
    {
        eprintln!("{line}");
    }
}
