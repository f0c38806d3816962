//! Takes an archive apart.
//!
//! The bytes come from anywhere, so nothing is believed: a length is compared with a limit before
//! anything is allocated, contents are passed on in the pieces in which they arrive, order and
//! spelling have no freedom, and open directories lie on a stack of our own.

use std::io::{self, BufRead};

use bstr::{BStr, BString, ByteSlice as _};

use super::{
    FileHeader, MAGIC, MAX_DEPTH, MAX_NAME_LEN, MAX_TARGET_LEN, NarSummary, NarVisitor,
    check_entry_name, check_symlink_target, padding_len,
};
use crate::Error;

/// The longest of the format's own words, generously.
const MAX_TAG_LEN: usize = 32;

/// Why an archive was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The source failed; the archive may be fine.
    #[error("cannot read the archive")]
    Source(#[source] io::Error),
    /// The bytes are not an archive, or one that breaks a rule.
    #[error(transparent)]
    Malformed(#[from] Error),
    /// The visitor could not go on.
    #[error(transparent)]
    Visitor(E),
}

/// Reads one archive and stops right behind it; whatever follows stays in `source`.
///
/// Chunks of contents are as large as the buffer of `source`: give it 64 KiB or more.
///
/// # Errors
/// See [`ReadError`]. The visitor may have been told a part of the archive by then.
pub fn read<R, V>(source: &mut R, visitor: &mut V) -> Result<NarSummary, ReadError<V::Error>>
where
    R: BufRead + ?Sized,
    V: NarVisitor + ?Sized,
{
    let mut reader = Reader {
        source,
        visitor,
        position: 0,
        directories: Vec::new(),
        max_depth: 0,
    };
    reader.archive()?;
    Ok(NarSummary {
        size_bytes: reader.position,
        max_depth: reader.max_depth,
    })
}

/// Reads one archive, which must end where `source` ends.
///
/// # Errors
/// As [`read()`], or bytes follow the archive.
pub fn read_whole<R, V>(source: &mut R, visitor: &mut V) -> Result<NarSummary, ReadError<V::Error>>
where
    R: BufRead + ?Sized,
    V: NarVisitor + ?Sized,
{
    let summary = read(source, visitor)?;
    let mut beyond = [0];
    match read_full(source, &mut beyond).map_err(ReadError::Source)? {
        0 => Ok(summary),
        _ => Err(malformed(summary.size_bytes, "bytes follow the archive").into()),
    }
}

struct Reader<'a, R: ?Sized, V: ?Sized> {
    source: &'a mut R,
    visitor: &'a mut V,
    /// How many bytes have been read.
    position: u64,
    /// For each open directory the name of its last entry, which the next one must exceed; empty
    /// before the first.
    directories: Vec<BString>,
    max_depth: usize,
}

type Outcome<T, V> = Result<T, ReadError<<V as NarVisitor>::Error>>;

impl<R: BufRead + ?Sized, V: NarVisitor + ?Sized> Reader<'_, R, V> {
    fn archive(&mut self) -> Outcome<(), V> {
        self.expect(MAGIC)?;
        self.node(None)?;
        while !self.directories.is_empty() {
            let start = self.position;
            let mut tag = [0; MAX_TAG_LEN];
            match self.string(&mut tag)? {
                b"entry" => self.entry()?,
                b")" => {
                    self.directories.pop();
                    self.visitor.leave_directory().map_err(ReadError::Visitor)?;
                    if !self.directories.is_empty() {
                        self.expect(b")")?;
                    }
                }
                other => return Err(unexpected(start, "'entry' or ')'", other).into()),
            }
        }
        Ok(())
    }

    /// Reads `( name NAME node NODE )`, but of a directory only the beginning.
    fn entry(&mut self) -> Outcome<(), V> {
        self.expect(b"(")?;
        self.expect(b"name")?;
        let start = self.position;
        let mut buffer = [0; MAX_NAME_LEN];
        let name = self.string(&mut buffer)?.as_bstr();
        check_entry_name(name).map_err(|reason| malformed(start, reason))?;
        if let Some(last_name) = self.directories.last_mut() {
            if name <= last_name.as_bstr() {
                return Err(
                    malformed(start, "a directory is not sorted, or has a name twice").into(),
                );
            }
            last_name.clear();
            last_name.extend_from_slice(name);
        }
        let depth = self.directories.len();
        self.expect(b"node")?;
        self.node(Some(name))?;
        if self.directories.len() == depth {
            self.expect(b")")?;
        }
        Ok(())
    }

    /// Reads a whole file or symlink; opens a directory and leaves it on the stack.
    fn node(&mut self, name: Option<&BStr>) -> Outcome<(), V> {
        self.expect(b"(")?;
        self.expect(b"type")?;
        let start = self.position;
        let mut tag = [0; MAX_TAG_LEN];
        match self.string(&mut tag)? {
            b"directory" => {
                if self.directories.len() == MAX_DEPTH {
                    return Err(malformed(start, "directories are nested too deeply").into());
                }
                self.directories.push(BString::default());
                self.max_depth = self.max_depth.max(self.directories.len());
                self.visitor
                    .enter_directory(name)
                    .map_err(ReadError::Visitor)
            }
            b"regular" => {
                self.regular(name)?;
                self.expect(b")")
            }
            b"symlink" => {
                self.expect(b"target")?;
                let start = self.position;
                let mut buffer = [0; MAX_TARGET_LEN];
                let target = self.string(&mut buffer)?;
                check_symlink_target(target).map_err(|reason| malformed(start, reason))?;
                self.visitor
                    .symlink(name, target.as_bstr())
                    .map_err(ReadError::Visitor)?;
                self.expect(b")")
            }
            other => Err(unexpected(start, "'regular', 'symlink' or 'directory'", other).into()),
        }
    }

    fn regular(&mut self, name: Option<&BStr>) -> Outcome<(), V> {
        let start = self.position;
        let mut tag = [0; MAX_TAG_LEN];
        let is_executable = match self.string(&mut tag)? {
            b"contents" => false,
            b"executable" => {
                self.expect(b"")?;
                self.expect(b"contents")?;
                true
            }
            other => return Err(unexpected(start, "'executable' or 'contents'", other).into()),
        };
        let size_bytes = self.length()?;
        let header = FileHeader {
            is_executable,
            size_bytes,
        };
        self.visitor
            .begin_file(name, header)
            .map_err(ReadError::Visitor)?;
        self.contents(size_bytes)?;
        self.padding(size_bytes)?;
        self.visitor.end_file().map_err(ReadError::Visitor)
    }

    fn contents(&mut self, size_bytes: u64) -> Outcome<(), V> {
        let mut n_left = size_bytes;
        while n_left > 0 {
            let available = match self.source.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadError::Source(error)),
            };
            if available.is_empty() {
                return Err(ends_early(self.position).into());
            }
            let n_taken = usize::try_from(n_left)
                .map_or(available.len(), |n_left| n_left.min(available.len()));
            self.visitor
                .file_contents(&available[..n_taken])
                .map_err(ReadError::Visitor)?;
            self.source.consume(n_taken);
            // A usize is never wider than 64 bits.
            n_left -= n_taken as u64;
            self.position = self.position.saturating_add(n_taken as u64);
        }
        Ok(())
    }

    /// Reads a string that must be exactly `expected`.
    fn expect(&mut self, expected: &'static [u8]) -> Outcome<(), V> {
        let start = self.position;
        let mut buffer = [0; MAX_TAG_LEN];
        let found = self.string(&mut buffer)?;
        if found != expected {
            let expected = format!("'{}'", expected.as_bstr());
            return Err(unexpected(start, &expected, found).into());
        }
        Ok(())
    }

    /// Reads a string into `buffer`, whose length is the limit.
    fn string<'b>(&mut self, buffer: &'b mut [u8]) -> Outcome<&'b [u8], V> {
        let start = self.position;
        let length = self.length()?;
        let limit = buffer.len();
        let string = usize::try_from(length)
            .ok()
            .and_then(|length| buffer.get_mut(..length))
            .ok_or_else(|| {
                let reason = format!("a string of {length} bytes where {limit} are allowed");
                malformed(start, reason)
            })?;
        self.exactly(string)?;
        self.padding(length)?;
        Ok(string)
    }

    fn length(&mut self) -> Outcome<u64, V> {
        let mut length = [0; 8];
        self.exactly(&mut length)?;
        Ok(u64::from_le_bytes(length))
    }

    fn padding(&mut self, length: u64) -> Outcome<(), V> {
        let start = self.position;
        let mut buffer = [0; 8];
        let padding = &mut buffer[..padding_len(length)];
        self.exactly(padding)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed(start, "padding is not zero").into());
        }
        Ok(())
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Outcome<(), V> {
        let n_read = read_full(self.source, buffer).map_err(ReadError::Source)?;
        self.position = self.position.saturating_add(n_read as u64);
        if n_read < buffer.len() {
            return Err(ends_early(self.position).into());
        }
        Ok(())
    }
}

/// Fills `buffer` as far as `source` reaches.
fn read_full<R: BufRead + ?Sized>(source: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n_read = 0;
    while n_read < buffer.len() {
        match source.read(&mut buffer[n_read..]) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n_read)
}

fn malformed(position: u64, reason: impl Into<String>) -> Error {
    Error::Nar {
        position,
        reason: reason.into(),
    }
}

fn ends_early(position: u64) -> Error {
    malformed(position, "the archive ends too early")
}

fn unexpected(position: u64, expected: &str, found: &[u8]) -> Error {
    malformed(
        position,
        format!("expected {expected}, found '{}'", found.escape_ascii()),
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
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
}
