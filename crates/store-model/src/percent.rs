//! Bytes that an address holds as `%XX`.

/// Replaces `%XX` by the bytes that are meant; a `%` before anything else stands for itself.
#[must_use]
pub fn decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let number = after.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            let are_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            are_digits.then(|| u8::from_str_radix(digits, 16).ok())?
        });
        match number {
            Some(number) if byte == b'%' => {
                decoded.push(number);
                rest = &after[2..];
            }
            Some(_) | None => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_digits_after_a_per_cent_are_a_byte() {
        for (text, bytes) in [
            ("a%20b", "a b"),
            ("%41%6a%6A", "Ajj"),
            ("100%", "100%"),
            ("%+1%4", "%+1%4"),
            ("%%41", "%A"),
            ("", ""),
        ] {
            assert_eq!(decode(text), bytes.as_bytes(), "{text}");
        }
        assert_eq!(decode("%ff"), [0xff]);
    }
}
