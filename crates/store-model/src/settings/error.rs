//! What can be wrong with a configuration.

use super::Origin;

/// A configuration that cannot be put into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Going on would skip a line whose author meant something by it.
    #[error("{origin}: syntax error in configuration line '{line}': {reason}")]
    Syntax {
        /// Where the line stands.
        origin: Origin,
        /// The line, shortened for display.
        line: String,
        /// What was expected.
        reason: &'static str,
    },
    /// Going on would use another value than the one that was meant.
    #[error("{origin}: option '{name}' cannot be '{value}': {reason}")]
    Value {
        /// Where the assignment stands.
        origin: Origin,
        /// The option as it was spelt.
        name: String,
        /// The value, shortened for display.
        value: String,
        /// What a value looks like.
        reason: String,
    },
    /// Going on would ignore a wish that was typed a moment ago.
    #[error("{origin}: there is no option '{name}'")]
    UnknownOption {
        /// Where the assignment stands.
        origin: Origin,
        /// The option as it was spelt.
        name: String,
    },
    /// Going on would build in another way than what the user relies on.
    #[error("{origin}: option '{name}' is not supported: {reason}")]
    Unsupported {
        /// Where the assignment stands.
        origin: Origin,
        /// The option's name.
        name: &'static str,
        /// What would be missing, and what can be set instead.
        reason: &'static str,
    },
    /// Going on would let one option's value smuggle in another (SECURITY V06).
    #[error("{origin}: option '{name}' has a control character in its name or value")]
    ControlCharacter {
        /// Where the assignment stands.
        origin: Origin,
        /// The option as it was spelt, escaped.
        name: String,
    },
}

/// A `sandbox-paths` word that does not say what to show where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{word}' {reason}")]
pub struct SandboxPathError {
    /// The word as it was given.
    pub word: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}
