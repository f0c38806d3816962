//! Tells two trees apart: what a build makes differently when it is done again.
//!
//! Here is what is told; how the trees are walked is in `walk`.

mod walk;

pub use walk::{Directory, Node, diff};

use std::fmt;

use bstr::{BString, ByteSlice as _};

/// The kinds of things in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A symlink.
    Symlink,
    /// A directory.
    Directory,
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Symlink => "a symlink",
            Self::Directory => "a directory",
        })
    }
}

/// A place where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, from the root on, without a leading slash; empty for the root itself.
    pub path: BString,
    /// How.
    pub change: Change,
}

/// How two trees differ at one place, `earlier` and `later` being the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only the earlier tree has it; what is below is not told.
    OnlyEarlier(NodeKind),
    /// Only the later tree has it; what is below is not told.
    OnlyLater(NodeKind),
    /// It is one thing here and another there.
    Kind {
        /// What it is in the earlier tree.
        earlier: NodeKind,
        /// What it is in the later one.
        later: NodeKind,
    },
    /// A file may be executed in one tree only.
    Executable {
        /// Whether it is the later one.
        is_later: bool,
    },
    /// Files have other bytes.
    Contents {
        /// Length in the earlier tree.
        earlier_size_bytes: u64,
        /// Length in the later one.
        later_size_bytes: u64,
        /// Offset of the first byte that differs, or that only the longer one has.
        first_offset: u64,
    },
    /// Symlinks have other targets.
    Target {
        /// Target in the earlier tree.
        earlier: BString,
        /// Target in the later one.
        later: BString,
    },
}

/// Where two trees differ, in the order of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first of them.
    pub first: Vec<Difference>,
    /// Whether there may be more: the walk ended when there were enough.
    pub is_cut: bool,
}

impl Differences {
    /// Returns whether the trees are equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

/// Prints a line for each difference; names are quoted, as a builder chose them.
impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, difference) in self.first.iter().enumerate() {
            f.write_str(if idx == 0 { "" } else { "\n" })?;
            fmt::Display::fmt(difference, f)?;
        }
        if self.is_cut {
            f.write_str("\nthere may be more differences")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str("the output itself: ")?;
        } else {
            write!(f, "{:?}: ", self.path.as_bstr())?;
        }
        match &self.change {
            Change::OnlyEarlier(kind) => write!(f, "{kind} that only the earlier build made"),
            Change::OnlyLater(kind) => write!(f, "{kind} that only the later build made"),
            Change::Kind { earlier, later } => write!(
                f,
                "{earlier} in the earlier build, {later} in the later one"
            ),
            Change::Executable { is_later: true } => {
                f.write_str("executable in the later build only")
            }
            Change::Executable { is_later: false } => {
                f.write_str("executable in the earlier build only")
            }
            Change::Contents {
                earlier_size_bytes,
                later_size_bytes,
                first_offset,
            } if earlier_size_bytes == later_size_bytes => write!(
                f,
                "{earlier_size_bytes} bytes that differ from offset {first_offset} on"
            ),
            Change::Contents {
                earlier_size_bytes,
                later_size_bytes,
                first_offset,
            } => write!(
                f,
                "{earlier_size_bytes} bytes in the earlier build, {later_size_bytes} in the later \
                 one, differing from offset {first_offset} on"
            ),
            Change::Target { earlier, later } => write!(
                f,
                "a symlink to {:?} in the earlier build, to {:?} in the later one",
                earlier.as_bstr(),
                later.as_bstr()
            ),
        }
    }
}
