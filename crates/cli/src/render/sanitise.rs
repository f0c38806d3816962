//! Makes what builders and file names say safe for a terminal.
//!
//! A builder may colour its lines (SGR sequences, `ESC [ … m`) and nothing else: no other escape
//! sequence, no control character, no reordering of text reaches the terminal (SECURITY D09). The
//! raw bytes stay in the log.

use super::Style;

const ESCAPE: char = '\u{1b}';
const RESET: &str = "\u{1b}[0m";

/// Longest parameter string of a colour; true colour for both grounds needs 39 characters.
const MAX_SGR_LEN: usize = 64;

/// Returns one line as a terminal may show it, in one line.
///
/// Of a line that overwrote itself with carriage returns only the last part that is not empty is
/// kept. Colours stay where `style` has any, and are always reset at the end.
#[must_use]
pub(crate) fn sanitise(line: &[u8], style: Style) -> String {
    let line = line
        .rsplit(|byte| *byte == b'\r')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let mut shown = String::with_capacity(text.len());
    let mut coloured = false;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character == ESCAPE {
            if let Some(sequence) = skip_escape(&mut rest)
                && style == Style::Colour
            {
                shown.push(ESCAPE);
                shown.push('[');
                shown.push_str(&sequence);
                shown.push('m');
                coloured = true;
            }
        } else if character == '\t' || !(character.is_control() || reorders(character)) {
            shown.push(character);
        }
    }
    if coloured {
        shown.push_str(RESET);
    }
    shown
}

/// Skips the rest of an escape sequence; returns the parameters if it was a colour.
fn skip_escape(rest: &mut std::str::Chars<'_>) -> Option<String> {
    let ahead = rest.as_str();
    match ahead.chars().next() {
        Some('[') => {
            rest.next();
            let body = &ahead[1..];
            let end = body.find(|character: char| ('\u{40}'..='\u{7e}').contains(&character))?;
            // A sequence ends at its final byte; one with anything but parameters and intermediates
            // before it was never a sequence, and its text is shown.
            let parameters = &body[..end];
            if !parameters.bytes().all(|byte| (0x20..0x40).contains(&byte)) {
                return None;
            }
            *rest = body[end + 1..].chars();
            let is_colour = body[end..].starts_with('m')
                && parameters.len() <= MAX_SGR_LEN
                && parameters
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':'));
            is_colour.then(|| parameters.to_owned())
        }
        // Strings (title, device control, …) run to BEL or to ESC \; an unfinished one hides the
        // rest of the line, as it would on a terminal.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let end = ahead
                .char_indices()
                .find_map(|(at, character)| match character {
                    '\u{7}' | '\u{9c}' => Some(at + character.len_utf8()),
                    ESCAPE if ahead[at + 1..].starts_with('\\') => Some(at + 2),
                    _ => None,
                })
                .unwrap_or(ahead.len());
            *rest = ahead[end..].chars();
            None
        }
        Some(intermediate @ ' '..='/') => {
            rest.next();
            if intermediate.is_ascii() {
                rest.next();
            }
            None
        }
        Some('\u{30}'..='\u{7e}') => {
            rest.next();
            None
        }
        Some(_) | None => None,
    }
}

/// Characters that make text read in another order than it is written, or hide it.
fn reorders(character: char) -> bool {
    matches!(
        character,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_stay_and_are_reset() {
        let line = b"\x1b[1;31mred\x1b[38:2:1:2:3m more";
        assert_eq!(
            sanitise(line, Style::Colour),
            "\u{1b}[1;31mred\u{1b}[38:2:1:2:3m more\u{1b}[0m"
        );
        assert_eq!(sanitise(line, Style::Plain), "red more");
    }

    #[test]
    fn nothing_else_that_a_terminal_obeys_gets_through() {
        for line in [
            &b"a\x1b]0;title\x07b"[..],
            b"a\x1b]8;;http://x\x1b\\b",
            b"a\x1b[2Jb",
            b"a\x1b[?1049hb",
            b"a\x1b[10;20Hb",
            b"a\x1b[6nb",
            b"a\x1b[>cb",
            b"a\x1bcb",
            b"a\x1b(0b",
            b"a\x1bP1$r\x1b\\b",
            b"a\x00\x07\x08\x7fb",
            "a\u{9b}\u{202e}\u{2066}b".as_bytes(),
            b"overwritten\rab",
            b"ab\r",
        ] {
            assert_eq!(sanitise(line, Style::Plain), "ab", "{line:?}");
            assert_eq!(sanitise(line, Style::Colour), "ab", "{line:?}");
        }
    }

    #[test]
    fn unfinished_sequences_leave_no_escape_character() {
        for line in [
            &b"a\x1b"[..],
            b"a\x1b[",
            b"a\x1b[31",
            b"a\x1b[\xff\xfem",
            b"a\x1b]0;never ends",
            b"a\x1b[\x1b[\x1b[2J",
        ] {
            let shown = sanitise(line, Style::Colour);
            let without_colours = shown.replace(RESET, "");
            assert!(!without_colours.contains(ESCAPE), "{line:?} {shown:?}");
            assert!(shown.starts_with('a'));
        }
    }

    #[test]
    fn invalid_utf8_is_shown_as_replacement_characters() {
        assert_eq!(sanitise(b"caf\xe9\tok", Style::Plain), "caf\u{fffd}\tok");
    }
}
