//! What a builder is told: its arguments, its variables and the files that replace variables.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::Path;

use bstr::{BString, ByteSlice};
use store_model::derivation::Attributes;
use store_model::derivation::placeholder::{Replacements, output_placeholder};
use store_model::derivation::reference_graphs::{GraphInfos, closure_to_json, registration_text};
use store_model::derivation::structured_attrs::{AttrsFiles, Value};
use store_model::{
    Derivation, DerivationOutput, Hash, HashAlgorithm, OutputName, Settings, StoreDir, StorePath,
};

use crate::Error;
use crate::redirect::{FAKE_HOME, Redirections, add_hash_parts, made_up_path};
use crate::wire::Program;

/// Variables of the process that started us, which fixed-output builders may ask for.
pub type HostEnvironment = BTreeMap<BString, BString>;

/// Where structured attributes are found in the build directory, and for shells.
const ATTRS_JSON: &str = ".attrs.json";
const ATTRS_SHELL: &str = ".attrs.sh";

/// What a builder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// The program with its arguments and variables.
    pub(crate) program: Program,
    /// Files in the build directory, by name.
    pub(crate) files: BTreeMap<String, BString>,
}

/// What decides an [`Environment`] beside the derivation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    pub(crate) drv_path: &'a StorePath,
    pub(crate) store_dir: &'a StoreDir,
    pub(crate) settings: &'a Settings,
    /// The build directory as the builder sees it.
    pub(crate) build_dir: &'a Path,
    pub(crate) host_environment: &'a HostEnvironment,
    pub(crate) n_cores: usize,
    /// The graphs that `exportReferencesGraph` asks for.
    pub(crate) graphs: &'a GraphInfos,
    /// Where outputs are made instead of at their own paths.
    pub(crate) redirected: &'a Redirections,
}

/// Puts together what a builder is told.
///
/// # Errors
/// The derivation asks for something that no process can be given, or its attributes are of the
/// wrong type.
pub(crate) fn environment(
    attributes: &Attributes<'_>,
    circumstances: &Circumstances<'_>,
) -> Result<Environment, Error> {
    let derivation = attributes.derivation();
    let outputs = scratch_outputs(derivation, circumstances)?;
    let rewrites = replacements(&outputs, circumstances);
    let mut variables = first_variables(circumstances);
    let mut files = BTreeMap::new();
    if let Some(structured) = attributes.structured() {
        let graphs = graph_values(circumstances)?;
        let AttrsFiles { json, shell } = structured.files(&outputs, graphs, &rewrites);
        for (variable, name, content) in [
            ("NIX_ATTRS_JSON_FILE", ATTRS_JSON, json),
            ("NIX_ATTRS_SH_FILE", ATTRS_SHELL, shell),
        ] {
            variables.insert(variable.into(), path_in_build_dir(circumstances, name));
            files.insert(name.to_owned(), content);
        }
    } else {
        own_variables(attributes, circumstances, &mut variables, &mut files)?;
        for content in files.values_mut() {
            *content = rewrites.apply(content.as_bstr()).into_owned();
        }
        files.extend(graph_files(circumstances));
    }
    last_variables(attributes, circumstances, &mut variables)?;
    let program = program(derivation, &variables, &rewrites)?;
    Ok(Environment { program, files })
}

/// Returns what a built-in builder is told: the derivation's own variables, and nothing else.
///
/// # Errors
/// An output's path is not known.
pub(crate) fn builtin_attributes(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
    let outputs = scratch_outputs(derivation, circumstances)?;
    let rewrites = replacements(&outputs, circumstances);
    let variables = derivation.env.iter();
    Ok(variables
        .map(|(name, value)| (name.to_vec(), rewrites.apply(value.as_bstr()).to_vec()))
        .collect())
}

/// Returns what stands for each output, with the output's path; and the hash parts of outputs that
/// are made elsewhere.
fn replacements(
    outputs: &BTreeMap<OutputName, String>,
    circumstances: &Circumstances<'_>,
) -> Replacements {
    let mut replacements: Replacements = outputs
        .iter()
        .map(|(name, path)| (output_placeholder(name), path.as_str()))
        .collect();
    add_hash_parts(&mut replacements, circumstances.redirected);
    replacements
}

/// Returns where the builder puts an output: its own path, or one made up for an output whose path
/// follows from its content. Registration moves the latter.
///
/// # Errors
/// The output's path depends on inputs that are not built.
pub fn scratch_output_path(
    store_dir: &StoreDir,
    drv_path: &StorePath,
    derivation: &Derivation,
    name: &OutputName,
    output: &DerivationOutput,
) -> Result<StorePath, Error> {
    match output {
        DerivationOutput::InputAddressed(path) | DerivationOutput::Fixed { path, .. } => {
            Ok(path.clone())
        }
        DerivationOutput::Floating { .. } => {
            let full_name = if name.as_str() == "out" {
                derivation.name.clone()
            } else {
                format!("{}-{name}", derivation.name)
            };
            made_up_path(store_dir, &format!("{drv_path}:name:{name}"), &full_name)
        }
        DerivationOutput::Deferred => Err(Error::UnknownOutputPath {
            output: name.to_string(),
        }),
    }
}

/// What the derivation's own variables may override.
fn first_variables(circumstances: &Circumstances<'_>) -> BTreeMap<BString, BString> {
    let n_cores = match circumstances.settings.cores {
        0 => circumstances.n_cores,
        n_cores => n_cores,
    };
    [
        // Neither exists: a builder that uses them instead of its inputs fails at once.
        ("PATH", "/path-not-set".to_owned()),
        ("HOME", FAKE_HOME.to_owned()),
        ("NIX_STORE", circumstances.store_dir.to_string()),
        ("NIX_BUILD_CORES", n_cores.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}

/// Adds the derivation's own variables, some of them as files.
fn own_variables(
    attributes: &Attributes<'_>,
    circumstances: &Circumstances<'_>,
    variables: &mut BTreeMap<BString, BString>,
    files: &mut BTreeMap<String, BString>,
) -> Result<(), Error> {
    let as_file = attributes.words("passAsFile").map_err(Error::attributes)?;
    let as_file: BTreeSet<BString> = as_file.into_iter().flatten().collect();
    for (name, value) in &attributes.derivation().env {
        if as_file.contains(name) {
            let file_name = attribute_file_name(name);
            variables.insert(
                [name.as_slice(), b"Path"].concat().into(),
                path_in_build_dir(circumstances, &file_name),
            );
            files.insert(file_name, value.clone());
        } else {
            variables.insert(name.clone(), value.clone());
        }
    }
    Ok(())
}

/// Adds what no derivation can override.
fn last_variables(
    attributes: &Attributes<'_>,
    circumstances: &Circumstances<'_>,
    variables: &mut BTreeMap<BString, BString>,
) -> Result<(), Error> {
    let build_dir = circumstances.build_dir.as_os_str().as_encoded_bytes();
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        variables.insert(name.into(), build_dir.into());
    }
    if attributes.derivation().is_fixed_output() {
        variables.insert("NIX_OUTPUT_CHECKED".into(), "1".into());
        let names = attributes.words("impureEnvVars");
        for name in names.map_err(Error::attributes)?.into_iter().flatten() {
            let value = circumstances.host_environment.get(&name);
            variables.insert(name, value.cloned().unwrap_or_default());
        }
    }
    variables.insert("NIX_LOG_FD".into(), "2".into());
    variables.insert("TERM".into(), "xterm-256color".into());
    Ok(())
}

/// Returns the graphs as values for structured attributes.
fn graph_values(circumstances: &Circumstances<'_>) -> Result<BTreeMap<String, Value>, Error> {
    let graphs = circumstances.graphs.iter();
    graphs
        .map(|(name, closure)| {
            let value = closure_to_json(closure, circumstances.store_dir);
            Ok((name.clone(), value.map_err(Error::attributes)?))
        })
        .collect()
}

/// Returns the graphs as files.
fn graph_files(circumstances: &Circumstances<'_>) -> impl Iterator<Item = (String, BString)> {
    circumstances.graphs.iter().map(|(name, closure)| {
        let text = registration_text(closure, circumstances.store_dir);
        (name.clone(), text)
    })
}

fn program(
    derivation: &Derivation,
    variables: &BTreeMap<BString, BString>,
    rewrites: &Replacements,
) -> Result<Program, Error> {
    let base_name = match derivation.builder.rfind_byte(b'/') {
        Some(slash) => &derivation.builder[slash + 1..],
        None => &derivation.builder,
    };
    let mut args = vec![without_nul(base_name, || "the builder's name".to_owned())?];
    for (idx, arg) in derivation.args.iter().enumerate() {
        let arg = rewrites.apply(arg.as_bstr());
        args.push(without_nul(&arg, || format!("argument {}", idx + 1))?);
    }
    let env = variables
        .iter()
        .map(|(name, value)| {
            let mut line = name.clone();
            line.push(b'=');
            line.extend_from_slice(&rewrites.apply(value.as_bstr()));
            without_nul(&line, || format!("the variable '{name}'"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Program {
        path: without_nul(&derivation.builder, || "the builder's path".to_owned())?,
        args,
        env,
    })
}

/// Returns where the builder puts each output, as it is told.
fn scratch_outputs(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<BTreeMap<OutputName, String>, Error> {
    derivation
        .outputs
        .iter()
        .map(|(name, output)| {
            let (store_dir, drv_path) = (circumstances.store_dir, circumstances.drv_path);
            let path = scratch_output_path(store_dir, drv_path, derivation, name, output)?;
            let path = circumstances.redirected.get(&path).unwrap_or(&path);
            Ok((name.clone(), store_dir.print(path)))
        })
        .collect()
}

/// Returns the path of a file in the build directory as the builder sees it.
fn path_in_build_dir(circumstances: &Circumstances<'_>, name: &str) -> BString {
    let path = circumstances.build_dir.join(name);
    path.into_os_string().into_encoded_bytes().into()
}

/// Names the file that holds a variable; the variable's own name might not be a file's.
fn attribute_file_name(name: &BString) -> String {
    format!(
        ".attr-{}",
        Hash::digest(HashAlgorithm::Sha256, name).to_base32()
    )
}

fn without_nul(bytes: &[u8], what: impl FnOnce() -> String) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::NulByte { what: what() })
}
