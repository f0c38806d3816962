//! Prints a derivation as an `ATerm`, which is the contents of its `.drv` file, and, with some parts
//! replaced, what its hash is taken of.

use std::collections::{BTreeMap, BTreeSet};

use super::IngestionMethod;
use crate::{
    Derivation, DerivationOutput, Error, Hash, HashAlgorithm, OutputName, StoreDir, StorePath,
};

impl Derivation {
    /// Returns the contents of the `.drv` file.
    #[must_use]
    pub fn to_aterm(&self, store_dir: &StoreDir) -> Vec<u8> {
        let mut aterm = Vec::new();
        print(
            self,
            store_dir,
            OwnOutputs::Shown,
            InputNames::Paths,
            &mut aterm,
        );
        aterm
    }

    /// Returns the path of the `.drv` file: that of a text that refers to all inputs.
    ///
    /// # Errors
    /// The derivation's name is not allowed in a store path, or is too long for `.drv` after it.
    pub fn derivation_path(&self, store_dir: &StoreDir) -> Result<StorePath, Error> {
        let references: BTreeSet<StorePath> = self
            .input_sources
            .iter()
            .chain(self.input_derivations.keys())
            .cloned()
            .collect();
        store_dir.make_text_path(
            &format!("{}.drv", self.name),
            &Hash::digest(HashAlgorithm::Sha256, &self.to_aterm(store_dir)),
            &references,
        )
    }
}

/// Whether the paths of the derivation's own outputs are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnOutputs {
    /// As they are.
    Shown,
    /// Empty, in the environment too: what the paths themselves are computed from.
    Masked,
}

/// How the input derivations are named.
#[derive(Clone, Copy)]
pub(super) enum InputNames<'a> {
    /// By their paths.
    Paths,
    /// By their hashes in base-16, merged where two have the same.
    Hashes(&'a BTreeMap<String, BTreeSet<&'a OutputName>>),
}

/// Appends the `ATerm` of `derivation` to `aterm`.
pub(super) fn print(
    derivation: &Derivation,
    store_dir: &StoreDir,
    own_outputs: OwnOutputs,
    input_names: InputNames<'_>,
    aterm: &mut Vec<u8>,
) {
    aterm.extend_from_slice(b"Derive(");
    print_list(aterm, &derivation.outputs, |aterm, (name, output)| {
        print_output(aterm, store_dir, own_outputs, name, output);
    });
    aterm.push(b',');
    match input_names {
        InputNames::Paths => {
            print_list(
                aterm,
                &derivation.input_derivations,
                |aterm, (path, names)| {
                    print_input(aterm, &store_dir.print(path), names);
                },
            );
        }
        InputNames::Hashes(hashes) => {
            print_list(aterm, hashes, |aterm, (hash, names)| {
                print_input(aterm, hash, names.iter().copied());
            });
        }
    }
    aterm.push(b',');
    print_list(aterm, &derivation.input_sources, |aterm, path| {
        print_verbatim(aterm, store_dir.print(path).as_bytes());
    });
    aterm.push(b',');
    print_verbatim(aterm, &derivation.system);
    aterm.push(b',');
    print_string(aterm, &derivation.builder);
    aterm.push(b',');
    print_list(aterm, &derivation.args, |aterm, arg| {
        print_string(aterm, arg);
    });
    aterm.push(b',');
    print_list(aterm, &derivation.env, |aterm, (name, value)| {
        let is_masked = own_outputs == OwnOutputs::Masked
            && std::str::from_utf8(name).is_ok_and(|name| derivation.outputs.contains_key(name));
        let shown: &[u8] = if is_masked { b"" } else { value };
        aterm.push(b'(');
        print_string(aterm, name);
        aterm.push(b',');
        print_string(aterm, shown);
        aterm.push(b')');
    });
    aterm.push(b')');
}

fn print_output(
    aterm: &mut Vec<u8>,
    store_dir: &StoreDir,
    own_outputs: OwnOutputs,
    name: &OutputName,
    output: &DerivationOutput,
) {
    let path = match (own_outputs, output.path()) {
        (OwnOutputs::Shown, Some(path)) => store_dir.print(path),
        (OwnOutputs::Shown, None) | (OwnOutputs::Masked, _) => String::new(),
    };
    let (algorithm, hash) = match output {
        DerivationOutput::InputAddressed(_) | DerivationOutput::Deferred => {
            (String::new(), String::new())
        }
        DerivationOutput::Fixed { method, hash, .. } => {
            (method.prefixed(hash.algorithm()), hash.to_base16())
        }
        DerivationOutput::Floating { method, algorithm } => {
            (method.prefixed(*algorithm), String::new())
        }
    };
    aterm.push(b'(');
    print_verbatim(aterm, name.as_str().as_bytes());
    for text in [path, algorithm, hash] {
        aterm.push(b',');
        print_verbatim(aterm, text.as_bytes());
    }
    aterm.push(b')');
}

fn print_input<'a>(
    aterm: &mut Vec<u8>,
    input: &str,
    outputs: impl IntoIterator<Item = &'a OutputName>,
) {
    aterm.push(b'(');
    print_verbatim(aterm, input.as_bytes());
    aterm.push(b',');
    print_list(aterm, outputs, |aterm, name| {
        print_verbatim(aterm, name.as_str().as_bytes());
    });
    aterm.push(b')');
}

fn print_list<T>(
    aterm: &mut Vec<u8>,
    elements: impl IntoIterator<Item = T>,
    mut print_element: impl FnMut(&mut Vec<u8>, T),
) {
    aterm.push(b'[');
    for (idx, element) in elements.into_iter().enumerate() {
        if idx > 0 {
            aterm.push(b',');
        }
        print_element(aterm, element);
    }
    aterm.push(b']');
}

fn print_verbatim(aterm: &mut Vec<u8>, text: &[u8]) {
    aterm.push(b'"');
    aterm.extend_from_slice(text);
    aterm.push(b'"');
}

fn print_string(aterm: &mut Vec<u8>, text: &[u8]) {
    aterm.push(b'"');
    let mut rest = text;
    while let Some(len) = rest.iter().position(|byte| b"\"\\\n\r\t".contains(byte)) {
        aterm.extend_from_slice(&rest[..len]);
        let escape = match rest[len] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            quote_or_backslash => quote_or_backslash,
        };
        aterm.extend_from_slice(&[b'\\', escape]);
        rest = &rest[len + 1..];
    }
    aterm.extend_from_slice(rest);
    aterm.push(b'"');
}

impl IngestionMethod {
    /// Returns the algorithm as derivations spell it together with the method, such as `r:sha256`.
    #[must_use]
    pub fn prefixed(self, algorithm: HashAlgorithm) -> String {
        let prefix = match self {
            Self::Flat => "",
            Self::Recursive => "r:",
            Self::Text => "text:",
        };
        format!("{prefix}{algorithm}")
    }

    /// Splits what [`IngestionMethod::prefixed`] prints into method and algorithm.
    #[must_use]
    pub fn split_prefix(text: &str) -> (Self, &str) {
        if let Some(algorithm) = text.strip_prefix("r:") {
            (Self::Recursive, algorithm)
        } else if let Some(algorithm) = text.strip_prefix("text:") {
            (Self::Text, algorithm)
        } else {
            (Self::Flat, text)
        }
    }
}
