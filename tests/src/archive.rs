//! Archives in Nix's format, from a description of a tree: also of trees that no program would
//! archive, and with words that no program would write.

/// An archive that is being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Where the lengths of its words lie.
    lengths: Vec<usize>,
}

/// A file of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A plain file with these contents.
    File(Vec<u8>),
    /// A plain file that can be run.
    Program(Vec<u8>),
    /// A link to this.
    Link(Vec<u8>),
    /// A directory with these names in it, in this order, whatever they are.
    Directory(Vec<(Vec<u8>, Node)>),
}

impl Node {
    /// Describes a plain file.
    pub fn file(contents: impl AsRef<[u8]>) -> Self {
        Self::File(contents.as_ref().to_vec())
    }

    /// Describes a link.
    pub fn link(target: impl AsRef<[u8]>) -> Self {
        Self::Link(target.as_ref().to_vec())
    }

    /// Describes a directory.
    pub fn directory<N: AsRef<[u8]>>(entries: impl IntoIterator<Item = (N, Self)>) -> Self {
        let entries = entries.into_iter();
        Self::Directory(
            entries
                .map(|(name, node)| (name.as_ref().to_vec(), node))
                .collect(),
        )
    }

    /// Describes a directory in a directory, and so on, this many in all.
    pub fn nested(depth: usize) -> Self {
        let empty = Self::Directory(Vec::new());
        (1..depth).fold(empty, |inner, _| Self::directory([("d", inner)]))
    }
}

impl Archive {
    /// Writes the archive of a tree.
    pub fn of(node: &Node) -> Self {
        Self::default().word("nix-archive-1").node(node)
    }

    /// Writes a tree.
    #[must_use]
    pub fn node(self, node: &Node) -> Self {
        let begun = self.words(["(", "type"]);
        let written = match node {
            Node::File(contents) => begun.words(["regular", "contents"]).word(contents),
            Node::Program(contents) => begun
                .words(["regular", "executable", "", "contents"])
                .word(contents),
            Node::Link(target) => begun.words(["symlink", "target"]).word(target),
            Node::Directory(entries) => {
                let begun = begun.word("directory");
                entries.iter().fold(begun, |archive, (name, node)| {
                    let begun = archive.words(["entry", "(", "name"]).word(name);
                    begun.word("node").node(node).word(")")
                })
            }
        };
        written.word(")")
    }

    /// Writes a word: its length, its bytes, and zeros up to a multiple of eight.
    #[must_use]
    pub fn word(mut self, word: impl AsRef<[u8]>) -> Self {
        let word = word.as_ref();
        self.lengths.push(self.bytes.len());
        self.bytes.extend((word.len() as u64).to_le_bytes());
        self.bytes.extend(word);
        let padded = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(padded, 0);
        self
    }

    /// Writes some words.
    #[must_use]
    pub fn words<'a>(self, words: impl IntoIterator<Item = &'a str>) -> Self {
        words.into_iter().fold(self, Self::word)
    }

    /// Returns how many words there are.
    #[must_use]
    pub fn n_words(&self) -> usize {
        self.lengths.len()
    }

    /// Says that a word has so many bytes.
    ///
    /// # Panics
    ///
    /// If there is no such word.
    #[must_use]
    pub fn claiming(mut self, word_idx: usize, n_bytes: u64) -> Self {
        let start = self.lengths[word_idx];
        self.bytes[start..start + 8].copy_from_slice(&n_bytes.to_le_bytes());
        self
    }

    /// Returns the bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
