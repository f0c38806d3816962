//! The launcher: a small single-threaded program that stays warm and runs one builder for each
//! request.
//!
//! ```text
//! supervisor ── Launch ─► launcher ── clone ─► outer (process 1) ── clone ─► inner ── exec ─► builder
//!            ◄─ Started ─           ◄─ news ──                   ◄─ wait ──
//!            ◄─ Ended ───           ◄─ SIGCHLD
//! ```
//!
//! `outer` makes the surroundings with all of the launcher's rights, starts the builder, gives its
//! rights up and reaps. `inner` gives up every right and becomes the builder. The launcher reports
//! an end only after it has reaped process 1, when the kernel has ended every process of the pid
//! namespace.
//!
//! Being single-threaded is what makes all of this legal: between fork and exec a process with
//! threads may do next to nothing.

mod capabilities;
mod failure;
mod identity;
mod inner;
mod launcher;
mod mounts;
mod network;
mod outer;
mod processes;
mod seccomp;
pub(crate) mod sys;
mod views;

use std::process::ExitCode;

pub(crate) use failure::is_shortage;
pub(crate) use launcher::Profile;

/// Runs the launcher until its supervisor goes away: the whole of `sandbox-init`.
///
/// Standard input is the socket to the supervisor; the arguments are the profile and the
/// supervisor's process number.
#[must_use]
pub fn main() -> ExitCode {
    match launcher::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
