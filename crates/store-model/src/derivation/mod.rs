//! A build recipe.
//!
//! Reading order: this file, `parse` and `print` for the file format, `kind`, `modulo` for the
//! hash that paths follow from, `output_paths` for computing and checking those, `placeholder`;
//! then what a derivation says beside how to build it: `attributes`, `structured_attrs`,
//! `reference_graphs`, `output_checks`.

mod attributes;
pub mod json;
mod kind;
pub mod modulo;
pub mod output_checks;
mod output_paths;
mod parse;
pub mod placeholder;
mod print;
mod program;
pub mod reference_graphs;
mod resolve;
pub mod structured_attrs;

pub use attributes::Attributes;
pub use kind::DerivationKind;
pub use modulo::{Finality, HashModulo, HashModuloCache};
pub use program::Program;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bstr::BString;

use crate::{Error, Hash, HashAlgorithm, StorePath, store_path};

/// The symbolic name of an output, `out` by default.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Arc<str>);

impl OutputName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for OutputName {
    fn default() -> Self {
        Self("out".into())
    }
}

impl FromStr for OutputName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        // An output's name becomes part of a store path's name, so it obeys the same alphabet.
        store_path::check_name(name).map_err(|_| Error::OutputName {
            name: name.to_owned(),
            reason: "it cannot be part of a store path",
        })?;
        Ok(Self(name.into()))
    }
}

impl Borrow<str> for OutputName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is hashed to name a content-addressed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IngestionMethod {
    /// The bytes of a single file.
    Flat,
    /// The NAR serialisation, spelt `r:`.
    Recursive,
    /// The bytes of a single file, with its references in the path's fingerprint (`text:`).
    Text,
}

/// How the path of an output is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerivationOutput {
    /// From the hash of the derivation.
    InputAddressed(StorePath),
    /// From the content, which the derivation fixes in advance.
    Fixed {
        /// What is hashed.
        method: IngestionMethod,
        /// The hash that the content must have.
        hash: Hash,
        /// The path as the file names it; it follows from the two above and the name.
        path: StorePath,
    },
    /// From the content, known only after the build.
    Floating {
        /// What is hashed.
        method: IngestionMethod,
        /// With which algorithm.
        algorithm: HashAlgorithm,
    },
    /// From the derivation, once its floating inputs are known.
    Deferred,
}

impl DerivationOutput {
    /// Returns the path, if it is known before the build.
    #[must_use]
    pub fn path(&self) -> Option<&StorePath> {
        match self {
            Self::InputAddressed(path) | Self::Fixed { path, .. } => Some(path),
            Self::Floating { .. } | Self::Deferred => None,
        }
    }
}

/// A build recipe: what to run, with what, to get which outputs.
///
/// Strings are bytes: derivations in the wild hold Latin-1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// The name without `.drv`; not in the file, but part of every output path.
    pub name: String,
    /// Outputs by name.
    pub outputs: BTreeMap<OutputName, DerivationOutput>,
    /// Derivations that must be realised first, and which of their outputs are wanted.
    pub input_derivations: BTreeMap<StorePath, BTreeSet<OutputName>>,
    /// Paths that must be valid first.
    pub input_sources: BTreeSet<StorePath>,
    /// The platform that it needs, such as `x86_64-linux`.
    pub system: BString,
    /// The program to run.
    pub builder: BString,
    /// Its arguments, without `argv[0]`.
    pub args: Vec<BString>,
    /// Its environment, before placeholders are replaced and the standard variables added.
    pub env: BTreeMap<BString, BString>,
}

impl Derivation {
    /// Returns whether every output is fixed, which allows network access.
    #[must_use]
    pub fn is_fixed_output(&self) -> bool {
        !self.outputs.is_empty()
            && self
                .outputs
                .values()
                .all(|output| matches!(output, DerivationOutput::Fixed { .. }))
    }

    /// Returns whether the builder is one of the built-in ones (`builtin:…`).
    #[must_use]
    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with(b"builtin:")
    }

    /// Returns the outputs whose paths are known before the build, in order of their names.
    pub fn known_outputs(&self) -> impl Iterator<Item = (&OutputName, &StorePath)> {
        self.outputs
            .iter()
            .filter_map(|(name, output)| Some((name, output.path()?)))
    }

    /// Returns a flag that the environment spells as `"1"`, or `default` if it is absent.
    #[must_use]
    pub fn env_flag(&self, name: &str, default: BoolAttribute) -> bool {
        self.env
            .get(name.as_bytes())
            .map_or(default == BoolAttribute::True, |value| value == "1")
    }
}

/// The default of a boolean attribute of a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoolAttribute {
    /// Absent means no.
    False,
    /// Absent means yes.
    True,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(crate) mod tests {
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    /// Returns an input-addressed derivation `x` with outputs `dev` and `out`, whose paths are
    /// made up.
    pub(crate) fn derivation() -> Derivation {
        let path = |base_name: &str| base_name.parse::<StorePath>().unwrap();
        Derivation {
            name: "x".to_owned(),
            outputs: [
                ("dev", "jmvbkmf9hk1hfsz13rhxv8q8lz3c4vqn-x-dev"),
                ("out", "nyyy2m88y4qr1xsf16w92kmn0swh9c2p-x"),
            ]
            .map(|(name, base_name)| {
                let output = DerivationOutput::InputAddressed(path(base_name));
                (name.parse().unwrap(), output)
            })
            .into(),
            input_derivations: BTreeMap::new(),
            input_sources: BTreeSet::new(),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            args: vec!["-c".into(), "echo \\ \"$x\"\n".into()],
            env: [("dev", ""), ("out", ""), ("x", "\t\r")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        }
    }

    fn any_path(suffix: &'static str) -> impl Strategy<Value = StorePath> {
        let name = "[0-9a-zA-Z+_?=][0-9a-zA-Z+_?=.-]{0,20}";
        (any::<[u8; 20]>(), name).prop_map(move |(digest, name)| {
            StorePath::from_digest(&digest, &format!("{name}{suffix}")).unwrap()
        })
    }

    fn any_bytes() -> impl Strategy<Value = BString> {
        let awkward = prop_oneof![
            Just(b'\n'),
            Just(b'"'),
            Just(b'\\'),
            Just(b'\t'),
            any::<u8>()
        ];
        vec(awkward, 0..12).prop_map(BString::from)
    }

    fn any_output_name() -> impl Strategy<Value = OutputName> {
        "[a-z][a-z0-9_-]{0,5}".prop_map(|name| name.parse().unwrap())
    }

    fn any_outputs() -> impl Strategy<Value = BTreeMap<OutputName, DerivationOutput>> {
        let digest = any::<[u8; 32]>();
        let fixed = (any_path(""), digest).prop_map(|(path, digest)| {
            let output = DerivationOutput::Fixed {
                method: IngestionMethod::Recursive,
                hash: Hash::from_bytes(HashAlgorithm::Sha256, &digest).unwrap(),
                path,
            };
            BTreeMap::from([(OutputName::default(), output)])
        });
        let floating = || DerivationOutput::Floating {
            method: IngestionMethod::Flat,
            algorithm: HashAlgorithm::Sha1,
        };
        prop_oneof![
            fixed,
            btree_map(any_output_name(), Just(floating()), 1..4),
            btree_map(any_output_name(), Just(DerivationOutput::Deferred), 1..4),
            btree_map(
                any_output_name(),
                any_path("").prop_map(DerivationOutput::InputAddressed),
                1..4
            ),
        ]
    }

    /// Generates derivations `lib` that are well-formed but name any paths.
    pub(crate) fn any_derivation() -> impl Strategy<Value = Derivation> {
        let inputs = btree_map(any_path(".drv"), btree_set(any_output_name(), 0..3), 0..4);
        (
            any_outputs(),
            inputs,
            btree_set(any_path(""), 0..4),
            "[a-z0-9_-]{0,12}",
            any_bytes(),
            vec(any_bytes(), 0..4),
            btree_map(any_bytes(), any_bytes(), 0..5),
        )
            .prop_map(
                |(outputs, input_derivations, input_sources, system, builder, args, env)| {
                    Derivation {
                        name: "lib".to_owned(),
                        outputs,
                        input_derivations,
                        input_sources,
                        system: system.into(),
                        builder,
                        args,
                        env,
                    }
                },
            )
    }
}
