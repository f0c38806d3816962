//! JSON of derivations and of path metadata.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use store_model::derivation::json::{derivations_from_json, derivations_to_json};
use store_model::path_info_json::{PathInfoJson, path_infos_to_json};
use store_model::{PathInfo, StoreDir, StorePath};

use crate::derivations::parse_all;
use crate::fixtures;

#[test]
fn derivations_print_as_show_derivation_prints_them_and_are_read_back() {
    let store_dir = StoreDir::default();
    for (directory, json) in [
        ("nix-2.8/drv", "nix-2.8/show-derivation.json"),
        ("nix-2.8/ca/drv", "nix-2.8/ca/show-derivation.json"),
    ] {
        let expected = std::fs::read(fixtures::fixture(json)).expect("a fixture");
        let all = parse_all(fixtures::files(directory, ".drv"));
        let read = derivations_from_json(&expected, &store_dir).expect("Nix's own JSON");
        for (path, derivation) in &read {
            assert_eq!(*derivation, *all[path], "{path}");
        }
        let printed = derivations_to_json(&read, &store_dir);
        assert!(printed == expected, "{json} prints differently");
        let sorted: BTreeMap<_, _> = all
            .iter()
            .map(|(path, derivation)| (path, &**derivation))
            .collect();
        let printed = derivations_to_json(sorted, &store_dir);
        assert!(printed == expected, "{json} prints differently from files");
    }
}

/// Makes metadata of what Nix printed.
pub(crate) fn path_info(json: &Value, store_dir: &StoreDir) -> PathInfo {
    let text = |key: &str| json[key].as_str();
    let path = |text: &str| -> StorePath { store_dir.parse(text).expect("a path of Nix") };
    let texts = |key: &str| -> BTreeSet<String> {
        let elements = json[key].as_array().cloned().unwrap_or_default();
        elements
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    PathInfo {
        path: path(text("path").expect("a path")),
        nar_hash: text("narHash")
            .and_then(|hash| hash.parse().ok())
            .expect("a hash"),
        nar_size_bytes: json["narSize"].as_u64().expect("a size"),
        references: texts("references").iter().map(|text| path(text)).collect(),
        deriver: text("deriver").map(path),
        registration_time: json["registrationTime"].as_i64().expect("a time"),
        ultimate: json["ultimate"].as_bool().unwrap_or(false),
        signatures: texts("signatures"),
        content_address: text("ca").map(str::to_owned),
    }
}

#[test]
fn path_metadata_prints_what_path_info_prints() {
    let store_dir = StoreDir::default();
    for json in [
        "nix-2.8/path-info.json",
        "nix-2.8/path-info-signed.json",
        "nix-2.8/ca/path-info.json",
    ] {
        let expected = std::fs::read(fixtures::fixture(json)).expect("a fixture");
        let expected: Vec<Value> = serde_json::from_slice(&expected).expect("Nix's own JSON");
        let infos: Vec<PathInfo> = expected
            .iter()
            .map(|json| path_info(json, &store_dir))
            .collect();
        let printed = path_infos_to_json(
            infos.iter().map(|info| PathInfoJson {
                path: &info.path,
                info: Some(info),
                closure_size_bytes: None,
            }),
            &store_dir,
        );
        let printed: Vec<Value> = serde_json::from_slice(&printed).expect("valid JSON");
        assert_eq!(printed, expected);
    }
}
