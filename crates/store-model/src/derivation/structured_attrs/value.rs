//! A JSON value as the library of Nix 2.8 keeps and prints it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::float::print_float;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without point and exponent that fits 64 bits, with or without a sign.
    Integer(i128),
    /// Every other number; always finite.
    Float(f64),
    /// A text.
    String(String),
    /// Values in order.
    List(Vec<Value>),
    /// Values by name, sorted by the bytes of the names.
    Object(BTreeMap<String, Value>),
}

impl Value {
    /// Returns the text, if this is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self {
            Some(text)
        } else {
            None
        }
    }

    /// Returns the members, if this is an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&BTreeMap<String, Self>> {
        if let Self::Object(members) = self {
            Some(members)
        } else {
            None
        }
    }

    /// Returns the truth value, if this is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(truth) = self {
            Some(*truth)
        } else {
            None
        }
    }

    /// Returns what a loop over this value comes by in Nix: the elements of a list, the values of
    /// an object, nothing of `null`, and everything else itself.
    #[must_use]
    pub fn elements(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match self {
            Self::Null => Box::new(std::iter::empty()),
            Self::List(elements) => Box::new(elements.iter()),
            Self::Object(members) => Box::new(members.values()),
            Self::Bool(_) | Self::Integer(_) | Self::Float(_) | Self::String(_) => {
                Box::new(std::iter::once(self))
            }
        }
    }
}

/// Prints compactly.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Float(float) => f.write_str(&print_float(*float)),
            Self::String(text) => print_string(f, text),
            Self::List(elements) => {
                f.write_char('[')?;
                for (idx, element) in elements.iter().enumerate() {
                    f.write_str(if idx == 0 { "" } else { "," })?;
                    fmt::Display::fmt(element, f)?;
                }
                f.write_char(']')
            }
            Self::Object(members) => {
                f.write_char('{')?;
                for (idx, (name, value)) in members.iter().enumerate() {
                    f.write_str(if idx == 0 { "" } else { "," })?;
                    print_string(f, name)?;
                    f.write_char(':')?;
                    fmt::Display::fmt(value, f)?;
                }
                f.write_char('}')
            }
        }
    }
}

/// Unlike the rest of Nix's JSON (`json_text`), this library has short escapes for backspace and
/// form feed.
fn print_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\u{8}' => f.write_str("\\b")?,
            '\u{c}' => f.write_str("\\f")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '\0'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(character))?,
            _ => f.write_char(character)?,
        }
    }
    f.write_char('"')
}
