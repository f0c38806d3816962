//! NAR, the archive format that store paths are hashed and sent in.
//!
//! An archive is a tree of directories, regular files and symlinks, and of each it keeps the name,
//! the contents, the target and whether a file is executable: nothing else, so that equal trees
//! give equal bytes.
//! Every token is a string: its length in 8 bytes, little-endian, its bytes, zeros up to a
//! multiple of 8.
//!
//! ```text
//! archive   = "nix-archive-1" node
//! node      = "(" "type" ( regular | symlink | directory ) ")"
//! regular   = "regular" [ "executable" "" ] "contents" bytes
//! symlink   = "symlink" "target" bytes
//! directory = "directory" { "entry" "(" "name" bytes "node" node ")" }    names strictly increase
//! ```
//!
//! [`read()`] takes an archive apart and tells a [`NarVisitor`] what it finds; [`NarWriter`] is a
//! visitor that writes an archive. What the reader accepts, the writer gives back byte for byte:
//! a tree that was made from an archive has the hash that the archive had.
//! Making real files and reading them is the visitor's affair; this module opens nothing.

pub mod diff;
mod hash;
mod listing;
mod read;
mod tee;
mod tree;
mod write;

use bstr::BStr;

pub use hash::{NarDigest, NarHasher};
pub use listing::ListingWriter;
pub use read::{ReadError, read, read_whole};
pub use tee::Tee;
pub use tree::Tree;
pub use write::{NarWriter, WriteError};

/// How many directories may be nested.
///
/// Real trees stay below 40. Restoring costs an open descriptor or a path component for each
/// level, and other readers recurse; without a limit an archive of a few megabytes could exhaust
/// them (SECURITY P03).
pub const MAX_DEPTH: usize = 4096;

/// The nesting above which today's Nix refuses an archive, so that users should be warned.
pub const PORTABLE_DEPTH: usize = 64;

/// The longest name of a directory entry, in bytes: what every Linux file system allows.
pub const MAX_NAME_LEN: usize = 255;

/// The longest target of a symlink, in bytes: `PATH_MAX` without its terminating zero.
pub const MAX_TARGET_LEN: usize = 4095;

/// What Nix on case-insensitive file systems appends to names; in an archive such a name would be
/// turned into another one there, and two entries could become the same file.
const CASE_HACK_SUFFIX: &[u8] = b"~nix~case~hack~";

/// What every archive begins with.
const MAGIC: &[u8] = b"nix-archive-1";

/// What an archive says of a regular file before its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Whether it may be executed.
    pub is_executable: bool,
    /// How many bytes of contents follow.
    pub size_bytes: u64,
}

/// What is to be known of an archive that was read or written to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarSummary {
    /// Length of the archive.
    pub size_bytes: u64,
    /// How many directories are nested at the deepest place; 0 where the root is not a directory.
    /// Above [`PORTABLE_DEPTH`] a warning is due.
    pub max_depth: usize,
}

/// Is told the nodes of an archive, parents before children, siblings in the order of their names.
///
/// `name` is the entry's name within the directory that was entered last and not left yet, and
/// `None` for the root. It has been checked: it is not empty, not `.` or `..`, without `/` and
/// NUL, and no sibling had it before.
pub trait NarVisitor {
    /// Why the visitor cannot go on, such as a full disk.
    type Error;

    /// Enters a directory: what follows is inside, until it is left.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), Self::Error>;

    /// Leaves the directory that was entered last.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn leave_directory(&mut self) -> Result<(), Self::Error>;

    /// Begins a regular file.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), Self::Error>;

    /// Takes the next bytes of the file begun last; all chunks together are as long as the header
    /// said, and none is empty.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), Self::Error>;

    /// Ends the file begun last.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn end_file(&mut self) -> Result<(), Self::Error>;

    /// Makes a symlink. The target is neither empty nor has it a NUL, and is otherwise anything.
    ///
    /// # Errors
    /// The visitor cannot go on.
    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), Self::Error>;
}

impl<V: NarVisitor + ?Sized> NarVisitor for &mut V {
    type Error = V::Error;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), Self::Error> {
        (**self).enter_directory(name)
    }

    fn leave_directory(&mut self) -> Result<(), Self::Error> {
        (**self).leave_directory()
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), Self::Error> {
        (**self).begin_file(name, header)
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), Self::Error> {
        (**self).file_contents(chunk)
    }

    fn end_file(&mut self) -> Result<(), Self::Error> {
        (**self).end_file()
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), Self::Error> {
        (**self).symlink(name, target)
    }
}

/// A visitor that ignores everything: for checking an archive, or hashing it by [`Tee`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discard;

impl NarVisitor for Discard {
    type Error = std::convert::Infallible;

    fn enter_directory(&mut self, _name: Option<&BStr>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn begin_file(&mut self, _name: Option<&BStr>, _header: FileHeader) -> Result<(), Self::Error> {
        Ok(())
    }

    fn file_contents(&mut self, _chunk: &[u8]) -> Result<(), Self::Error> {
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn symlink(&mut self, _name: Option<&BStr>, _target: &BStr) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Checks the name of a directory entry.
///
/// # Errors
/// Returns the rule that the name breaks: it is empty, `.`, `..`, longer than [`MAX_NAME_LEN`],
/// has a slash or a NUL, or the mark of Nix's case hack.
pub fn check_entry_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a name is empty");
    }
    if matches!(name, b"." | b"..") {
        return Err("a name is '.' or '..'");
    }
    if name.len() > MAX_NAME_LEN {
        return Err("a name is longer than 255 bytes");
    }
    if memchr::memchr2(b'/', 0, name).is_some() {
        return Err("a name has a slash or a NUL");
    }
    if memchr::memmem::find(name, CASE_HACK_SUFFIX).is_some() {
        return Err("a name has the mark '~nix~case~hack~'");
    }
    Ok(())
}

/// Checks the target of a symlink.
///
/// # Errors
/// Returns the rule that the target breaks: it is empty, longer than [`MAX_TARGET_LEN`], or has a
/// NUL. The kernel would refuse the first two and cut off the third.
pub fn check_symlink_target(target: &[u8]) -> Result<(), &'static str> {
    if target.is_empty() {
        return Err("a symlink has no target");
    }
    if target.len() > MAX_TARGET_LEN {
        return Err("a symlink's target is longer than 4095 bytes");
    }
    if memchr::memchr(0, target).is_some() {
        return Err("a symlink's target has a NUL");
    }
    Ok(())
}

/// Returns how many zeros follow a string of `len` bytes.
const fn padding_len(len: u64) -> usize {
    // Less than 8, whatever the length.
    (len.wrapping_neg() & 7) as usize
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeMap;

    use bstr::BString;
    use proptest::prelude::*;

    use super::*;

    /// Returns the encoding of strings, one after another.
    pub(super) fn strings(strings: &[&str]) -> Vec<u8> {
        let mut encoded = Vec::new();
        for string in strings {
            let length = u64::try_from(string.len()).unwrap();
            encoded.extend_from_slice(&length.to_le_bytes());
            encoded.extend_from_slice(string.as_bytes());
            encoded.resize(encoded.len().next_multiple_of(8), 0);
        }
        encoded
    }

    /// Returns a tree with every kind of node.
    pub(super) fn small_tree() -> Tree {
        Tree::directory([
            ("a", Tree::file("")),
            ("b", Tree::executable("12345678")),
            (
                "c",
                Tree::directory([("d", Tree::symlink("../a")), ("e", Tree::file("x"))]),
            ),
            ("f", Tree::Directory(BTreeMap::new())),
        ])
    }

    /// Writes an archive anew if it is accepted.
    ///
    /// # Panics
    /// It is written differently.
    pub(super) fn reprinted(archive: &[u8]) -> Option<NarSummary> {
        let mut writer = NarWriter::new(Vec::new());
        let summary = read_whole(&mut &archive[..], &mut writer).ok()?;
        let (copy, written) = writer.finish().unwrap();
        assert!(copy == archive, "written differently");
        assert_eq!(summary, written);
        Some(summary)
    }

    pub(super) fn any_tree() -> impl Strategy<Value = Tree> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        let leaf = prop_oneof![
            bytes.clone().prop_map(Tree::file),
            bytes.prop_map(Tree::executable),
            "[^\0]{1,20}".prop_map(Tree::symlink),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            let name = proptest::collection::vec(any::<u8>(), 1..6)
                .prop_filter("a name that is allowed", |name| {
                    check_entry_name(name).is_ok()
                })
                .prop_map(BString::from);
            proptest::collection::btree_map(name, inner, 0..5).prop_map(Tree::Directory)
        })
    }
}
