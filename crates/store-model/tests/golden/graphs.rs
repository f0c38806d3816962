//! Two real package sets, 45,437 derivations.

use std::fs::File;
use std::io::{self, Read as _};

use crate::derivations::{check_all, parse_all};
use crate::fixtures::fixture;

/// Reads the files of a `.tar.xz` one by one.
fn unpack(relative: &str) -> Vec<(String, Vec<u8>)> {
    let file = File::open(fixture(relative)).expect("a fixture can be opened");
    let mut archive = tar::Archive::new(xz2::read::XzDecoder::new(io::BufReader::new(file)));
    archive
        .entries()
        .expect("an archive can be read")
        .map(|entry| {
            let mut entry = entry.expect("an archive can be read");
            let path = entry.path().expect("a member has a name");
            let name = path.to_string_lossy().into_owned();
            let mut contents = Vec::new();
            entry
                .read_to_end(&mut contents)
                .expect("a member can be read");
            (name, contents)
        })
        .collect()
}

fn check_graph(relative: &str, n_expected: usize) {
    let derivations = parse_all(unpack(relative));
    assert_eq!(derivations.len(), n_expected);
    check_all(&derivations);
}

#[test]
fn every_derivation_of_a_nixpkgs_like_package_set_is_reproduced() {
    check_graph("drvs/corepkgs-2026.drvs.tar.xz", 28_181);
}

#[test]
fn every_derivation_of_debian_s_build_graph_is_reproduced() {
    check_graph("drvs/debian-bookworm-sample.drvs.tar.xz", 17_256);
}
