//! Structured attributes: a derivation's environment as JSON, in the variable `__json`.
//!
//! A builder finds them in two files: `.attrs.json`, and `.attrs.sh` for shells. Both are part of
//! what a build sees, so they are here what Nix 2.8 writes, byte for byte: members in the order of
//! their bytes, no space, UTF-8 left as it is, floats as its JSON library prints them.
//!
//! Reading order: [`Value`], `parse`, `float`, `shell`.

mod float;
mod parse;
mod shell;
mod value;

pub use value::Value;

use std::collections::BTreeMap;

use bstr::{BStr, BString, ByteSlice as _};

use super::placeholder::Replacements;
use crate::{Error, OutputName};

/// The variable of a derivation that holds the attributes.
pub const VARIABLE: &str = "__json";

/// The member that Nix adds: where each output is to be put.
const OUTPUTS: &str = "outputs";

/// The attributes of a derivation, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct StructuredAttrs(BTreeMap<String, Value>);

/// The two files that a builder finds in its build directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttrsFiles {
    /// What `.attrs.json` holds.
    pub json: BString,
    /// What `.attrs.sh` holds.
    pub shell: BString,
}

impl StructuredAttrs {
    /// Reads the text of the variable `__json`.
    ///
    /// # Errors
    /// The text is not JSON, or is no object.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        match parse::parse(text)? {
            Value::Object(members) => Ok(Self(members)),
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::String(_)
            | Value::List(_) => Err(Error::StructuredAttributes {
                position: 0,
                reason: "the attributes are no object",
            }),
        }
    }

    /// Returns an attribute.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Returns what the builder is to find.
    ///
    /// `outputs` says where each output is to be put; it replaces an attribute of that name.
    /// `graphs` are the results of `exportReferencesGraph` by name, see
    /// [`closure_to_json`](super::reference_graphs::closure_to_json); each replaces the attribute
    /// of its name. `rewrites` are applied to both texts, names included.
    #[must_use]
    pub fn files(
        &self,
        outputs: &BTreeMap<OutputName, String>,
        graphs: BTreeMap<String, Value>,
        rewrites: &Replacements,
    ) -> AttrsFiles {
        let mut attributes = self.0.clone();
        attributes.extend(graphs);
        let outputs = outputs
            .iter()
            .map(|(name, path)| (name.to_string(), Value::String(path.clone())))
            .collect();
        attributes.insert(OUTPUTS.to_owned(), Value::Object(outputs));
        let rewrite = |text: &str| rewrites.apply(BStr::new(text)).into_owned();
        let shell = rewrite(&shell::declarations(&attributes));
        let json = rewrite(&Value::Object(attributes).to_string());
        AttrsFiles { json, shell }
    }
}

/// Returns the attributes among variables, if they are structured.
///
/// # Errors
/// As [`StructuredAttrs::parse`].
pub(super) fn of_env(env: &BTreeMap<BString, BString>) -> Result<Option<StructuredAttrs>, Error> {
    env.get(VARIABLE.as_bytes().as_bstr())
        .map(|text| StructuredAttrs::parse(text))
        .transpose()
}
