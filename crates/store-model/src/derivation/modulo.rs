//! The hash of a derivation modulo its fixed outputs: what output paths are computed from.
//!
//! Two derivations that differ only in *how* some fixed output is fetched have the same hash, so a
//! changed mirror rebuilds nothing.
//! Each input derivation is replaced by its own hash, recursively; a fixed one by the hash of what
//! it promises.
//! A derivation with a floating input has no final hash yet: it is deferred, and taints whatever
//! depends on it.
//!
//! A graph is walked once, with a stack of our own: neither depth nor the number of ways through
//! it costs anything (SECURITY P10).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::DerivationKind;
use super::print::{InputNames, OwnOutputs, print};
use crate::{
    Derivation, DerivationOutput, Error, Hash, HashAlgorithm, OutputName, StoreDir, StorePath,
};

/// A derivation's hash modulo its fixed outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashModulo {
    /// The hash that each output stands for where another derivation uses it.
    pub outputs: BTreeMap<OutputName, Hash>,
    /// Whether it is final.
    pub finality: Finality,
}

/// Whether a hash can change once inputs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// It is what output paths follow from.
    Final,
    /// The derivation, or one of its inputs, has outputs whose paths are not known yet.
    Deferred,
}

/// The hashes of a graph of derivations, each computed once.
#[derive(Debug, Clone)]
pub struct HashModuloCache {
    store_dir: StoreDir,
    hashes: HashMap<StorePath, Arc<HashModulo>>,
    /// Reused for each derivation, whose text is needed only to be hashed.
    scratch: Vec<u8>,
}

/// Reads the derivation at a path, for [`HashModuloCache`].
pub type LoadDerivation<'a, E> = dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E> + 'a;

impl HashModuloCache {
    /// Starts with no hash known.
    #[must_use]
    pub fn new(store_dir: StoreDir) -> Self {
        Self {
            store_dir,
            hashes: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    /// Returns the directory that paths are hashed with.
    #[must_use]
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// Returns the hash of the derivation at `path`, if it has been computed.
    #[must_use]
    pub fn get(&self, path: &StorePath) -> Option<&Arc<HashModulo>> {
        self.hashes.get(path)
    }

    /// Remembers a hash that was computed elsewhere.
    pub fn insert(&mut self, path: StorePath, hash: Arc<HashModulo>) {
        self.hashes.insert(path, hash);
    }

    /// Forgets the hash of a derivation, say because its file was deleted.
    pub fn remove(&mut self, path: &StorePath) {
        self.hashes.remove(path);
    }

    /// Returns the hash of `derivation`, which lies at `path`, computing and remembering those of
    /// all its inputs.
    ///
    /// `load` is called at most once for each derivation that is not known yet, inputs after
    /// those who need them.
    ///
    /// # Errors
    /// `load` failed, a derivation is malformed, names an output that its input does not have, or
    /// is among its own inputs.
    pub fn hash<E: From<Error>>(
        &mut self,
        path: &StorePath,
        derivation: &Arc<Derivation>,
        load: &mut LoadDerivation<'_, E>,
    ) -> Result<Arc<HashModulo>, E> {
        if let Some(known) = self.hashes.get(path) {
            return Ok(Arc::clone(known));
        }
        let mut stack = vec![Visit::new(path.clone(), Arc::clone(derivation))];
        let mut open = HashSet::from([path.clone()]);
        let mut last = None;
        while let Some(visit) = stack.last_mut() {
            if let Some(input) = visit.unvisited.next() {
                if self.hashes.contains_key(&input) {
                    continue;
                }
                if !open.insert(input.clone()) {
                    return Err(cycle(&stack, &input).into());
                }
                let derivation = load(&input)?;
                stack.push(Visit::new(input, derivation));
            } else if let Some(done) = stack.pop() {
                let hash = Arc::new(self.hash_one(&done.derivation, OwnOutputs::Shown)?);
                open.remove(&done.path);
                self.hashes.insert(done.path, Arc::clone(&hash));
                last = Some(hash);
            }
        }
        // The first visit is the last to be popped, so its hash is the one that is left.
        last.ok_or_else(|| unknown_input(derivation, path).into())
    }

    /// Computes and remembers the hashes of all inputs of `derivation`, which itself need not lie
    /// in a store.
    ///
    /// # Errors
    /// As [`HashModuloCache::hash`].
    pub fn hash_inputs<E: From<Error>>(
        &mut self,
        derivation: &Derivation,
        load: &mut LoadDerivation<'_, E>,
    ) -> Result<(), E> {
        for input in derivation.input_derivations.keys() {
            if !self.hashes.contains_key(input) {
                let loaded = load(input)?;
                self.hash(input, &loaded, load)?;
            }
        }
        Ok(())
    }

    /// Returns the hash of one derivation whose inputs' hashes are known, with the paths of its
    /// own outputs masked: what those paths are computed from.
    ///
    /// # Errors
    /// An input's hash is not known, an input has no output of a wanted name, or the outputs are
    /// not of one kind.
    pub fn hash_masked(&mut self, derivation: &Derivation) -> Result<HashModulo, Error> {
        self.hash_one(derivation, OwnOutputs::Masked)
    }

    fn hash_one(
        &mut self,
        derivation: &Derivation,
        own_outputs: OwnOutputs,
    ) -> Result<HashModulo, Error> {
        let kind = derivation.kind()?;
        if kind == DerivationKind::Fixed {
            return Ok(HashModulo {
                outputs: promised(derivation, &self.store_dir),
                finality: Finality::Final,
            });
        }
        let mut finality = match kind {
            DerivationKind::Floating => Finality::Deferred,
            // A deferred derivation is only as deferred as its inputs are.
            DerivationKind::InputAddressed | DerivationKind::Fixed | DerivationKind::Deferred => {
                Finality::Final
            }
        };
        let mut inputs: BTreeMap<String, BTreeSet<&OutputName>> = BTreeMap::new();
        for (path, wanted) in &derivation.input_derivations {
            let hash = self
                .hashes
                .get(path)
                .ok_or_else(|| unknown_input(derivation, path))?;
            if hash.finality == Finality::Deferred {
                finality = Finality::Deferred;
            }
            for name in wanted {
                let output = hash
                    .outputs
                    .get(name)
                    .ok_or_else(|| missing_output(derivation, path, name))?;
                // Inserting, not replacing: two inputs may have the same hash, and each wants its
                // own outputs (SECURITY P11).
                inputs.entry(output.to_base16()).or_default().insert(name);
            }
        }
        self.scratch.clear();
        print(
            derivation,
            &self.store_dir,
            own_outputs,
            InputNames::Hashes(&inputs),
            &mut self.scratch,
        );
        let hash = Hash::digest(HashAlgorithm::Sha256, &self.scratch);
        Ok(HashModulo {
            outputs: derivation
                .outputs
                .keys()
                .map(|name| (name.clone(), hash))
                .collect(),
            finality,
        })
    }
}

/// A derivation whose inputs are being hashed.
struct Visit {
    path: StorePath,
    derivation: Arc<Derivation>,
    unvisited: std::vec::IntoIter<StorePath>,
}

impl Visit {
    fn new(path: StorePath, derivation: Arc<Derivation>) -> Self {
        let inputs: Vec<StorePath> = derivation.input_derivations.keys().cloned().collect();
        Self {
            path,
            derivation,
            unvisited: inputs.into_iter(),
        }
    }
}

/// Hashes what each fixed output promises, which leaves out how it is made.
fn promised(derivation: &Derivation, store_dir: &StoreDir) -> BTreeMap<OutputName, Hash> {
    let mut hashes = BTreeMap::new();
    for (name, output) in &derivation.outputs {
        if let DerivationOutput::Fixed { method, hash, path } = output {
            let promise = format!(
                "fixed:out:{}:{}:{}",
                method.prefixed(hash.algorithm()),
                hash.to_base16(),
                store_dir.print(path)
            );
            hashes.insert(
                name.clone(),
                Hash::digest(HashAlgorithm::Sha256, promise.as_bytes()),
            );
        }
    }
    hashes
}

fn cycle(stack: &[Visit], repeated: &StorePath) -> Error {
    let mut paths: Vec<StorePath> = stack
        .iter()
        .map(|visit| visit.path.clone())
        .skip_while(|path| path != repeated)
        .collect();
    paths.push(repeated.clone());
    Error::DerivationCycle { paths }
}

fn unknown_input(derivation: &Derivation, input: &StorePath) -> Error {
    Error::InvalidDerivation {
        drv_name: derivation.name.clone(),
        reason: format!("the hash of its input '{input}' is not known"),
    }
}

fn missing_output(derivation: &Derivation, input: &StorePath, name: &OutputName) -> Error {
    Error::InvalidDerivation {
        drv_name: derivation.name.clone(),
        reason: format!("it wants output '{name}' of '{input}', which has no such output"),
    }
}
