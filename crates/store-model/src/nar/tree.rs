//! A small tree in memory, for tests and for archives that nobody wants on disk.

use std::collections::BTreeMap;

use bstr::{BStr, BString, ByteSlice as _};

use super::{FileHeader, NarVisitor, NarWriter, ReadError, WriteError, read_whole};
use crate::Error;

/// The deepest tree that is kept in memory; dropping and comparing trees recurses.
const MAX_TREE_DEPTH: usize = 256;

/// A file, a symlink, or a directory with all that is below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// A regular file.
    File {
        /// Its bytes.
        contents: BString,
        /// Whether it may be executed.
        is_executable: bool,
    },
    /// A symlink and its target.
    Symlink(BString),
    /// A directory, its entries by name.
    Directory(BTreeMap<BString, Tree>),
}

impl Tree {
    /// Returns a file that is not executable.
    pub fn file(contents: impl Into<BString>) -> Self {
        Self::File {
            contents: contents.into(),
            is_executable: false,
        }
    }

    /// Returns an executable file.
    pub fn executable(contents: impl Into<BString>) -> Self {
        Self::File {
            contents: contents.into(),
            is_executable: true,
        }
    }

    /// Returns a symlink.
    pub fn symlink(target: impl Into<BString>) -> Self {
        Self::Symlink(target.into())
    }

    /// Returns a directory.
    pub fn directory<N: Into<BString>>(entries: impl IntoIterator<Item = (N, Self)>) -> Self {
        Self::Directory(
            entries
                .into_iter()
                .map(|(name, tree)| (name.into(), tree))
                .collect(),
        )
    }

    /// Reads a whole archive.
    ///
    /// # Errors
    /// The bytes are not an archive, or one of more than 256 nested directories.
    pub fn parse(mut archive: &[u8]) -> Result<Self, Error> {
        let mut builder = Builder::default();
        read_whole(&mut archive, &mut builder).map_err(|error| match error {
            ReadError::Malformed(error) | ReadError::Visitor(error) => error,
            ReadError::Source(error) => unreachable!("reading memory failed: {error}"),
        })?;
        let root = builder.root;
        Ok(root.unwrap_or_else(|| unreachable!("an archive was read to its end without a root")))
    }

    /// Returns the archive.
    ///
    /// # Errors
    /// A name or a target is not allowed in an archive.
    pub fn to_nar(&self) -> Result<Vec<u8>, Error> {
        let mut writer = NarWriter::new(Vec::new());
        self.tell(None, &mut writer)
            .and_then(|()| writer.finish())
            .map(|(archive, _)| archive)
            .map_err(|error| match error {
                WriteError::Refused(error) => error,
                WriteError::Sink(error) => unreachable!("writing to memory failed: {error}"),
            })
    }

    /// Tells `visitor` this tree as an entry `name`, or as the root.
    ///
    /// # Errors
    /// The visitor cannot go on.
    pub fn tell<V: NarVisitor>(
        &self,
        name: Option<&BStr>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        match self {
            Self::File {
                contents,
                is_executable,
            } => {
                let header = FileHeader {
                    is_executable: *is_executable,
                    // A usize is never wider than 64 bits.
                    size_bytes: contents.len() as u64,
                };
                visitor.begin_file(name, header)?;
                if !contents.is_empty() {
                    visitor.file_contents(contents)?;
                }
                visitor.end_file()
            }
            Self::Symlink(target) => visitor.symlink(name, target.as_bstr()),
            Self::Directory(entries) => {
                visitor.enter_directory(name)?;
                for (name, tree) in entries {
                    tree.tell(Some(name.as_bstr()), visitor)?;
                }
                visitor.leave_directory()
            }
        }
    }
}

/// Makes a tree from what a reader tells.
#[derive(Debug, Default)]
struct Builder {
    /// Open directories, each with its own name in the one before.
    open: Vec<(Option<BString>, BTreeMap<BString, Tree>)>,
    /// The name of the file that is open.
    file_name: Option<BString>,
    file: Option<(BString, FileHeader)>,
    root: Option<Tree>,
}

impl Builder {
    fn add(&mut self, name: Option<BString>, tree: Tree) {
        match (name, self.open.last_mut()) {
            (Some(name), Some((_, directory))) => {
                directory.insert(name, tree);
            }
            _ => self.root = Some(tree),
        }
    }
}

impl NarVisitor for Builder {
    type Error = Error;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), Error> {
        if self.open.len() == MAX_TREE_DEPTH {
            return Err(Error::UnarchivableTree {
                path: String::new(),
                reason: "too many nested directories for a tree in memory".to_owned(),
            });
        }
        self.open
            .push((name.map(ToOwned::to_owned), BTreeMap::new()));
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), Error> {
        if let Some((name, entries)) = self.open.pop() {
            self.add(name, Tree::Directory(entries));
        }
        Ok(())
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), Error> {
        self.file_name = name.map(ToOwned::to_owned);
        self.file = Some((BString::default(), header));
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), Error> {
        if let Some((contents, _)) = &mut self.file {
            contents.extend_from_slice(chunk);
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Error> {
        if let Some((contents, header)) = self.file.take() {
            let name = self.file_name.take();
            self.add(
                name,
                Tree::File {
                    contents,
                    is_executable: header.is_executable,
                },
            );
        }
        Ok(())
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), Error> {
        self.add(
            name.map(ToOwned::to_owned),
            Tree::Symlink(target.to_owned()),
        );
        Ok(())
    }
}
