//! What a builder is told: its arguments, its variables and the files that replace variables.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::Path;

use bstr::{BStr, BString, ByteSlice};
use store_model::{
    Derivation, DerivationOutput, Hash, HashAlgorithm, OutputName, Settings, StoreDir, StorePath,
};

use crate::Error;
use crate::wire::Program;

/// Variables of the process that started us, which fixed-output builders may ask for.
pub type HostEnvironment = BTreeMap<BString, BString>;

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
}

/// Puts together what a builder is told.
///
/// # Errors
/// The derivation uses something that is not supported, or that no process can be given.
pub(crate) fn environment(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<Environment, Error> {
    if derivation.env.contains_key(BStr::new("__json")) {
        return Err(Error::StructuredAttributes);
    }
    if derivation
        .env
        .contains_key(BStr::new("exportReferencesGraph"))
    {
        return Err(Error::ReferencesGraph);
    }
    let rewrites = rewrites(derivation, circumstances)?;
    let build_dir = circumstances.build_dir.as_os_str().as_encoded_bytes();
    let mut files = BTreeMap::new();
    let mut variables = first_variables(circumstances);

    let as_file: BTreeSet<&[u8]> = words(derivation, "passAsFile").collect();
    for (name, value) in &derivation.env {
        if as_file.contains(name.as_slice()) {
            let file_name = attribute_file_name(name);
            let mut path = BString::from(build_dir);
            path.push(b'/');
            path.extend_from_slice(file_name.as_bytes());
            variables.insert([name.as_slice(), b"Path"].concat().into(), path);
            files.insert(file_name, rewrite(value, &rewrites));
        } else {
            variables.insert(name.clone(), value.clone());
        }
    }

    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        variables.insert(name.into(), build_dir.into());
    }
    if derivation.is_fixed_output() {
        variables.insert("NIX_OUTPUT_CHECKED".into(), "1".into());
        for name in words(derivation, "impureEnvVars") {
            let value = circumstances.host_environment.get(BStr::new(name));
            variables.insert(name.into(), value.cloned().unwrap_or_default());
        }
    }
    variables.insert("NIX_LOG_FD".into(), "2".into());
    variables.insert("TERM".into(), "xterm-256color".into());

    let program = program(derivation, &variables, &rewrites)?;
    Ok(Environment { program, files })
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
            let no_hash = "0".repeat(64);
            let text =
                format!("rewrite:{drv_path}:name:{name}:sha256:{no_hash}:{store_dir}:{full_name}");
            let compressed = Hash::digest(HashAlgorithm::Sha256, text.as_bytes()).compress(20);
            let mut digest = [0; 20];
            digest.copy_from_slice(&compressed);
            StorePath::from_digest(&digest, &full_name)
                .map_err(|source| Error::OutputPath { source })
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
        ("HOME", "/homeless-shelter".to_owned()),
        ("NIX_STORE", circumstances.store_dir.to_string()),
        ("NIX_BUILD_CORES", n_cores.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}

fn program(
    derivation: &Derivation,
    variables: &BTreeMap<BString, BString>,
    rewrites: &[(String, String)],
) -> Result<Program, Error> {
    let base_name = match derivation.builder.rfind_byte(b'/') {
        Some(slash) => &derivation.builder[slash + 1..],
        None => &derivation.builder,
    };
    let mut args = vec![without_nul(base_name, || "the builder's name".to_owned())?];
    for (idx, arg) in derivation.args.iter().enumerate() {
        let arg = rewrite(arg, rewrites);
        args.push(without_nul(&arg, || format!("argument {}", idx + 1))?);
    }
    let env = variables
        .iter()
        .map(|(name, value)| {
            let mut line = name.clone();
            line.push(b'=');
            line.extend_from_slice(&rewrite(value, rewrites));
            without_nul(&line, || format!("the variable '{name}'"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Program {
        path: without_nul(&derivation.builder, || "the builder's path".to_owned())?,
        args,
        env,
    })
}

/// Pairs each output's placeholder with its path.
fn rewrites(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<Vec<(String, String)>, Error> {
    derivation
        .outputs
        .iter()
        .map(|(name, output)| {
            let (store_dir, drv_path) = (circumstances.store_dir, circumstances.drv_path);
            let path = scratch_output_path(store_dir, drv_path, derivation, name, output)?;
            let hashed = format!("nix-output:{name}");
            let hash = Hash::digest(HashAlgorithm::Sha256, hashed.as_bytes());
            Ok((format!("/{}", hash.to_base32()), store_dir.print(&path)))
        })
        .collect()
}

fn rewrite(text: &BString, rewrites: &[(String, String)]) -> BString {
    let mut text = text.clone();
    for (placeholder, path) in rewrites {
        if text.contains_str(placeholder) {
            text = text.replace(placeholder, path).into();
        }
    }
    text
}

/// Names the file that holds a variable; the variable's own name might not be a file's.
fn attribute_file_name(name: &BString) -> String {
    format!(
        ".attr-{}",
        Hash::digest(HashAlgorithm::Sha256, name).to_base32()
    )
}

/// Splits a variable at white space.
fn words<'a>(derivation: &'a Derivation, name: &str) -> impl Iterator<Item = &'a [u8]> {
    derivation
        .env
        .get(BStr::new(name))
        .into_iter()
        .flat_map(|value| value.split(|byte| b" \t\n\r".contains(byte)))
        .filter(|word| !word.is_empty())
}

fn without_nul(bytes: &[u8], what: impl FnOnce() -> String) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::NulByte { what: what() })
}
