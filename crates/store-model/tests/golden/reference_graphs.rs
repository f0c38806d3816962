//! The graphs that genuine Nix wrote for builders.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use store_model::closure::Closure;
use store_model::derivation::placeholder::output_placeholder;
use store_model::derivation::reference_graphs::{
    ReferenceGraphs, closure_to_json, graph_outputs, registration_text,
};
use store_model::{Derivation, OutputName, PathInfo, StoreDir, StorePath};

use crate::derivations::parse_all;
use crate::fixtures;
use crate::json::path_info;

fn known() -> BTreeMap<StorePath, PathInfo> {
    let text = std::fs::read(fixtures::fixture("nix-2.8/path-info.json")).expect("a fixture");
    let infos: Vec<Json> = serde_json::from_slice(&text).expect("Nix's own JSON");
    infos
        .iter()
        .map(|json| path_info(json, &StoreDir::default()))
        .map(|info| (info.path.clone(), info))
        .collect()
}

fn derivation_named(name: &str) -> Derivation {
    let derivations = parse_all(fixtures::files("nix-2.8/drv", ".drv"));
    let found = derivations
        .values()
        .find(|derivation| derivation.name == name);
    Derivation::clone(found.expect("a derivation of the fixtures"))
}

fn closure_of(
    roots: &BTreeSet<StorePath>,
    known: &BTreeMap<StorePath, PathInfo>,
) -> BTreeMap<StorePath, PathInfo> {
    let closure = Closure::walk(roots, known).expect("everything is known");
    closure
        .paths()
        .map(|path| (path.clone(), known[path].clone()))
        .collect()
}

#[test]
fn files_of_graphs_are_those_that_nix_wrote() {
    let (known, store_dir) = (known(), StoreDir::default());
    let derivation = derivation_named("references-graph");
    let attributes = derivation.attributes().expect("Nix read them");
    let graphs = ReferenceGraphs::read(&attributes, &store_dir).expect("Nix read them");
    assert_eq!(graphs.roots.len(), 2);
    let out_path = derivation.outputs["out"].path().expect("a path");
    for (name, roots) in &graphs.roots {
        let text = registration_text(&closure_of(roots, &known), &store_dir);
        assert_eq!(text, fixtures::file_of(out_path, name));
    }
}

#[test]
fn structured_graphs_are_those_that_nix_wrote() {
    let (known, store_dir) = (known(), StoreDir::default());
    let derivation = derivation_named("structured-graph");
    let attributes = derivation.attributes().expect("Nix read them");
    let graphs = ReferenceGraphs::read(&attributes, &store_dir).expect("Nix read them");
    let values = graphs
        .roots
        .iter()
        .map(|(name, roots)| {
            let value = closure_to_json(&closure_of(roots, &known), &store_dir);
            (name.clone(), value.expect("a closed set"))
        })
        .collect();
    let out_path = derivation.outputs["out"].path().expect("a path");
    let name = OutputName::default();
    let printed = store_dir.print(out_path);
    let rewrites = [(output_placeholder(&name), printed.as_str())]
        .into_iter()
        .collect();
    let outputs = BTreeMap::from([(name, printed.clone())]);
    let structured = attributes.structured().expect("they are structured");
    let files = structured.files(&outputs, values, &rewrites);
    assert_eq!(files.json, fixtures::file_of(out_path, "attrs.json"));
    assert_eq!(files.shell, fixtures::file_of(out_path, "attrs.sh"));
}

#[test]
fn the_outputs_of_a_derivation_are_part_of_its_graph() {
    let derivation = derivation_named("multi-output");
    let outputs = graph_outputs(&derivation).expect("all paths are known");
    let known: BTreeSet<StorePath> = derivation
        .known_outputs()
        .map(|(_, path)| path.clone())
        .collect();
    assert!(outputs.len() > 2);
    assert_eq!(outputs, known);
}
