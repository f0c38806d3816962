//! Finding circles of references.

use std::collections::BTreeMap;

/// Returns two neighbours on, or before, a circle of `references`: something, and what refers to
/// it. References to itself and to what is not a key are no circles.
pub(crate) fn find_cycle<K: Ord + Copy>(references: &BTreeMap<K, Vec<K>>) -> Option<(K, K)> {
    // Takes away what refers to nothing that is left. What cannot be taken away is in a circle, or
    // refers to one.
    let mut referrers: BTreeMap<K, Vec<K>> = BTreeMap::new();
    let mut n_left: BTreeMap<K, usize> = BTreeMap::new();
    for (from, targets) in references {
        let inner = targets
            .iter()
            .filter(|to| *to != from && references.contains_key(to));
        let mut count = 0;
        for to in inner {
            referrers.entry(*to).or_default().push(*from);
            count += 1;
        }
        n_left.insert(*from, count);
    }
    let mut free: Vec<K> = n_left
        .iter()
        .filter_map(|(key, count)| (*count == 0).then_some(*key))
        .collect();
    while let Some(key) = free.pop() {
        n_left.remove(&key);
        for referrer in referrers.get(&key).into_iter().flatten() {
            if let Some(count) = n_left.get_mut(referrer) {
                *count -= 1;
                if *count == 0 {
                    free.push(*referrer);
                }
            }
        }
    }
    // Whoever is left refers to somebody left, so somebody left is referred to.
    n_left.keys().find_map(|key| {
        let from = referrers
            .get(key)?
            .iter()
            .find(|from| n_left.contains_key(*from))?;
        Some((*key, *from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle_of(
        references: &[(&'static str, &[&'static str])],
    ) -> Option<(&'static str, &'static str)> {
        find_cycle(
            &references
                .iter()
                .map(|(from, to)| (*from, to.to_vec()))
                .collect(),
        )
    }

    #[test]
    fn a_circle_of_two_is_named_as_nix_names_it() {
        assert_eq!(cycle_of(&[("a", &["b"]), ("b", &["a"])]), Some(("a", "b")));
    }

    #[test]
    fn references_to_oneself_and_to_strangers_are_no_circles() {
        assert_eq!(cycle_of(&[("a", &["a", "b", "x"]), ("b", &["x"])]), None);
    }

    #[test]
    fn a_circle_behind_a_chain_is_found() {
        let found = cycle_of(&[("a", &["b"]), ("b", &["c"]), ("c", &["d"]), ("d", &["b"])]);
        assert!(matches!(found, Some(("b", "a" | "d"))));
    }
}
