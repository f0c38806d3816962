//! The listing of an archive, which caches keep beside it (`HASH.ls`), so that one file of a large
//! archive can be found without unpacking it.

use std::io::Write;

use bstr::BStr;

use super::{FileHeader, NarSummary, NarVisitor, NarWriter, WriteError};
use crate::json_text::{JsonText, Layout};

/// The version of the format; there is no other.
const VERSION: u32 = 1;

/// Writes an archive, and lists what is in it: byte for byte as Nix 2.8 does.
///
/// The listing grows in memory, by some 100 bytes for each entry.
#[derive(Debug)]
pub struct ListingWriter<W> {
    writer: NarWriter<W>,
    json: JsonText,
}

impl<W: Write> ListingWriter<W> {
    /// Lists what `writer` is told, which must have been told nothing yet.
    pub fn new(writer: NarWriter<W>) -> Self {
        let mut json = JsonText::new(Layout::Compact);
        json.open_object();
        json.key("version");
        json.literal(VERSION);
        json.key("root");
        Self { writer, json }
    }

    /// Ends the archive; returns the sink, what was written, and the text of the listing.
    ///
    /// # Errors
    /// As [`NarWriter::finish`].
    pub fn finish(mut self) -> Result<(W, NarSummary, Vec<u8>), WriteError> {
        let (sink, summary) = self.writer.finish()?;
        self.json.close_object();
        Ok((sink, summary, self.json.into_bytes()))
    }

    /// Begins the object of a node; the root's stands behind its key already.
    fn begin(&mut self, name: Option<&BStr>, node_type: &str) {
        if let Some(name) = name {
            self.json.key(name);
        }
        self.json.open_object();
        self.json.key("type");
        self.json.string(node_type);
    }
}

impl<W: Write> NarVisitor for ListingWriter<W> {
    type Error = WriteError;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), WriteError> {
        self.writer.enter_directory(name)?;
        self.begin(name, "directory");
        self.json.key("entries");
        self.json.open_object();
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), WriteError> {
        self.writer.leave_directory()?;
        self.json.close_object();
        self.json.close_object();
        Ok(())
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), WriteError> {
        self.writer.begin_file(name, header)?;
        self.begin(name, "regular");
        self.json.key("size");
        self.json.literal(header.size_bytes);
        if header.is_executable {
            self.json.key("executable");
            self.json.literal(true);
        }
        self.json.key("narOffset");
        self.json.literal(self.writer.size_bytes());
        self.json.close_object();
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), WriteError> {
        self.writer.file_contents(chunk)
    }

    fn end_file(&mut self) -> Result<(), WriteError> {
        self.writer.end_file()
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), WriteError> {
        self.writer.symlink(name, target)?;
        self.begin(name, "symlink");
        self.json.key("target");
        self.json.string(target);
        self.json.close_object();
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::nar::Tree;
    use crate::nar::tests::small_tree;

    fn list(tree: &Tree) -> (Vec<u8>, String) {
        let mut lister = ListingWriter::new(NarWriter::new(Vec::new()));
        tree.tell(None, &mut lister).unwrap();
        let (archive, summary, listing) = lister.finish().unwrap();
        assert_eq!(summary.size_bytes, u64::try_from(archive.len()).unwrap());
        (archive, String::from_utf8(listing).unwrap())
    }

    #[test]
    fn every_kind_of_node_is_listed_and_the_archive_is_the_same() {
        let (archive, listing) = list(&small_tree());
        assert_eq!(archive, small_tree().to_nar().unwrap());
        assert_eq!(
            listing,
            r#"{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":0,"narOffset":232},"b":{"type":"regular","size":8,"executable":true,"narOffset":448},"c":{"type":"directory","entries":{"d":{"type":"symlink","target":"../a"},"e":{"type":"regular","size":1,"narOffset":968}}},"f":{"type":"directory","entries":{}}}}}"#
        );
        let contents = &archive[448..456];
        assert_eq!(contents, b"12345678");
        assert_eq!(archive[968], b'x');
    }

    #[test]
    fn a_root_that_is_no_directory_is_listed() {
        let (_, listing) = list(&Tree::symlink("a\"b\n"));
        let expected = r#"{"version":1,"root":{"type":"symlink","target":"a\"b\n"}}"#;
        assert_eq!(listing, expected);
        let (archive, listing) = list(&Tree::file("text"));
        assert!(
            listing.ends_with(r#""size":4,"narOffset":96}}"#),
            "{listing}"
        );
        assert_eq!(&archive[96..100], b"text");
    }

    #[test]
    fn what_cannot_be_archived_is_not_listed() {
        let mut lister = ListingWriter::new(NarWriter::new(Vec::new()));
        lister.enter_directory(None).unwrap();
        assert!(lister.symlink(Some("..".into()), "x".into()).is_err());
        assert!(lister.finish().is_err());
    }
}
