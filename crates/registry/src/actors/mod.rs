//! The shells: each message becomes a job for a thread, and the thread's answer the reply.

mod ending;
pub mod lock_keeper;
pub mod store_registry;

pub use lock_keeper::LockKeeper;
pub use store_registry::StoreRegistry;
