//! Writes JSON as Nix 2.8 does, which no JSON library would: bytes that are not UTF-8 pass as they
//! are, and only quotes, backslashes and control characters are escaped.

/// How the text is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Without any space.
    Compact,
    /// One member or element a line, indented by two spaces.
    Indented,
}

/// A JSON text in the making.
#[derive(Debug)]
pub(crate) struct JsonText {
    text: Vec<u8>,
    layout: Layout,
    depth: usize,
    /// Whether the innermost object or list has nothing in it yet.
    is_empty: bool,
}

impl JsonText {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            text: Vec::new(),
            layout,
            depth: 0,
            is_empty: true,
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.text
    }

    /// Writes an object, whose members `members` writes: each a key, then a value.
    pub(crate) fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.container(b'{', members, b'}');
    }

    /// Writes a list with a value for each element.
    pub(crate) fn list<T>(
        &mut self,
        elements: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.container(
            b'[',
            |json| {
                for element in elements {
                    json.next();
                    write(json, element);
                }
            },
            b']',
        );
    }

    /// Begins a member of an object.
    pub(crate) fn key(&mut self, key: impl AsRef<[u8]>) {
        self.next();
        self.string(key);
        self.text.push(b':');
        if self.layout == Layout::Indented {
            self.text.push(b' ');
        }
    }

    pub(crate) fn string(&mut self, string: impl AsRef<[u8]>) {
        self.text.push(b'"');
        for byte in string.as_ref() {
            match byte {
                b'"' | b'\\' => self.text.extend_from_slice(&[b'\\', *byte]),
                b'\n' => self.text.extend_from_slice(b"\\n"),
                b'\r' => self.text.extend_from_slice(b"\\r"),
                b'\t' => self.text.extend_from_slice(b"\\t"),
                0..32 => self
                    .text
                    .extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => self.text.push(*byte),
            }
        }
        self.text.push(b'"');
    }

    /// Writes a number or a truth value, which print in JSON as in Rust.
    pub(crate) fn literal(&mut self, literal: impl std::fmt::Display) {
        self.text.extend_from_slice(literal.to_string().as_bytes());
    }

    /// Begins an object whose members are not at hand yet; [`close_object`](Self::close_object) ends it.
    pub(crate) fn open_object(&mut self) {
        self.open(b'{');
    }

    /// Ends the object that was begun last.
    pub(crate) fn close_object(&mut self) {
        self.close(b'}');
    }

    fn container(&mut self, open: u8, contents: impl FnOnce(&mut Self), close: u8) {
        self.open(open);
        contents(self);
        self.close(close);
    }

    fn open(&mut self, open: u8) {
        self.text.push(open);
        self.depth += 1;
        self.is_empty = true;
    }

    fn close(&mut self, close: u8) {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line();
        }
        self.text.push(close);
        self.is_empty = false;
    }

    fn next(&mut self) {
        if !self.is_empty {
            self.text.push(b',');
        }
        self.is_empty = false;
        self.new_line();
    }

    fn new_line(&mut self) {
        if self.layout == Layout::Indented {
            self.text.push(b'\n');
            self.text.resize(self.text.len() + 2 * self.depth, b' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_nix_escapes_them() {
        let mut json = JsonText::new(Layout::Compact);
        json.list([&b"\"\\\n\r\t\x01\x1f\x7f\xe9/"[..]], JsonText::string);
        assert_eq!(
            json.into_bytes(),
            b"[\"\\\"\\\\\\n\\r\\t\\u0001\\u001f\x7f\xe9/\"]"
        );
    }

    #[test]
    fn empty_containers_take_no_line() {
        let mut json = JsonText::new(Layout::Indented);
        json.object(|json| {
            json.key("list");
            json.list([(); 0], |_, ()| {});
            json.key("object");
            json.object(|_| {});
            json.key("truth");
            json.literal(true);
        });
        assert_eq!(
            json.into_bytes(),
            b"{\n  \"list\": [],\n  \"object\": {},\n  \"truth\": true\n}"
        );
    }
}
