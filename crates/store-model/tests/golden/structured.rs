//! The files of structured attributes, as genuine Nix wrote them.
//!
//! `tests/data/structured-attrs/*.json` are values of `__json`; beside each lies what Nix 2.8.0
//! made of it for a builder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bstr::BString;
use store_model::derivation::placeholder::{Replacements, output_placeholder};
use store_model::derivation::structured_attrs::{AttrsFiles, StructuredAttrs};
use store_model::{OutputName, StoreDir};

use crate::derivations::parse_all;
use crate::fixtures;

fn data(name: &str) -> BString {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/structured-attrs")
        .join(name);
    fs::read(path).expect("test data").into()
}

/// Returns the files for a derivation of one output.
fn files(json: &[u8], out_path: &str) -> AttrsFiles {
    let name = OutputName::default();
    let rewrites = Replacements::from_iter([(output_placeholder(&name), out_path)]);
    let attributes = StructuredAttrs::parse(json).expect("Nix read it");
    let outputs = BTreeMap::from([(name, out_path.to_owned())]);
    attributes.files(&outputs, BTreeMap::new(), &rewrites)
}

#[test]
fn awkward_values_are_written_as_nix_writes_them() {
    let out_path = "/gnu/store/axhcqsd0frvhq0b1k831khirq9rgn4q7-awk";
    let written = files(&data("awkward.json"), out_path);
    assert_eq!(written.json, data("awkward.attrs.json"));
    assert_eq!(written.shell, data("awkward.attrs.sh"));
}

#[test]
fn floats_are_written_with_the_digits_of_nix() {
    let out_path = "/gnu/store/1ylxhgqhq1r7ivgz65jxqg1d8910bhwq-small";
    let written = files(&data("floats.json"), out_path);
    assert_eq!(written.json, data("floats.attrs.json"));
}

#[test]
fn the_structured_derivations_see_what_nix_showed_them() {
    let store_dir = StoreDir::default();
    let derivations = parse_all(fixtures::files("nix-2.8/drv", ".drv"));
    let mut n_checked = 0;
    for (name, from) in [("structured", "out"), ("structured-multi", "dev")] {
        let derivation = derivations
            .values()
            .find(|derivation| derivation.name == name)
            .expect("a derivation of the fixtures");
        let outputs: BTreeMap<OutputName, String> = derivation
            .known_outputs()
            .map(|(name, path)| (name.clone(), store_dir.print(path)))
            .collect();
        let rewrites = outputs
            .iter()
            .map(|(name, path)| (output_placeholder(name), path.as_str()))
            .collect();
        let attributes = derivation.attributes().expect("Nix read them");
        let structured = attributes.structured().expect("they are structured");
        let written = structured.files(&outputs, BTreeMap::new(), &rewrites);
        let path = derivation.outputs[from].path().expect("a path");
        assert_eq!(written.json, fixtures::file_of(path, "attrs.json"));
        assert_eq!(written.shell, fixtures::file_of(path, "attrs.sh"));
        n_checked += 1;
    }
    assert_eq!(n_checked, 2);
}
