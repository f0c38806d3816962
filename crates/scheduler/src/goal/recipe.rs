//! What the machine of a derivation goal needs to know about its derivation.

use std::collections::{BTreeMap, BTreeSet};

use store_model::derivation::output_checks::OutputChecks;
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, OutputName, Settings, StorePath};

use crate::error::chain;

/// The part of a derivation that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Outputs by name, with their paths.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// Derivations that must be realised first.
    pub inputs: Vec<(StorePath, WantedOutputs)>,
    /// Paths that must be valid first.
    pub sources: BTreeSet<StorePath>,
    /// Whether every output is fixed: a failed download may succeed another time.
    pub is_fixed_output: bool,
    /// Whether the builder is one of the built-in ones.
    pub is_builtin: bool,
    /// Why this machine cannot build it, if so.
    pub obstacle: Option<String>,
}

impl Recipe {
    /// Reads a derivation in the light of what this machine offers.
    #[must_use]
    pub fn new(drv_path: &str, derivation: &Derivation, settings: &Settings) -> Self {
        Self {
            outputs: derivation
                .known_outputs()
                .map(|(name, path)| (name.clone(), path.clone()))
                .collect(),
            inputs: derivation
                .input_derivations
                .iter()
                .map(|(path, outputs)| (path.clone(), WantedOutputs::These(outputs.clone())))
                .collect(),
            sources: derivation.input_sources.clone(),
            is_fixed_output: derivation.is_fixed_output(),
            is_builtin: derivation.is_builtin(),
            obstacle: obstacle(drv_path, derivation, settings),
        }
    }

    /// Returns whether the derivation has one output `out`, whose path follows from its contents.
    #[must_use]
    pub fn is_hashable(&self) -> bool {
        self.is_fixed_output && self.outputs.keys().eq([&OutputName::default()])
    }

    /// Returns the wanted names that are no outputs.
    #[must_use]
    pub fn unknown_outputs(&self, wanted: &WantedOutputs) -> Vec<String> {
        match wanted {
            WantedOutputs::All => Vec::new(),
            WantedOutputs::These(names) => names
                .iter()
                .filter(|name| !self.outputs.contains_key(*name))
                .map(ToString::to_string)
                .collect(),
        }
    }

    /// Returns the wanted outputs with their paths.
    #[must_use]
    pub fn wanted(&self, wanted: &WantedOutputs) -> BTreeMap<OutputName, StorePath> {
        self.outputs
            .iter()
            .filter(|(name, _)| wanted.contains(name))
            .map(|(name, path)| (name.clone(), path.clone()))
            .collect()
    }
}

/// Reads what a derivation demands of its outputs.
///
/// # Errors
/// Its attributes are malformed.
pub(crate) fn output_checks(derivation: &Derivation) -> Result<OutputChecks, store_model::Error> {
    OutputChecks::read(&derivation.attributes()?)
}

/// Returns why this machine cannot build a derivation: its system or its features (SPEC C1), or a
/// kind of output whose path is not known in advance, or attributes that nobody could read.
fn obstacle(drv_path: &str, derivation: &Derivation, settings: &Settings) -> Option<String> {
    if let Some(name) = derivation
        .outputs
        .iter()
        .find_map(|(name, output)| output.path().is_none().then_some(name))
    {
        return Some(format!(
            "cannot build '{drv_path}': its output '{name}' has no path before the build, which \
             needs the experimental feature 'ca-derivations'"
        ));
    }
    if let Err(error) = output_checks(derivation) {
        return Some(format!("cannot build '{drv_path}': {error}"));
    }
    let system = derivation.system.to_string();
    let known_system = derivation.is_builtin()
        || system == settings.system
        || settings.extra_platforms.contains(&system);
    let required = derivation
        .attributes()
        .and_then(|attributes| attributes.words("requiredSystemFeatures"));
    let required = match required {
        Ok(required) => required.unwrap_or_default(),
        Err(error) => return Some(format!("cannot build '{drv_path}': {}", chain(&error))),
    };
    let missing: Vec<String> = required
        .iter()
        .map(ToString::to_string)
        .filter(|feature| !settings.system_features.contains(feature))
        .map(|feature| format!("'{feature}'"))
        .collect();
    if known_system && missing.is_empty() {
        return None;
    }
    let features: Vec<&str> = settings
        .system_features
        .iter()
        .map(String::as_str)
        .collect();
    let lacking = if known_system {
        format!("the system feature {}", missing.join(", "))
    } else {
        format!("a '{system}'")
    };
    Some(format!(
        "{lacking} is required to build '{drv_path}', but I am a '{}' with features {{{}}}",
        settings.system,
        features.join(", ")
    ))
}
