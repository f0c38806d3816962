//! The shells: one supervisor, and a session for each running builder.

mod builder_session;
mod ending;
mod sandbox_supervisor;

pub use sandbox_supervisor::{SandboxSupervisor, start};
