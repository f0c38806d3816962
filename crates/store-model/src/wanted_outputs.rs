//! Which outputs of a derivation somebody wants.

use std::collections::BTreeSet;

use crate::OutputName;

/// A choice among the outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedOutputs {
    /// Every output.
    All,
    /// These.
    These(BTreeSet<OutputName>),
}

impl WantedOutputs {
    /// Returns whether an output is wanted.
    #[must_use]
    pub fn contains(&self, name: &OutputName) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }

    /// Adds what `more` wants.
    pub fn widen(&mut self, more: &Self) {
        match (&mut *self, more) {
            (Self::All, _) => {}
            (Self::These(_), Self::All) => *self = Self::All,
            (Self::These(names), Self::These(more)) => names.extend(more.iter().cloned()),
        }
    }

    /// Returns whether everything that `other` wants is wanted.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::These(_), Self::All) => false,
            (Self::These(names), Self::These(others)) => others.is_subset(names),
        }
    }
}
