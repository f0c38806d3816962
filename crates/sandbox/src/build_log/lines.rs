//! Lines out of a stream of bytes, and the last of them as a person would see them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A line longer than this is passed on in parts, so that a builder without newlines costs no
/// memory.
pub(crate) const MAX_LINE_LEN: usize = 64 << 10;

/// Collects bytes until they are whole lines.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    pending: BytesMut,
}

impl LineBuffer {
    /// Takes bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Takes out what is whole: lines without the last one's newline, or a part of a line that is
    /// too long to wait for.
    pub(crate) fn take_lines(&mut self) -> Option<Bytes> {
        if let Some(newline) = self.pending.iter().rposition(|byte| *byte == b'\n') {
            let mut lines = self.pending.split_to(newline + 1);
            lines.truncate(newline);
            return Some(lines.freeze());
        }
        (self.pending.len() >= MAX_LINE_LEN).then(|| self.pending.split().freeze())
    }

    /// Takes out the last line, which no newline ended.
    pub(crate) fn take_rest(&mut self) -> Option<Bytes> {
        (!self.pending.is_empty()).then(|| self.pending.split().freeze())
    }
}

/// The last lines of a log.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: VecDeque<Bytes>,
    n_lines: usize,
}

impl Tail {
    /// Makes one that keeps this many lines.
    pub(crate) fn new(n_lines: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            n_lines,
        }
    }

    /// Notes lines; only the last of them are looked at.
    pub(crate) fn push(&mut self, text: &Bytes) {
        if self.n_lines == 0 {
            return;
        }
        let mut last = Vec::new();
        let mut end = text.len();
        while last.len() < self.n_lines {
            let newline = text[..end].iter().rposition(|byte| *byte == b'\n');
            let start = newline.map_or(0, |newline| newline + 1);
            last.push(&text[start..end]);
            match newline {
                Some(newline) => end = newline,
                None => break,
            }
        }
        for line in last.into_iter().rev() {
            if self.lines.len() == self.n_lines {
                self.lines.pop_front();
            }
            // A copy, for a slice would keep the whole batch alive.
            self.lines.push_back(Bytes::copy_from_slice(line));
        }
    }

    /// Returns the lines as a terminal shows them: what follows a carriage return overwrites.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.iter().map(|line| as_shown(line)).collect()
    }
}

fn as_shown(line: &[u8]) -> String {
    let mut shown: Vec<u8> = Vec::with_capacity(line.len());
    let mut column = 0;
    for byte in line {
        if *byte == b'\r' {
            column = 0;
        } else {
            match shown.get_mut(column) {
                Some(old) => *old = *byte,
                None => shown.push(*byte),
            }
            column += 1;
        }
    }
    String::from_utf8_lossy(&shown).into_owned()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn tail_of(n_lines: usize, batches: &[&'static str]) -> Vec<String> {
        let mut tail = Tail::new(n_lines);
        for batch in batches {
            tail.push(&Bytes::from_static(batch.as_bytes()));
        }
        tail.into_lines()
    }

    #[test]
    fn only_whole_lines_are_taken_and_the_rest_waits() {
        let mut buffer = LineBuffer::default();
        buffer.push(b"one\ntwo\nthr");
        assert_eq!(buffer.take_lines().unwrap(), "one\ntwo");
        assert_eq!(buffer.take_lines(), None);
        buffer.push(b"ee\n");
        assert_eq!(buffer.take_lines().unwrap(), "three");
        assert_eq!(buffer.take_rest(), None);
    }

    #[test]
    fn an_empty_line_is_a_line() {
        let mut buffer = LineBuffer::default();
        buffer.push(b"\n");
        assert_eq!(buffer.take_lines().unwrap(), "");
        assert_eq!(tail_of(3, &[""]), [""]);
    }

    #[test]
    fn a_line_without_end_is_passed_on_in_parts() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b'x'; MAX_LINE_LEN - 1]);
        assert_eq!(buffer.take_lines(), None);
        buffer.push(b"xx");
        assert_eq!(buffer.take_lines().unwrap().len(), MAX_LINE_LEN + 1);
    }

    #[test]
    fn the_tail_keeps_the_last_lines_across_batches() {
        assert_eq!(tail_of(2, &["a\nb", "c"]), ["b", "c"]);
        assert_eq!(tail_of(2, &["a\nb\nc\nd"]), ["c", "d"]);
        assert!(tail_of(0, &["a"]).is_empty());
    }

    #[test]
    fn what_follows_a_carriage_return_overwrites() {
        assert_eq!(tail_of(1, &["10%\r100%"]), ["100%"]);
        assert_eq!(tail_of(1, &["long line\rshort"]), ["shortline"]);
    }
}
