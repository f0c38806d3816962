//! Makes one derivation of one goal, once the paths of its sources and inputs are known.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use bstr::BString;
use store_model::content_address::References;
use store_model::derivation::placeholder::{downstream_placeholder, output_placeholder};
use store_model::store_path::{DERIVATION_SUFFIX, check_name};
use store_model::{
    Derivation, DerivationOutput, Hash, HashAlgorithm, IngestionMethod, OutputName, Settings,
    StoreDir, StorePath,
};

use super::file::{DefaultsTable, FixedTable, FloatingTable, GoalTable, HashMode};
use super::template::{self, Part};

/// What is wrong with one key of a goal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyError {
    pub(super) key: String,
    pub(super) reason: String,
}

/// What is known about the goals that come before this one.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) store_dir: &'a StoreDir,
    /// Of this goal, by the names that strings call them.
    pub(super) sources: &'a BTreeMap<String, StorePath>,
    /// By the names of their goals.
    pub(super) inputs: &'a BTreeMap<String, Instantiated>,
    /// What is configured: the platform of this machine, and which features there are.
    pub(super) settings: &'a Settings,
}

/// A goal that has become a derivation in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instantiated {
    /// The path of its derivation.
    pub(crate) drv_path: StorePath,
    /// The outputs, in the order in which the goal names them; those that float, or need what
    /// floats, have no path before they are built.
    pub(crate) outputs: Vec<(OutputName, Option<StorePath>)>,
}

/// Which goals a goal needs, from its strings and its `inputs`.
pub(super) fn needed_goals<'a>(
    goal: &'a GoalTable,
    defaults: &'a DefaultsTable,
) -> Result<BTreeSet<&'a str>, KeyError> {
    let mut needed = BTreeSet::new();
    let mentioned = strings_of(goal, defaults)
        .map(|(key, text)| template::parse(text).map_err(|reason| KeyError { key, reason }));
    for parts in mentioned {
        needed.extend(parts?.into_iter().filter_map(|part| match part {
            Part::Input { goal, .. } => Some(goal),
            Part::Text(_) | Part::Source(_) | Part::Output(_) => None,
        }));
    }
    for input in &goal.inputs {
        if let Part::Input { goal, .. } = template::parse_input(input) {
            needed.insert(goal);
        }
    }
    Ok(needed)
}

/// Makes the derivation, with the paths of input-addressed outputs still to be filled in.
pub(super) fn derive(
    goal_name: &str,
    goal: &GoalTable,
    defaults: &DefaultsTable,
    known: &Known<'_>,
) -> Result<Derivation, KeyError> {
    let refuse = |key: &str, reason: String| KeyError {
        key: key.to_owned(),
        reason,
    };
    check_goal_name(goal_name).map_err(|reason| refuse("", reason))?;
    let name = goal.name.as_deref().unwrap_or(goal_name);
    check_derivation_name(name).map_err(|reason| refuse("name", reason))?;
    let output_names = output_names(&goal.outputs).map_err(|reason| refuse("outputs", reason))?;
    let builder = goal
        .builder
        .as_ref()
        .or(defaults.builder.as_ref())
        .ok_or_else(|| {
            refuse(
                "builder",
                "it is missing, here and in [defaults]".to_owned(),
            )
        })?;
    let mut derivation = Derivation {
        name: name.to_owned(),
        outputs: outputs(goal, name, &output_names, known)?,
        input_derivations: BTreeMap::new(),
        input_sources: known.sources.values().cloned().collect(),
        system: goal
            .system
            .as_deref()
            .or(defaults.system.as_deref())
            .unwrap_or(&known.settings.system)
            .into(),
        builder: BString::default(),
        args: Vec::new(),
        env: BTreeMap::new(),
    };
    let mut strings = Strings {
        known,
        own_outputs: &output_names,
        wanted: BTreeMap::new(),
    };
    for input in &goal.inputs {
        if let Part::Input { goal, output } = template::parse_input(input) {
            strings
                .input(goal, output)
                .map_err(|reason| refuse("inputs", reason))?;
        }
    }
    derivation.builder = strings.fill("builder", builder)?;
    for arg in goal
        .args
        .iter()
        .chain(&defaults.args)
        .next()
        .into_iter()
        .flatten()
    {
        derivation.args.push(strings.fill("args", arg)?);
    }
    for (variable, text) in variables(goal, defaults) {
        let value = strings.fill(&format!("env.{variable}"), text)?;
        check_variable(variable, &output_names)
            .map_err(|reason| refuse(&format!("env.{variable}"), reason))?;
        derivation.env.insert(variable.into(), value);
    }
    derivation.input_derivations = strings.wanted;
    add_standard_variables(&mut derivation, goal);
    Ok(derivation)
}

/// Every string of a goal that may have references, with its key.
fn strings_of<'a>(
    goal: &'a GoalTable,
    defaults: &'a DefaultsTable,
) -> impl Iterator<Item = (String, &'a str)> {
    let builder = goal.builder.as_ref().or(defaults.builder.as_ref());
    let args = goal.args.as_ref().or(defaults.args.as_ref());
    builder
        .map(|text| ("builder".to_owned(), text.as_str()))
        .into_iter()
        .chain(
            args.into_iter()
                .flatten()
                .map(|text| ("args".to_owned(), text.as_str())),
        )
        .chain(variables(goal, defaults).map(|(name, text)| (format!("env.{name}"), text)))
}

fn variables<'a>(
    goal: &'a GoalTable,
    defaults: &'a DefaultsTable,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut merged: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, value) in defaults.env.iter().chain(&goal.env) {
        merged.insert(name, value);
    }
    merged.into_iter()
}

/// References are spelt `goal.output` and `source:NAME`, targets `FILE#goal^outputs`.
fn check_goal_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(
            "a goal is called by letters, digits, '-', '_' and '+'; its key 'name' may have dots"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_derivation_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| error.to_string())?;
    // The derivation itself is named `<name>.drv`, and nothing else may be.
    check_name(&format!("{name}.drv")).map_err(|_| format!("'{name}' is too long"))?;
    if name.ends_with(DERIVATION_SUFFIX) {
        return Err(format!("'{name}' ends in '.drv', as only derivations do"));
    }
    Ok(())
}

fn output_names(texts: &[String]) -> Result<Vec<OutputName>, String> {
    let mut names = Vec::with_capacity(texts.len());
    for text in texts {
        let name = OutputName::from_str(text).map_err(|error| error.to_string())?;
        // References are `goal.output`, and `drv` would name the derivation itself.
        if text.contains('.') || text == "drv" {
            return Err(format!("'{text}' cannot be the name of an output"));
        }
        if names.contains(&name) {
            return Err(format!("'{text}' is named twice"));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err("there must be at least one".to_owned());
    }
    Ok(names)
}

fn outputs(
    goal: &GoalTable,
    name: &str,
    output_names: &[OutputName],
    known: &Known<'_>,
) -> Result<BTreeMap<OutputName, DerivationOutput>, KeyError> {
    let output = match (&goal.fixed, &goal.floating) {
        (None, None) => DerivationOutput::Deferred,
        (Some(fixed), None) => {
            if output_names != [OutputName::default()] {
                return Err(KeyError {
                    key: "outputs".to_owned(),
                    reason: "a goal with a fixed hash has the single output 'out'".to_owned(),
                });
            }
            fixed_output(fixed, name, known).map_err(|error| KeyError {
                key: "fixed.hash".to_owned(),
                reason: error.to_string(),
            })?
        }
        (None, Some(floating)) => floating_output(floating, known)?,
        (Some(_), Some(_)) => {
            return Err(KeyError {
                key: "floating".to_owned(),
                reason: "an output whose hash is fixed does not float".to_owned(),
            });
        }
    };
    let outputs = output_names
        .iter()
        .map(|name| (name.clone(), output.clone()));
    Ok(outputs.collect())
}

fn fixed_output(
    fixed: &FixedTable,
    name: &str,
    known: &Known<'_>,
) -> Result<DerivationOutput, store_model::Error> {
    let hash: Hash = fixed.hash.parse()?;
    let method = ingestion_method(fixed.mode);
    let references = References::default();
    let path = known
        .store_dir
        .make_fixed_output_path(method, &hash, name, &references)?;
    Ok(DerivationOutput::Fixed { method, hash, path })
}

fn floating_output(
    floating: &FloatingTable,
    known: &Known<'_>,
) -> Result<DerivationOutput, KeyError> {
    let refuse = |key: &str, reason: String| KeyError {
        key: key.to_owned(),
        reason,
    };
    if !known.settings.has_ca_derivations() {
        return Err(refuse(
            "floating",
            "this needs 'ca-derivations' among the 'experimental-features'".to_owned(),
        ));
    }
    let algorithm: HashAlgorithm = floating
        .algorithm
        .parse()
        .map_err(|error: store_model::Error| refuse("floating.algorithm", error.to_string()))?;
    Ok(DerivationOutput::Floating {
        method: ingestion_method(floating.mode),
        algorithm,
    })
}

fn ingestion_method(mode: HashMode) -> IngestionMethod {
    match mode {
        HashMode::Flat => IngestionMethod::Flat,
        HashMode::Recursive => IngestionMethod::Recursive,
    }
}

fn mode_name(mode: HashMode) -> &'static str {
    match mode {
        HashMode::Flat => "flat",
        HashMode::Recursive => "recursive",
    }
}

/// Variables that goalctl sets itself; saying something else would make the derivation lie.
const RESERVED_VARIABLES: [&str; 8] = [
    "__contentAddressed",
    "builder",
    "name",
    "system",
    "outputs",
    "outputHash",
    "outputHashAlgo",
    "outputHashMode",
];

fn check_variable(name: &str, output_names: &[OutputName]) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("no variable can have this name".to_owned());
    }
    let is_output = output_names.iter().any(|output| output.as_str() == name);
    if is_output || RESERVED_VARIABLES.contains(&name) {
        return Err("this variable is set by goalctl itself".to_owned());
    }
    Ok(())
}

/// Adds the variables that Nix's own `derivation` adds, so that equal goals get equal paths.
fn add_standard_variables(derivation: &mut Derivation, goal: &GoalTable) {
    let mut set = |name: &str, value: BString| derivation.env.insert(name.into(), value);
    set("name", derivation.name.as_str().into());
    set("builder", derivation.builder.clone());
    set("system", derivation.system.clone());
    if goal.outputs != ["out"] {
        set("outputs", goal.outputs.join(" ").into());
    }
    if let Some(fixed) = &goal.fixed {
        set("outputHash", fixed.hash.as_str().into());
        set("outputHashMode", mode_name(fixed.mode).into());
    }
    if let Some(floating) = &goal.floating {
        // Nix leaves `__contentAddressed` out: the derivation's outputs say it.
        set("outputHashAlgo", floating.algorithm.as_str().into());
        set("outputHashMode", mode_name(floating.mode).into());
    }
}

/// Replaces references in strings, and notes which outputs of which derivations they need.
struct Strings<'a> {
    known: &'a Known<'a>,
    own_outputs: &'a [OutputName],
    wanted: BTreeMap<StorePath, BTreeSet<OutputName>>,
}

impl Strings<'_> {
    fn fill(&mut self, key: &str, text: &str) -> Result<BString, KeyError> {
        self.replace(text)
            .map(BString::from)
            .map_err(|reason| KeyError {
                key: key.to_owned(),
                reason,
            })
    }

    fn replace(&mut self, text: &str) -> Result<String, String> {
        if text.contains('\0') {
            return Err("a string cannot have a NUL character".to_owned());
        }
        let mut filled = String::with_capacity(text.len());
        for part in template::parse(text)? {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Input { goal, output } => filled.push_str(&self.input(goal, output)?),
                Part::Source(name) => {
                    let path = self.known.sources.get(name).ok_or_else(|| {
                        format!("'${{source:{name}}}' is not among the goal's sources")
                    })?;
                    filled.push_str(&self.known.store_dir.print(path));
                }
                Part::Output(name) => {
                    let output = self
                        .own_outputs
                        .iter()
                        .find(|output| output.as_str() == name)
                        .ok_or_else(|| {
                            format!("'${{output:{name}}}' is not among the goal's outputs")
                        })?;
                    filled.push_str(&output_placeholder(output));
                }
            }
        }
        Ok(filled)
    }

    /// Returns the path of an output of another goal, or what stands for it until it is built.
    fn input(&mut self, goal: &str, output: Option<&str>) -> Result<String, String> {
        let input =
            self.known.inputs.get(goal).ok_or_else(|| {
                format!("there is no goal '{goal}'; write '$${{' for a plain '${{'")
            })?;
        let found = match output {
            None => input.outputs.first(),
            Some(wanted) => input
                .outputs
                .iter()
                .find(|(name, _)| name.as_str() == wanted),
        };
        let (name, path) = found
            .ok_or_else(|| format!("goal '{goal}' has no output '{}'", output.unwrap_or("out")))?;
        self.wanted
            .entry(input.drv_path.clone())
            .or_default()
            .insert(name.clone());
        Ok(path.as_ref().map_or_else(
            || downstream_placeholder(&input.drv_path, name),
            |path| self.known.store_dir.print(path),
        ))
    }
}
