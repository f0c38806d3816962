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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::derivation::tests::derivation;
    use crate::{Hash, HashAlgorithm, IngestionMethod};

    fn hashes() -> HashModuloCache {
        HashModuloCache::new(StoreDir::default())
    }

    fn checked(derivation: &Derivation) -> Result<(), Error> {
        derivation.check_output_paths(&mut hashes())
    }

    /// Returns a derivation `x` that passes the check, with outputs `dev` and `out`.
    fn valid() -> Derivation {
        let mut derivation = derivation();
        derivation.fill_output_paths(&mut hashes()).unwrap();
        checked(&derivation).unwrap();
        derivation
    }

    fn fixed() -> Derivation {
        let output = DerivationOutput::Fixed {
            method: IngestionMethod::Flat,
            hash: Hash::digest(HashAlgorithm::Sha256, b"hello"),
            path: valid().outputs["out"].path().unwrap().clone(),
        };
        let mut derivation = Derivation {
            outputs: [(OutputName::default(), output)].into(),
            ..derivation()
        };
        derivation.fill_output_paths(&mut hashes()).unwrap();
        checked(&derivation).unwrap();
        derivation
    }

    /// The path of somebody else's program.
    fn victim() -> StorePath {
        "3kpanfwlka5vam0fiv8g1jyjd56l26jr-x".parse().unwrap()
    }

    #[test]
    fn an_output_path_that_does_not_follow_from_the_derivation_is_refused() {
        let mut derivation = valid();
        let victim = StoreDir::default().print(&victim());
        let real = derivation.outputs["out"].path().unwrap().clone();
        derivation.outputs.insert(
            OutputName::default(),
            DerivationOutput::InputAddressed(self::victim()),
        );
        derivation.env.insert("out".into(), victim.clone().into());
        assert_eq!(
            checked(&derivation),
            Err(Error::IncorrectOutputPath {
                drv_name: "x".to_owned(),
                actual: victim,
                expected: StoreDir::default().print(&real),
            })
        );
    }

    #[test]
    fn a_fixed_output_at_another_path_is_refused() {
        let mut derivation = fixed();
        for output in derivation.outputs.values_mut() {
            if let DerivationOutput::Fixed { path, .. } = output {
                *path = victim();
            }
        }
        let error = checked(&derivation).unwrap_err();
        assert!(
            matches!(error, Error::IncorrectOutputPath { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_variable_that_names_another_path_than_the_output_is_refused() {
        for derivation in [valid(), fixed()] {
            let mut elsewhere = derivation.clone();
            let victim = StoreDir::default().print(&victim());
            elsewhere.env.insert("out".into(), victim.into());
            let error = checked(&elsewhere).unwrap_err();
            assert!(
                matches!(error, Error::IncorrectOutputVariable { .. }),
                "{error}"
            );

            let mut absent = derivation;
            absent.env.remove(bstr::BStr::new("out"));
            assert!(checked(&absent).is_err());
        }
    }

    #[test]
    fn a_derivation_under_another_name_is_refused() {
        for derivation in [valid(), fixed()] {
            let renamed = Derivation {
                name: "hello".to_owned(),
                ..derivation
            };
            let error = checked(&renamed).unwrap_err();
            assert!(
                matches!(error, Error::IncorrectOutputPath { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn an_output_more_or_less_is_refused() {
        let mut more = valid();
        more.outputs.insert(
            "doc".parse().unwrap(),
            DerivationOutput::InputAddressed(victim()),
        );
        assert!(checked(&more).is_err());
        let mut less = valid();
        less.outputs.remove("dev");
        assert!(checked(&less).is_err());
    }

    #[test]
    fn a_path_that_could_be_known_must_not_be_left_out() {
        let mut derivation = valid();
        for output in derivation.outputs.values_mut() {
            *output = DerivationOutput::Deferred;
        }
        let error = checked(&derivation).unwrap_err();
        assert!(
            matches!(error, Error::IncorrectOutputPath { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_changed_variable_changes_the_path() {
        let mut derivation = valid();
        derivation.env.insert("x".into(), "other".into());
        let error = checked(&derivation).unwrap_err();
        assert!(
            matches!(error, Error::IncorrectOutputPath { .. }),
            "{error}"
        );
    }

    #[test]
    fn floating_outputs_get_placeholders_and_deferred_ones_nothing() {
        let mut floating = derivation();
        for output in floating.outputs.values_mut() {
            *output = DerivationOutput::Floating {
                method: IngestionMethod::Recursive,
                algorithm: HashAlgorithm::Sha256,
            };
        }
        let mut hashes = hashes();
        floating.fill_output_paths(&mut hashes).unwrap();
        assert_eq!(
            floating.env[bstr::BStr::new("out")],
            "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"
        );
        let path = floating.derivation_path(hashes.store_dir()).unwrap();
        let mut load = |_: &StorePath| -> Result<_, Error> { Ok(floating.clone().into()) };
        let mut above = derivation();
        above.input_derivations = [(path, [OutputName::default()].into())].into();
        hashes.fill_output_paths(&mut above, &mut load).unwrap();
        assert_eq!(above.outputs["out"], DerivationOutput::Deferred);
        assert_eq!(above.env[bstr::BStr::new("out")], "");
        assert_eq!(hashes.check_output_paths(&above, &mut load), Ok(()));
    }
}
