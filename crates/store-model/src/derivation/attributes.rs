//! What a derivation says beside how to build it: flags, lists of words, texts.
//!
//! They stand in the environment, where everything is a string, or among structured attributes,
//! where everything has a type.

use std::borrow::Cow;

use bstr::{BStr, BString, ByteSlice as _};

use super::structured_attrs::{self, StructuredAttrs, Value};
use super::{BoolAttribute, Derivation};
use crate::Error;

/// The attributes of a derivation, read.
#[derive(Debug, Clone)]
pub struct Attributes<'d> {
    derivation: &'d Derivation,
    structured: Option<StructuredAttrs>,
}

impl Derivation {
    /// Returns the attributes; where they are structured, the environment is not looked at.
    ///
    /// # Errors
    /// The structured attributes are malformed.
    pub fn attributes(&self) -> Result<Attributes<'_>, Error> {
        Ok(Attributes {
            derivation: self,
            structured: structured_attrs::of_env(&self.env)?,
        })
    }
}

impl<'d> Attributes<'d> {
    /// Returns the derivation that has them.
    #[must_use]
    pub fn derivation(&self) -> &'d Derivation {
        self.derivation
    }

    /// Returns the structured attributes, if the derivation has them.
    #[must_use]
    pub fn structured(&self) -> Option<&StructuredAttrs> {
        self.structured.as_ref()
    }

    /// Returns a flag: `"1"` in the environment, `true` among structured attributes.
    ///
    /// # Errors
    /// A structured one is no truth value.
    pub fn flag(&self, name: &str, default: BoolAttribute) -> Result<bool, Error> {
        let Some(structured) = &self.structured else {
            return Ok(self.derivation.env_flag(name, default));
        };
        match structured.get(name) {
            None => Ok(default == BoolAttribute::True),
            Some(value) => self.bool_of(name, value),
        }
    }

    /// Returns a text.
    ///
    /// # Errors
    /// A structured one is no string.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'_, BStr>>, Error> {
        let Some(structured) = &self.structured else {
            return Ok(self.variable(name).map(Cow::Borrowed));
        };
        structured
            .get(name)
            .map(|value| match value.as_str() {
                Some(text) => Ok(Cow::Borrowed(BStr::new(text))),
                None => Err(self.refuse(name, "must be a string")),
            })
            .transpose()
    }

    /// Returns a list of words: separated by white space in the environment, a list of strings
    /// among structured attributes.
    ///
    /// # Errors
    /// A structured one holds something else than strings.
    pub fn words(&self, name: &str) -> Result<Option<Vec<BString>>, Error> {
        let Some(structured) = &self.structured else {
            return Ok(self
                .variable(name)
                .map(|text| words(text).map(BString::from).collect()));
        };
        structured
            .get(name)
            .map(|value| self.strings_of(name, value))
            .transpose()
    }

    fn variable(&self, name: &str) -> Option<&BStr> {
        let value = self.derivation.env.get(name.as_bytes().as_bstr())?;
        Some(value.as_bstr())
    }

    /// Returns a structured truth value; `attribute` is for the message.
    pub(super) fn bool_of(&self, attribute: &str, value: &Value) -> Result<bool, Error> {
        value
            .as_bool()
            .ok_or_else(|| self.refuse(attribute, "must be a Boolean"))
    }

    /// Returns structured strings; as in Nix, one alone is a list of it, and `null` is none.
    pub(super) fn strings_of(&self, attribute: &str, value: &Value) -> Result<Vec<BString>, Error> {
        value
            .elements()
            .map(|element| {
                let text = element.as_str();
                text.map(BString::from)
                    .ok_or_else(|| self.refuse(attribute, "must be a list of strings"))
            })
            .collect()
    }

    pub(super) fn refuse(&self, attribute: &str, reason: impl Into<String>) -> Error {
        Error::Attribute {
            drv_name: self.derivation.name.clone(),
            attribute: attribute.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Returns the words of a text as Nix separates them: by spaces, tabs and line ends.
pub(super) fn words(text: &BStr) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| b" \t\n\r".contains(byte))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::derivation::tests::derivation;

    fn with(name: &str, value: &str) -> Derivation {
        let mut derivation = derivation();
        derivation.env.insert(name.into(), value.into());
        derivation
    }

    #[test]
    fn in_the_environment_everything_is_a_string() {
        let derivation = with("a", " x\ty\n\r z\u{b}w ");
        let attributes = derivation.attributes().unwrap();
        assert_eq!(
            attributes.words("a").unwrap().unwrap(),
            ["x", "y", "z\u{b}w"]
        );
        assert_eq!(attributes.words("b"), Ok(None));
        assert_eq!(attributes.flag("a", BoolAttribute::True), Ok(false));
        assert_eq!(attributes.flag("b", BoolAttribute::True), Ok(true));
        let one = with("a", "1");
        let one = one.attributes().unwrap();
        assert_eq!(one.flag("a", BoolAttribute::False), Ok(true));
        assert_eq!(one.text("a").unwrap().unwrap().as_ref(), "1");
    }

    #[test]
    fn structured_attributes_have_types_and_hide_the_environment() {
        let json =
            r#"{"t":true,"one":1,"list":["a b","c"],"text":"s","mixed":["a",1],"null":null}"#;
        let mut derivation = with("__json", json);
        derivation.env.insert("hidden".into(), "1".into());
        let attributes = derivation.attributes().unwrap();
        assert_eq!(attributes.flag("t", BoolAttribute::False), Ok(true));
        assert_eq!(attributes.flag("hidden", BoolAttribute::False), Ok(false));
        assert_eq!(attributes.words("list").unwrap().unwrap(), ["a b", "c"]);
        assert_eq!(attributes.words("text").unwrap().unwrap(), ["s"]);
        assert_eq!(attributes.words("null").unwrap().unwrap().len(), 0);
        for error in [
            attributes.flag("one", BoolAttribute::False).unwrap_err(),
            attributes.words("mixed").unwrap_err(),
            attributes.text("list").unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("of derivation 'x' must be"),
                "{error}"
            );
        }
    }

    #[test]
    fn attributes_that_are_no_object_are_refused() {
        for json in ["", "[]", "{\"a\":}"] {
            assert!(with("__json", json).attributes().is_err(), "{json}");
        }
    }
}
