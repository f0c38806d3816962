//! What the reader accepts, refuses, and refuses in time.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufReader, Read as _};

use proptest::prelude::*;

use super::*;
use crate::nar::tests::{any_tree, reprinted, small_tree, strings};
use crate::nar::{Discard, NarWriter, Tree};

/// Reads an archive and tells why it was refused.
fn refusal(archive: &[u8]) -> String {
    match read_whole(&mut &archive[..], &mut Discard) {
        Err(ReadError::Malformed(error)) => error.to_string(),
        other => panic!("{other:?} of {}", archive.as_bstr()),
    }
}

/// Returns an archive of the strings between the magic and the end.
fn archive(tokens: &[&str]) -> Vec<u8> {
    let all: Vec<&str> = ["nix-archive-1"].iter().chain(tokens).copied().collect();
    strings(&all)
}

/// Returns an archive of a directory with entries, each a name and the tokens of its node.
fn directory(entries: &[(&str, &[&str])]) -> Vec<u8> {
    let mut tokens = vec!["(", "type", "directory"];
    for (name, node) in entries {
        tokens.extend(["entry", "(", "name", name, "node"]);
        tokens.extend(*node);
        tokens.push(")");
    }
    tokens.push(")");
    archive(&tokens)
}

const FILE: &[&str] = &["(", "type", "regular", "contents", "x", ")"];
const LINK: &[&str] = &["(", "type", "symlink", "target", "/", ")"];
const EMPTY: &[&str] = &["(", "type", "directory", ")"];

#[test]
fn names_that_are_repeated_or_out_of_order_are_refused() {
    assert!(
        reprinted(&directory(&[
            ("a", LINK),
            ("b", FILE),
            ("b.", EMPTY),
            ("ba", LINK)
        ]))
        .is_some()
    );
    for (first, second) in [
        (("a", LINK), ("a", EMPTY)),
        (("a", LINK), ("a", FILE)),
        (("a", EMPTY), ("a", EMPTY)),
        (("a", FILE), ("a", FILE)),
        (("a", FILE), ("a", LINK)),
        (("b", FILE), ("a", FILE)),
        (("a", FILE), ("B", FILE)),
        (("aa", FILE), ("a", FILE)),
    ] {
        assert!(refusal(&directory(&[first, second])).contains("not sorted"));
    }
    // The name before must be remembered beyond a directory between.
    let entries = [("a", LINK), ("b", EMPTY), ("a", EMPTY)];
    assert!(refusal(&directory(&entries)).contains("not sorted"));
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let long = "n".repeat(256);
    for name in [
        "",
        ".",
        "..",
        "/",
        "meow/nya",
        "/etc/passwd",
        "meow\0nya",
        "\0",
        "a~nix~case~hack~1",
        "~nix~case~hack~",
        &long,
    ] {
        refusal(&directory(&[(name, FILE)]));
    }
    for name in ["...", " ", "~", "\\", "-rf", "\n", &long[1..]] {
        assert!(reprinted(&directory(&[(name, FILE)])).is_some(), "{name:?}");
    }
}

#[test]
fn symlink_targets_without_a_meaning_on_disk_are_refused() {
    let long = "t".repeat(4096);
    let link = |target: &str| archive(&["(", "type", "symlink", "target", target, ")"]);
    for target in ["", "foo\0junk", "\0", &long] {
        refusal(&link(target));
    }
    for target in ["/", "..", "/etc/shadow", "a//b", "\n", &long[1..]] {
        assert!(reprinted(&link(target)).is_some(), "{target:?}");
    }
}

#[test]
fn a_tree_has_exactly_one_spelling() {
    // `_` stands for the empty string.
    for tokens in [
        "( type regular )",
        "( type regular executable contents _ )",
        "( type regular executable x contents _ )",
        "( type regular contents _ executable _ )",
        "( type regular executable _ executable _ contents _ )",
        "( type regular contents _ contents _ )",
        "( contents _ type regular )",
        "( type regular type regular contents _ )",
        "( type regular target x )",
        "( type symlink )",
        "( type symlink target a target a )",
        "( type symlink contents _ )",
        "( type directory entry ( node ( type directory ) name a ) )",
        "( type directory entry ( name a ) )",
        "( type directory entry ( name a node ( type directory ) )",
        "( type directory entry ( ) )",
        "( type directory name a )",
        "( type fifo )",
        "( type _ )",
        "( )",
        ")",
        "_ type directory )",
        "( type directory ))",
        "( type directory ) )",
        "( type directory ) (",
    ] {
        let tokens: Vec<&str> = tokens
            .split(' ')
            .map(|token| if token == "_" { "" } else { token })
            .collect();
        refusal(&archive(&tokens));
    }
    for magic in ["", "nix-archive-2", "nix-archive-1 ", "Nix-archive-1"] {
        refusal(&strings(&[magic, "(", "type", "directory", ")"]));
    }
    refusal(b"");
    let mut followed = archive(EMPTY);
    followed.push(0);
    assert!(refusal(&followed).contains("bytes follow"));
}

#[test]
fn what_follows_an_archive_is_left_in_the_source() {
    let followed = [&archive(FILE)[..], b"rest"].concat();
    let mut source = &followed[..];
    let summary = read(&mut source, &mut Discard).unwrap();
    assert_eq!((source, summary.size_bytes), (&b"rest"[..], 120));
}

#[test]
fn padding_must_be_zero() {
    let archive = archive(&[
        "(",
        "type",
        "regular",
        "executable",
        "",
        "contents",
        "12345",
        ")",
    ]);
    for position in memchr::memchr_iter(0, &archive) {
        let mut changed = archive.clone();
        changed[position] = b'!';
        refusal(&changed);
    }
}

#[test]
fn a_length_that_lies_is_refused_wherever_it_stands() {
    let archive = small_tree().to_nar().unwrap();
    let lies = [
        u64::MAX,
        u64::MAX - 7,
        u64::MAX - 8,
        1 << 63,
        (1 << 63) - 1,
        1 << 32,
        (1 << 32) - 1,
        4097,
        4096,
        256,
        33,
    ];
    let mut start = 0;
    let mut n_strings = 0;
    while start < archive.len() {
        let length = u64::from_le_bytes(archive[start..start + 8].try_into().unwrap());
        for lie in lies {
            let mut lying = archive.clone();
            lying[start..start + 8].copy_from_slice(&lie.to_le_bytes());
            refusal(&lying);
        }
        start += 8 + usize::try_from(length).unwrap().next_multiple_of(8);
        n_strings += 1;
    }
    assert!(n_strings > 50);
}

/// Counts contents and remembers the largest chunk.
#[derive(Default)]
struct Chunks {
    n_bytes: u64,
    longest: usize,
}

impl NarVisitor for Chunks {
    type Error = &'static str;

    fn enter_directory(&mut self, _: Option<&BStr>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn begin_file(&mut self, _: Option<&BStr>, _: FileHeader) -> Result<(), Self::Error> {
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), Self::Error> {
        self.n_bytes += chunk.len() as u64;
        self.longest = self.longest.max(chunk.len());
        if self.n_bytes > 1 << 24 {
            return Err("enough");
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn symlink(&mut self, _: Option<&BStr>, _: &BStr) -> Result<(), Self::Error> {
        Ok(())
    }
}

#[test]
fn contents_of_any_claimed_size_come_in_pieces_of_the_source_s_buffer() {
    let mut head = archive(&["(", "type", "regular", "contents"]);
    head.extend_from_slice(&u64::MAX.to_le_bytes());
    let head = io::Cursor::new(head);
    let endless = head.chain(io::repeat(b'x'));
    let mut visitor = Chunks::default();
    let read = read(&mut BufReader::with_capacity(65536, endless), &mut visitor);
    assert!(
        matches!(read, Err(ReadError::Visitor("enough"))),
        "{read:?}"
    );
    assert_eq!(visitor.longest, 65536);
}

/// Endlessly begins a directory within a directory.
fn endless_nesting() -> impl BufRead {
    struct Cycle(Vec<u8>, usize);

    impl io::Read for Cycle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in &mut *buffer {
                *byte = self.0[self.1];
                self.1 = (self.1 + 1) % self.0.len();
            }
            Ok(buffer.len())
        }
    }

    let level = ["(", "type", "directory", "entry", "(", "name", "d", "node"];
    let head = io::Cursor::new(strings(&["nix-archive-1"]));
    BufReader::new(head.chain(Cycle(strings(&level), 0)))
}

#[test]
fn endless_nesting_ends_at_the_limit() {
    match read(&mut endless_nesting(), &mut Discard) {
        Err(ReadError::Malformed(error)) => {
            assert!(error.to_string().contains("nested too deeply"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn nested(depth: usize) -> Vec<u8> {
    let mut tokens = Vec::new();
    for _ in 1..depth {
        tokens.extend(["(", "type", "directory", "entry", "(", "name", "d", "node"]);
    }
    tokens.extend(EMPTY);
    for _ in 1..depth {
        tokens.extend([")", ")"]);
    }
    archive(&tokens)
}

#[test]
fn the_depth_of_an_archive_is_told_up_to_the_limit() {
    for depth in [1, 63, 64, 65, 1000, MAX_DEPTH] {
        let archive = nested(depth);
        let mut writer = NarWriter::new(Vec::new());
        let summary = read_whole(&mut &archive[..], &mut writer).unwrap();
        assert_eq!(summary.max_depth, depth);
        let (copy, written) = writer.finish().unwrap();
        assert_eq!((copy == archive, written), (true, summary));
    }
    assert!(refusal(&nested(MAX_DEPTH + 1)).contains("nested too deeply"));
    assert!(Tree::parse(&nested(257)).is_err());
}

#[test]
fn every_prefix_of_an_archive_is_refused() {
    let archive = small_tree().to_nar().unwrap();
    for len in 0..archive.len() {
        assert!(
            refusal(&archive[..len]).contains("ends too early"),
            "cut to {len} bytes"
        );
    }
}

#[test]
fn every_single_byte_mutation_is_refused_or_written_as_it_was_and_never_panics() {
    let archive = small_tree().to_nar().unwrap();
    let mut mutated = archive.clone();
    let mut n_accepted = 0;
    for position in 0..archive.len() {
        for byte in 0..=u8::MAX {
            mutated[position] = byte;
            n_accepted += usize::from(reprinted(&mutated).is_some());
        }
        mutated[position] = archive[position];
    }
    assert!(n_accepted > archive.len());
}

#[test]
fn a_source_that_fails_is_told_from_a_malformed_archive() {
    struct Failing;

    impl io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    let archive = archive(FILE);
    for len in [0, 20, 100] {
        let source = (&archive[..len]).chain(Failing);
        let read = read(&mut BufReader::new(source), &mut Discard);
        assert!(matches!(read, Err(ReadError::Source(_))), "{read:?}");
    }
}

proptest! {
    #[test]
    fn reading_undoes_writing(tree in any_tree()) {
        let archive = tree.to_nar().unwrap();
        prop_assert_eq!(Tree::parse(&archive), Ok(tree));
    }

    #[test]
    fn an_accepted_archive_is_written_as_it_was(
        tree in any_tree(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut archive = tree.to_nar().unwrap();
        for (position, byte) in changes {
            let position = position.index(archive.len());
            archive[position] = byte;
        }
        reprinted(&archive);
        reprinted(&archive[..cut.index(archive.len())]);
    }
}
