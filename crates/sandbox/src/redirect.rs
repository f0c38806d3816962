//! Other places for outputs that must not be touched while they are made again.
//!
//! In a sandbox the builder's store has no outputs in it. Outside, what is valid or is to be repaired
//! lies where its builder would put it. So the builder is told other paths of the same length: in all
//! that it is told their hash parts replace the real ones, and whoever registers what it made
//! replaces them back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use store_model::derivation::placeholder::Replacements;
use store_model::{Hash, HashAlgorithm, StoreDir, StorePath};

use crate::Error;

/// The home directory of every builder, which does not exist, so that none finds anything there.
pub(crate) const FAKE_HOME: &str = "/homeless-shelter";

/// Where outputs are made instead, by their own paths.
pub type Redirections = BTreeMap<StorePath, StorePath>;

/// Returns where an output is made instead of at its own path: the same in every build.
///
/// # Errors
/// There is no path with such a name.
pub fn redirected_path(
    store_dir: &StoreDir,
    drv_path: &StorePath,
    output: &StorePath,
) -> Result<StorePath, Error> {
    made_up_path(store_dir, &format!("{drv_path}:{output}"), output.name())
}

/// Returns a path of this name that nothing else has, since nothing else is hashed like that.
pub(crate) fn made_up_path(
    store_dir: &StoreDir,
    what: &str,
    name: &str,
) -> Result<StorePath, Error> {
    let no_hash = "0".repeat(64);
    let text = format!("rewrite:{what}:sha256:{no_hash}:{store_dir}:{name}");
    let compressed = Hash::digest(HashAlgorithm::Sha256, text.as_bytes()).compress(20);
    let mut digest = [0; 20];
    digest.copy_from_slice(&compressed);
    StorePath::from_digest(&digest, name).map_err(|source| Error::OutputPath { source })
}

/// Finds other places for those of a build's outputs that lie in the store already.
///
/// # Errors
/// There is no path with such a name.
pub(crate) fn redirect(
    store_dir: &StoreDir,
    real_store_dir: &Path,
    drv_path: &StorePath,
    outputs: &[StorePath],
) -> Result<Redirections, Error> {
    let is_there = |output: &&StorePath| {
        let path = real_store_dir.join(output.base_name());
        path.symlink_metadata().is_ok()
    };
    outputs
        .iter()
        .filter(is_there)
        .map(|output| {
            let elsewhere = redirected_path(store_dir, drv_path, output)?;
            Ok((output.clone(), elsewhere))
        })
        .collect()
}

/// Adds the hash parts of these outputs to what is replaced in all that a builder is told.
pub(crate) fn add_hash_parts(replacements: &mut Replacements, redirected: &Redirections) {
    for (output, elsewhere) in redirected {
        replacements.insert(output.hash_part(), elsewhere.hash_part());
    }
}

/// Refuses a builder without a sandbox where the home directory that must not exist does.
///
/// # Errors
/// It exists.
pub(crate) fn refuse_home(home: &Path) -> Result<(), Error> {
    if home.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Error::HomeExists {
        path: PathBuf::from(home),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use bstr::ByteSlice as _;

    use super::*;
    use crate::SetupFault;

    fn path(letter: char, name: &str) -> StorePath {
        format!("{}-{name}", letter.to_string().repeat(32))
            .parse()
            .unwrap()
    }

    #[test]
    fn only_what_is_there_is_made_elsewhere_under_a_path_of_the_same_length() {
        let scratch = tempfile::tempdir().unwrap();
        let (there, link, missing) = (path('a', "x"), path('b', "x-dev"), path('c', "x-doc"));
        std::fs::write(scratch.path().join(there.base_name()), "").unwrap();
        let dangling = scratch.path().join(link.base_name());
        std::os::unix::fs::symlink("nowhere", dangling).unwrap();
        let store_dir = StoreDir::default();
        let outputs = [there.clone(), link.clone(), missing];
        let redirected = redirect(&store_dir, scratch.path(), &path('d', "x.drv"), &outputs);
        let redirected = redirected.unwrap();
        assert_eq!(redirected.keys().collect::<Vec<_>>(), [&there, &link]);
        for (output, elsewhere) in &redirected {
            assert_eq!(output.name(), elsewhere.name());
            assert_ne!(output.hash_part(), elsewhere.hash_part());
        }
        let mut replacements = Replacements::default();
        add_hash_parts(&mut replacements, &redirected);
        let told = format!("out={}/bin", store_dir.print(&there));
        let wanted = format!("out={}/bin", store_dir.print(&redirected[&there]));
        assert_eq!(
            replacements.apply(told.as_str().into()).as_bytes(),
            wanted.as_bytes()
        );
    }

    #[test]
    fn the_place_is_the_one_that_nix_makes_up() {
        // `makeFallbackPath` of Nix 2.8, of an output of one of its own derivations.
        let store_dir = StoreDir::default();
        let (drv_path, output) = (path('d', "x.drv"), path('a', "x"));
        let digest = Hash::digest(
            HashAlgorithm::Sha256,
            format!(
                "rewrite:{drv_path}:{output}:sha256:{}:/nix/store:x",
                "0".repeat(64)
            )
            .as_bytes(),
        );
        let mut folded = [0; 20];
        for (idx, byte) in digest.as_bytes().iter().enumerate() {
            folded[idx % 20] ^= byte;
        }
        let wanted = StorePath::from_digest(&folded, "x").unwrap();
        let redirected = redirected_path(&store_dir, &drv_path, &output).unwrap();
        assert_eq!(redirected, wanted);
    }

    #[test]
    fn a_home_that_exists_stands_in_the_way() {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path().join("homeless-shelter");
        refuse_home(&home).unwrap();
        std::os::unix::fs::symlink("nowhere", &home).unwrap();
        let refused = refuse_home(&home).unwrap_err();
        assert_eq!(refused.fault(), SetupFault::Refused);
        let words = "exists; please remove it to assure purity of builds without sandboxing";
        assert!(refused.to_string().ends_with(words), "{refused}");
    }
}
