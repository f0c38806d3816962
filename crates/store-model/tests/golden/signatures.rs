//! Signatures and realisations of genuine Nix.

use serde_json::Value;
use store_model::{PublicKey, PublicKeys, Realisation, SecretKey, StoreDir};

use crate::fixtures;
use crate::json::path_info;

fn read(relative: &str) -> String {
    std::fs::read_to_string(fixtures::fixture(relative)).expect("a fixture can be read")
}

#[test]
fn paths_are_signed_as_nix_signs_them() {
    let store_dir = StoreDir::default();
    let secret: SecretKey = read("nix-2.8/keys/TEST-ONLY.sec")
        .parse()
        .expect("a key of Nix");
    let public: PublicKey = read("nix-2.8/keys/TEST-ONLY.pub")
        .parse()
        .expect("a key of Nix");
    assert_eq!(secret.to_public_key(), public);
    let keys: PublicKeys = [public].into_iter().collect();
    let infos: Vec<Value> =
        serde_json::from_str(&read("nix-2.8/path-info-signed.json")).expect("Nix's own JSON");
    assert!(!infos.is_empty());
    for json in &infos {
        let info = path_info(json, &store_dir);
        assert_eq!(info.signatures.len(), 1);
        let mut anew = info.clone();
        anew.signatures.clear();
        anew.sign(&store_dir, &secret);
        assert_eq!(anew, info);
        for signature in &info.signatures {
            assert!(keys.verify(&info.fingerprint(&store_dir), signature));
            assert!(!keys.verify("1;", signature));
        }
    }
}

#[test]
fn realisations_are_read_and_printed_as_nix_prints_them() {
    let all = read("nix-2.8/ca/realisations.json");
    let values: Vec<Value> = serde_json::from_str(&all).expect("Nix's own JSON");
    let printed: Vec<String> = values
        .iter()
        .map(|value| {
            let text = value.to_string();
            Realisation::from_json(text.as_bytes())
                .expect("Nix printed it")
                .to_json()
        })
        .collect();
    assert_eq!(format!("[{}]", printed.join(",")), all.trim_end());

    let files = fixtures::files("nix-2.8/ca/cache/realisations", ".doi");
    assert_eq!(files.len(), values.len());
    for (file_name, text) in files {
        let realisation = Realisation::from_json(&text).expect("Nix wrote it");
        assert_eq!(realisation.to_json().as_bytes(), text);
        assert_eq!(format!("{}.doi", realisation.id), file_name);
    }
}
