//! What a derivation demands of its outputs: which paths they may or must not refer to, and how
//! large they may be.
//!
//! Reading, in this file, needs the derivation only. Checking, in `check`, needs the new outputs
//! and what is known of everything that they lead to; [`OutputChecks::closure_roots`] says what
//! has to be collected for that. What is found goes into a [`Rejection`].

mod check;
mod rejection;

pub use check::CheckedOutputs;
pub use rejection::{Fault, ForbiddenPath, Rejection, Violation};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bstr::BString;

use super::structured_attrs::Value;
use crate::derivation::Attributes;
use crate::{Error, OutputName};

/// One of the four lists of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The output refers to nothing else.
    AllowedReferences,
    /// Nothing else is in the output's closure.
    AllowedRequisites,
    /// The output refers to none of these.
    DisallowedReferences,
    /// None of these is in the output's closure.
    DisallowedRequisites,
}

impl Rule {
    /// Every rule, in the order in which Nix checks them.
    pub const ALL: [Self; 4] = [
        Self::AllowedReferences,
        Self::AllowedRequisites,
        Self::DisallowedReferences,
        Self::DisallowedRequisites,
    ];

    /// Returns the name of the attribute.
    #[must_use]
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::AllowedReferences => "allowedReferences",
            Self::AllowedRequisites => "allowedRequisites",
            Self::DisallowedReferences => "disallowedReferences",
            Self::DisallowedRequisites => "disallowedRequisites",
        }
    }

    /// Returns whether the rule is about the closure, not only about direct references.
    #[must_use]
    pub const fn is_recursive(self) -> bool {
        matches!(self, Self::AllowedRequisites | Self::DisallowedRequisites)
    }

    /// Returns whether being listed, or not being listed, is what the rule forbids.
    const fn forbids(self, is_listed: bool) -> bool {
        match self {
            Self::AllowedReferences | Self::AllowedRequisites => !is_listed,
            Self::DisallowedReferences | Self::DisallowedRequisites => is_listed,
        }
    }
}

/// The demands on all outputs of a derivation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputChecks {
    by_output: BTreeMap<OutputName, Arc<Checks>>,
    without_references: BTreeSet<OutputName>,
    ignored: Vec<IgnoredAttribute>,
}

/// The demands on one output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Checks {
    max_size_bytes: Option<u64>,
    max_closure_size_bytes: Option<u64>,
    /// Whether the output itself does not count as part of its closure.
    ignores_itself: bool,
    /// Store paths or names of outputs, not looked at yet.
    specifiers: BTreeMap<Rule, Vec<BString>>,
}

/// A check that stands where it has no effect; its [`Display`](fmt::Display) is a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredAttribute {
    /// Name of the derivation.
    pub drv_name: String,
    /// The attribute without effect.
    pub attribute: &'static str,
}

impl fmt::Display for IgnoredAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            drv_name,
            attribute,
        } = self;
        write!(
            f,
            "in derivation '{drv_name}', '{attribute}' has no effect because its attributes are \
             structured; use 'outputChecks.<output>.{attribute}'"
        )
    }
}

impl OutputChecks {
    /// Reads the demands of a derivation.
    ///
    /// Whether specifiers are legal shows only when outputs are checked, as in Nix: it is the
    /// outputs that are rejected then, not the derivation.
    ///
    /// # Errors
    /// [`Error::Attribute`] for an attribute of the wrong type.
    pub fn read(attributes: &Attributes<'_>) -> Result<Self, Error> {
        let outputs = || attributes.derivation().outputs.keys();
        let Some(structured) = attributes.structured() else {
            let mut checks = Checks {
                ignores_itself: true,
                ..Checks::default()
            };
            for rule in Rule::ALL {
                if let Some(words) = attributes.words(rule.attribute())? {
                    checks.specifiers.insert(rule, words);
                }
            }
            let mut output_checks = Self::default();
            if !checks.specifiers.is_empty() {
                let checks = Arc::new(checks);
                output_checks.by_output = outputs()
                    .map(|name| (name.clone(), Arc::clone(&checks)))
                    .collect();
            }
            return Ok(output_checks);
        };

        let mut output_checks = Self::default();
        for attribute in Rule::ALL
            .map(Rule::attribute)
            .into_iter()
            .chain(["maxSize", "maxClosureSize"])
        {
            if structured.get(attribute).is_some() {
                output_checks.ignored.push(IgnoredAttribute {
                    drv_name: attributes.derivation().name.clone(),
                    attribute,
                });
            }
        }
        for (member, name) in members_of(attributes, "outputChecks", outputs())? {
            let checks = Checks::read(attributes, name, member)?;
            output_checks
                .by_output
                .insert(name.clone(), Arc::new(checks));
        }
        for (member, name) in members_of(attributes, "unsafeDiscardReferences", outputs())? {
            let attribute = format!("unsafeDiscardReferences.{name}");
            if attributes.bool_of(&attribute, member)? {
                output_checks.without_references.insert(name.clone());
            }
        }
        Ok(output_checks)
    }

    /// Returns whether what an output mentions is not to be looked for, so that it is registered
    /// without references (`unsafeDiscardReferences`).
    #[must_use]
    pub fn discards_references(&self, name: &OutputName) -> bool {
        self.without_references.contains(name)
    }

    /// Returns the attributes that have no effect, of which the user should be warned.
    #[must_use]
    pub fn ignored_attributes(&self) -> &[IgnoredAttribute] {
        &self.ignored
    }
}

/// Returns those members of a structured attribute that are named as an output.
fn members_of<'v, 'n>(
    attributes: &'v Attributes<'_>,
    attribute: &str,
    names: impl Iterator<Item = &'n OutputName>,
) -> Result<Vec<(&'v Value, &'n OutputName)>, Error> {
    let value = attributes.structured().and_then(|all| all.get(attribute));
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    // Nix 2.8 ignores checks of the wrong type; today's refuses them, which cannot be mistaken for
    // having checked.
    let members = value
        .as_object()
        .ok_or_else(|| attributes.refuse(attribute, "must be a set"))?;
    Ok(names
        .filter_map(|name| Some((members.get(name.as_str())?, name)))
        .collect())
}

impl Checks {
    /// Reads a member of `outputChecks`.
    fn read(attributes: &Attributes<'_>, name: &OutputName, value: &Value) -> Result<Self, Error> {
        let of = |member: &str| format!("outputChecks.{name}.{member}");
        let Some(members) = value.as_object() else {
            return Err(attributes.refuse(&format!("outputChecks.{name}"), "must be a set"));
        };
        let limit = |member: &str| match members.get(member) {
            None => Ok(None),
            Some(value) => match as_limit(value) {
                Some(limit) => Ok(Some(limit)),
                None => Err(attributes.refuse(&of(member), "must be a number")),
            },
        };
        let mut checks = Self {
            max_size_bytes: limit("maxSize")?,
            max_closure_size_bytes: limit("maxClosureSize")?,
            ..Self::default()
        };
        if let Some(value) = members.get("ignoreSelfRefs") {
            checks.ignores_itself = attributes.bool_of(&of("ignoreSelfRefs"), value)?;
        }
        for rule in Rule::ALL {
            if let Some(value) = members.get(rule.attribute()) {
                let strings = attributes.strings_of(&of(rule.attribute()), value)?;
                checks.specifiers.insert(rule, strings);
            }
        }
        Ok(checks)
    }

    fn needs_closure(&self) -> bool {
        self.max_closure_size_bytes.is_some()
            || self.specifiers.keys().any(|rule| rule.is_recursive())
    }
}

/// Returns a number as a limit in bytes; a negative one limits nothing, as it is read by Nix.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float becomes the nearest limit there is"
)]
fn as_limit(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(integer) => Some(u64::try_from(*integer).unwrap_or(u64::MAX)),
        Value::Float(float) if *float < 0.0 => Some(u64::MAX),
        Value::Float(float) => Some(*float as u64),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::List(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::Derivation;
    use crate::derivation::tests::derivation;

    fn read(variables: &[(&str, &str)]) -> Result<OutputChecks, Error> {
        let mut derivation: Derivation = derivation();
        for (name, value) in variables {
            derivation.env.insert((*name).into(), (*value).into());
        }
        OutputChecks::read(&derivation.attributes().unwrap())
    }

    #[test]
    fn top_level_checks_hold_for_every_output() {
        let checks = read(&[("allowedReferences", ""), ("disallowedRequisites", "out a")]).unwrap();
        assert_eq!(checks.by_output.len(), 2);
        let dev = &checks.by_output["dev"];
        assert!(dev.ignores_itself && dev.needs_closure());
        assert_eq!(dev.specifiers[&Rule::AllowedReferences], [""; 0]);
        assert_eq!(dev.specifiers[&Rule::DisallowedRequisites], ["out", "a"]);
        assert_eq!(read(&[]).unwrap(), OutputChecks::default());
    }

    #[test]
    fn structured_checks_are_of_one_output_and_hide_top_level_ones() {
        let json = r#"{
            "allowedReferences": [], "maxSize": 1,
            "outputChecks": {
                "out": {"maxSize": 10, "maxClosureSize": 1e3, "ignoreSelfRefs": true,
                        "allowedRequisites": ["dev"], "disallowedReferences": null},
                "doc": {"maxSize": "of an output that does not exist"}},
            "unsafeDiscardReferences": {"dev": true, "out": false}}"#;
        let checks = read(&[("__json", json), ("disallowedRequisites", "out")]).unwrap();
        assert_eq!(checks.by_output.len(), 1);
        let out = &checks.by_output["out"];
        assert_eq!(
            (out.max_size_bytes, out.max_closure_size_bytes),
            (Some(10), Some(1000))
        );
        assert!(out.ignores_itself && out.needs_closure());
        assert_eq!(out.specifiers[&Rule::AllowedRequisites], ["dev"]);
        assert_eq!(out.specifiers[&Rule::DisallowedReferences], [""; 0]);
        assert!(checks.discards_references(&"dev".parse().unwrap()));
        assert!(!checks.discards_references(&OutputName::default()));
        let warnings: Vec<String> = checks
            .ignored_attributes()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            warnings,
            [
                "in derivation 'x', 'allowedReferences' has no effect because its attributes are \
                 structured; use 'outputChecks.<output>.allowedReferences'",
                "in derivation 'x', 'maxSize' has no effect because its attributes are \
                 structured; use 'outputChecks.<output>.maxSize'",
            ]
        );
    }

    #[test]
    fn checks_of_the_wrong_type_are_refused_by_name() {
        for (json, attribute) in [
            (r#"{"outputChecks":[]}"#, "'outputChecks'"),
            (r#"{"outputChecks":{"out":1}}"#, "'outputChecks.out'"),
            (
                r#"{"outputChecks":{"out":{"maxSize":"1"}}}"#,
                "'outputChecks.out.maxSize'",
            ),
            (
                r#"{"outputChecks":{"out":{"allowedRequisites":[1]}}}"#,
                "'outputChecks.out.allowedRequisites'",
            ),
            (
                r#"{"outputChecks":{"dev":{"ignoreSelfRefs":1}}}"#,
                "'outputChecks.dev.ignoreSelfRefs'",
            ),
            (
                r#"{"unsafeDiscardReferences":true}"#,
                "'unsafeDiscardReferences'",
            ),
            (
                r#"{"unsafeDiscardReferences":{"out":"1"}}"#,
                "'unsafeDiscardReferences.out'",
            ),
        ] {
            let error = read(&[("__json", json)]).unwrap_err();
            assert!(error.to_string().contains(attribute), "{error}");
        }
    }

    #[test]
    fn a_negative_limit_limits_nothing() {
        for (value, expected) in [
            (Value::Integer(-1), Some(u64::MAX)),
            (Value::Integer(0), Some(0)),
            (Value::Float(-0.5), Some(u64::MAX)),
            (Value::Float(1e30), Some(u64::MAX)),
            (Value::Float(2.9), Some(2)),
            (Value::Null, None),
        ] {
            assert_eq!(as_limit(&value), expected, "{value}");
        }
    }
}
