//! Reads JSON as the library of Nix 2.8 does.
//!
//! No general parser would do: `-0` is an integer here and so printed as `0`, an integer that
//! fits no 64 bits is a float, and of two members of one name the last counts. The evaluator
//! writes such texts, and the builder is to see what they mean to Nix.

use std::collections::BTreeMap;

use super::Value;
use crate::Error;

/// How deep values may be nested: far above what people write, far below what a thread's stack
/// holds.
const MAX_DEPTH: usize = 1024;

/// Reads a whole text.
///
/// # Errors
/// [`Error::StructuredAttributes`] if the text is not JSON, not UTF-8, nested too deeply, or has a
/// number beyond what a float can hold.
pub(super) fn parse(text: &[u8]) -> Result<Value, Error> {
    let text = std::str::from_utf8(text).map_err(|error| Error::StructuredAttributes {
        position: error.valid_up_to(),
        reason: "the text is not UTF-8",
    })?;
    let mut parser = Parser {
        text,
        // A byte order mark may stand first.
        position: if text.starts_with('\u{feff}') { 3 } else { 0 },
        depth: 0,
    };
    let value = parser.value()?;
    parser.skip_space();
    if parser.position < text.len() {
        return Err(parser.refuse("there is more behind the value"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
}

impl Parser<'_> {
    fn refuse(&self, reason: &'static str) -> Error {
        Error::StructuredAttributes {
            position: self.position,
            reason,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.position += 1;
        }
    }

    /// Skips a byte if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.position += usize::from(is_next);
        is_next
    }

    fn value(&mut self) -> Result<Value, Error> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [
                    ("null", Value::Null),
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                ] {
                    if self.text[self.position..].starts_with(word) {
                        self.position += word.len();
                        return Ok(value);
                    }
                }
                Err(self.refuse("expected a value"))
            }
        }
    }

    /// Reads a list or an object, from behind its first bracket.
    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        if self.depth == MAX_DEPTH {
            return Err(self.refuse("values are nested too deeply"));
        }
        self.position += 1;
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn list(&mut self) -> Result<Value, Error> {
        let mut elements = Vec::new();
        self.skip_space();
        if self.take(b']') {
            return Ok(Value::List(elements));
        }
        loop {
            elements.push(self.value()?);
            self.skip_space();
            if self.take(b']') {
                return Ok(Value::List(elements));
            }
            if !self.take(b',') {
                return Err(self.refuse("expected ',' or ']'"));
            }
        }
    }

    fn object(&mut self) -> Result<Value, Error> {
        let mut members = BTreeMap::new();
        self.skip_space();
        if self.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.refuse("expected the name of a member"));
            }
            let name = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.refuse("expected ':'"));
            }
            members.insert(name, self.value()?);
            self.skip_space();
            if self.take(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.take(b',') {
                return Err(self.refuse("expected ',' or '}'"));
            }
        }
    }

    fn number(&mut self) -> Result<Value, Error> {
        let start = self.position;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        let mut is_integer = true;
        if self.take(b'.') {
            is_integer = false;
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            is_integer = false;
            if !self.take(b'-') {
                self.take(b'+');
            }
            self.digits()?;
        }
        let text = &self.text[start..self.position];
        let integer: Option<i128> = text.parse().ok();
        if let Some(integer) = integer
            && is_integer
            && (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&integer)
        {
            return Ok(Value::Integer(integer));
        }
        match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(Value::Float(float)),
            Ok(_) | Err(_) => Err(self.refuse("a number is too large")),
        }
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.position;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.position += 1;
        }
        if self.position == start {
            return Err(self.refuse("expected a digit"));
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, Error> {
        self.position += 1;
        let mut string = String::new();
        loop {
            let rest = &self.text[self.position..];
            let special = rest
                .find(|character| matches!(character, '"' | '\\' | '\0'..='\u{1f}'))
                .ok_or_else(|| self.refuse("a string does not end"))?;
            string.push_str(&rest[..special]);
            self.position += special;
            if self.take(b'"') {
                return Ok(string);
            }
            if !self.take(b'\\') {
                return Err(self.refuse("a control character in a string is not escaped"));
            }
            string.push(self.escaped()?);
        }
    }

    /// Reads what follows a backslash.
    fn escaped(&mut self) -> Result<char, Error> {
        let character = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.code_point(),
            _ => return Err(self.refuse("an unknown escape in a string")),
        };
        self.position += 1;
        Ok(character)
    }

    /// Reads a `uXXXX`, or two that are halves of one character.
    fn code_point(&mut self) -> Result<char, Error> {
        let unit = self.code_unit()?;
        let code_point = if (0xd800..0xdc00).contains(&unit) && self.take(b'\\') {
            let low = self.code_unit()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(self.refuse("half a character is escaped"));
            }
            0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
        } else {
            unit
        };
        char::from_u32(code_point).ok_or_else(|| self.refuse("half a character is escaped"))
    }

    fn code_unit(&mut self) -> Result<u32, Error> {
        let digits = self.text.get(self.position + 1..self.position + 5);
        let unit = digits
            .filter(|digits| {
                self.peek() == Some(b'u') && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.refuse("expected four hexadecimal digits"))?;
        self.position += 5;
        Ok(unit)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn reprinted(text: &str) -> String {
        parse(text.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn members_are_sorted_and_the_last_of_a_name_counts() {
        assert_eq!(
            reprinted(" {\"b\" : 1 ,\n\"a\":[ ],\t\"b\":{ } } "),
            r#"{"a":[],"b":{}}"#
        );
        assert_eq!(reprinted("\u{feff}[true,false,null]"), "[true,false,null]");
    }

    #[test]
    fn integers_beyond_64_bits_are_floats_and_minus_zero_is_zero() {
        assert_eq!(
            reprinted("[-0,18446744073709551615,-9223372036854775808]"),
            "[0,18446744073709551615,-9223372036854775808]"
        );
        assert_eq!(
            reprinted("[18446744073709551616,-9223372036854775809,-0.0]"),
            "[1.8446744073709552e+19,-9.223372036854776e+18,-0.0]"
        );
    }

    #[test]
    fn every_escape_is_read() {
        assert_eq!(
            parse(br#""\"\\\/\b\f\n\r\t\u00E9\ud83d\ude00""#),
            Ok(Value::String(
                "\"\\/\u{8}\u{c}\n\r\t\u{e9}\u{1f600}".to_owned()
            ))
        );
    }

    #[test]
    fn what_is_not_json_is_refused_where_it_goes_wrong() {
        for (text, expected) in [
            ("", 0),
            ("nul", 0),
            ("[1,]", 3),
            ("[1 2]", 3),
            ("{\"a\" 1}", 5),
            ("{a:1}", 1),
            ("{\"a\":1,}", 7),
            ("01", 1),
            ("-", 1),
            ("1.", 2),
            ("1e", 2),
            ("1e999", 5),
            ("\"a", 1),
            ("\"a\n\"", 2),
            ("\"\\x\"", 2),
            ("\"\\u00g0\"", 2),
            ("\"\\u+123\"", 2),
            ("\"\\ud800\"", 7),
            ("\"\\ud800\\u0041\"", 13),
            ("\"\\udc00\"", 7),
            ("1 1", 2),
            ("[1]\0", 3),
        ] {
            match parse(text.as_bytes()) {
                Err(Error::StructuredAttributes { position, .. }) => {
                    assert_eq!(position, expected, "{text:?}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert!(parse(b"\"\xe9\"").is_err());
    }

    #[test]
    fn nesting_is_limited_before_the_stack_is() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).is_err());
        assert!(parse(&vec![b'['; 1_000_000]).is_err());
    }
}
