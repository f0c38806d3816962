//! Runs a builder where it can see its inputs and nothing else, and reports how it ended.
//!
//! Reading order: [`messages`] (the crate's whole conversation), then the actors, then the pure
//! modules (`spec`, `plan`, `environment`, `wire`), then those that do I/O: `host` (from a request
//! to a plan), `builtin`, `host_paths`, `pre_build_hook`, `redirect`, `workspace`, `user_pool`,
//! `build_log`, `launch`, and at last [`init`], which is the
//! other program of this crate, `sandbox-init`.

pub mod darwin_profile;
pub mod error;
pub mod init;
pub mod messages;

mod actors;
mod build_log;
mod builtin;
mod environment;
mod host;
mod host_paths;
mod launch;
mod plan;
mod pre_build_hook;
mod redirect;
mod remove_tree;
mod spec;
mod user_pool;
mod wire;
mod workspace;

pub use actors::{SandboxSupervisor, start};
pub use environment::{HostEnvironment, scratch_output_path};
pub use error::Error;
pub use messages::*;
pub use redirect::{Redirections, redirected_path};
