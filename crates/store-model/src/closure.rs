//! Walks along references: everything that a path needs, and through what it came in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use crate::{Error, PathInfo, StorePath};

/// What a walk has to know of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPath<'a> {
    /// What the path refers to, itself included where it does.
    pub references: &'a BTreeSet<StorePath>,
    /// Length of its NAR serialisation.
    pub nar_size_bytes: u64,
}

impl<'a> From<&'a PathInfo> for KnownPath<'a> {
    fn from(info: &'a PathInfo) -> Self {
        Self {
            references: &info.references,
            nar_size_bytes: info.nar_size_bytes,
        }
    }
}

/// Where a walk looks paths up: what it may come by has been collected before.
pub trait KnownPaths {
    /// Returns what is known of a path.
    fn known(&self, path: &StorePath) -> Option<KnownPath<'_>>;
}

impl KnownPaths for BTreeMap<StorePath, PathInfo> {
    fn known(&self, path: &StorePath) -> Option<KnownPath<'_>> {
        self.get(path).map(KnownPath::from)
    }
}

impl<S: BuildHasher> KnownPaths for HashMap<StorePath, PathInfo, S> {
    fn known(&self, path: &StorePath) -> Option<KnownPath<'_>> {
        self.get(path).map(KnownPath::from)
    }
}

/// Everything that can be reached from some paths by references, themselves included.
#[derive(Debug, Clone)]
pub struct Closure {
    /// In the order in which they were found: the nearest to a root first.
    found: Vec<Found>,
    positions: HashMap<StorePath, usize>,
    nar_size_bytes: u64,
}

#[derive(Debug, Clone)]
struct Found {
    path: StorePath,
    nar_size_bytes: u64,
    /// Position of the path whose reference led here; none for a root.
    referrer: Option<usize>,
}

impl Closure {
    /// Walks from `roots`; each path is looked up once, and nothing recurses.
    ///
    /// # Errors
    /// [`Error::UnknownPath`] for the first path that is not known.
    pub fn walk<'a>(
        roots: impl IntoIterator<Item = &'a StorePath>,
        known: &impl KnownPaths,
    ) -> Result<Self, Error> {
        let mut closure = Self {
            found: Vec::new(),
            positions: HashMap::new(),
            nar_size_bytes: 0,
        };
        for root in roots {
            closure.find(root, None);
        }
        let mut next = 0;
        while let Some(found) = closure.found.get_mut(next) {
            let path = found.path.clone();
            let known = known.known(&path).ok_or(Error::UnknownPath { path })?;
            found.nar_size_bytes = known.nar_size_bytes;
            closure.nar_size_bytes = closure.nar_size_bytes.saturating_add(known.nar_size_bytes);
            for reference in known.references {
                closure.find(reference, Some(next));
            }
            next += 1;
        }
        Ok(closure)
    }

    fn find(&mut self, path: &StorePath, referrer: Option<usize>) {
        if !self.positions.contains_key(path) {
            self.positions.insert(path.clone(), self.found.len());
            self.found.push(Found {
                path: path.clone(),
                nar_size_bytes: 0,
                referrer,
            });
        }
    }

    /// Returns whether a path can be reached.
    #[must_use]
    pub fn contains(&self, path: &StorePath) -> bool {
        self.positions.contains_key(path)
    }

    /// Returns how many paths there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Returns whether there were no roots.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the paths, the nearest to a root first.
    pub fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.found.iter().map(|found| &found.path)
    }

    /// Returns the sum of the sizes of all paths.
    #[must_use]
    pub fn nar_size_bytes(&self) -> u64 {
        self.nar_size_bytes
    }

    /// Returns the largest path and its size; of several, the nearest to a root.
    #[must_use]
    pub fn largest(&self) -> Option<(&StorePath, u64)> {
        let sizes = self
            .found
            .iter()
            .map(|found| (&found.path, found.nar_size_bytes));
        // The last of equals wins a maximum.
        sizes
            .rev()
            .max_by_key(|(_, nar_size_bytes)| *nar_size_bytes)
    }

    /// Returns a shortest way from a root to `path`, both included; nothing if `path` cannot be
    /// reached.
    #[must_use]
    pub fn way_to(&self, path: &StorePath) -> Vec<StorePath> {
        let mut way = Vec::new();
        let mut position = self.positions.get(path).copied();
        while let Some(found) = position.map(|position| &self.found[position]) {
            way.push(found.path.clone());
            position = found.referrer;
        }
        way.reverse();
        way
    }
}

/// Returns the size of the closure of each path in `closed`, a set without references out of it,
/// in the order of the paths.
///
/// Up to 64 closures are walked at a time, as bits of a mask that runs along the references, so
/// that a thousand paths cost sixteen walks and no memory to speak of.
///
/// # Errors
/// [`Error::UnknownPath`] if a reference leads out of the set.
pub fn closure_sizes(closed: &BTreeMap<StorePath, PathInfo>) -> Result<Vec<u64>, Error> {
    const BATCH_LEN: usize = u64::BITS as usize;
    let positions: HashMap<&StorePath, usize> = closed.keys().zip(0..).collect();
    let mut references = Vec::with_capacity(closed.len());
    for info in closed.values() {
        let positions: Result<Vec<usize>, Error> = info
            .references
            .iter()
            .map(|path| {
                positions
                    .get(path)
                    .copied()
                    .ok_or_else(|| Error::UnknownPath { path: path.clone() })
            })
            .collect();
        references.push(positions?);
    }
    let order = referrers_first(&references);
    let mut sizes = vec![0u64; closed.len()];
    for (batch_idx, batch) in sizes.chunks_mut(BATCH_LEN).enumerate() {
        let mut masks = vec![0u64; closed.len()];
        for idx in 0..batch.len() {
            masks[batch_idx * BATCH_LEN + idx] = 1 << idx;
        }
        // One pass, and one more to see that nothing changes, unless there are cycles.
        while spread(&mut masks, &order, &references) {}
        for (info, mut mask) in closed.values().zip(masks) {
            while mask != 0 {
                let size = &mut batch[mask.trailing_zeros() as usize];
                *size = size.saturating_add(info.nar_size_bytes);
                mask &= mask - 1;
            }
        }
    }
    Ok(sizes)
}

/// Adds each path's mask to those of its references; returns whether that changed anything.
fn spread(masks: &mut [u64], order: &[usize], references: &[Vec<usize>]) -> bool {
    let mut has_changed = false;
    for position in order {
        let mask = masks[*position];
        for reference in &references[*position] {
            has_changed |= mask & !masks[*reference] != 0;
            masks[*reference] |= mask;
        }
    }
    has_changed
}

/// Returns all positions, each before what it refers to except where there is a cycle.
fn referrers_first(references: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(references.len());
    let mut is_entered = vec![false; references.len()];
    for root in 0..references.len() {
        if std::mem::replace(&mut is_entered[root], true) {
            continue;
        }
        let mut open = vec![(root, references[root].iter())];
        while let Some((position, rest)) = open.last_mut() {
            match rest.next() {
                Some(next) if std::mem::replace(&mut is_entered[*next], true) => {}
                Some(next) => open.push((*next, references[*next].iter())),
                None => {
                    order.push(*position);
                    open.pop();
                }
            }
        }
    }
    order.reverse();
    order
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NarHash;

    /// Returns a path that is told from others by its number.
    pub(crate) fn numbered(number: usize) -> StorePath {
        let number = u8::try_from(number).unwrap();
        StorePath::from_digest(&[number; 20], &format!("p{number}")).unwrap()
    }

    /// Returns what a store knows of path `number`, whose size is a power of two.
    pub(crate) fn info(number: usize, references: &[usize]) -> PathInfo {
        PathInfo {
            path: numbered(number),
            nar_hash: NarHash::from_sha256([0; 32]),
            nar_size_bytes: 1 << (number % 50),
            references: references.iter().map(|number| numbered(*number)).collect(),
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        }
    }

    /// Returns a store of paths numbered as their references stand in `graph`.
    pub(crate) fn store(graph: &[Vec<usize>]) -> BTreeMap<StorePath, PathInfo> {
        graph
            .iter()
            .enumerate()
            .map(|(number, references)| (numbered(number), info(number, references)))
            .collect()
    }

    /// Generates references among up to 12 paths; cycles and references to oneself included.
    pub(crate) fn any_graph() -> impl Strategy<Value = Vec<Vec<usize>>> {
        (1usize..12).prop_flat_map(|n_paths| {
            let references = proptest::collection::vec(0..n_paths, 0..4);
            proptest::collection::vec(references, n_paths)
        })
    }

    /// Returns what can be reached in `n_paths` rounds, by nothing cleverer than rounds.
    pub(crate) fn naive_closure(graph: &[Vec<usize>], root: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([root]);
        for _ in graph {
            let next: Vec<usize> = reached.iter().flat_map(|n| graph[*n].clone()).collect();
            reached.extend(next);
        }
        reached
    }

    #[test]
    fn a_way_is_a_shortest_one() {
        let store = store(&[vec![0, 1, 2], vec![3], vec![4], vec![4], vec![1]]);
        let closure = Closure::walk([&numbered(0)], &store).unwrap();
        assert_eq!(
            closure.way_to(&numbered(4)),
            [numbered(0), numbered(2), numbered(4)]
        );
        assert_eq!(closure.way_to(&numbered(0)), [numbered(0)]);
        assert_eq!(closure.way_to(&numbered(9)), []);
        assert_eq!(closure.largest(), Some((&numbered(4), 16)));
    }

    #[test]
    fn a_path_that_is_not_known_is_named() {
        let error = Closure::walk([&numbered(0)], &store(&[vec![7]])).unwrap_err();
        assert_eq!(error, Error::UnknownPath { path: numbered(7) });
    }

    #[test]
    fn sizes_are_right_beyond_one_batch() {
        let graph: Vec<Vec<usize>> = (0..150)
            .map(|n| if n == 149 { vec![] } else { vec![n + 1] })
            .collect();
        let sizes = closure_sizes(&with_size_1(store(&graph))).unwrap();
        let mut sorted = sizes.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=150).collect::<Vec<u64>>());
        let outside = store(&[vec![1]]);
        assert_eq!(
            closure_sizes(&outside),
            Err(Error::UnknownPath { path: numbered(1) })
        );
    }

    fn with_size_1(mut store: BTreeMap<StorePath, PathInfo>) -> BTreeMap<StorePath, PathInfo> {
        for info in store.values_mut() {
            info.nar_size_bytes = 1;
        }
        store
    }

    proptest! {
        #[test]
        fn sizes_of_all_closures_are_those_of_each(graph in any_graph()) {
            let store = store(&graph);
            let sizes = closure_sizes(&store).unwrap();
            prop_assert_eq!(sizes.len(), store.len());
            for (path, size_bytes) in store.keys().zip(sizes) {
                let closure = Closure::walk([path], &store).unwrap();
                prop_assert_eq!(size_bytes, closure.nar_size_bytes());
            }
        }

        #[test]
        fn a_closure_is_what_a_naive_walk_finds(graph in any_graph()) {
            let store = store(&graph);
            for root in 0..graph.len() {
                let closure = Closure::walk([&numbered(root)], &store).unwrap();
                let naive = naive_closure(&graph, root);
                let expected: BTreeSet<StorePath> = naive.iter().map(|n| numbered(*n)).collect();
                prop_assert_eq!(closure.paths().cloned().collect::<BTreeSet<_>>(), expected);
                prop_assert_eq!(closure.len(), naive.len());
                prop_assert_eq!(closure.nar_size_bytes(), naive.iter().map(|n| 1 << n).sum::<u64>());
                for path in closure.paths() {
                    let way = closure.way_to(path);
                    prop_assert_eq!((way.first(), way.last()), (Some(&numbered(root)), Some(path)));
                    for pair in way.windows(2) {
                        prop_assert!(store[&pair[0]].references.contains(&pair[1]));
                    }
                }
            }
        }
    }
}
