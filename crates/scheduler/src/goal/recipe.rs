//! What the machine of a derivation goal needs to know about its derivation.

use std::collections::{BTreeMap, BTreeSet};

use store_model::derivation::BoolAttribute;
use store_model::derivation::output_checks::OutputChecks;
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, DerivationKind, DerivationOutput, OutputName, Settings, StorePath};

use crate::error::chain;

/// The part of a derivation that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Outputs by name, with their paths as far as these are known.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// Outputs whose paths are not known yet.
    pub unplaced: BTreeSet<OutputName>,
    /// Derivations that must be realised first.
    pub inputs: Vec<(StorePath, WantedOutputs)>,
    /// Paths that must be valid first.
    pub sources: BTreeSet<StorePath>,
    /// Whether every output is fixed: a failed download may succeed another time.
    pub is_fixed_output: bool,
    /// Whether the builder is one of the built-in ones.
    pub is_builtin: bool,
    /// Whether its inputs' paths decide what is built.
    pub resolution: Resolution,
    /// Whether caches may be asked for its outputs (`allowSubstitutes`, `always-allow-substitutes`).
    pub allows_substitutes: bool,
    /// Why this machine cannot build it, if so.
    pub obstacle: Option<String>,
}

/// What is built for a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The derivation itself.
    AsWritten,
    /// The basic derivation that it becomes when the paths of its inputs are known.
    WithInputs,
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
            unplaced: derivation
                .outputs
                .iter()
                .filter(|(_, output)| output.path().is_none())
                .map(|(name, _)| name.clone())
                .collect(),
            inputs: derivation
                .input_derivations
                .iter()
                .map(|(path, outputs)| (path.clone(), WantedOutputs::These(outputs.clone())))
                .collect(),
            sources: derivation.input_sources.clone(),
            is_fixed_output: derivation.is_fixed_output(),
            is_builtin: derivation.is_builtin(),
            resolution: resolution(derivation, settings),
            allows_substitutes: settings.always_allow_substitutes || allows_substitutes(derivation),
            obstacle: obstacle(drv_path, derivation, settings),
        }
    }

    /// Returns whether the derivation has one output `out`, whose path follows from its contents.
    #[must_use]
    pub fn is_hashable(&self) -> bool {
        self.is_fixed_output && self.outputs.keys().eq([&OutputName::default()])
    }

    /// Returns the same with the paths of further outputs.
    #[must_use]
    pub fn with_paths(&self, outputs: BTreeMap<OutputName, StorePath>) -> Self {
        let mut recipe = self.clone();
        recipe.unplaced.retain(|name| !outputs.contains_key(name));
        recipe.outputs.extend(outputs);
        recipe
    }

    /// Returns the wanted names that are no outputs.
    #[must_use]
    pub fn unknown_outputs(&self, wanted: &WantedOutputs) -> Vec<String> {
        match wanted {
            WantedOutputs::All => Vec::new(),
            WantedOutputs::These(names) => names
                .iter()
                .filter(|name| !self.outputs.contains_key(*name) && !self.unplaced.contains(*name))
                .map(ToString::to_string)
                .collect(),
        }
    }

    /// Returns the wanted outputs with their paths, those that are known.
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

/// Returns what is built for a derivation. An input-addressed one is built as it is written, unless
/// an input keeps it from having a path; a fixed one could be, but then it would be built again
/// where only the way to an input has changed.
fn resolution(derivation: &Derivation, settings: &Settings) -> Resolution {
    let is_basic = derivation.input_derivations.is_empty();
    match derivation.kind() {
        Ok(DerivationKind::Floating | DerivationKind::Deferred | DerivationKind::Fixed)
            if settings.has_ca_derivations() && !is_basic =>
        {
            Resolution::WithInputs
        }
        _ => Resolution::AsWritten,
    }
}

/// Returns whether caches may be asked for a derivation's outputs. What is malformed is told when it
/// is built.
fn allows_substitutes(derivation: &Derivation) -> bool {
    let attributes = derivation.attributes();
    let allows =
        attributes.and_then(|attributes| attributes.flag("allowSubstitutes", BoolAttribute::True));
    allows.unwrap_or(true)
}

/// Returns why this machine cannot build a derivation: its system or its features (SPEC C1), or a
/// kind of output that nobody has switched on, or attributes that nobody could read.
fn obstacle(drv_path: &str, derivation: &Derivation, settings: &Settings) -> Option<String> {
    let unplaced = |(name, output): (&OutputName, &DerivationOutput)| {
        output.path().is_none().then(|| name.clone())
    };
    if let Some(name) = derivation.outputs.iter().find_map(unplaced)
        && !settings.has_ca_derivations()
    {
        return Some(format!(
            "cannot build '{drv_path}': its output '{name}' has no path before the build, which \
             needs 'ca-derivations' among the 'experimental-features'"
        ));
    }
    if let Err(error) = derivation.kind() {
        return Some(format!("cannot build '{drv_path}': {error}"));
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
