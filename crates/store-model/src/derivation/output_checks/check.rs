//! Holds new outputs against what their derivation demands.

use std::collections::{BTreeMap, BTreeSet};

use bstr::ByteSlice as _;

use super::{Checks, Fault, ForbiddenPath, OutputChecks, Rejection, Rule, Violation};
use crate::closure::{Closure, KnownPath, KnownPaths};
use crate::{Error, OutputName, PathInfo, StoreDir, StorePath};

/// The outputs of one derivation.
#[derive(Debug, Clone, Copy)]
pub struct CheckedOutputs<'a> {
    /// The outputs to be checked, which need not be valid yet.
    pub new: &'a BTreeMap<OutputName, PathInfo>,
    /// Where the other outputs are, so that specifiers may name them.
    pub others: &'a BTreeMap<OutputName, StorePath>,
}

impl CheckedOutputs<'_> {
    fn path(&self, name: &[u8]) -> Option<&StorePath> {
        let name = name.to_str().ok()?;
        let new = self.new.get(name).map(|info| &info.path);
        new.or_else(|| self.others.get(name))
    }
}

/// What is known of new outputs and, behind them, of the rest of the store.
struct WithNewOutputs<'a, K> {
    new: BTreeMap<&'a StorePath, KnownPath<'a>>,
    rest: &'a K,
}

impl<K: KnownPaths> KnownPaths for WithNewOutputs<'_, K> {
    fn known(&self, path: &StorePath) -> Option<KnownPath<'_>> {
        self.new
            .get(path)
            .copied()
            .or_else(|| self.rest.known(path))
    }
}

impl OutputChecks {
    /// Returns the valid paths whose closure has to be known for [`OutputChecks::check`]; none if
    /// no check is about closures.
    #[must_use]
    pub fn closure_roots(&self, new: &BTreeMap<OutputName, PathInfo>) -> BTreeSet<StorePath> {
        let needs_closure = |name| {
            self.by_output
                .get(name)
                .is_some_and(|checks| checks.needs_closure())
        };
        if !new.keys().any(needs_closure) {
            return BTreeSet::new();
        }
        let mut roots: BTreeSet<StorePath> = new
            .values()
            .flat_map(|info| info.references.iter().cloned())
            .collect();
        for info in new.values() {
            roots.remove(&info.path);
        }
        roots
    }

    /// Returns what is wrong with new outputs, if anything is.
    ///
    /// `known` knows the closures of [`OutputChecks::closure_roots`]. The cost is that of one walk
    /// over the closure of each output.
    ///
    /// # Errors
    /// [`Error::UnknownPath`] if `known` does not know them.
    pub fn check(
        &self,
        store_dir: &StoreDir,
        outputs: CheckedOutputs<'_>,
        known: &impl KnownPaths,
    ) -> Result<Option<Rejection>, Error> {
        let known = WithNewOutputs {
            new: outputs
                .new
                .values()
                .map(|info| (&info.path, KnownPath::from(info)))
                .collect(),
            rest: known,
        };
        let mut violations = Vec::new();
        for (name, info) in outputs.new {
            let Some(checks) = self.by_output.get(name) else {
                continue;
            };
            let closure = if checks.needs_closure() {
                Some(Closure::walk([&info.path], &known)?)
            } else {
                None
            };
            let faults = checks.faults(store_dir, info, outputs, closure.as_ref());
            violations.extend(faults.into_iter().map(|fault| Violation {
                output: info.path.clone(),
                fault,
            }));
        }
        let rejection = Rejection {
            store_dir: store_dir.clone(),
            violations,
        };
        Ok((!rejection.violations.is_empty()).then_some(rejection))
    }
}

impl Checks {
    fn faults(
        &self,
        store_dir: &StoreDir,
        output: &PathInfo,
        outputs: CheckedOutputs<'_>,
        closure: Option<&Closure>,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(limit_bytes) = self.max_size_bytes
            && output.nar_size_bytes > limit_bytes
        {
            faults.push(Fault::TooLarge {
                nar_size_bytes: output.nar_size_bytes,
                limit_bytes,
            });
        }
        if let (Some(limit_bytes), Some(closure)) = (self.max_closure_size_bytes, closure)
            && closure.nar_size_bytes() > limit_bytes
        {
            let largest = closure.largest();
            faults.push(Fault::ClosureTooLarge {
                nar_size_bytes: closure.nar_size_bytes(),
                limit_bytes,
                largest: largest.map(|(path, size_bytes)| (path.clone(), size_bytes)),
            });
        }
        for (rule, specifiers) in &self.specifiers {
            let mut listed = BTreeSet::new();
            let n_faults = faults.len();
            for specifier in specifiers {
                let path = store_dir.parse_bytes(specifier).ok();
                if let Some(path) = path.or_else(|| outputs.path(specifier).cloned()) {
                    listed.insert(path);
                } else {
                    faults.push(Fault::IllegalSpecifier {
                        rule: *rule,
                        specifier: specifier.clone(),
                    });
                }
            }
            // What else breaks the rule is not known while part of it is not.
            if faults.len() == n_faults {
                let paths = self.forbidden(*rule, &listed, output, closure);
                if !paths.is_empty() {
                    faults.push(Fault::Forbidden { rule: *rule, paths });
                }
            }
        }
        faults
    }

    /// Returns the paths that `output` must not lead to but does, sorted.
    fn forbidden(
        &self,
        rule: Rule,
        listed: &BTreeSet<StorePath>,
        output: &PathInfo,
        closure: Option<&Closure>,
    ) -> Vec<ForbiddenPath> {
        let is_forbidden = |path: &&StorePath| rule.forbids(listed.contains(*path));
        let (Some(closure), true) = (closure, rule.is_recursive()) else {
            return output
                .references
                .iter()
                .filter(is_forbidden)
                .map(|path| ForbiddenPath {
                    path: path.clone(),
                    through: Vec::new(),
                })
                .collect();
        };
        let mut forbidden: Vec<ForbiddenPath> = closure
            .paths()
            .filter(|path| !(self.ignores_itself && **path == output.path))
            .filter(is_forbidden)
            .map(|path| {
                let way = closure.way_to(path);
                // The output stands first, the path last; the way to itself is one of one.
                let between = 1..way.len().max(2) - 1;
                ForbiddenPath {
                    path: path.clone(),
                    through: way.get(between).unwrap_or_default().to_vec(),
                }
            })
            .collect();
        forbidden.sort_by(|one, other| one.path.cmp(&other.path));
        forbidden
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use bstr::BString;
    use proptest::prelude::*;

    use super::*;
    use crate::closure::tests::{any_graph, info, naive_closure, numbered, store};
    use crate::derivation::tests::derivation;

    fn read(variable: &str, value: &str) -> OutputChecks {
        let mut derivation = derivation();
        derivation.env.insert(variable.into(), value.into());
        OutputChecks::read(&derivation.attributes().unwrap()).unwrap()
    }

    fn named<const N: usize>(outputs: [(&str, PathInfo); N]) -> BTreeMap<OutputName, PathInfo> {
        outputs
            .map(|(name, info)| (name.parse().unwrap(), info))
            .into()
    }

    fn check(
        checks: &OutputChecks,
        new: &BTreeMap<OutputName, PathInfo>,
        known: &BTreeMap<StorePath, PathInfo>,
    ) -> Option<String> {
        let outputs = CheckedOutputs {
            new,
            others: &BTreeMap::from([("dev".parse().unwrap(), numbered(40))]),
        };
        let rejection = checks.check(&StoreDir::default(), outputs, known).unwrap();
        rejection.map(|rejection| rejection.to_string())
    }

    fn print(number: usize) -> String {
        StoreDir::default().print(&numbered(number))
    }

    #[test]
    fn every_offending_path_is_named_with_the_way_to_it() {
        let known = store(&[vec![0], vec![0, 2], vec![3], vec![]]);
        let new = named([("out", info(20, &[20, 1]))]);
        let checks = read(
            "disallowedRequisites",
            &format!("{} {}", print(3), print(0)),
        );
        let expected = format!(
            "output '{}' is not allowed to refer to the following paths by its \
             'disallowedRequisites':\n  {}, through {}\n  {}, through {} -> {}",
            print(20),
            print(0),
            print(1),
            print(3),
            print(1),
            print(2)
        );
        assert_eq!(check(&checks, &new, &known), Some(expected));
    }

    #[test]
    fn specifiers_are_paths_or_outputs_and_all_illegal_ones_are_named() {
        let known = store(&[vec![]]);
        let new = named([("out", info(20, &[20, 40]))]);
        let allowed =
            |specifiers: &str| check(&read("allowedReferences", specifiers), &new, &known);
        assert_eq!(allowed("dev out"), None);
        assert_eq!(allowed(&format!("{} out", print(40))), None);
        assert!(allowed("out").unwrap().contains(&print(40)));
        let message = allowed(&format!("doc {}/bin out", print(40))).unwrap();
        assert!(
            message.contains("specifier 'doc' in 'allowedReferences'"),
            "{message}"
        );
        assert!(message.contains("/bin'"), "{message}");
        assert!(!message.contains("is not allowed to refer"), "{message}");
    }

    #[test]
    fn structured_requisites_include_the_output_itself_unless_told_otherwise() {
        let known = store(&[vec![]]);
        let new = named([("out", info(20, &[]))]);
        let structured = |more: &str| {
            let json = format!(r#"{{"outputChecks":{{"out":{{"allowedRequisites":[]{more}}}}}}}"#);
            check(&read("__json", &json), &new, &known)
        };
        let message = structured("").unwrap();
        assert!(
            message.ends_with(&format!(":\n  {}", print(20))),
            "{message}"
        );
        assert_eq!(structured(r#","ignoreSelfRefs":true"#), None);
        assert_eq!(check(&read("allowedRequisites", ""), &new, &known), None);
    }

    #[test]
    fn sizes_may_be_as_large_as_the_limit() {
        let known = store(&[vec![], vec![0]]);
        let new = named([("out", info(10, &[1, 10])), ("dev", info(11, &[]))]);
        let with = |limits: &str| {
            let json = format!(r#"{{"outputChecks":{{"out":{{{limits}}}}}}}"#);
            check(&read("__json", &json), &new, &known)
        };
        assert_eq!(with(r#""maxSize":1024,"maxClosureSize":1027"#), None);
        let expected = format!(
            "path '{0}' is too large at 1024 bytes; limit is 1023 bytes\n\
             closure of path '{0}' is too large at 1027 bytes; limit is 1026 bytes; \
             largest in it is '{0}' at 1024 bytes",
            print(10)
        );
        assert_eq!(
            with(r#""maxSize":1023,"maxClosureSize":1026"#),
            Some(expected)
        );
    }

    #[test]
    fn only_checks_of_closures_ask_for_closures() {
        let new = named([("out", info(20, &[20, 21, 1])), ("dev", info(21, &[2]))]);
        assert!(read("allowedReferences", "").closure_roots(&new).is_empty());
        let roots = read("allowedRequisites", "").closure_roots(&new);
        assert_eq!(roots, [numbered(1), numbered(2)].into());
    }

    #[test]
    fn a_long_chain_is_checked_without_recursion_and_in_linear_time() {
        let path = |number: u32| {
            let mut digest = [0; 20];
            digest[..4].copy_from_slice(&number.to_be_bytes());
            StorePath::from_digest(&digest, "p").unwrap()
        };
        let known: BTreeMap<StorePath, PathInfo> = (0..20_000)
            .map(|number| {
                let mut info = info(0, &[]);
                info.path = path(number);
                info.references = [path(number + 1)].into();
                (path(number), info)
            })
            .chain([(path(20_000), info(0, &[]))])
            .collect();
        let mut out = info(20, &[]);
        out.references = [path(0)].into();
        let last = StoreDir::default().print(&path(20_000));
        let message = check(
            &read("disallowedRequisites", &last),
            &named([("out", out)]),
            &known,
        );
        assert_eq!(message.unwrap().matches(" -> ").count(), 19_999);
    }

    proptest! {
        #[test]
        fn checks_equal_a_naive_walk_on_random_graphs(
            graph in any_graph(),
            listed in proptest::collection::btree_set(0usize..12, 0..5),
            rule in proptest::sample::select(Rule::ALL.to_vec()),
            is_structured: bool,
        ) {
            // Path 0 is the new output.
            let mut known = store(&graph);
            let new = named([("out", known.remove(&numbered(0)).unwrap())]);
            let specifiers: Vec<String> = listed.iter().map(|number| print(*number)).collect();
            let checks = if is_structured {
                let json = format!(
                    r#"{{"outputChecks":{{"out":{{"{}":{specifiers:?}}}}}}}"#,
                    rule.attribute()
                );
                read("__json", &json)
            } else {
                read(rule.attribute(), &specifiers.join(" "))
            };

            let mut used = if rule.is_recursive() {
                naive_closure(&graph, 0)
            } else {
                graph[0].iter().copied().collect()
            };
            if rule.is_recursive() && !is_structured {
                used.remove(&0);
            }
            let is_allow_list =
                matches!(rule, Rule::AllowedReferences | Rule::AllowedRequisites);
            let expected: BTreeSet<StorePath> = used
                .iter()
                .filter(|number| listed.contains(number) != is_allow_list)
                .map(|number| numbered(*number))
                .collect();

            let outputs = CheckedOutputs { new: &new, others: &BTreeMap::new() };
            let rejection = checks.check(&StoreDir::default(), outputs, &known).unwrap();
            let mut found = BTreeSet::new();
            for violation in rejection.iter().flat_map(|rejection| &rejection.violations) {
                let Fault::Forbidden { paths, .. } = &violation.fault else {
                    panic!("{violation:?}");
                };
                found.extend(paths.iter().map(|forbidden| forbidden.path.clone()));
                for forbidden in paths {
                    let mut at = &new["out"];
                    for path in &forbidden.through {
                        prop_assert!(at.references.contains(path));
                        at = &known[path];
                    }
                    prop_assert!(forbidden.path == at.path || at.references.contains(&forbidden.path));
                }
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_specifier_need_not_be_text() {
        let mut derivation = derivation();
        derivation
            .env
            .insert("allowedReferences".into(), BString::from(&b"\xff"[..]));
        let checks = OutputChecks::read(&derivation.attributes().unwrap()).unwrap();
        let message = check(&checks, &named([("out", info(20, &[]))]), &store(&[]));
        assert!(message.unwrap().contains("illegal reference specifier"));
    }
}
