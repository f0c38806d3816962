//! `exportReferencesGraph`: a builder is told what paths refer to, such as one that makes an image
//! of a whole closure.
//!
//! Each graph has a name and some roots, which must be among the builder's inputs. It covers the
//! closure of the roots and, so that everything needed to build something can be shipped, the
//! closures of the outputs of derivations in it. Who has a store collects these paths in three
//! steps:
//!
//! 1. [`ReferenceGraphs::check_inputs`], then the closure of a graph's roots;
//! 2. [`graph_outputs`] of each derivation in it, then the closure of roots and outputs;
//! 3. [`registration_text`] of that, for a file of the graph's name, or [`closure_to_json`] where
//!    attributes are structured.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BString, ByteSlice as _};

use super::attributes::words;
use super::structured_attrs::Value;
use crate::closure::closure_sizes;
use crate::derivation::Attributes;
use crate::{Derivation, Error, PathInfo, StoreDir, StorePath};

/// The attribute.
const ATTRIBUTE: &str = "exportReferencesGraph";

/// What is known of every path in some graphs, by the graph's name.
pub type GraphInfos = BTreeMap<String, BTreeMap<StorePath, PathInfo>>;

/// The graphs that a derivation wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceGraphs {
    /// The roots by the graph's name: of a file in the build directory, or of an attribute where
    /// those are structured.
    pub roots: BTreeMap<String, BTreeSet<StorePath>>,
}

impl ReferenceGraphs {
    /// Reads what a derivation wants.
    ///
    /// # Errors
    /// [`Error::InvalidDerivation`]: a word without its partner, or something beside a name that is
    /// no store path. [`Error::Attribute`]: a name that no file should have, or, where attributes
    /// are structured, something that is no store path. So does Nix tell them apart.
    pub fn read(attributes: &Attributes<'_>, store_dir: &StoreDir) -> Result<Self, Error> {
        let roots = if attributes.structured().is_some() {
            structured_roots(attributes, store_dir)?
        } else {
            unstructured_roots(attributes, store_dir)?
        };
        Ok(Self { roots })
    }

    /// Checks that every root is something that the builder may see.
    ///
    /// # Errors
    /// [`Error::InvalidDerivation`] for a root outside `inputs`, the closure of the builder's
    /// inputs.
    pub fn check_inputs(
        &self,
        derivation: &Derivation,
        inputs: &BTreeSet<StorePath>,
    ) -> Result<(), Error> {
        for (name, roots) in &self.roots {
            if let Some(outside) = roots.iter().find(|root| !inputs.contains(*root)) {
                return Err(Error::InvalidDerivation {
                    drv_name: derivation.name.clone(),
                    reason: format!(
                        "cannot export references of path '{outside}' as '{name}' because it is \
                         not in the input closure of the derivation"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Reads `name path name path …`; a path may lead into a store object.
fn unstructured_roots(
    attributes: &Attributes<'_>,
    store_dir: &StoreDir,
) -> Result<BTreeMap<String, BTreeSet<StorePath>>, Error> {
    let mut roots = BTreeMap::new();
    let text = attributes.text(ATTRIBUTE)?.unwrap_or_default();
    let all_words: Vec<&[u8]> = words(&text).collect();
    let invalid = |reason: String| Error::InvalidDerivation {
        drv_name: attributes.derivation().name.clone(),
        reason: format!("its '{ATTRIBUTE}' {reason}"),
    };
    let (pairs, []) = all_words.as_chunks() else {
        return Err(invalid("has an odd number of words".to_owned()));
    };
    for [name, path] in pairs {
        let Some(name) = file_name(name) else {
            let reason = format!("has an invalid file name '{}'", name.as_bstr());
            return Err(attributes.refuse(ATTRIBUTE, reason));
        };
        let root = store_dir
            .parse_inside(path)
            .map_err(|_| invalid(format!("contains a non-store path '{}'", path.as_bstr())))?;
        // Of two graphs of one name, the second overwrites the first one's file.
        roots.insert(name, [root].into());
    }
    Ok(roots)
}

/// Returns a name that is safe for a file in the build directory, and hides nothing that is there.
fn file_name(name: &[u8]) -> Option<String> {
    let name = name.to_str().ok()?;
    let is_first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let is_other = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_allowed = name.as_bytes().first().is_some_and(is_first) && name.bytes().all(is_other);
    is_allowed.then(|| name.to_owned())
}

/// Reads a set of graphs, each a path or a list of them; lists within lists, which Nix 2.8
/// refused, are read as today's Nix does.
fn structured_roots(
    attributes: &Attributes<'_>,
    store_dir: &StoreDir,
) -> Result<BTreeMap<String, BTreeSet<StorePath>>, Error> {
    // Nix leaves anything else than a set alone: it is an attribute like others then.
    let graphs = attributes
        .structured()
        .and_then(|all| all.get(ATTRIBUTE)?.as_object());
    let mut roots = BTreeMap::new();
    for (name, value) in graphs.into_iter().flatten() {
        let attribute = format!("{ATTRIBUTE}.{name}");
        if name == "outputs" {
            return Err(attributes.refuse(&attribute, "would hide the outputs' paths"));
        }
        let mut paths = BTreeSet::new();
        let mut left = vec![value];
        while let Some(value) = left.pop() {
            match value {
                Value::String(text) => {
                    let path = store_dir.parse(text).map_err(|_| {
                        attributes.refuse(&attribute, format!("contains a non-store path '{text}'"))
                    })?;
                    paths.insert(path);
                }
                Value::Null | Value::List(_) | Value::Object(_) => left.extend(value.elements()),
                Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                    return Err(attributes.refuse(&attribute, "must be a list of store paths"));
                }
            }
        }
        roots.insert(name.clone(), paths);
    }
    Ok(roots)
}

/// Returns the outputs of a derivation that is part of a graph, which belong to the graph too.
///
/// # Errors
/// [`Error::InvalidDerivation`]: an output has no path before it is built, so that it is not known
/// which of its builds is meant. Nix refuses that too.
pub fn graph_outputs(derivation: &Derivation) -> Result<BTreeSet<StorePath>, Error> {
    derivation
        .outputs
        .iter()
        .map(|(name, output)| {
            output
                .path()
                .cloned()
                .ok_or_else(|| Error::InvalidDerivation {
                    drv_name: derivation.name.clone(),
                    reason: format!(
                        "references of its output '{name}' cannot be exported because its path \
                     follows from its content"
                    ),
                })
        })
        .collect()
}

/// Returns paths and references as `nix-store --register-validity` reads them: for each path a
/// line for itself, for its deriver (empty), for the number of its references, and for each of
/// them.
#[must_use]
pub fn registration_text(closure: &BTreeMap<StorePath, PathInfo>, store_dir: &StoreDir) -> BString {
    let mut lines = Vec::new();
    for (path, info) in closure {
        lines.extend([
            store_dir.print(path),
            String::new(),
            info.references.len().to_string(),
        ]);
        lines.extend(info.references.iter().map(|path| store_dir.print(path)));
    }
    // Every line is ended, the last too.
    lines.push(String::new());
    lines.join("\n").into()
}

/// Returns paths, references and sizes as the value of a structured attribute.
///
/// # Errors
/// [`Error::UnknownPath`] if `closure` is not closed.
pub fn closure_to_json(
    closure: &BTreeMap<StorePath, PathInfo>,
    store_dir: &StoreDir,
) -> Result<Value, Error> {
    let sizes = closure_sizes(closure)?;
    let print = |path: &StorePath| Value::String(store_dir.print(path));
    let paths = closure
        .iter()
        .zip(sizes)
        .map(|((path, info), closure_size_bytes)| {
            let references = info.references.iter().map(print).collect();
            let mut members = BTreeMap::from([
                ("closureSize", Value::Integer(closure_size_bytes.into())),
                ("narHash", Value::String(info.nar_hash.to_string())),
                ("narSize", Value::Integer(info.nar_size_bytes.into())),
                ("path", print(path)),
                ("references", Value::List(references)),
            ]);
            if let Some(address) = &info.content_address {
                members.insert("ca", Value::String(address.clone()));
            }
            let named = members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            Value::Object(named.collect())
        });
    Ok(Value::List(paths.collect()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::derivation::tests::derivation;
    use crate::{DerivationOutput, OutputName};

    const A: &str = "/nix/store/xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-a";
    const B: &str = "/nix/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-b";

    fn read(variable: &str, value: &str) -> Result<ReferenceGraphs, Error> {
        let mut derivation = derivation();
        derivation.env.insert(variable.into(), value.into());
        ReferenceGraphs::read(&derivation.attributes().unwrap(), &StoreDir::default())
    }

    fn names(graphs: &ReferenceGraphs) -> Vec<String> {
        graphs
            .roots
            .iter()
            .map(|(name, roots)| format!("{name}: {roots:?}"))
            .collect()
    }

    #[test]
    fn words_are_pairs_of_a_file_name_and_a_path() {
        let graphs = read(ATTRIBUTE, &format!(" g {A}/bin/x\n _G.9- {B}\tg {B}")).unwrap();
        let b = &B["/nix/store/".len()..];
        assert_eq!(
            names(&graphs),
            [format!("_G.9-: {{{b}}}"), format!("g: {{{b}}}")]
        );
        assert_eq!(read("x", "").unwrap(), ReferenceGraphs::default());
        assert_eq!(read(ATTRIBUTE, " ").unwrap(), ReferenceGraphs::default());
    }

    #[test]
    fn names_that_could_hide_or_leave_something_are_refused() {
        for name in [".attrs", "-a", "9", "a/b", "..", "a\u{e9}", "a$"] {
            let error = read(ATTRIBUTE, &format!("{name} {A}")).unwrap_err();
            assert!(error.to_string().contains("file name"), "{error}");
        }
        for path in [
            "/etc/passwd",
            "/nix/store",
            "/nix/store/",
            "/nix/store/x",
            "x",
            "/nix/storex/y",
        ] {
            let error = read(ATTRIBUTE, &format!("a {path}")).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with(&format!("non-store path '{path}'")),
                "{error}"
            );
        }
        let error = read(ATTRIBUTE, "a").unwrap_err();
        assert!(error.to_string().contains("odd number"), "{error}");
    }

    #[test]
    fn structured_graphs_are_paths_or_lists_of_them() {
        let json = format!(
            r#"{{"exportReferencesGraph":{{"one":"{A}","two":["{B}",["{A}"]],"none":[]}}}}"#
        );
        let graphs = read("__json", &json).unwrap();
        let sizes: Vec<usize> = graphs.roots.values().map(BTreeSet::len).collect();
        assert_eq!(sizes, [0, 1, 2]);
        for graphs in ["1", "\"x\"", "[]", "null"] {
            let json = format!(r#"{{"exportReferencesGraph":{graphs}}}"#);
            assert_eq!(read("__json", &json).unwrap(), ReferenceGraphs::default());
        }
        for graph in [
            r#""a":1"#,
            r#""a":[true]"#,
            r#""a":"/etc""#,
            r#""outputs":[]"#,
        ] {
            let json = format!(r#"{{"exportReferencesGraph":{{{graph}}}}}"#);
            assert!(read("__json", &json).is_err(), "{graph}");
        }
        let into = format!(r#"{{"exportReferencesGraph":{{"a":"{A}/bin"}}}}"#);
        assert!(read("__json", &into).is_err());
    }

    #[test]
    fn roots_must_be_inputs() {
        let graphs = read(ATTRIBUTE, &format!("a {A} b {B}")).unwrap();
        let all: BTreeSet<StorePath> = graphs.roots.values().flatten().cloned().collect();
        assert_eq!(graphs.check_inputs(&derivation(), &all), Ok(()));
        let a = StoreDir::default().parse(A).unwrap();
        let error = graphs.check_inputs(&derivation(), &[a].into()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("-b' as 'b' because it is not in"),
            "{error}"
        );
    }

    #[test]
    fn outputs_without_a_path_cannot_be_exported() {
        let mut derivation = derivation();
        assert_eq!(graph_outputs(&derivation).unwrap().len(), 2);
        derivation
            .outputs
            .insert(OutputName::default(), DerivationOutput::Deferred);
        assert!(graph_outputs(&derivation).is_err());
    }
}
