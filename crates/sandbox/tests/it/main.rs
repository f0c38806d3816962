//! Real builders in real sandboxes, as root and as nobody special.
//!
//! Each test runs a static busybox as the builder in a store of its own. A test of the unprivileged
//! profile that root starts runs itself again as another user.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod deaths;
mod directories;
mod endings;
mod environment;
mod identity;
mod isolation;
mod lab;
mod logs;
mod reuse;
mod unsandboxed;
