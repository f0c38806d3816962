//! What can be wrong with a `goals.toml`.

use std::io;
use std::path::PathBuf;

/// A `goals.toml` that says nothing buildable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Going on would build nothing.
    #[error("reading '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would guess at what its author meant.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the reader of TOML, or of the keys, says.
        reason: String,
    },
    /// Going on would build something else than what the goal says.
    #[error("{}: goal '{goal}'{}: {reason}", path.display(), in_key(key))]
    Goal {
        /// The file.
        path: PathBuf,
        /// The goal's name.
        goal: String,
        /// Which of its keys; empty for the goal's own name.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Going on would never end.
    #[error("{}: goals need each other in a circle: {}", path.display(), cycle.join(" -> "))]
    Cycle {
        /// The file.
        path: PathBuf,
        /// The goals on the way round; the first is also the last.
        cycle: Vec<String>,
    },
    /// Going on would build another goal than the one asked for.
    #[error("{}: there is no goal '{goal}'; it has {}", path.display(), listed(known))]
    NoSuchGoal {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        goal: String,
        /// The names that the file has.
        known: Vec<String>,
    },
}

fn in_key(key: &str) -> String {
    if key.is_empty() {
        return String::new();
    }
    format!(", key '{key}'")
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names
        .iter()
        .map(|name| format!("'{name}'"))
        .collect::<Vec<_>>()
        .join(", ")
}
