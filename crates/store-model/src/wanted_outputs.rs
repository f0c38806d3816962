//! Which outputs of a derivation somebody wants, and how users write that.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::{Derivation, Error, OutputName, StoreDir, StorePath};

/// Some or all outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WantedOutputs {
    /// Every output.
    All,
    /// These, and none else.
    These(BTreeSet<OutputName>),
}

/// Whether something became more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Widened {
    /// It already included what was added.
    Unchanged,
    /// It includes more now.
    Grown,
}

impl WantedOutputs {
    /// Returns whether the output `name` is wanted.
    #[must_use]
    pub fn contains(&self, name: &OutputName) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }

    /// Adds what `other` wants.
    pub fn widen(&mut self, other: &Self) -> Widened {
        let has_grown = match (&mut *self, other) {
            (Self::All, _) => false,
            (Self::These(_), Self::All) => {
                *self = Self::All;
                true
            }
            (Self::These(names), Self::These(others)) => {
                let n_before = names.len();
                names.extend(others.iter().cloned());
                names.len() > n_before
            }
        };
        if has_grown {
            Widened::Grown
        } else {
            Widened::Unchanged
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

    /// Returns the names of the wanted outputs, in order.
    ///
    /// # Errors
    /// The derivation has no output of a wanted name.
    pub fn names(&self, derivation: &Derivation) -> Result<BTreeSet<OutputName>, Error> {
        match self {
            Self::All => Ok(derivation.outputs.keys().cloned().collect()),
            Self::These(names) => {
                match names
                    .iter()
                    .find(|name| !derivation.outputs.contains_key(*name))
                {
                    None => Ok(names.clone()),
                    Some(name) => Err(Error::InvalidDerivation {
                        drv_name: derivation.name.clone(),
                        reason: format!("it has no output '{name}'"),
                    }),
                }
            }
        }
    }
}

/// Prints `*` or `dev,out`.
impl fmt::Display for WantedOutputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::These(names) => {
                let names: Vec<&str> = names.iter().map(OutputName::as_str).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// Reads what [`Display`](fmt::Display) prints; names may come in any order.
impl FromStr for WantedOutputs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "*" {
            return Ok(Self::All);
        }
        let names: Result<BTreeSet<OutputName>, Error> = text.split(',').map(str::parse).collect();
        names.map(Self::These)
    }
}

impl StoreDir {
    /// Reads a path with wanted outputs: `DRV^out,dev`, `DRV^*`, or with `!` as it was written
    /// before Nix 2.13. Without either, all outputs are wanted.
    ///
    /// # Errors
    /// The path or an output's name is not valid, or outputs of something else than a derivation
    /// are wanted.
    pub fn parse_with_outputs(&self, text: &str) -> Result<(StorePath, WantedOutputs), Error> {
        let Some((path, outputs)) = text.split_once(['^', '!']) else {
            return Ok((self.parse(text)?, WantedOutputs::All));
        };
        let path = self.parse(path)?;
        if !path.is_derivation() {
            return Err(Error::StorePath {
                path: path.to_string(),
                reason: "only a derivation has outputs to choose from",
            });
        }
        Ok((path, outputs.parse()?))
    }

    /// Returns what [`StoreDir::parse_with_outputs`] reads, with `^`.
    #[must_use]
    pub fn print_with_outputs(&self, path: &StorePath, outputs: &WantedOutputs) -> String {
        format!("{}^{outputs}", self.print(path))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::derivation::tests::derivation;

    const DRV: &str = "/nix/store/jmvbkmf9hk1hfsz13rhxv8q8lz3c4vqn-x.drv";

    fn wanted(text: &str) -> WantedOutputs {
        text.parse().unwrap()
    }

    #[test]
    fn outputs_are_chosen_with_a_caret_or_as_before_with_an_exclamation_mark() {
        let store_dir = StoreDir::default();
        let parse = |suffix: &str| store_dir.parse_with_outputs(&format!("{DRV}{suffix}"));
        let path: StorePath = store_dir.parse(DRV).unwrap();
        for (suffix, printed) in [
            ("", "*"),
            ("^*", "*"),
            ("!*", "*"),
            ("^out", "out"),
            ("!out,dev,out", "dev,out"),
        ] {
            let (drv_path, outputs) = parse(suffix).unwrap();
            assert_eq!(
                (&drv_path, outputs.to_string()),
                (&path, printed.to_owned())
            );
            let printed = store_dir.print_with_outputs(&path, &outputs);
            assert_eq!(
                store_dir.parse_with_outputs(&printed),
                Ok((path.clone(), outputs))
            );
        }
        for suffix in ["^", "!", "^out,", "^,out", "^a/b", "^out^dev", "^*,out"] {
            assert!(parse(suffix).is_err(), "{suffix}");
        }
        let no_drv = "/nix/store/jmvbkmf9hk1hfsz13rhxv8q8lz3c4vqn-x^out";
        assert!(store_dir.parse_with_outputs(no_drv).is_err());
    }

    #[test]
    fn widening_tells_whether_anything_was_added() {
        let mut outputs = wanted("out");
        assert_eq!(outputs.widen(&wanted("out")), Widened::Unchanged);
        assert_eq!(outputs.widen(&wanted("dev,out")), Widened::Grown);
        assert_eq!(outputs, wanted("dev,out"));
        assert_eq!(outputs.widen(&wanted("*")), Widened::Grown);
        assert_eq!(outputs.widen(&wanted("*")), Widened::Unchanged);
        assert_eq!(outputs.widen(&wanted("doc")), Widened::Unchanged);
        assert!(outputs.contains(&"anything".parse().unwrap()));
    }

    #[test]
    fn an_output_that_does_not_exist_is_named_in_the_error() {
        let derivation = derivation();
        assert_eq!(
            wanted("*").names(&derivation).unwrap(),
            derivation.outputs.keys().cloned().collect()
        );
        let error = wanted("out,dvi").names(&derivation).unwrap_err();
        assert!(error.to_string().contains("no output 'dvi'"), "{error}");
    }
}
