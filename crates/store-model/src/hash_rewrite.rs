//! Replaces hash parts in a stream, and hashes a stream as if it did not mention its own path.
//!
//! A content-addressed output has no name before it is hashed, so while it is built it has a
//! provisional one; where its contents mention that, they must change when the real one is known.
//! All hash parts are 32 bytes long, so nothing moves.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::hash::Hasher;
use crate::ref_scan::for_each_window;
use crate::store_path::HASH_PART_LEN;
use crate::{Hash, HashAlgorithm, StorePath};

/// What a hash part is replaced by: that of another path, or zeros.
type HashPart = [u8; HASH_PART_LEN];

/// A sink that passes on what it gets with some hash parts replaced by others.
///
/// What was put in is not looked at again.
#[derive(Debug)]
pub struct HashRewriter<W> {
    sink: W,
    replacements: HashMap<HashPart, HashPart>,
    /// The last bytes, in which a hash part may have begun: at most 31 between two writes.
    pending: Vec<u8>,
    /// Offset of `pending` in the stream.
    position: u64,
    matches: Positions,
}

impl<W: Write> HashRewriter<W> {
    /// Replaces the hash part of each first path by that of the second.
    pub fn new<'a>(
        sink: W,
        replacements: impl IntoIterator<Item = (&'a StorePath, &'a StorePath)>,
    ) -> Self {
        let replacements = replacements
            .into_iter()
            .map(|(from, to)| (hash_part_of(from), hash_part_of(to)))
            .collect();
        Self::with_hash_parts(sink, replacements)
    }

    fn with_hash_parts(sink: W, replacements: HashMap<HashPart, HashPart>) -> Self {
        Self {
            sink,
            replacements,
            pending: Vec::new(),
            position: 0,
            matches: Positions::default(),
        }
    }

    /// Passes on what is left, and returns the sink and how many hash parts were replaced.
    ///
    /// # Errors
    /// The sink failed.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.sink.write_all(&self.pending)?;
        Ok((self.sink, self.matches.len))
    }
}

impl<W: Write> Write for HashRewriter<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(piece);
        let mut found = Vec::new();
        let mut n_done = 0;
        for_each_window(&self.pending, |offset, window| {
            if offset >= n_done
                && let Some(replacement) = self.replacements.get(window)
            {
                found.push((offset, *replacement));
                n_done = offset + HASH_PART_LEN;
            }
        });
        for (offset, replacement) in found {
            self.pending[offset..offset + HASH_PART_LEN].copy_from_slice(&replacement);
            // A usize is never wider than 64 bits.
            self.matches.push(self.position + offset as u64);
        }
        // What was replaced leaves at once, so that it is not taken for something to replace.
        let n_done = n_done.max(self.pending.len().saturating_sub(HASH_PART_LEN - 1));
        self.sink.write_all(&self.pending[..n_done])?;
        self.pending.drain(..n_done);
        self.position += n_done as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Hashes a stream modulo mentions of one path: what the content address of an output with
/// references to itself is.
///
/// Each mention counts as zeros, and after the stream the offsets of all mentions are hashed, so
/// that contents with a mention and contents with zeros differ.
#[derive(Debug)]
pub struct SelfModuloHasher(HashRewriter<Hasher>);

impl SelfModuloHasher {
    /// Starts hashing nothing; `own_path` is the provisional path.
    #[must_use]
    pub fn new(algorithm: HashAlgorithm, own_path: &StorePath) -> Self {
        let replacements = HashMap::from([(hash_part_of(own_path), [0; HASH_PART_LEN])]);
        Self(HashRewriter::with_hash_parts(
            Hasher::new(algorithm),
            replacements,
        ))
    }

    /// Returns the hash.
    #[must_use]
    pub fn finish(self) -> Hash {
        let mut hasher = self.0.sink;
        hasher.update(&self.0.pending);
        self.0
            .matches
            .for_each(|position| hasher.update(format!("|{position}").as_bytes()));
        hasher.finish()
    }
}

impl Write for SelfModuloHasher {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash_part_of(path: &StorePath) -> HashPart {
    let mut hash_part = [0; HASH_PART_LEN];
    hash_part.copy_from_slice(path.hash_part().as_bytes());
    hash_part
}

/// Increasing offsets, as differences of 7 bits a byte: an output that is nothing but mentions of
/// itself costs a thirtieth of its size, not a quarter.
#[derive(Debug, Default)]
struct Positions {
    encoded: Vec<u8>,
    last: u64,
    len: u64,
}

impl Positions {
    fn push(&mut self, position: u64) {
        let mut difference = position - self.last;
        while difference >= 0x80 {
            self.encoded.push(difference.to_le_bytes()[0] | 0x80);
            difference >>= 7;
        }
        self.encoded.push(difference.to_le_bytes()[0]);
        self.last = position;
        self.len += 1;
    }

    fn for_each(&self, mut visit: impl FnMut(u64)) {
        let (mut position, mut difference, mut shift) = (0, 0, 0);
        for byte in &self.encoded {
            difference |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                position += difference;
                visit(position);
                (difference, shift) = (0, 0);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(base_name: &str) -> StorePath {
        base_name.parse().unwrap()
    }

    fn one() -> StorePath {
        path("00000000000000000000000000000000-one")
    }

    fn two() -> StorePath {
        path("11111111111111111111111111111111-two")
    }

    fn rewrite(text: &[u8], piece_len: usize) -> (Vec<u8>, u64) {
        let (one, two) = (one(), two());
        let mut rewriter = HashRewriter::new(Vec::new(), [(&one, &two), (&two, &one)]);
        for piece in text.chunks(piece_len) {
            rewriter.write_all(piece).unwrap();
        }
        rewriter.finish().unwrap()
    }

    #[test]
    fn two_hash_parts_are_exchanged_wherever_the_stream_is_cut() {
        let text = format!("/nix/store/{}\n{0}{0} {}", one(), two());
        let expected = format!("/nix/store/{}\n{0}{0} {}", two(), one())
            .replace("-one", "-x")
            .replace("-two", "-one")
            .replace("-x", "-two");
        for piece_len in 1..=text.len() {
            let (rewritten, n_replaced) = rewrite(text.as_bytes(), piece_len);
            assert_eq!(
                String::from_utf8(rewritten).unwrap(),
                expected,
                "{piece_len}"
            );
            assert_eq!(n_replaced, 4);
        }
    }

    #[test]
    fn in_a_long_run_of_digits_the_first_match_counts() {
        // 40 zeros hold nine windows of zeros; one is replaced, and 8 zeros are left.
        let (rewritten, n_replaced) = rewrite(&[b'0'; 40], 7);
        assert_eq!(rewritten, [[b'1'; 32].as_slice(), &[b'0'; 8]].concat());
        assert_eq!(n_replaced, 1);
    }

    #[test]
    fn a_mention_and_zeros_in_its_place_hash_differently() {
        let hash = |text: &[u8]| {
            let mut hasher = SelfModuloHasher::new(HashAlgorithm::Sha256, &one());
            hasher.write_all(text).unwrap();
            hasher.finish()
        };
        let plain = |text: &[u8]| Hash::digest(HashAlgorithm::Sha256, text);
        let mention = [b"a ".as_slice(), &[b'0'; 32], b" z"].concat();
        let zeros = [b"a ".as_slice(), &[0; 32], b" z"].concat();
        assert_eq!(hash(&zeros), plain(&zeros));
        assert_eq!(hash(&mention), plain(&[&zeros[..], b"|2"].concat()));
    }

    /// Replaces the leftmost hash part, then the leftmost behind it, and so on.
    fn naive_rewrite(text: &[u8], replacements: &[(StorePath, HashPart)]) -> (Vec<u8>, Vec<usize>) {
        let mut rewritten = text.to_vec();
        let mut positions = Vec::new();
        let mut position = 0;
        while let Some(window) = text.get(position..position + HASH_PART_LEN) {
            let found = replacements
                .iter()
                .find(|(path, _)| path.hash_part().as_bytes() == window);
            if let Some((_, replacement)) = found {
                rewritten[position..position + HASH_PART_LEN].copy_from_slice(replacement);
                positions.push(position);
                position += HASH_PART_LEN;
            } else {
                position += 1;
            }
        }
        (rewritten, positions)
    }

    /// Two hash parts that overlap themselves and each other, so that matches compete.
    fn rivals() -> [StorePath; 2] {
        [
            path("01010101010101010101010101010101-one"),
            path("10101010101010101010101010101011-two"),
        ]
    }

    /// Generates texts full of hash parts, of their beginnings and of their ends.
    fn any_text() -> impl Strategy<Value = Vec<u8>> {
        let piece =
            (0..4usize, 0..HASH_PART_LEN, 0..=HASH_PART_LEN).prop_map(|(kind, from, len)| {
                let [one, two] = rivals();
                match kind {
                    0 => one.hash_part().as_bytes().to_vec(),
                    1 => two.hash_part().as_bytes().to_vec(),
                    2 => one.hash_part().as_bytes()[from..].to_vec(),
                    _ => two.hash_part().as_bytes()[..len].to_vec(),
                }
            });
        let noise = proptest::collection::vec(any::<u8>(), 0..4);
        let pieces = proptest::collection::vec(prop_oneof![4 => piece, 1 => noise], 0..12);
        pieces.prop_map(|pieces| pieces.concat())
    }

    /// Gives `text` to `sink` in pieces of lengths that come round again and again.
    fn write_in_pieces(sink: &mut impl Write, mut text: &[u8], lens: &[usize]) {
        for len in lens.iter().cycle() {
            let (piece, rest) = text.split_at((*len).min(text.len()));
            sink.write_all(piece).unwrap();
            text = rest;
            if text.is_empty() {
                break;
            }
        }
    }

    proptest! {
        #[test]
        fn rewriting_equals_a_naive_one_for_any_chunking(
            text in any_text(),
            lens in proptest::collection::vec(1usize..80, 1..6),
        ) {
            let [one, two] = rivals();
            let mut rewriter = HashRewriter::new(Vec::new(), [(&one, &two), (&two, &one)]);
            write_in_pieces(&mut rewriter, &text, &lens);
            let (rewritten, n_replaced) = rewriter.finish().unwrap();
            let replacements =
                [(one.clone(), hash_part_of(&two)), (two.clone(), hash_part_of(&one))];
            let (expected, positions) = naive_rewrite(&text, &replacements);
            prop_assert_eq!(rewritten, expected);
            prop_assert_eq!(usize::try_from(n_replaced).unwrap(), positions.len());
        }

        #[test]
        fn hashing_modulo_oneself_equals_a_naive_one_for_any_chunking(
            text in any_text(),
            lens in proptest::collection::vec(1usize..80, 1..6),
        ) {
            let [one, _] = rivals();
            let mut hasher = SelfModuloHasher::new(HashAlgorithm::Sha1, &one);
            write_in_pieces(&mut hasher, &text, &lens);
            let (mut expected, positions) = naive_rewrite(&text, &[(one, [0; HASH_PART_LEN])]);
            for position in positions {
                expected.extend_from_slice(format!("|{position}").as_bytes());
            }
            prop_assert_eq!(hasher.finish(), Hash::digest(HashAlgorithm::Sha1, &expected));
        }

        #[test]
        fn positions_are_given_back_as_they_were(mut positions in proptest::collection::vec(0..u64::MAX, 0..50)) {
            positions.sort_unstable();
            let mut encoded = Positions::default();
            for position in &positions {
                encoded.push(*position);
            }
            let mut decoded = Vec::new();
            encoded.for_each(|position| decoded.push(position));
            prop_assert_eq!(decoded, positions);
        }
    }
}
