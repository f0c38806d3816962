//! What can be wrong with bytes that claim to be one of Nix's formats.

/// An input that is not the format it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Going on would let a name escape the store directory or collide with another path's name.
    #[error("'{path}' is not a valid store path: {reason}")]
    StorePath {
        /// The text as it was given, shortened for display.
        path: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would compare against a hash that nobody meant.
    #[error("'{text}' is not a valid hash: {reason}")]
    Hash {
        /// The text as it was given.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would name an output, and so a path, that Nix could not name.
    #[error("'{name}' is not a valid output name: {reason}")]
    OutputName {
        /// The text as it was given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would build something else than what the file's author wrote.
    #[error("malformed derivation at byte {position}: {reason}")]
    Derivation {
        /// Offset of the offending byte from the start of the file.
        position: usize,
        /// What was expected there.
        reason: String,
    },
    /// Going on would let a derivation claim the path of another (SECURITY V04).
    #[error("derivation '{drv_name}' has incorrect output '{actual}', should be '{expected}'")]
    IncorrectOutputPath {
        /// Name of the derivation.
        drv_name: String,
        /// The path that the file names.
        actual: String,
        /// The path that follows from the derivation.
        expected: String,
    },
    /// Going on would realise something that no rule of the derivation language describes.
    #[error("invalid derivation '{drv_name}': {reason}")]
    InvalidDerivation {
        /// Name of the derivation.
        drv_name: String,
        /// The rule that it breaks.
        reason: String,
    },
}
