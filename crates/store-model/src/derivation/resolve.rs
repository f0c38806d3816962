//! Turns a derivation into a basic one: with paths instead of input derivations.
//!
//! That is how a derivation with floating inputs is built. Two that differ only in how their
//! inputs came about resolve to the same one, which is built once.

use super::DerivationKind;
use super::placeholder::{Replacements, downstream_placeholder};
use crate::{Derivation, Error, HashModuloCache, OutputName, StoreDir, StorePath};

impl Derivation {
    /// Replaces texts in the builder, the arguments and the environment, names included.
    pub fn replace(&mut self, replacements: &Replacements) {
        if replacements.is_empty() {
            return;
        }
        let apply = |text: &bstr::BString| replacements.apply(text.as_ref()).into_owned();
        self.builder = apply(&self.builder);
        for arg in &mut self.args {
            *arg = apply(arg);
        }
        self.env = std::mem::take(&mut self.env)
            .iter()
            .map(|(name, value)| (apply(name), apply(value)))
            .collect();
    }

    /// Returns this derivation with what its input derivations made among its sources, and their
    /// placeholders replaced; deferred outputs get their paths.
    ///
    /// `output_path` returns where an output of an input is, once that is built.
    ///
    /// # Errors
    /// An output is not known, or no path can be made of the name.
    pub fn resolve(
        &self,
        store_dir: &StoreDir,
        mut output_path: impl FnMut(&StorePath, &OutputName) -> Option<StorePath>,
    ) -> Result<Self, Error> {
        let mut resolved = self.clone();
        let mut replacements = Replacements::default();
        for (input, names) in std::mem::take(&mut resolved.input_derivations) {
            for name in names {
                let path = output_path(&input, &name).ok_or_else(|| Error::InvalidDerivation {
                    drv_name: self.name.clone(),
                    reason: format!("output '{name}' of its input '{input}' is not known"),
                })?;
                replacements.insert(
                    downstream_placeholder(&input, &name),
                    store_dir.print(&path),
                );
                resolved.input_sources.insert(path);
            }
        }
        resolved.replace(&replacements);
        if resolved.kind()? == DerivationKind::Deferred {
            // There are no input derivations left whose hashes would be needed.
            resolved.fill_output_paths(&mut HashModuloCache::new(store_dir.clone()))?;
        }
        Ok(resolved)
    }
}
