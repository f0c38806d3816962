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

    /// Computes and remembers the hashes of all inputs of `derivation` that its own depends on;
    /// the derivation itself need not lie in a store.
    ///
    /// # Errors
    /// As [`HashModuloCache::hash`].
    pub fn hash_inputs<E: From<Error>>(
        &mut self,
        derivation: &Derivation,
        load: &mut LoadDerivation<'_, E>,
    ) -> Result<(), E> {
        for input in hashed_inputs(derivation) {
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
        let inputs: Vec<StorePath> = hashed_inputs(&derivation).cloned().collect();
        Self {
            path,
            derivation,
            unvisited: inputs.into_iter(),
        }
    }
}

/// Returns the inputs whose hashes are part of the derivation's: all, but none where an output is
/// fixed, however it is made.
fn hashed_inputs(derivation: &Derivation) -> impl Iterator<Item = &StorePath> {
    let is_fixed = derivation.is_fixed_output();
    derivation
        .input_derivations
        .keys()
        .filter(move |_| !is_fixed)
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::derivation::tests::derivation;

    /// Derivations by path, and how often each was asked for.
    #[derive(Default)]
    struct Graph {
        derivations: HashMap<StorePath, Arc<Derivation>>,
        n_loads: HashMap<StorePath, usize>,
    }

    impl Graph {
        fn path(idx: usize) -> StorePath {
            let mut digest = [0; 20];
            digest[..8].copy_from_slice(&idx.to_le_bytes());
            StorePath::from_digest(&digest, "x.drv").unwrap()
        }

        /// Adds the derivation of number `idx`, which uses `out` of others.
        fn add(&mut self, idx: usize, inputs: impl IntoIterator<Item = usize>) {
            let out = BTreeSet::from([OutputName::default()]);
            let inputs = inputs
                .into_iter()
                .map(|input| (Self::path(input), out.clone()));
            let derivation = Derivation {
                input_derivations: inputs.collect(),
                ..derivation()
            };
            self.derivations.insert(Self::path(idx), derivation.into());
        }

        fn hash(&mut self, idx: usize) -> Result<Arc<HashModulo>, Error> {
            let path = Self::path(idx);
            let derivation = Arc::clone(&self.derivations[&path]);
            let mut hashes = HashModuloCache::new(StoreDir::default());
            hashes.hash(&path, &derivation, &mut |path| -> Result<_, Error> {
                *self.n_loads.entry(path.clone()).or_default() += 1;
                Ok(Arc::clone(&self.derivations[path]))
            })
        }
    }

    #[test]
    fn a_diamond_of_2_to_the_40_ways_is_walked_once() {
        let mut graph = Graph::default();
        graph.add(0, []);
        graph.add(1, []);
        for level in 1..=40 {
            let below = [2 * level - 2, 2 * level - 1];
            graph.add(2 * level, below);
            graph.add(2 * level + 1, below);
        }
        graph.hash(80).unwrap();
        assert_eq!(graph.n_loads.len(), 80);
        assert!(graph.n_loads.values().all(|n_loads| *n_loads == 1));
    }

    #[test]
    fn a_chain_of_20_000_derivations_does_not_exhaust_the_stack() {
        let mut graph = Graph::default();
        graph.add(0, []);
        for idx in 1..20_000 {
            graph.add(idx, [idx - 1]);
        }
        graph.hash(19_999).unwrap();
    }

    #[test]
    fn a_derivation_may_have_50_000_inputs_and_5_000_outputs() {
        let mut graph = Graph::default();
        for idx in 1..=50_000 {
            graph.add(idx, []);
        }
        graph.add(0, 1..=50_000);
        let top = graph.derivations.get_mut(&Graph::path(0)).unwrap();
        let output = top.outputs.values().next().unwrap().clone();
        Arc::make_mut(top).outputs = (0..5_000)
            .map(|idx| (format!("out{idx}").parse().unwrap(), output.clone()))
            .collect();
        assert_eq!(graph.hash(0).unwrap().outputs.len(), 5_000);
    }

    #[test]
    fn a_cycle_is_reported_with_its_paths() {
        let mut graph = Graph::default();
        graph.add(0, [1]);
        graph.add(1, [2]);
        graph.add(2, [3]);
        graph.add(3, [1]);
        let paths = [1, 2, 3, 1].map(Graph::path).to_vec();
        assert_eq!(graph.hash(0), Err(Error::DerivationCycle { paths }));
        graph.add(0, [0]);
        let paths = [0, 0].map(Graph::path).to_vec();
        let error = graph.hash(0).unwrap_err();
        assert_eq!(error, Error::DerivationCycle { paths });
        assert!(
            error
                .to_string()
                .ends_with(&format!("{0} -> {0}", Graph::path(0)))
        );
    }

    #[test]
    fn an_output_that_an_input_does_not_have_is_named() {
        let mut graph = Graph::default();
        graph.add(1, []);
        graph.add(0, [1]);
        let top = graph.derivations.get_mut(&Graph::path(0)).unwrap();
        Arc::make_mut(top).input_derivations =
            [(Graph::path(1), ["dvi".parse().unwrap()].into())].into();
        let error = graph.hash(0).unwrap_err().to_string();
        assert!(error.contains("wants output 'dvi'"), "{error}");
    }

    #[test]
    fn what_a_fixed_output_is_made_with_is_not_even_loaded() {
        let mut graph = Graph::default();
        graph.add(1, [2]);
        graph.add(0, [1]);
        let fixed = graph.derivations.get_mut(&Graph::path(1)).unwrap();
        Arc::make_mut(fixed).outputs = [(
            OutputName::default(),
            DerivationOutput::Fixed {
                method: crate::IngestionMethod::Flat,
                hash: Hash::digest(HashAlgorithm::Sha256, b""),
                path: Graph::path(9),
            },
        )]
        .into();
        let hash = graph.hash(0).unwrap();
        assert_eq!(hash.finality, Finality::Final);
        assert_eq!(graph.n_loads, HashMap::from([(Graph::path(1), 1)]));
        // Nor does it matter: other inputs of the same promise give the same hash.
        let fixed = graph.derivations.get_mut(&Graph::path(1)).unwrap();
        Arc::make_mut(fixed).input_derivations.clear();
        assert_eq!(graph.hash(0), Ok(hash));
    }

    #[test]
    fn a_derivation_below_a_floating_one_is_deferred() {
        let mut graph = Graph::default();
        graph.add(2, []);
        graph.add(1, [2]);
        graph.add(0, [1]);
        assert_eq!(graph.hash(0).unwrap().finality, Finality::Final);
        let floating = graph.derivations.get_mut(&Graph::path(2)).unwrap();
        for output in Arc::make_mut(floating).outputs.values_mut() {
            *output = DerivationOutput::Floating {
                method: crate::IngestionMethod::Recursive,
                algorithm: HashAlgorithm::Sha256,
            };
        }
        assert_eq!(graph.hash(0).unwrap().finality, Finality::Deferred);
    }
}
