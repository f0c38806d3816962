//! `build --dry-run`: what would be built and what fetched, without doing either.
//!
//! The graph is looked at in waves: of everything that one wave wants all caches are asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::Addr;
use futures_util::future::try_join_all;
use registry::{QueryDerivation, QueryValidPaths};
use scheduler::Wanted;
use serde_json::{Value, json};
use store_model::derivation::BoolAttribute;
use store_model::wanted_outputs::{WantedOutputs, Widened};
use store_model::{Derivation, Settings, StorePath};
use substituter::{Freshness, Offer, QueryOffers, Substituter};

use crate::failure::{Failure, Result};
use crate::output::{Output, say};
use crate::render::progress::size;
use crate::store::Store;

/// What a request would bring about.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Derivations that would be built, inputs first.
    will_build: Vec<StorePath>,
    /// Paths that would be fetched, and how large they are.
    will_fetch: BTreeMap<StorePath, Sizes>,
    /// Paths that are neither valid nor built by any of these, nor in a cache.
    unknown: BTreeSet<StorePath>,
}

/// How large a path is, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    /// As it comes; 0 where the cache does not say.
    download: u64,
    /// As an archive that is unpacked.
    nar: u64,
}

/// Finds out what a request would do.
pub(super) async fn plan(
    store: &Store,
    caches: &Addr<Substituter>,
    settings: &Settings,
    wanted: &[Wanted],
) -> Result<Plan> {
    let mut planner = Planner {
        store,
        caches,
        settings,
        plan: Plan::default(),
        derivations: BTreeMap::new(),
        paths: BTreeSet::new(),
    };
    let mut wave = Wave::default();
    for wanted in wanted {
        match wanted {
            Wanted::Outputs {
                drv_path, outputs, ..
            } => wave.want(drv_path, outputs),
            Wanted::Given { drv_path, .. } => wave.want(drv_path, &WantedOutputs::All),
            Wanted::Path(path, _) => {
                wave.paths.insert(path.clone());
            }
        }
    }
    let roots: Vec<StorePath> = wave.derivations.keys().cloned().collect();
    while !wave.is_empty() {
        wave = planner.next(wave).await?;
    }
    planner.order(roots);
    Ok(planner.plan)
}

/// What is looked at next.
#[derive(Debug, Default)]
struct Wave {
    derivations: BTreeMap<StorePath, WantedOutputs>,
    paths: BTreeSet<StorePath>,
}

impl Wave {
    fn want(&mut self, drv_path: &StorePath, outputs: &WantedOutputs) {
        let wanted = self.derivations.entry(drv_path.clone());
        let _growth = wanted.or_insert_with(|| outputs.clone()).widen(outputs);
    }

    fn is_empty(&self) -> bool {
        self.derivations.is_empty() && self.paths.is_empty()
    }
}

/// What is known of a derivation.
struct Seen {
    asked: WantedOutputs,
    /// Its inputs, if it will be built.
    inputs: Option<Vec<StorePath>>,
}

/// A derivation some of whose outputs that are wanted are not there.
struct Lacking {
    drv_path: StorePath,
    derivation: Arc<Derivation>,
    /// Those whose paths are known.
    paths: Vec<StorePath>,
    may_be_fetched: bool,
}

struct Planner<'a> {
    store: &'a Store,
    caches: &'a Addr<Substituter>,
    settings: &'a Settings,
    plan: Plan,
    derivations: BTreeMap<StorePath, Seen>,
    paths: BTreeSet<StorePath>,
}

impl Planner<'_> {
    /// Looks at a wave; returns what that leads to.
    async fn next(&mut self, wave: Wave) -> Result<Wave> {
        let mut next = Wave::default();
        let lacking = self
            .look_at_derivations(wave.derivations, &mut next)
            .await?;
        self.choose(lacking, &mut next).await?;
        self.look_at_paths(wave.paths, &mut next).await?;
        Ok(next)
    }

    /// Finds the derivations of which something is not there. One that is not in the store is only a
    /// path: what it needs is known when it has been fetched.
    async fn look_at_derivations(
        &mut self,
        wanted: BTreeMap<StorePath, WantedOutputs>,
        next: &mut Wave,
    ) -> Result<Vec<Lacking>> {
        let there = self.valid(wanted.keys().cloned().collect()).await?;
        let mut lacking = Vec::new();
        for (drv_path, outputs) in wanted {
            if !there.contains(&drv_path) {
                next.paths.insert(drv_path);
                continue;
            }
            let seen = self.derivations.entry(drv_path.clone()).or_insert(Seen {
                asked: WantedOutputs::These(BTreeSet::new()),
                inputs: None,
            });
            // Of what is built, all outputs are made.
            if seen.inputs.is_some() || seen.asked.widen(&outputs) == Widened::Unchanged {
                continue;
            }
            let outputs = seen.asked.clone();
            lacking.extend(self.lacking(drv_path, &outputs).await?);
        }
        Ok(lacking)
    }

    async fn lacking(
        &self,
        drv_path: StorePath,
        outputs: &WantedOutputs,
    ) -> Result<Option<Lacking>> {
        let question = QueryDerivation {
            drv_path: drv_path.clone(),
        };
        let derivation = self.store.ask(question).await?;
        let known = self.store.output_paths(Arc::clone(&derivation)).await?;
        let names = derivation.outputs.keys();
        let n_wanted = names.filter(|name| outputs.contains(name)).count();
        let known = known.into_iter().filter(|(name, _)| outputs.contains(name));
        let paths: Vec<StorePath> = known.map(|(_, path)| path).collect();
        let valid = self.valid(paths.clone()).await?;
        if valid.len() == n_wanted {
            return Ok(None);
        }
        let allows = derivation
            .attributes()
            .and_then(|attributes| attributes.flag("allowSubstitutes", BoolAttribute::True))
            .unwrap_or(true);
        let allows = allows || self.settings.always_allow_substitutes;
        Ok(Some(Lacking {
            may_be_fetched: allows && self.settings.substitute && paths.len() == n_wanted,
            paths: paths.into_iter().filter(|it| !valid.contains(it)).collect(),
            drv_path,
            derivation,
        }))
    }

    /// Fetches what caches have of derivations, and builds those of which they lack something.
    async fn choose(&mut self, lacking: Vec<Lacking>, next: &mut Wave) -> Result<()> {
        let asked = lacking.iter().filter(|it| it.may_be_fetched);
        let paths = asked.flat_map(|it| it.paths.iter().cloned()).collect();
        let offers = self.offers(paths).await?;
        for lacking in lacking {
            let has_all = lacking.paths.iter().all(|path| offers.contains_key(path));
            if lacking.may_be_fetched && has_all {
                for path in &lacking.paths {
                    self.fetch(path, &offers[path], next);
                }
            } else {
                self.build(&lacking, next);
            }
        }
        Ok(())
    }

    fn fetch(&mut self, path: &StorePath, offer: &Offer, next: &mut Wave) {
        self.paths.insert(path.clone());
        let narinfo = &offer.narinfo;
        let sizes = Sizes {
            download: narinfo.file_size_bytes.unwrap_or_default(),
            nar: narinfo.info.nar_size_bytes,
        };
        self.plan.will_fetch.insert(path.clone(), sizes);
        next.paths.extend(narinfo.info.references.iter().cloned());
    }

    fn build(&mut self, lacking: &Lacking, next: &mut Wave) {
        let derivation = &lacking.derivation;
        next.paths.extend(derivation.input_sources.iter().cloned());
        for (input, names) in &derivation.input_derivations {
            next.want(input, &WantedOutputs::These(names.clone()));
        }
        if let Some(seen) = self.derivations.get_mut(&lacking.drv_path) {
            seen.inputs = Some(derivation.input_derivations.keys().cloned().collect());
        }
    }

    async fn look_at_paths(&mut self, paths: BTreeSet<StorePath>, next: &mut Wave) -> Result<()> {
        let new: Vec<StorePath> = paths
            .into_iter()
            .filter(|path| self.paths.insert(path.clone()))
            .collect();
        let valid = self.valid(new.clone()).await?;
        let invalid: Vec<StorePath> = new.into_iter().filter(|it| !valid.contains(it)).collect();
        let offers = if self.settings.substitute {
            self.offers(invalid.clone()).await?
        } else {
            BTreeMap::new()
        };
        for path in invalid {
            match offers.get(&path) {
                Some(offer) => self.fetch(&path, offer, next),
                None => {
                    self.plan.unknown.insert(path);
                }
            }
        }
        Ok(())
    }

    async fn valid(&self, paths: Vec<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.store.ask(QueryValidPaths { paths }).await
    }

    /// Asks the caches for all of these at once; returns the best offer for each that one has.
    async fn offers(&self, paths: Vec<StorePath>) -> Result<BTreeMap<StorePath, Offer>> {
        let questions = paths.into_iter().map(|path| async move {
            let question = QueryOffers {
                path: path.clone(),
                freshness: Freshness::Remembered,
            };
            let answer = self.caches.send(question).await;
            let answer = answer.map_err(|_| Failure::message("the substituter has stopped"))?;
            let offers = answer.map_err(Failure::new)?.offers;
            Ok::<_, Failure>(offers.into_iter().next().map(|offer| (path, offer)))
        });
        Ok(try_join_all(questions)
            .await?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Puts what will be built in order, inputs first, with a stack of its own.
    fn order(&mut self, roots: Vec<StorePath>) {
        let mut done = BTreeSet::new();
        let mut stack: Vec<(StorePath, bool)> = Vec::new();
        // The last one is looked at first.
        stack.extend(roots.into_iter().rev().map(|root| (root, false)));
        while let Some((drv_path, is_left)) = stack.pop() {
            let seen = self.derivations.get(&drv_path);
            let Some(inputs) = seen.and_then(|seen| seen.inputs.as_ref()) else {
                continue;
            };
            if is_left {
                self.plan.will_build.push(drv_path);
            } else if done.insert(drv_path.clone()) {
                let inputs: Vec<_> = inputs.iter().rev().cloned().collect();
                stack.push((drv_path, true));
                stack.extend(inputs.into_iter().map(|input| (input, false)));
            }
        }
    }
}

impl Plan {
    /// Prints the plan for people on standard error, or as JSON on standard output.
    pub(super) fn print(&self, store: &Store, json: bool, output: &mut Output) -> Result<()> {
        if json {
            return output.json(&self.to_json(store));
        }
        let list = |lead: &str, paths: Vec<String>| {
            if !paths.is_empty() {
                say(&format!("{lead}:\n  {}\n", paths.join("\n  ")));
            }
        };
        let lead = match self.will_build.len() {
            1 => "this derivation will be built".to_owned(),
            n_built => format!("these {n_built} derivations will be built"),
        };
        list(&lead, printed(&self.will_build, store));
        let Sizes { download, nar } = self.sizes();
        let amount = format!("({} download, {} unpacked)", size(download), size(nar));
        let lead = match self.will_fetch.len() {
            1 => format!("this path will be fetched {amount}"),
            n_fetched => format!("these {n_fetched} paths will be fetched {amount}"),
        };
        list(&lead, printed(self.will_fetch.keys(), store));
        list(
            "don't know how to build these paths",
            printed(&self.unknown, store),
        );
        Ok(())
    }

    /// Returns how much will be fetched in all.
    fn sizes(&self) -> Sizes {
        let sizes = self.will_fetch.values();
        // What caches say of sizes is only their word.
        sizes.fold(Sizes::default(), |sum, one| Sizes {
            download: sum.download.saturating_add(one.download),
            nar: sum.nar.saturating_add(one.nar),
        })
    }

    fn to_json(&self, store: &Store) -> Value {
        let Sizes { download, nar } = self.sizes();
        json!({
            "willBuild": printed(&self.will_build, store),
            "willFetch": printed(self.will_fetch.keys(), store),
            "downloadSize": download,
            "narSize": nar,
            "unknown": printed(&self.unknown, store),
        })
    }
}

fn printed<'a>(paths: impl IntoIterator<Item = &'a StorePath>, store: &Store) -> Vec<String> {
    paths
        .into_iter()
        .map(|path| store.dir().print(path))
        .collect()
}
