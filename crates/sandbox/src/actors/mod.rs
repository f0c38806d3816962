//! The shells: one supervisor, and a session for each running builder.

mod builder_session;
mod ending;
mod sandbox_supervisor;

pub use sandbox_supervisor::{SandboxSupervisor, start};

/// Returns the time for people, who are told when a builder ran; no decision looks at it.
#[expect(
    clippy::disallowed_methods,
    reason = "the edge of the crate, where the machine may be asked"
)]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
