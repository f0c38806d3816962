//! Two inputs with the same hash modulo, of each of which another output is wanted.
//!
//! Nix 2.8.0 wrote the derivations of `tests/data/equal-inputs`: `use` wants `out` of one `lib` and
//! `dev` of another, and the two differ only in the address that their source is fetched from.

use std::path::Path;

use crate::derivations::{check_all, parse_all};
use crate::fixtures::files_in;

#[test]
fn outputs_wanted_of_inputs_with_the_same_hash_are_merged() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/equal-inputs");
    let derivations = parse_all(files_in(&directory, ".drv"));
    assert_eq!(derivations.len(), 5);
    check_all(&derivations);
}
