//! Turns derivations and paths into goals, and brings every goal to an end.
//!
//! ```no_run
//! # async fn example(drv_path: store_model::StorePath) -> Result<(), scheduler::Error> {
//! use std::sync::Arc;
//!
//! use scheduler::{BuildMode, BuildRequest, Config, Scheduler, Wanted};
//! use store_model::settings::{Settings, StoreLayout};
//! use store_model::wanted_outputs::WantedOutputs;
//!
//! let settings = Arc::new(Settings::default());
//! let scheduler = Scheduler::start(Config {
//!     layout: StoreLayout::under_root("/tmp/root".as_ref()),
//!     settings: Arc::clone(&settings),
//!     host_environment: Default::default(),
//!     cache_dir: None,
//!     nix_config: String::new(),
//! })?;
//! let report = scheduler
//!     .build_paths(BuildRequest {
//!         wanted: vec![Wanted::Outputs { drv_path, outputs: WantedOutputs::All, mode: BuildMode::Normal }],
//!         settings,
//!         priority: 0,
//!     })
//!     .await?;
//! println!("exit status {}", report.exit_status());
//! scheduler.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`goal`] (what is decided for one goal), [`slots`], [`graph`] and [`schedule`]
//! (what is decided among goals), [`messages`] and [`ports`] (who says what), `actors` and `hook` (the shells),
//! [`start`] and [`handle`] (how it is used), [`simulate`] (the same decisions in a pretended
//! world).

#![forbid(unsafe_code)]

pub mod error;
pub mod events;
pub mod goal;
pub mod graph;
pub mod handle;
pub mod messages;
pub mod ports;
pub mod request;
mod rest;
pub mod schedule;
pub mod simulate;
pub mod slots;
pub mod start;

mod actors;
mod hook;

pub use actors::Scheduler;
pub use error::Error;
pub use events::{Event, EventKind, LockOwner, Round, WaitReason};
pub use goal::{BuildMode, BuildTimes, GoalId, GoalKey, Outcome, PathMode, RequestId, Status};
pub use handle::{EventStream, SchedulerHandle};
pub use request::{BuildReport, BuildRequest, Wanted};
pub use sandbox::HostEnvironment;
pub use start::Config;
