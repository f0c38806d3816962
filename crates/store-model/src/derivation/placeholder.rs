//! Stand-ins for paths that are not known while a derivation is written.

use crate::{Hash, HashAlgorithm, OutputName, StorePath};

/// How long every placeholder is: a slash and a SHA-256 in base-32.
pub const PLACEHOLDER_LEN: usize = 53;

/// Returns what stands for the derivation's own output `name` (`builtins.placeholder`).
#[must_use]
pub fn output_placeholder(name: &OutputName) -> String {
    of_clear_text(&format!("nix-output:{name}"))
}

/// Returns what stands for output `name` of the derivation at `drv_path` in another derivation,
/// while the output's path is not known.
#[must_use]
pub fn downstream_placeholder(drv_path: &StorePath, name: &OutputName) -> String {
    let drv_name = drv_path.name();
    let drv_name = drv_name.strip_suffix(".drv").unwrap_or(drv_name);
    of_clear_text(&format!(
        "nix-upstream-output:{}:{}",
        drv_path.hash_part(),
        name.path_name(drv_name)
    ))
}

fn of_clear_text(clear_text: &str) -> String {
    let digest = Hash::digest(HashAlgorithm::Sha256, clear_text.as_bytes());
    format!("/{}", digest.to_base32())
}
