//! `goals.toml`: derivations for people without an evaluator.
//!
//! A file names goals; each becomes a derivation by the ordinary rules for store paths, so that
//! Nix, given the same recipe, finds the same paths. `docs/goals-toml.md` explains every key.
//!
//! ```text
//! file ─► order (inputs first) ─► for each goal: sources ─► derive ─► output paths ─► layers ─► AddText
//! ```

mod derive;
mod error;
mod file;
mod layers;
mod order;
mod sources;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry::{AddPath, AddText};
use store_model::settings::{Assignment, Origin};
use store_model::{
    Derivation, HashAlgorithm, HashModuloCache, IngestionMethod, Settings, StoreDir, StorePath,
};

use self::derive::{KeyError, Known, derive, needed_goals};
use self::layers::Layers;
use self::sources::Source;
use crate::failure::{Failure, Result};
use crate::store::Store;

pub(crate) use self::derive::Instantiated;
pub(crate) use self::error::Error;
pub(crate) use self::file::GoalsFile;

/// A `goals.toml` that has been read and put in order.
#[derive(Debug)]
pub(crate) struct Goals {
    path: PathBuf,
    /// Where sources are looked for, a real path.
    root: PathBuf,
    file: GoalsFile,
    /// What was asked for, in order of name.
    selected: Vec<String>,
    /// Those and everything that they need, inputs first.
    ordered: Vec<String>,
}

impl Goals {
    /// Reads a file, and selects one goal or all.
    ///
    /// # Errors
    /// The file cannot be read or is wrong, there is no such goal, or goals need each other in a
    /// circle.
    pub(crate) fn read(path: &Path, goal: Option<&str>) -> std::result::Result<Self, Error> {
        let file = GoalsFile::read(path)?;
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let root = directory
            .unwrap_or(Path::new("."))
            .canonicalize()
            .map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?;
        Self::select(path.to_owned(), root, file, goal)
    }

    fn select(
        path: PathBuf,
        root: PathBuf,
        file: GoalsFile,
        goal: Option<&str>,
    ) -> std::result::Result<Self, Error> {
        if let Some(goal) = goal
            && !file.goals.contains_key(goal)
        {
            return Err(Error::NoSuchGoal {
                path,
                goal: goal.to_owned(),
                known: file.goals.keys().cloned().collect(),
            });
        }
        let selected: Vec<String> = match goal {
            Some(goal) => vec![goal.to_owned()],
            None => file.goals.keys().cloned().collect(),
        };
        let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, goal) in &file.goals {
            let needed =
                needed_goals(goal, &file.defaults).map_err(|error| of_goal(&path, name, error))?;
            // A goal that does not exist is reported where it is used, with its key.
            let existing = needed
                .into_iter()
                .filter(|name| file.goals.contains_key(*name));
            needs.insert(name, existing.collect());
        }
        let ordered = order::inputs_first(selected.iter().map(String::as_str), &needs)
            .map(|ordered| ordered.into_iter().map(str::to_owned).collect())
            .map_err(|cycle| Error::Cycle {
                path: path.clone(),
                cycle,
            })?;
        Ok(Self {
            path,
            root,
            file,
            selected,
            ordered,
        })
    }

    /// Returns what the file asks of the configuration.
    ///
    /// # Errors
    /// It asks for more than a file may.
    pub(crate) fn settings(&self) -> Result<Vec<Assignment>> {
        let Some(words) = &self.file.settings.sandbox_paths else {
            return Ok(Vec::new());
        };
        let refuse = |word: &str, reason: &str| {
            Err(Failure::message(format!(
                "{}: [settings], key 'sandbox-paths': '{word}' {reason}",
                self.path.display()
            )))
        };
        for word in words {
            if word.is_empty() || word.contains(|character: char| character.is_whitespace()) {
                return refuse(word, "is not one word");
            }
            match word.parse::<store_model::settings::SandboxPath>() {
                Ok(path) if path.writable => {
                    return refuse(
                        word,
                        "would let builders write on this machine; \
                         only the configuration and the command line may say ':rw'",
                    );
                }
                Ok(_) => {}
                Err(error) => return refuse(word, error.reason),
            }
        }
        Ok(vec![Assignment {
            name: "sandbox-paths".to_owned(),
            value: words.join(" "),
            origin: Origin::GoalsFile {
                path: self.path.clone(),
            },
        }])
    }

    /// Writes the derivations of the selected goals, and of all that they need, into the store;
    /// returns the selected ones.
    ///
    /// # Errors
    /// A goal is wrong, a source cannot be copied, or the store cannot be written.
    pub(crate) async fn instantiate(
        &self,
        store: &Store,
        settings: &Settings,
    ) -> Result<Vec<(String, Instantiated)>> {
        let mut copied: BTreeMap<Source, StorePath> = BTreeMap::new();
        let mut workshop = Workshop::new(store.dir().clone(), settings);
        let mut layers = Layers::default();
        for name in &self.ordered {
            let mut sources = BTreeMap::new();
            for (called, source) in self.sources_of(name)? {
                let path = if let Some(path) = copied.get(&source) {
                    path.clone()
                } else {
                    let path = store.add(add_path(&source)).await?;
                    copied.insert(source, path.clone());
                    path
                };
                sources.insert(called, path);
            }
            let derivation = self.make(name, &sources, &mut workshop)?;
            if let Some(drv_path) = workshop.drv_path(name) {
                layers.push(drv_path.clone(), add_text(&derivation, store.dir()));
            }
        }
        layers.write(store).await?;
        let mut made = workshop.made;
        Ok(self
            .selected
            .iter()
            .filter_map(|name| made.remove_entry(name))
            .collect())
    }

    fn sources_of(&self, name: &str) -> Result<Vec<(String, Source)>> {
        let Some(goal) = self.file.goals.get(name) else {
            return Ok(Vec::new());
        };
        goal.sources
            .iter()
            .map(|(called, text)| {
                let source = sources::find(&self.root, text).map_err(|reason| {
                    let key = format!("sources.{called}");
                    Failure::new(of_goal(&self.path, name, KeyError { key, reason }))
                })?;
                Ok((called.clone(), source))
            })
            .collect()
    }

    /// Makes the derivation of one goal; those that it needs have been made.
    fn make(
        &self,
        name: &str,
        sources: &BTreeMap<String, StorePath>,
        workshop: &mut Workshop<'_>,
    ) -> Result<Arc<Derivation>> {
        let wrong = |error| Failure::new(of_goal(&self.path, name, error));
        let Some(goal) = self.file.goals.get(name) else {
            return Err(Failure::message(format!("there is no goal '{name}'")));
        };
        let known = Known {
            store_dir: &workshop.store_dir,
            sources,
            inputs: &workshop.made,
            settings: workshop.settings,
        };
        let derivation = derive(name, goal, &self.file.defaults, &known).map_err(wrong)?;
        workshop
            .finish(name, derivation, &goal.outputs)
            .map_err(|error| {
                let reason = error.to_string();
                wrong(KeyError {
                    key: String::new(),
                    reason,
                })
            })
    }
}

/// The derivations that have been made so far.
struct Workshop<'a> {
    store_dir: StoreDir,
    settings: &'a Settings,
    hashes: HashModuloCache,
    derivations: BTreeMap<StorePath, Arc<Derivation>>,
    /// By goal.
    made: BTreeMap<String, Instantiated>,
}

impl<'a> Workshop<'a> {
    fn new(store_dir: StoreDir, settings: &'a Settings) -> Self {
        Self {
            hashes: HashModuloCache::new(store_dir.clone()),
            store_dir,
            settings,
            derivations: BTreeMap::new(),
            made: BTreeMap::new(),
        }
    }

    fn drv_path(&self, goal: &str) -> Option<&StorePath> {
        self.made.get(goal).map(|made| &made.drv_path)
    }

    /// Fills in the output paths, and remembers the derivation for those who need it.
    fn finish(
        &mut self,
        goal: &str,
        mut derivation: Derivation,
        output_order: &[String],
    ) -> std::result::Result<Arc<Derivation>, store_model::Error> {
        let derivations = &self.derivations;
        self.hashes
            .fill_output_paths(&mut derivation, &mut |path| {
                derivations.get(path).cloned().ok_or_else(|| {
                    store_model::Error::InvalidDerivation {
                        drv_name: goal.to_owned(),
                        reason: format!("its input '{path}' is of another file"),
                    }
                })
            })?;
        let drv_path = derivation.derivation_path(&self.store_dir)?;
        let outputs = output_order
            .iter()
            .filter_map(|name| {
                let (name, output) = derivation.outputs.get_key_value(name.as_str())?;
                Some((name.clone(), output.path().cloned()))
            })
            .collect();
        let derivation = Arc::new(derivation);
        self.derivations
            .insert(drv_path.clone(), Arc::clone(&derivation));
        self.made
            .insert(goal.to_owned(), Instantiated { drv_path, outputs });
        Ok(derivation)
    }
}

fn of_goal(path: &Path, goal: &str, error: KeyError) -> Error {
    Error::Goal {
        path: path.to_owned(),
        goal: goal.to_owned(),
        key: error.key,
        reason: error.reason,
    }
}

fn add_path(source: &Source) -> AddPath {
    AddPath {
        source: source.path.clone(),
        name: source.name.clone(),
        method: IngestionMethod::Recursive,
        algorithm: HashAlgorithm::Sha256,
    }
}

/// Returns the message that puts a derivation into the store.
pub(crate) fn add_text(derivation: &Derivation, store_dir: &StoreDir) -> AddText {
    AddText {
        name: format!("{}.drv", derivation.name),
        contents: derivation.to_aterm(store_dir),
        references: derivation
            .input_sources
            .iter()
            .chain(derivation.input_derivations.keys())
            .cloned()
            .collect(),
    }
}

#[cfg(test)]
mod tests;
