//! What can be wrong with bytes that claim to be one of Nix's formats.

use crate::StorePath;

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
    /// Going on would take contents for something else than what they are known by.
    #[error("'{text}' is not a valid content address: {reason}")]
    ContentAddress {
        /// The text as it was given, shortened for display.
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
    /// Going on would build something else than what the text's author wrote.
    #[error("malformed derivation in JSON: {reason}")]
    DerivationJson {
        /// What is wrong, and where.
        reason: String,
    },
    /// Going on would show a builder other attributes than its author wrote.
    #[error("malformed structured attributes at byte {position}: {reason}")]
    StructuredAttributes {
        /// Offset of the offending byte from the start of the text.
        position: usize,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would show a builder other attributes than its author wrote.
    #[error("attribute '{attribute}' of derivation '{drv_name}' {reason}")]
    Attribute {
        /// Name of the derivation.
        drv_name: String,
        /// Name of the attribute; dots lead into structured ones.
        attribute: String,
        /// What is wrong with its value, as the end of a sentence.
        reason: String,
    },
    /// Going on would take a path for what a build made that made something else.
    #[error("malformed realisation: {reason}")]
    Realisation {
        /// What is wrong, and where.
        reason: String,
    },
    /// Going on would take a part of one path's description for another's, or a part for the whole.
    #[error("malformed {file}: {reason}")]
    NarInfo {
        /// The kind of file: `narinfo` or `nix-cache-info`.
        file: &'static str,
        /// The rule that it breaks, and where.
        reason: String,
    },
    /// Going on would ask a server, or read a file, that the cache has nothing to do with.
    #[error("'{text}' is not an address below a cache: {reason}")]
    RelativeUrl {
        /// The text as it was given, shortened for display.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would sign, or trust, with a key that nobody meant.
    #[error("malformed key '{name}': {reason}")]
    Key {
        /// The key's name; empty if there is none. The rest may be secret.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Going on would take a part of a closure for the whole.
    #[error("nothing is known of '{path}', which a closure leads to")]
    UnknownPath {
        /// The path.
        path: StorePath,
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
    /// Going on would tell a builder to write to the path of another derivation (SECURITY V04).
    #[error(
        "derivation '{drv_name}' has incorrect environment variable '{variable}' = '{actual}', \
         should be '{expected}'"
    )]
    IncorrectOutputVariable {
        /// Name of the derivation.
        drv_name: String,
        /// Name of the variable, which is the output's.
        variable: String,
        /// Its value; empty if it is not set.
        actual: String,
        /// The output's path.
        expected: String,
    },
    /// Going on would restore a tree that has another hash than the archive, or write outside it.
    #[error("malformed archive at byte {position}: {reason}")]
    Nar {
        /// Offset from the start of the archive.
        position: u64,
        /// What was expected there.
        reason: String,
    },
    /// Going on would take the rest of a stream for something that it is not.
    #[error("malformed stream of paths at byte {position}: {reason}")]
    Export {
        /// Offset from the start of the stream.
        position: u64,
        /// What was expected there.
        reason: String,
    },
    /// Going on would call paths valid that nobody has named.
    #[error("malformed registration of paths in line {line}: {reason}")]
    ValidityText {
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Going on would make an archive that nobody can unpack.
    #[error("'{path}' cannot be archived: {reason}")]
    UnarchivableTree {
        /// Where in the tree, without a leading slash; empty for the root.
        path: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// Going on would never end: no derivation can be built before itself.
    #[error("derivations depend on one another in a cycle: {}", arrows(.paths))]
    DerivationCycle {
        /// The derivations of the cycle, the first again at the end.
        paths: Vec<StorePath>,
    },
}

fn arrows(paths: &[StorePath]) -> String {
    let names: Vec<&str> = paths.iter().map(StorePath::base_name).collect();
    names.join(" -> ")
}
