//! Writes an archive, driven by whoever walks a tree.

use std::io::{self, Write};

use bstr::{BStr, BString, ByteSlice as _};

use super::{
    FileHeader, MAGIC, MAX_DEPTH, NarSummary, NarVisitor, check_entry_name, check_symlink_target,
    padding_len,
};
use crate::Error;

/// Chunks of contents from this size on go to the sink as they are; smaller ones are gathered with
/// the tokens around them, because thousands of small files must not cost thousands of writes.
const DIRECT_LEN: usize = 4096;

/// How many gathered bytes are passed on at once.
const GATHERED_LEN: usize = 64 * 1024;

/// Why an archive was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error("cannot write the archive")]
    Sink(#[source] io::Error),
    /// The tree cannot be archived, or its nodes were not told in an archive's order.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// Writes the nodes that it is told as an archive.
///
/// It refuses whatever [`read()`](super::read()) would refuse. Contents are never copied where
/// chunks are 4 KiB or more.
#[derive(Debug)]
pub struct NarWriter<W> {
    sink: W,
    gathered: Vec<u8>,
    size_bytes: u64,
    /// For each open directory the name of its last entry, empty before the first. All together
    /// are the path of the current entry.
    directories: Vec<BString>,
    max_depth: usize,
    place: Place,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The root.
    Start,
    /// An entry of the last directory, or its end.
    Directory,
    /// Contents of a file.
    File { n_left: u64, size_bytes: u64 },
    /// Nothing.
    End,
}

impl<W: Write> NarWriter<W> {
    /// Starts an archive.
    pub fn new(sink: W) -> Self {
        let mut writer = Self {
            sink,
            gathered: Vec::with_capacity(GATHERED_LEN),
            size_bytes: 0,
            directories: Vec::new(),
            max_depth: 0,
            place: Place::Start,
        };
        writer.token(MAGIC);
        writer
    }

    /// Returns how many bytes the archive has so far, those included that wait for more.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes what is left, and returns the sink (not flushed) and what was written.
    ///
    /// # Errors
    /// The root was not told, a directory was not left or a file not ended, or the sink failed.
    pub fn finish(mut self) -> Result<(W, NarSummary), WriteError> {
        if self.place != Place::End {
            return Err(self.refuse("the archive is not complete"));
        }
        self.write_gathered()?;
        let summary = NarSummary {
            size_bytes: self.size_bytes,
            max_depth: self.max_depth,
        };
        Ok((self.sink, summary))
    }

    /// Begins an entry, or the root, up to its type.
    fn begin_node(&mut self, name: Option<&BStr>, node_type: &[u8]) -> Result<(), WriteError> {
        match (self.place, name) {
            (Place::Start, None) => {}
            (Place::Directory, Some(name)) => self.begin_entry(name)?,
            (Place::Start | Place::Directory | Place::File { .. } | Place::End, _) => {
                return Err(self.refuse("a node was told where none can be"));
            }
        }
        for token in [b"(", b"type".as_slice(), node_type] {
            self.token(token);
        }
        Ok(())
    }

    fn begin_entry(&mut self, name: &BStr) -> Result<(), WriteError> {
        let is_sorted = self
            .directories
            .last()
            .is_some_and(|last| name > last.as_bstr());
        if let Some(last) = self.directories.last_mut() {
            last.clear();
            last.extend_from_slice(name);
        }
        check_entry_name(name).map_err(|reason| self.refuse(reason))?;
        if !is_sorted {
            return Err(self.refuse("a directory is not sorted, or has a name twice"));
        }
        for token in [b"entry", b"(".as_slice(), b"name", name, b"node"] {
            self.token(token);
        }
        Ok(())
    }

    /// Ends a node, and the entry around it if there is one.
    fn end_node(&mut self) -> Result<(), WriteError> {
        self.token(b")");
        if self.directories.is_empty() {
            self.place = Place::End;
        } else {
            self.token(b")");
            self.place = Place::Directory;
        }
        if self.gathered.len() >= GATHERED_LEN {
            self.write_gathered()?;
        }
        Ok(())
    }

    fn token(&mut self, token: &[u8]) {
        // A usize is never wider than 64 bits.
        let length = token.len() as u64;
        self.gather(&length.to_le_bytes());
        self.gather(token);
        self.gather(&[0; 8][..padding_len(length)]);
    }

    fn gather(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
    }

    fn write_gathered(&mut self) -> Result<(), WriteError> {
        self.sink
            .write_all(&self.gathered)
            .map_err(WriteError::Sink)?;
        self.gathered.clear();
        Ok(())
    }

    fn refuse(&self, reason: &str) -> WriteError {
        let path = bstr::join("/", &self.directories);
        WriteError::Refused(Error::UnarchivableTree {
            path: path.as_bstr().to_string(),
            reason: reason.to_owned(),
        })
    }
}

impl<W: Write> NarVisitor for NarWriter<W> {
    type Error = WriteError;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), WriteError> {
        self.begin_node(name, b"directory")?;
        if self.directories.len() == MAX_DEPTH {
            return Err(self.refuse("directories are nested too deeply"));
        }
        self.directories.push(BString::default());
        self.max_depth = self.max_depth.max(self.directories.len());
        self.place = Place::Directory;
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), WriteError> {
        if self.place != Place::Directory {
            return Err(self.refuse("a directory was left that had not been entered"));
        }
        self.directories.pop();
        self.end_node()
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), WriteError> {
        self.begin_node(name, b"regular")?;
        if header.is_executable {
            self.token(b"executable");
            self.token(b"");
        }
        self.token(b"contents");
        self.gather(&header.size_bytes.to_le_bytes());
        self.place = Place::File {
            n_left: header.size_bytes,
            size_bytes: header.size_bytes,
        };
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), WriteError> {
        let Place::File { n_left, size_bytes } = self.place else {
            return Err(self.refuse("contents were told outside a file"));
        };
        let n_left = n_left
            .checked_sub(chunk.len() as u64)
            .ok_or_else(|| self.refuse("the file is longer than it was said to be"))?;
        if chunk.len() < DIRECT_LEN {
            self.gather(chunk);
            if self.gathered.len() >= GATHERED_LEN {
                self.write_gathered()?;
            }
        } else {
            self.write_gathered()?;
            self.sink.write_all(chunk).map_err(WriteError::Sink)?;
            self.size_bytes = self.size_bytes.saturating_add(chunk.len() as u64);
        }
        self.place = Place::File { n_left, size_bytes };
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), WriteError> {
        let Place::File { n_left, size_bytes } = self.place else {
            return Err(self.refuse("a file was ended that had not been begun"));
        };
        if n_left != 0 {
            return Err(self.refuse("the file is shorter than it was said to be"));
        }
        self.gather(&[0; 8][..padding_len(size_bytes)]);
        self.end_node()
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), WriteError> {
        self.begin_node(name, b"symlink")?;
        check_symlink_target(target).map_err(|reason| self.refuse(reason))?;
        self.token(b"target");
        self.token(target);
        self.end_node()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::nar::{Tree, tests::small_tree};

    const EMPTY_FILE: FileHeader = FileHeader {
        is_executable: false,
        size_bytes: 0,
    };

    #[expect(
        clippy::unnecessary_wraps,
        reason = "a visitor takes the name as an option"
    )]
    fn entry(name: &str) -> Option<&BStr> {
        Some(BStr::new(name))
    }

    /// Tells a writer something, and returns path and reason of its refusal.
    fn refusal(
        tell: impl FnOnce(&mut NarWriter<Vec<u8>>) -> Result<(), WriteError>,
    ) -> (String, String) {
        match tell(&mut NarWriter::new(Vec::new())) {
            Err(WriteError::Refused(Error::UnarchivableTree { path, reason })) => (path, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_must_be_told_in_order_and_with_names_that_can_be_restored() {
        for (first, second) in [("a", "a"), ("b", "a"), ("b", "."), ("b", "B")] {
            let (path, _) = refusal(|writer| {
                writer.enter_directory(None)?;
                writer.enter_directory(entry("top"))?;
                writer.symlink(entry(first), "target".into())?;
                writer.symlink(entry(second), "target".into())
            });
            assert_eq!(path, format!("top/{second}"));
        }
        for bad in ["", ".", "..", "a/b", "a\0", "x~nix~case~hack~1"] {
            let tree = Tree::directory([(bad, Tree::file(""))]);
            assert!(tree.to_nar().is_err(), "{bad}");
        }
        for bad in ["", "a\0"] {
            assert!(Tree::symlink(bad).to_nar().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tree_that_is_nested_too_deeply_is_refused_with_the_place() {
        let (path, reason) = refusal(|writer| {
            writer.enter_directory(None)?;
            (0..MAX_DEPTH).try_for_each(|_| writer.enter_directory(entry("d")))
        });
        assert_eq!(reason, "directories are nested too deeply");
        assert_eq!(path.split('/').count(), MAX_DEPTH);
    }

    #[test]
    fn a_file_that_grows_or_shrinks_while_it_is_read_is_refused() {
        let header = FileHeader {
            is_executable: false,
            size_bytes: 10_000,
        };
        for (n_told, expected) in [(9_999, "shorter"), (10_001, "longer")] {
            let (_, reason) = refusal(|writer| {
                writer.begin_file(None, header)?;
                writer.file_contents(&vec![b'x'; n_told])?;
                writer.end_file()
            });
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn nodes_that_are_told_in_no_sensible_order_are_refused() {
        refusal(|writer| writer.enter_directory(entry("named-root")));
        refusal(NarVisitor::leave_directory);
        refusal(NarVisitor::end_file);
        refusal(|writer| writer.file_contents(b"x"));
        refusal(|writer| {
            writer.enter_directory(None)?;
            writer.enter_directory(None)
        });
        refusal(|writer| {
            writer.begin_file(None, EMPTY_FILE)?;
            writer.leave_directory()
        });
        refusal(|writer| {
            writer.symlink(None, "target".into())?;
            writer.symlink(None, "target".into())
        });
        refusal(|writer| {
            writer.enter_directory(None)?;
            writer.end_file()
        });
    }

    #[test]
    fn an_incomplete_archive_is_not_finished() {
        let mut writer = NarWriter::new(Vec::new());
        writer.enter_directory(None).unwrap();
        assert!(writer.finish().is_err());
        assert!(NarWriter::new(Vec::new()).finish().is_err());
    }

    /// Remembers how long each write was.
    struct Writes(Vec<usize>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn large_chunks_pass_as_they_are_and_small_nodes_are_gathered() {
        let mut writer = NarWriter::new(Writes(Vec::new()));
        writer.enter_directory(None).unwrap();
        let header = FileHeader {
            is_executable: true,
            size_bytes: 1 << 20,
        };
        writer.begin_file(entry("a"), header).unwrap();
        writer.file_contents(&vec![0; 1 << 20]).unwrap();
        writer.end_file().unwrap();
        for idx in 0..1000 {
            let name = format!("b{idx:04}");
            writer.begin_file(entry(&name), EMPTY_FILE).unwrap();
            writer.end_file().unwrap();
        }
        writer.leave_directory().unwrap();
        let (Writes(lengths), summary) = writer.finish().unwrap();
        assert_eq!(lengths[1], 1 << 20);
        assert!(lengths.len() < 10, "{lengths:?}");
        assert_eq!(lengths.iter().sum::<usize>() as u64, summary.size_bytes);
    }

    #[test]
    fn a_sink_that_fails_ends_the_archive() {
        let mut too_small = [0; 100];
        let mut writer = NarWriter::new(&mut too_small[..]);
        small_tree().tell(None, &mut writer).unwrap();
        assert!(matches!(writer.finish(), Err(WriteError::Sink(_))));
    }
}
