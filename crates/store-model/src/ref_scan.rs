//! Finds which store paths a stream of bytes mentions.
//!
//! A path is mentioned where the 32 digits of its hash part stand, whatever is around them; so an
//! output refers to an input even from inside a compressed-looking table, and a reference is never
//! missed because a path was cut or its name changed.
//!
//! # How
//!
//! A hash part covers 32 bytes that are all base-32 digits.
//! All windows that begin at one of 29 neighbouring positions cover the same 4 bytes in their
//! middle, so where one of those 4 is no digit, all 29 windows are dealt with at once; in text and
//! in machine code that is nearly always.
//! Else the run of digits around them is walked, each byte once.

use std::collections::{BTreeSet, HashMap};
use std::io;

use crate::store_path::HASH_PART_LEN;
use crate::{StorePath, base32};

/// How many bytes are looked at together: fewer would be digits by chance too often, more would
/// shorten the leaps.
const PROBE_LEN: usize = 4;

/// How many windows share a probe.
const LEAP_LEN: usize = HASH_PART_LEN - PROBE_LEN + 1;

/// What has to be kept between two pieces: a window less one byte.
const TAIL_LEN: usize = HASH_PART_LEN - 1;

/// Bits in the filter for each candidate: 3 % of the windows that hold another hash pass it.
const FILTER_BITS_PER_CANDIDATE: usize = 32;

/// 1 for the bytes that are base-32 digits, else 0.
const IS_DIGIT: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0u8;
    loop {
        table[byte as usize] = base32::is_digit(byte) as u8;
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Looks for the hash parts of candidates in a stream of bytes.
///
/// Memory: the candidates, an index and 31 bytes of the stream.
#[derive(Debug, Clone)]
pub struct RefScanner {
    /// Sorted, so that candidates of the same hash part stand together.
    candidates: Vec<StorePath>,
    /// Hash part to index in `is_found`.
    hash_parts: HashMap<[u8; HASH_PART_LEN], usize>,
    is_found: Vec<bool>,
    n_missing: usize,
    filter: Filter,
    tail: [u8; TAIL_LEN],
    tail_len: usize,
}

impl RefScanner {
    /// Looks for `candidates`.
    pub fn new(candidates: impl IntoIterator<Item = StorePath>) -> Self {
        let candidates: BTreeSet<StorePath> = candidates.into_iter().collect();
        let candidates: Vec<StorePath> = candidates.into_iter().collect();
        let mut filter = Filter::new(candidates.len());
        let mut hash_parts = HashMap::with_capacity(candidates.len());
        for candidate in &candidates {
            let hash_part = window_of(candidate);
            filter.insert(&hash_part);
            let next = hash_parts.len();
            hash_parts.entry(hash_part).or_insert(next);
        }
        Self {
            is_found: vec![false; hash_parts.len()],
            n_missing: hash_parts.len(),
            candidates,
            hash_parts,
            filter,
            tail: [0; TAIL_LEN],
            tail_len: 0,
        }
    }

    /// Returns the candidates that were mentioned so far.
    #[must_use]
    pub fn found(&self) -> BTreeSet<StorePath> {
        self.candidates
            .iter()
            .filter(|candidate| self.is_found[self.hash_parts[&window_of(candidate)]])
            .cloned()
            .collect()
    }

    /// Returns whether no candidate is left to be found.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.n_missing == 0
    }

    /// Scans the next piece of the stream.
    pub fn scan(&mut self, piece: &[u8]) {
        if self.is_complete() {
            return;
        }
        // The windows that begin in the tail, and after that those that begin in the piece.
        let mut seam = [0; 2 * TAIL_LEN];
        let n_from_piece = piece.len().min(TAIL_LEN);
        let seam_len = self.tail_len + n_from_piece;
        seam[..self.tail_len].copy_from_slice(&self.tail[..self.tail_len]);
        seam[self.tail_len..seam_len].copy_from_slice(&piece[..n_from_piece]);
        let seam = &seam[..seam_len];
        if self.tail_len > 0 {
            self.scan_windows(seam);
        }
        self.scan_windows(piece);
        let end = if piece.len() < TAIL_LEN { seam } else { piece };
        let end = &end[end.len().saturating_sub(TAIL_LEN)..];
        self.tail[..end.len()].copy_from_slice(end);
        self.tail_len = end.len();
    }

    /// Looks up every window that lies wholly in `text`.
    fn scan_windows(&mut self, text: &[u8]) {
        for_each_window(text, |_, window| {
            if self.filter.may_contain(window)
                && let Some(idx) = self.hash_parts.get(window)
                && !self.is_found[*idx]
            {
                self.is_found[*idx] = true;
                self.n_missing -= 1;
            }
        });
    }
}

/// Calls `visit` with every window of 32 digits that lies wholly in `text`, in order, and with its
/// offset.
#[inline]
pub(crate) fn for_each_window(text: &[u8], mut visit: impl FnMut(usize, &[u8; HASH_PART_LEN])) {
    // Windows that begin before `start` are dealt with.
    let mut start = 0;
    while let Some(window) = text.get(start..start + HASH_PART_LEN) {
        let (before_probe, probe) = window.split_at(LEAP_LEN - 1);
        let all_digits = probe
            .iter()
            .fold(1, |all, byte| all & IS_DIGIT[usize::from(*byte)]);
        if all_digits == 0 {
            start += LEAP_LEN;
            continue;
        }
        let run_start = before_probe
            .iter()
            .rposition(|byte| !base32::is_digit(*byte))
            .map_or(start, |offset| start + offset + 1);
        let beyond = start + HASH_PART_LEN;
        let run_end = text[beyond..]
            .iter()
            .position(|byte| !base32::is_digit(*byte))
            .map_or(text.len(), |offset| beyond + offset);
        for (idx, window) in text[run_start..run_end].array_windows().enumerate() {
            visit(run_start + idx, window);
        }
        start = run_end + 1;
    }
}

impl io::Write for RefScanner {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.scan(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn window_of(path: &StorePath) -> [u8; HASH_PART_LEN] {
    let mut window = [0; HASH_PART_LEN];
    window.copy_from_slice(path.hash_part().as_bytes());
    window
}

/// A set of bits that tells most foreign hashes from the candidates' without a look-up.
#[derive(Debug, Clone)]
struct Filter {
    bits: Vec<u64>,
    /// How far a 64-bit product is shifted to leave the number of a bit.
    shift: u32,
}

impl Filter {
    fn new(n_candidates: usize) -> Self {
        let n_bits = (n_candidates * FILTER_BITS_PER_CANDIDATE)
            .next_power_of_two()
            .max(4096);
        Self {
            bits: vec![0; n_bits / 64],
            shift: 64 - n_bits.ilog2(),
        }
    }

    fn insert(&mut self, window: &[u8; HASH_PART_LEN]) {
        let bit = self.bit_of(window);
        self.bits[bit / 64] |= 1 << (bit % 64);
    }

    fn may_contain(&self, window: &[u8; HASH_PART_LEN]) -> bool {
        let bit = self.bit_of(window);
        self.bits[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// Mixes the first 8 digits, 40 bits of hash, by a multiplication (the golden ratio).
    fn bit_of(&self, window: &[u8; HASH_PART_LEN]) -> usize {
        let head = window[..8]
            .iter()
            .fold(0, |head, digit| head << 8 | u64::from(*digit));
        let mixed = head.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed >> self.shift).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(digest: u32, name: &str) -> StorePath {
        let mut bytes = [0x5a; 20];
        bytes[16..].copy_from_slice(&digest.to_le_bytes());
        StorePath::from_digest(&bytes, name).unwrap()
    }

    fn scan(candidates: &[StorePath], pieces: &[&[u8]]) -> BTreeSet<StorePath> {
        let mut scanner = RefScanner::new(candidates.iter().cloned());
        for piece in pieces {
            scanner.scan(piece);
        }
        scanner.found()
    }

    #[test]
    fn a_hash_part_is_found_wherever_the_stream_is_cut() {
        let (mentioned, other) = (path(1, "mentioned"), path(2, "other"));
        let text = format!("..{}..", mentioned.hash_part());
        let candidates = [mentioned.clone(), other];
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let found = scan(&candidates, &pieces.map(str::as_bytes));
                assert_eq!(found, [mentioned.clone()].into(), "{first} {second}");
            }
        }
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(scan(&candidates, &single), [mentioned].into());
    }

    #[test]
    fn a_hash_part_is_found_at_every_offset_after_bytes_of_every_sort() {
        let mentioned = path(1, "mentioned");
        for before in ["e", "0", "e0", "0000000e", "\0"] {
            for n_before in 0..150 {
                let text: Vec<u8> = before
                    .bytes()
                    .cycle()
                    .take(n_before)
                    .chain(mentioned.base_name().bytes())
                    .collect();
                let found = scan(std::slice::from_ref(&mentioned), &[&text]);
                assert_eq!(found.len(), 1, "{n_before} of {before:?}");
            }
        }
    }

    #[test]
    fn a_hash_part_is_found_among_other_digits_and_without_its_name() {
        let mentioned = path(1, "mentioned");
        let hash_part = mentioned.hash_part();
        for text in [
            hash_part.to_owned(),
            format!("{hash_part}{hash_part}"),
            format!("0123456789abcdfghijk{hash_part}lmnpqrsvwxyz"),
            format!("\0\0{hash_part}\0\0"),
            format!("/nix/store/{hash_part}-renamed"),
            format!("{}e{hash_part}e", "0".repeat(31)),
            format!("{}e{hash_part}", "0".repeat(1000)),
        ] {
            let found = scan(std::slice::from_ref(&mentioned), &[text.as_bytes()]);
            assert_eq!(found.len(), 1, "{text}");
        }
        for text in [
            &hash_part[1..],
            &hash_part.to_uppercase(),
            &hash_part.replacen(|_| true, "e", 1),
            &format!("{}\n{}", &hash_part[..16], &hash_part[16..]),
        ] {
            assert!(
                scan(std::slice::from_ref(&mentioned), &[text.as_bytes()]).is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn all_candidates_of_one_hash_part_are_found() {
        let candidates = [path(1, "a"), path(1, "b"), path(2, "c")];
        let text = candidates[0].hash_part().as_bytes();
        assert_eq!(
            scan(&candidates, &[text]),
            candidates[..2].iter().cloned().collect()
        );
        let mut scanner = RefScanner::new(candidates.clone());
        scanner.scan(text);
        assert!(!scanner.is_complete());
        scanner.scan(candidates[2].hash_part().as_bytes());
        assert!(scanner.is_complete());
        assert!(RefScanner::new([]).is_complete());
    }

    #[test]
    fn each_of_50_000_candidates_is_found() {
        let candidates: Vec<StorePath> = (0..50_000).map(|idx| path(idx, "x")).collect();
        let mut scanner = RefScanner::new(candidates.iter().cloned());
        for candidate in &candidates {
            scanner.scan(candidate.base_name().as_bytes());
            scanner.scan(b"\n");
        }
        assert!(scanner.is_complete());
        assert_eq!(scanner.found().len(), 50_000);
    }

    proptest! {
        /// Texts of few different bytes, so that runs of digits of every length occur.
        #[test]
        fn the_same_is_found_as_by_looking_everywhere(
            pieces in proptest::collection::vec("[01e]{0,40}|[01]{25,70}", 0..8),
            inserted in proptest::collection::vec((any::<proptest::sample::Index>(), 0u32..4), 0..4),
        ) {
            let candidates: Vec<StorePath> = (0..4).map(|digest| path(digest, "x")).collect();
            let mut pieces = pieces;
            for (place, digest) in inserted {
                let place = place.index(pieces.len() + 1);
                let hash_part = path(digest, "x").hash_part().to_owned();
                let (head, tail) = hash_part.split_at(usize::try_from(digest).unwrap() * 9);
                pieces.insert(place, tail.to_owned());
                pieces.insert(place, head.to_owned());
            }
            let text = pieces.concat();
            let expected: BTreeSet<StorePath> = candidates
                .iter()
                .filter(|candidate| text.contains(candidate.hash_part()))
                .cloned()
                .collect();
            let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            prop_assert_eq!(scan(&candidates, &pieces), expected);
        }

        #[test]
        fn every_window_of_digits_is_visited_once(text in "[01e]{0,40}([01]{25,70}e?){0,4}") {
            let mut visited = Vec::new();
            for_each_window(text.as_bytes(), |offset, window| visited.push((offset, *window)));
            let expected: Vec<_> = text
                .as_bytes()
                .array_windows()
                .enumerate()
                .filter(|(_, window): &(usize, &[u8; HASH_PART_LEN])| {
                    window.iter().all(|byte| base32::is_digit(*byte))
                })
                .map(|(offset, window)| (offset, *window))
                .collect();
            prop_assert_eq!(visited, expected);
        }
    }
}
