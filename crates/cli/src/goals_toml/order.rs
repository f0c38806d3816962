//! The order in which goals are instantiated: each after those that it needs.

use std::collections::{BTreeMap, BTreeSet};

/// Returns the goals that `roots` need, themselves included, inputs first; equal files give equal
/// orders.
///
/// # Errors
/// The goals on the way round, if some need each other in a circle. The first is also the last.
pub(super) fn inputs_first<'a>(
    roots: impl IntoIterator<Item = &'a str>,
    inputs: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> Result<Vec<&'a str>, Vec<String>> {
    let none = BTreeSet::new();
    let inputs_of = |goal: &str| inputs.get(goal).unwrap_or(&none).iter();
    let mut ordered = Vec::new();
    let mut done = BTreeSet::new();
    for root in roots {
        if done.contains(root) {
            continue;
        }
        // An explicit stack: a chain of goals may be longer than a thread's stack is deep.
        let mut stack = vec![(root, inputs_of(root))];
        while let Some((goal, pending)) = stack.last_mut() {
            let goal = *goal;
            let Some(input) = pending.next() else {
                done.insert(goal);
                ordered.push(goal);
                stack.pop();
                continue;
            };
            if let Some(at) = stack.iter().position(|(open, _)| open == input) {
                let mut cycle: Vec<_> = stack[at..].iter().map(|(goal, _)| *goal).collect();
                cycle.push(*input);
                return Err(cycle.into_iter().map(str::to_owned).collect());
            }
            if !done.contains(input) {
                stack.push((input, inputs_of(input)));
            }
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph<'a>(edges: &[(&'a str, &[&'a str])]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        edges
            .iter()
            .map(|(goal, inputs)| (*goal, inputs.iter().copied().collect()))
            .collect()
    }

    #[test]
    fn inputs_come_before_those_who_need_them() {
        let diamond = graph(&[
            ("top", &["left", "right"]),
            ("left", &["base"]),
            ("right", &["base"]),
        ]);
        assert_eq!(
            inputs_first(["top"], &diamond),
            Ok(vec!["base", "left", "right", "top"])
        );
        assert_eq!(
            inputs_first(["left", "base"], &diamond),
            Ok(vec!["base", "left"])
        );
    }

    #[test]
    fn a_circle_is_printed_all_the_way_round() {
        let circle = graph(&[
            ("start", &["a"]),
            ("a", &["b"]),
            ("b", &["c"]),
            ("c", &["a"]),
        ]);
        assert_eq!(
            inputs_first(["start"], &circle),
            Err(["a", "b", "c", "a"].map(str::to_owned).to_vec())
        );
        let itself = graph(&[("a", &["a"])]);
        assert_eq!(
            inputs_first(["a"], &itself),
            Err(vec!["a".to_owned(), "a".to_owned()])
        );
    }
}
