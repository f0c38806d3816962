//! Walks two trees side by side, each once; of two files that differ, nothing is read behind the
//! first difference. Only what an archive would keep counts: times and owners do not.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::iter::Peekable;
use std::vec;

use bstr::{BStr, BString, ByteSlice as _};

use super::{Change, Difference, Differences, NodeKind};
use crate::nar::{FileHeader, Tree};

/// How much of two files is compared at a time.
const BLOCK_LEN: usize = 64 * 1024;

/// A directory that can be looked into, on disk or in memory.
pub trait Directory: Sized {
    /// Gives the bytes of a file.
    type Contents: Read;

    /// Returns the names of the entries, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn names(&self) -> io::Result<Vec<BString>>;

    /// Returns an entry; symlinks are not followed.
    ///
    /// # Errors
    /// The entry cannot be opened.
    fn open(&self, name: &BStr) -> io::Result<Node<Self>>;
}

/// A file, a symlink or a directory, not looked into yet.
#[derive(Debug)]
pub enum Node<D: Directory> {
    /// A regular file.
    File {
        /// Whether it may be executed, and its length.
        header: FileHeader,
        /// Its bytes.
        contents: D::Contents,
    },
    /// A symlink and its target.
    Symlink(BString),
    /// A directory.
    Directory(D),
}

/// Compares two trees until they are known to be equal or `max_differences` were found.
///
/// # Errors
/// A tree cannot be read.
pub fn diff<E: Directory, L: Directory>(
    earlier: Node<E>,
    later: Node<L>,
    max_differences: usize,
) -> io::Result<Differences> {
    let mut walk = Walk {
        open: Vec::new(),
        path: Vec::new(),
        differences: Differences::default(),
        blocks: [vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]],
    };
    walk.compare(earlier, later)?;
    while let Some(pair) = walk.open.last_mut() {
        if walk.differences.first.len() >= max_differences {
            walk.differences.is_cut = true;
            break;
        }
        let Some((name, side)) = pair.next_name() else {
            walk.open.pop();
            walk.path.pop();
            continue;
        };
        let earlier = match side {
            Ordering::Greater => None,
            Ordering::Less | Ordering::Equal => Some(pair.earlier.open(name.as_bstr())?),
        };
        let later = match side {
            Ordering::Less => None,
            Ordering::Greater | Ordering::Equal => Some(pair.later.open(name.as_bstr())?),
        };
        walk.path.push(name);
        let depth = walk.open.len();
        match (earlier, later) {
            (Some(earlier), Some(later)) => walk.compare(earlier, later)?,
            (Some(earlier), None) => walk.report(Change::OnlyEarlier(earlier.kind())),
            (None, Some(later)) => walk.report(Change::OnlyLater(later.kind())),
            (None, None) => {}
        }
        if walk.open.len() == depth {
            walk.path.pop();
        }
    }
    walk.differences.first.truncate(max_differences);
    Ok(walk.differences)
}

impl<D: Directory> Node<D> {
    /// Returns what it is.
    #[must_use]
    pub fn kind(&self) -> NodeKind {
        match self {
            Self::File { .. } => NodeKind::File,
            Self::Symlink(_) => NodeKind::Symlink,
            Self::Directory(_) => NodeKind::Directory,
        }
    }
}

/// A directory that both trees have.
struct Pair<E, L> {
    earlier: E,
    later: L,
    earlier_names: Peekable<vec::IntoIter<BString>>,
    later_names: Peekable<vec::IntoIter<BString>>,
}

impl<E: Directory, L: Directory> Pair<E, L> {
    fn new(earlier: E, later: L) -> io::Result<Self> {
        let (mut earlier_names, mut later_names) = (earlier.names()?, later.names()?);
        earlier_names.sort_unstable();
        later_names.sort_unstable();
        Ok(Self {
            earlier,
            later,
            earlier_names: earlier_names.into_iter().peekable(),
            later_names: later_names.into_iter().peekable(),
        })
    }

    /// Returns the next name and who has it: the earlier directory if less, the later one if
    /// greater, or both.
    fn next_name(&mut self) -> Option<(BString, Ordering)> {
        let side = match (self.earlier_names.peek(), self.later_names.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(earlier), Some(later)) => earlier.cmp(later),
        };
        let earlier = if side == Ordering::Greater {
            None
        } else {
            self.earlier_names.next()
        };
        let later = if side == Ordering::Less {
            None
        } else {
            self.later_names.next()
        };
        Some((earlier.or(later)?, side))
    }
}

struct Walk<E, L> {
    /// The directories that are being walked, each inside the one before.
    open: Vec<Pair<E, L>>,
    /// The names that lead to what is being compared.
    path: Vec<BString>,
    differences: Differences,
    blocks: [Vec<u8>; 2],
}

impl<E: Directory, L: Directory> Walk<E, L> {
    fn report(&mut self, change: Change) {
        self.differences.first.push(Difference {
            path: bstr::join("/", &self.path).into(),
            change,
        });
    }

    /// Compares two nodes; of directories, what is below is left to the caller's loop.
    fn compare(&mut self, earlier: Node<E>, later: Node<L>) -> io::Result<()> {
        match (earlier, later) {
            (Node::Directory(earlier), Node::Directory(later)) => {
                self.open.push(Pair::new(earlier, later)?);
            }
            (Node::Symlink(earlier), Node::Symlink(later)) => {
                if earlier != later {
                    self.report(Change::Target { earlier, later });
                }
            }
            (
                Node::File {
                    header: earlier,
                    contents: mut earlier_contents,
                },
                Node::File {
                    header: later,
                    contents: mut later_contents,
                },
            ) => {
                if earlier.is_executable != later.is_executable {
                    self.report(Change::Executable {
                        is_later: later.is_executable,
                    });
                }
                let found = self.first_offset(&mut earlier_contents, &mut later_contents)?;
                if let Some(first_offset) = found {
                    self.report(Change::Contents {
                        earlier_size_bytes: earlier.size_bytes,
                        later_size_bytes: later.size_bytes,
                        first_offset,
                    });
                }
            }
            (earlier, later) => self.report(Change::Kind {
                earlier: earlier.kind(),
                later: later.kind(),
            }),
        }
        Ok(())
    }

    /// Returns the offset of the first byte that is not the same in both.
    fn first_offset(
        &mut self,
        earlier: &mut impl Read,
        later: &mut impl Read,
    ) -> io::Result<Option<u64>> {
        let [earlier_block, later_block] = &mut self.blocks;
        let mut offset = 0;
        loop {
            let earlier_block = read_full(earlier, earlier_block)?;
            let later_block = read_full(later, later_block)?;
            if earlier_block != later_block {
                let pairs = earlier_block.iter().zip(later_block);
                let n_equal = pairs
                    .take_while(|(earlier, later)| earlier == later)
                    .count();
                // A usize is never wider than 64 bits.
                return Ok(Some(offset + n_equal as u64));
            }
            if earlier_block.is_empty() {
                return Ok(None);
            }
            offset += earlier_block.len() as u64;
        }
    }
}

/// Fills `block` as far as `source` reaches, so that blocks of both files begin together, and
/// returns what was filled.
fn read_full<'b>(source: &mut impl Read, block: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut n_read = 0;
    while n_read < block.len() {
        match source.read(&mut block[n_read..]) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&block[..n_read])
}

impl Tree {
    /// Returns this tree for [`diff`].
    #[must_use]
    pub fn as_node(&self) -> Node<&BTreeMap<BString, Self>> {
        match self {
            Self::File {
                contents,
                is_executable,
            } => Node::File {
                header: FileHeader {
                    is_executable: *is_executable,
                    // A usize is never wider than 64 bits.
                    size_bytes: contents.len() as u64,
                },
                contents: contents.as_slice(),
            },
            Self::Symlink(target) => Node::Symlink(target.clone()),
            Self::Directory(entries) => Node::Directory(entries),
        }
    }
}

impl<'t> Directory for &'t BTreeMap<BString, Tree> {
    type Contents = &'t [u8];

    fn names(&self) -> io::Result<Vec<BString>> {
        Ok(self.keys().cloned().collect())
    }

    fn open(&self, name: &BStr) -> io::Result<Node<Self>> {
        self.get(name)
            .map(Tree::as_node)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::nar::tests::{any_tree, small_tree};

    fn differences(earlier: &Tree, later: &Tree) -> Differences {
        diff(earlier.as_node(), later.as_node(), usize::MAX).unwrap()
    }

    #[test]
    fn every_kind_of_difference_is_told_in_a_line() {
        let earlier = Tree::directory([
            ("a", Tree::file("same")),
            ("b", Tree::file("12345")),
            ("c", Tree::executable("x")),
            (
                "d",
                Tree::directory([("e", Tree::file("1")), ("f", Tree::symlink("x"))]),
            ),
            ("g", Tree::file("")),
            ("i", Tree::directory([("below", Tree::file(""))])),
            ("j\n", Tree::file("")),
        ]);
        let later = Tree::directory([
            ("a", Tree::file("same")),
            ("b", Tree::file("12x45")),
            ("c", Tree::file("xy")),
            (
                "d",
                Tree::directory([("e", Tree::file("1")), ("f", Tree::symlink("y\u{1b}"))]),
            ),
            ("g", Tree::symlink("x")),
            ("h", Tree::symlink("x")),
        ]);
        let expected = "\"b\": 5 bytes that differ from offset 2 on
\"c\": executable in the earlier build only
\"c\": 1 bytes in the earlier build, 2 in the later one, differing from offset 1 on
\"d/f\": a symlink to \"x\" in the earlier build, to \"y\\x1b\" in the later one
\"g\": a file in the earlier build, a symlink in the later one
\"h\": a symlink that only the later build made
\"i\": a directory that only the earlier build made
\"j\\n\": a file that only the earlier build made";
        assert_eq!(differences(&earlier, &later).to_string(), expected);
    }

    #[test]
    fn roots_may_differ_themselves() {
        let found = differences(&Tree::file("a"), &small_tree());
        assert_eq!(
            found.to_string(),
            "the output itself: a file in the earlier build, a directory in the later one"
        );
    }

    #[test]
    fn the_first_difference_is_found_in_any_block() {
        let block = vec![7; 3 * BLOCK_LEN];
        for offset in [
            0,
            1,
            BLOCK_LEN - 1,
            BLOCK_LEN,
            2 * BLOCK_LEN + 5,
            3 * BLOCK_LEN - 1,
        ] {
            let mut other = block.clone();
            other[offset] = 8;
            for len in [offset + 1, block.len()] {
                let found = differences(&Tree::file(&block[..]), &Tree::file(&other[..len]));
                let Change::Contents { first_offset, .. } = found.first[0].change else {
                    panic!("{found}");
                };
                assert_eq!(first_offset, offset as u64);
            }
            let found = differences(&Tree::file(&block[..offset]), &Tree::file(&block[..]));
            assert!(
                found
                    .to_string()
                    .ends_with(&format!("from offset {offset} on"))
            );
        }
    }

    #[test]
    fn the_walk_ends_when_enough_was_found() {
        let many = |contents: &str| {
            Tree::directory((0..100).map(|n| (format!("{n:02}"), Tree::file(contents))))
        };
        let found = diff(many("a").as_node(), many("b").as_node(), 3).unwrap();
        assert_eq!((found.first.len(), found.is_cut), (3, true));
        assert!(
            found
                .to_string()
                .ends_with("\nthere may be more differences")
        );
        let found = diff(many("a").as_node(), many("b").as_node(), 101).unwrap();
        assert_eq!((found.first.len(), found.is_cut), (100, false));
    }

    /// Returns everything in a tree by its path.
    fn flat<'t>(tree: &'t Tree, path: &str, all: &mut BTreeMap<String, &'t Tree>) {
        if let Tree::Directory(entries) = tree {
            for (name, tree) in entries {
                flat(tree, &format!("{path}/{}", name.escape_ascii()), all);
            }
        }
        all.insert(path.to_owned(), tree);
    }

    proptest! {
        #[test]
        fn differences_are_those_of_a_naive_comparison(earlier in any_tree(), later in any_tree()) {
            let (mut earlier_flat, mut later_flat) = (BTreeMap::new(), BTreeMap::new());
            flat(&earlier, "", &mut earlier_flat);
            flat(&later, "", &mut later_flat);
            let both_are_directories = |path: &str| {
                let is = |all: &BTreeMap<String, &Tree>| {
                    matches!(all.get(path), Some(Tree::Directory(_)))
                };
                is(&earlier_flat) && is(&later_flat)
            };
            let all_paths: BTreeSet<&String> =
                earlier_flat.keys().chain(later_flat.keys()).collect();
            let expected: BTreeSet<String> = all_paths
                .into_iter()
                .filter(|path| earlier_flat.get(*path) != later_flat.get(*path))
                .filter(|path| !both_are_directories(path))
                .filter(|path| {
                    path.rsplit_once('/').is_none_or(|(parent, _)| both_are_directories(parent))
                })
                .cloned()
                .collect();
            let found = differences(&earlier, &later);
            let found: BTreeSet<String> = found
                .first
                .iter()
                .map(|difference| match &difference.path {
                    path if path.is_empty() => String::new(),
                    path => format!("/{}", path.split_str("/").map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join("/")),
                })
                .collect();
            prop_assert_eq!(found, expected);
            prop_assert!(differences(&earlier, &earlier).is_empty());
        }
    }
}
