//! Which paths of a cache may be announced, and when: none before everything that it refers to, so
//! that whoever reads the cache at any moment finds whole closures.
//!
//! ```text
//! announce ─► packing ─► packed ─► publishing ─► gone, and its referrers come nearer
//!                │          │          │
//!                └──────────┴──────────┴─► failed, and so have all that refer to it
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};

use store_model::StorePath;

/// How many publications a cache takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// Any number of them, one by one; each must be there before another that needs it is begun.
    Singly,
    /// One group at a time, whose members become visible in their order: they share a sync.
    Together,
}

/// Paths on their way into a cache.
#[derive(Debug, Default)]
pub(crate) struct Publications {
    entries: HashMap<StorePath, Entry>,
    /// Those that lack nothing but their turn, in the order in which they were announced.
    packed: BTreeMap<u64, StorePath>,
    n_announced: u64,
    n_publishing: usize,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// References that are on their way themselves.
    awaited: HashSet<StorePath>,
    referrers: Vec<StorePath>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Packing,
    Packed,
    Publishing,
}

impl Publications {
    /// Returns whether a path is on its way.
    pub(crate) fn contain(&self, path: &StorePath) -> bool {
        self.entries.contains_key(path)
    }

    /// Hears of a path; those of its references that are not on their way are in the cache.
    pub(crate) fn announce<'a>(
        &mut self,
        path: &StorePath,
        references: impl IntoIterator<Item = &'a StorePath>,
    ) {
        let mut awaited = HashSet::new();
        for reference in references {
            if let Some(entry) = self.entries.get_mut(reference)
                && awaited.insert(reference.clone())
            {
                entry.referrers.push(path.clone());
            }
        }
        let entry = Entry {
            number: self.n_announced,
            awaited,
            referrers: Vec::new(),
            stage: Stage::Packing,
        };
        self.n_announced += 1;
        self.entries.insert(path.clone(), entry);
    }

    /// Hears that the archive of a path is ready; of one that has failed meanwhile that is no news.
    pub(crate) fn packed(&mut self, path: &StorePath) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.stage = Stage::Packed;
            self.packed.insert(entry.number, path.clone());
        }
    }

    /// Returns what is to be published now, references first.
    pub(crate) fn take_ready(&mut self, grouping: Grouping) -> Vec<StorePath> {
        if grouping == Grouping::Together && self.n_publishing > 0 {
            return Vec::new();
        }
        let mut taken = HashSet::new();
        let mut ready = Vec::new();
        self.packed.retain(|_, path| {
            let Some(entry) = self.entries.get_mut(path) else {
                return false;
            };
            let is_ready = match grouping {
                Grouping::Singly => entry.awaited.is_empty(),
                // What refers to a path was announced after it.
                Grouping::Together => entry.awaited.is_subset(&taken),
            };
            if is_ready {
                entry.stage = Stage::Publishing;
                taken.insert(path.clone());
                ready.push(path.clone());
            }
            !is_ready
        });
        self.n_publishing += ready.len();
        ready
    }

    /// Hears that a path is in the cache.
    pub(crate) fn published(&mut self, path: &StorePath) {
        let Some(entry) = self.remove(path) else {
            return;
        };
        for referrer in entry.referrers {
            if let Some(entry) = self.entries.get_mut(&referrer) {
                entry.awaited.remove(path);
            }
        }
    }

    /// Hears that a path will not be in the cache; returns all others that therefore will not be.
    pub(crate) fn failed(&mut self, path: &StorePath) -> Vec<StorePath> {
        let mut lost = Vec::new();
        let mut next = self.remove(path).map_or_else(Vec::new, |it| it.referrers);
        while let Some(path) = next.pop() {
            // One that is being published with what it refers to is heard of by itself.
            let is_waiting = |entry: &Entry| entry.stage != Stage::Publishing;
            if self.entries.get(&path).is_some_and(is_waiting)
                && let Some(entry) = self.remove(&path)
            {
                next.extend(entry.referrers);
                lost.push(path);
            }
        }
        lost
    }

    fn remove(&mut self, path: &StorePath) -> Option<Entry> {
        let entry = self.entries.remove(path)?;
        match entry.stage {
            Stage::Packing => {}
            Stage::Packed => {
                self.packed.remove(&entry.number);
            }
            Stage::Publishing => self.n_publishing -= 1,
        }
        Some(entry)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(number: usize) -> StorePath {
        let number = u8::try_from(number).unwrap();
        StorePath::from_digest(&[number; 20], &format!("p{number}")).unwrap()
    }

    /// Announces paths with references to earlier ones.
    fn announced(graph: &[Vec<usize>]) -> Publications {
        let mut publications = Publications::default();
        for (number, references) in graph.iter().enumerate() {
            let references: Vec<StorePath> = references.iter().map(|n| path(*n)).collect();
            publications.announce(&path(number), &references);
        }
        publications
    }

    #[test]
    fn one_by_one_a_path_waits_until_what_it_refers_to_is_there() {
        let mut publications = announced(&[vec![], vec![0], vec![1]]);
        for number in [2, 1, 0] {
            publications.packed(&path(number));
        }
        for number in 0..3 {
            assert_eq!(publications.take_ready(Grouping::Singly), [path(number)]);
            assert!(publications.take_ready(Grouping::Singly).is_empty());
            publications.published(&path(number));
        }
        assert!(publications.entries.is_empty());
    }

    #[test]
    fn a_chain_goes_in_one_group_and_the_next_group_waits_for_it() {
        let mut publications = announced(&[vec![], vec![0], vec![1], vec![2], vec![]]);
        for number in [2, 1, 0] {
            publications.packed(&path(number));
        }
        let group = publications.take_ready(Grouping::Together);
        assert_eq!(group, [path(0), path(1), path(2)]);
        publications.packed(&path(3));
        publications.packed(&path(4));
        assert!(publications.take_ready(Grouping::Together).is_empty());
        for number in 0..3 {
            publications.published(&path(number));
        }
        let group = publications.take_ready(Grouping::Together);
        assert_eq!(group, [path(3), path(4)]);
    }

    #[test]
    fn what_refers_to_what_failed_fails_with_it_and_nothing_else_does() {
        let mut publications = announced(&[vec![], vec![0], vec![1], vec![], vec![0, 3]]);
        publications.packed(&path(1));
        let mut lost = publications.failed(&path(0));
        lost.sort();
        assert_eq!(lost, [path(1), path(2), path(4)]);
        publications.packed(&path(2));
        publications.packed(&path(3));
        assert_eq!(publications.take_ready(Grouping::Together), [path(3)]);
    }

    proptest! {
        #[test]
        fn whatever_fails_nothing_is_published_before_its_references_and_nothing_is_forgotten(
            links in proptest::collection::vec(proptest::collection::vec(0..20_usize, 0..4), 1..20),
            order in proptest::collection::vec((0..20_usize, any::<bool>()), 0..80),
            is_together in any::<bool>(),
        ) {
            let grouping = if is_together { Grouping::Together } else { Grouping::Singly };
            let graph: Vec<Vec<usize>> = links
                .iter()
                .enumerate()
                .map(|(number, links)| links.iter().copied().filter(|n| *n < number).collect())
                .collect();
            let mut publications = announced(&graph);
            let mut there = HashSet::new();
            let mut gone = HashSet::new();
            let mut steps: Vec<(usize, bool)> = order;
            steps.extend((0..graph.len()).map(|number| (number, true)));
            for (number, is_good) in steps {
                let number = number % graph.len();
                let is_packing = publications
                    .entries
                    .get(&path(number))
                    .is_some_and(|entry| entry.stage == Stage::Packing);
                if is_packing && is_good {
                    publications.packed(&path(number));
                } else if is_packing {
                    gone.insert(path(number));
                    gone.extend(publications.failed(&path(number)));
                }
                loop {
                    let ready = publications.take_ready(grouping);
                    if ready.is_empty() {
                        break;
                    }
                    for path in ready {
                        let number = (0..graph.len()).find(|n| super::tests::path(*n) == path).unwrap();
                        for reference in &graph[number] {
                            prop_assert!(there.contains(&super::tests::path(*reference)));
                        }
                        there.insert(path.clone());
                        publications.published(&path);
                    }
                }
            }
            prop_assert!(publications.entries.is_empty());
            prop_assert_eq!(publications.n_publishing, 0);
            prop_assert_eq!(there.len() + gone.len(), graph.len());
        }
    }
}
