//! Orders and trees of paths that refer to one another, as `nix-store --query` prints them.

use std::collections::{BTreeMap, BTreeSet};

use store_model::StorePath;

/// What each path refers to.
pub(super) type References = BTreeMap<StorePath, BTreeSet<StorePath>>;

/// Returns `paths` with those that are referred to first; among equals, in order of name.
///
/// Paths that refer to one another in a circle, which no store should have, come in the order in
/// which they are met.
pub(super) fn references_first(
    paths: &BTreeSet<StorePath>,
    references: &References,
) -> Vec<StorePath> {
    let none = BTreeSet::new();
    let of = |path: &StorePath| references.get(path).unwrap_or(&none).iter();
    let mut met = BTreeSet::new();
    let mut ordered = Vec::with_capacity(paths.len());
    for root in paths {
        if !met.insert(root) {
            continue;
        }
        // An explicit stack: a chain of references may be longer than a thread's stack is deep.
        let mut stack = vec![(root, of(root))];
        while let Some((path, pending)) = stack.last_mut() {
            match pending.next() {
                Some(next) if paths.contains(next) => {
                    if met.insert(next) {
                        stack.push((next, of(next)));
                    }
                }
                Some(_) => {}
                None => {
                    ordered.push((*path).clone());
                    stack.pop();
                }
            }
        }
    }
    ordered
}

/// Where a line of a tree stands among its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Middle,
    Last,
}

/// Returns the lines of a tree; what has been printed before is only named.
///
/// `print` gives a path its full name.
pub(super) fn tree(
    root: &StorePath,
    references: &References,
    print: impl Fn(&StorePath) -> String,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = BTreeSet::new();
    // A path, its own prefix, and the prefix of what is below it.
    let mut stack = vec![(root.clone(), String::new(), String::new())];
    while let Some((path, first, below)) = stack.pop() {
        if !seen.insert(path.clone()) {
            lines.push(format!("{first}{} [...]", print(&path)));
            continue;
        }
        lines.push(format!("{first}{}", print(&path)));
        let children = references.get(&path).cloned().unwrap_or_default();
        let ordered = references_first(&children, references);
        let n_children = ordered.len();
        // Pushed backwards, so that the first is popped first.
        for (idx, child) in ordered.into_iter().enumerate().rev() {
            let place = if idx + 1 == n_children {
                Place::Last
            } else {
                Place::Middle
            };
            let (branch, continuation) = match place {
                Place::Middle => ("├───", "│   "),
                Place::Last => ("└───", "    "),
            };
            stack.push((
                child,
                format!("{below}{branch}"),
                format!("{below}{continuation}"),
            ));
        }
    }
    lines
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;
    use store_model::StoreDir;

    use super::*;

    fn fixtures() -> PathBuf {
        let shared = std::env::var_os("GOAL_SHARED").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
            PathBuf::from,
        );
        shared.join("fixtures/nix-2.8")
    }

    /// The references of every path of the fixtures, as genuine Nix told them.
    fn fixture_references() -> References {
        let dir = StoreDir::default();
        let text = std::fs::read(fixtures().join("path-info.json")).unwrap();
        let infos: Vec<Value> = serde_json::from_slice(&text).unwrap();
        let parse = |value: &Value| dir.parse(value.as_str().unwrap()).unwrap();
        infos
            .iter()
            .map(|info| {
                let references = info["references"].as_array().unwrap();
                (parse(&info["path"]), references.iter().map(parse).collect())
            })
            .collect()
    }

    /// Questions of the form `nix-store -q FLAG PATH` and their answers.
    fn answers(flag: &str) -> Vec<(StorePath, Vec<String>)> {
        let text = std::fs::read_to_string(fixtures().join("query/queries.txt")).unwrap();
        let start = format!("$ nix-store -q {flag} /nix/store/");
        let mut found = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let Some(path) = line.strip_prefix(&start) else {
                continue;
            };
            let mut answer = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.is_empty()) {
                answer.push(line.to_owned());
            }
            found.push((path.parse().unwrap(), answer));
        }
        assert!(found.len() > 2, "the fixtures have answers for {flag}");
        found
    }

    fn print(path: &StorePath) -> String {
        StoreDir::default().print(path)
    }

    fn closure(root: &StorePath, references: &References) -> BTreeSet<StorePath> {
        let mut found = BTreeSet::from([root.clone()]);
        let mut pending = vec![root.clone()];
        while let Some(path) = pending.pop() {
            for next in &references[&path] {
                if found.insert(next.clone()) {
                    pending.push(next.clone());
                }
            }
        }
        found
    }

    #[test]
    fn trees_are_drawn_as_nix_draws_them() {
        let references = fixture_references();
        for (root, answer) in answers("--tree") {
            if references.contains_key(&root) {
                assert_eq!(tree(&root, &references, print), answer);
            }
        }
    }

    #[test]
    fn requisites_come_in_the_order_of_nix() {
        let references = fixture_references();
        for (root, answer) in answers("--requisites") {
            if references.contains_key(&root) {
                let ordered = references_first(&closure(&root, &references), &references);
                assert_eq!(ordered.iter().map(print).collect::<Vec<_>>(), answer);
            }
        }
    }

    #[test]
    fn a_path_that_refers_to_itself_ends() {
        let path: StorePath = "l6bcrn7136a8mxanqvnyvrzv3m9xkq6i-self".parse().unwrap();
        let references = References::from([(path.clone(), BTreeSet::from([path.clone()]))]);
        assert_eq!(
            references_first(&BTreeSet::from([path.clone()]), &references),
            std::slice::from_ref(&path)
        );
        let lines = tree(&path, &references, |path| path.name().to_owned());
        assert_eq!(lines, ["self", "└───self [...]"]);
    }
}
