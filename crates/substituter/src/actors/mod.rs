//! The shells: each question becomes a task on the substituter's own threads, and what was heard a
//! message.

mod binary_cache;
mod cache_writer;
mod ending;
mod reports;
mod substituter;
mod vigil;

pub(crate) use binary_cache::BinaryCache;
pub use cache_writer::CacheWriter;
pub(crate) use substituter::Cache;
pub use substituter::Substituter;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
