//! Checks that a derivation names the outputs that follow from it, and fills them in while it is
//! being made.
//!
//! Whoever may name any path as an output could build a Trojan horse at the path of somebody
//! else's program, so no derivation is registered or built before this check (SECURITY V04).

use bstr::BString;

use super::modulo::{Finality, HashModuloCache, LoadDerivation};
use super::placeholder;
use crate::content_address::References;
use crate::{Derivation, DerivationOutput, Error, OutputName, StoreDir, StorePath};

impl Derivation {
    /// Checks that every output path, and the environment variable of the output's name, is what
    /// follows from the derivation.
    ///
    /// `hashes` must know the inputs, see [`HashModuloCache::hash_inputs`].
    ///
    /// # Errors
    /// [`Error::IncorrectOutputPath`] or [`Error::IncorrectOutputVariable`] for a path that does
    /// not follow, [`Error::InvalidDerivation`] for outputs of several kinds or unknown inputs.
    pub fn check_output_paths(&self, hashes: &mut HashModuloCache) -> Result<(), Error> {
        let expected = self.expected_outputs(hashes)?;
        let store_dir = hashes.store_dir();
        let print =
            |path: Option<&StorePath>| path.map_or_else(String::new, |path| store_dir.print(path));
        for ((name, actual), expected) in self.outputs.iter().zip(&expected) {
            if actual != expected {
                return Err(Error::IncorrectOutputPath {
                    drv_name: self.name.clone(),
                    actual: print(actual.path()),
                    expected: print(expected.path()),
                });
            }
            let Some(path) = expected.path() else {
                continue;
            };
            let variable = self.env.get(name.as_str().as_bytes());
            let expected = store_dir.print(path);
            if variable.is_none_or(|value| *value != expected) {
                return Err(Error::IncorrectOutputVariable {
                    drv_name: self.name.clone(),
                    variable: name.to_string(),
                    actual: variable.map_or_else(String::new, ToString::to_string),
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Computes the output paths of a derivation that is being made, and sets them in the outputs
    /// and in the environment: the path where it is known, the placeholder of a floating output,
    /// nothing for a deferred one.
    ///
    /// Outputs that are input-addressed or deferred become whichever of the two they are; the path
    /// of a fixed output is replaced. Variables of outputs are overwritten.
    ///
    /// # Errors
    /// As [`Derivation::check_output_paths`], or the name makes no store path.
    pub fn fill_output_paths(&mut self, hashes: &mut HashModuloCache) -> Result<(), Error> {
        // The variables are part of what is hashed, masked: they must be there already.
        for name in self.outputs.keys() {
            self.env.entry(name.as_str().into()).or_default();
        }
        let filled = self.expected_outputs(hashes)?;
        let store_dir = hashes.store_dir();
        for ((name, output), filled) in self.outputs.iter_mut().zip(filled) {
            self.env
                .insert(name.as_str().into(), variable_of(name, &filled, store_dir));
            *output = filled;
        }
        Ok(())
    }

    /// Returns what the outputs should be, in the order of their names.
    fn expected_outputs(
        &self,
        hashes: &mut HashModuloCache,
    ) -> Result<Vec<DerivationOutput>, Error> {
        let masked = hashes.hash_masked(self)?;
        let store_dir = hashes.store_dir();
        self.outputs
            .iter()
            .map(|(name, output)| match output {
                DerivationOutput::InputAddressed(_) | DerivationOutput::Deferred => {
                    match (masked.finality, masked.outputs.get(name)) {
                        (Finality::Final, Some(hash)) => store_dir
                            .make_output_path(name, hash, &self.name)
                            .map(DerivationOutput::InputAddressed),
                        (Finality::Deferred, _) | (_, None) => Ok(DerivationOutput::Deferred),
                    }
                }
                DerivationOutput::Fixed { method, hash, .. } => store_dir
                    .make_fixed_output_path(
                        *method,
                        hash,
                        &name.path_name(&self.name),
                        &References::default(),
                    )
                    .map(|path| DerivationOutput::Fixed {
                        method: *method,
                        hash: *hash,
                        path,
                    }),
                DerivationOutput::Floating { .. } => Ok(output.clone()),
            })
            .collect()
    }
}

fn variable_of(name: &OutputName, output: &DerivationOutput, store_dir: &StoreDir) -> BString {
    match output {
        DerivationOutput::InputAddressed(path) | DerivationOutput::Fixed { path, .. } => {
            store_dir.print(path).into()
        }
        DerivationOutput::Floating { .. } => placeholder::output_placeholder(name).into(),
        DerivationOutput::Deferred => BString::default(),
    }
}

impl HashModuloCache {
    /// Hashes the inputs of `derivation` and checks its output paths.
    ///
    /// # Errors
    /// As [`HashModuloCache::hash_inputs`] and [`Derivation::check_output_paths`].
    pub fn check_output_paths<E: From<Error>>(
        &mut self,
        derivation: &Derivation,
        load: &mut LoadDerivation<'_, E>,
    ) -> Result<(), E> {
        self.hash_inputs(derivation, load)?;
        Ok(derivation.check_output_paths(self)?)
    }

    /// Hashes the inputs of `derivation` and fills in its output paths.
    ///
    /// # Errors
    /// As [`HashModuloCache::hash_inputs`] and [`Derivation::fill_output_paths`].
    pub fn fill_output_paths<E: From<Error>>(
        &mut self,
        derivation: &mut Derivation,
        load: &mut LoadDerivation<'_, E>,
    ) -> Result<(), E> {
        self.hash_inputs(derivation, load)?;
        Ok(derivation.fill_output_paths(self)?)
    }
}
