//! Attributes as variables of a shell, as far as shells have such values.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Value;

/// Returns a line `declare …` for each attribute that is a simple value, a list of those or an
/// object of those, and whose name a shell allows.
pub(super) fn declarations(attributes: &BTreeMap<String, Value>) -> String {
    let mut script = String::new();
    for (name, value) in attributes {
        if !is_shell_name(name) {
            continue;
        }
        let declared = match value {
            Value::List(elements) => list(elements).map(|list| format!("-a {name}=({list})")),
            Value::Object(members) => object(members).map(|object| format!("-A {name}=({object})")),
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::String(_) => simple(value).map(|value| format!("{name}={value}")),
        };
        if let Some(declared) = declared {
            // Writing to a string cannot fail.
            let _infallible = writeln!(script, "declare {declared}");
        }
    }
    script
}

fn is_shell_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Returns the elements, each followed by a space, unless one of them has no spelling.
fn list(elements: &[Value]) -> Option<String> {
    elements
        .iter()
        .map(|element| Some(simple(element)? + " "))
        .collect()
}

/// Returns the members as `[name]=value`, each followed by a space, unless one of them has no
/// spelling.
fn object(members: &BTreeMap<String, Value>) -> Option<String> {
    members
        .iter()
        .map(|(name, value)| Some(format!("[{}]={} ", quoted(name), simple(value)?)))
        .collect()
}

/// Returns how a shell spells a value that is not composed of others; a fraction has no spelling.
fn simple(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("''".to_owned()),
        Value::Bool(true) => Some("1".to_owned()),
        Value::Bool(false) => Some(String::new()),
        Value::String(text) => Some(quoted(text)),
        Value::Integer(integer) => Some(wrapped(*integer).to_string()),
        Value::Float(float) => whole(*float).map(|integer| integer.to_string()),
        Value::List(_) | Value::Object(_) => None,
    }
}

/// Returns the low 32 bits of an integer: that is all that Nix keeps here.
#[expect(
    clippy::cast_possible_truncation,
    reason = "builders see what Nix shows them"
)]
fn wrapped(integer: i128) -> i32 {
    integer as i32
}

/// Returns a float as an integer of 32 bits if, in single precision, it has no fraction.
///
/// What is beyond 32 bits becomes the least integer, as the processor converts it for Nix.
#[expect(
    clippy::cast_possible_truncation,
    reason = "builders see what Nix shows them"
)]
fn whole(float: f64) -> Option<i32> {
    let single = float as f32;
    if single.is_finite() && single.fract() != 0.0 {
        return None;
    }
    let truncated = float.trunc();
    let is_within = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&truncated);
    Some(if is_within {
        truncated as i32
    } else {
        i32::MIN
    })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_is_an_integer_if_single_precision_sees_no_fraction() {
        for (float, expected) in [
            (2.0, Some(2)),
            (-0.0, Some(0)),
            (1.000_000_01, Some(1)),
            (16_777_217.5, Some(16_777_217)),
            (2_147_483_647.0, Some(i32::MAX)),
            (2_147_483_648.0, Some(i32::MIN)),
            (-1e10, Some(i32::MIN)),
            (1e300, Some(i32::MIN)),
            (1e-60, Some(0)),
            (1.5, None),
            (-0.25, None),
        ] {
            assert_eq!(whole(float), expected, "{float}");
        }
    }

    #[test]
    fn names_are_those_of_shells() {
        for name in ["a", "_", "_9", "A_b9"] {
            assert!(is_shell_name(name), "{name}");
        }
        for name in ["", "9a", "a-b", "a b", "\u{e9}", "a\n"] {
            assert!(!is_shell_name(name), "{name:?}");
        }
    }
}
