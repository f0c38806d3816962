//! What a goal is about: the same key is the same goal, whoever asks (SPEC A1).

use std::fmt;

use store_model::StorePath;

/// Names one goal within one scheduler. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoalId(pub(crate) u32);

impl fmt::Display for GoalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl GoalId {
    /// Wraps a number, for programs that make events of their own, such as tests of what shows
    /// them; a scheduler's ids come from the scheduler.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// Names one request within one scheduler. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u32);

impl RequestId {
    /// Wraps a number; see [`GoalId::new`].
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is built for (SPEC B8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum BuildMode {
    /// To have the outputs; what is valid is not built.
    #[default]
    Normal,
    /// To see whether the valid outputs come out the same again.
    Check,
    /// To have outputs, and everything that they need, with the contents that the database says.
    Repair,
    /// To learn what a fixed output is: it becomes valid at the path that its contents have.
    Hash,
}

/// What a path is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PathMode {
    /// To be valid.
    #[default]
    Ensure,
    /// The same, once more: what its closure lacked has been built meanwhile (SPEC B4).
    EnsureAgain,
    /// To have the contents that the database says, too.
    Repair,
}

/// What a goal brings about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GoalKey {
    /// The outputs of a derivation.
    Derivation(StorePath, BuildMode),
    /// One path, however it comes.
    Path(StorePath, PathMode),
}

impl GoalKey {
    /// Returns the path that names the goal: the derivation's or the path itself.
    #[must_use]
    pub fn path(&self) -> &StorePath {
        match self {
            Self::Derivation(path, _) | Self::Path(path, _) => path,
        }
    }
}

/// Prints the base name of the path.
impl fmt::Display for GoalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.path(), f)
    }
}
