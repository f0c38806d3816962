//! `build --dry-run`: which derivations would be built, without building any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use registry::{QueryDerivation, QueryValidPaths};
use scheduler::Wanted;
use serde_json::{Value, json};
use store_model::StorePath;
use store_model::wanted_outputs::WantedOutputs;

use crate::failure::Result;
use crate::output::{Output, say};
use crate::store::Store;

/// What a request would bring about.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Derivations that would be built, inputs first.
    will_build: Vec<StorePath>,
    /// Paths that are neither valid nor built by any of these.
    unknown: BTreeSet<StorePath>,
}

/// A derivation whose inputs are being looked at.
struct Visit {
    drv_path: StorePath,
    pending: Vec<(StorePath, WantedOutputs)>,
}

/// Finds out what a request would do.
pub(super) async fn plan(store: &Store, wanted: &[Wanted]) -> Result<Plan> {
    let mut planner = Planner {
        store,
        plan: Plan::default(),
        seen: BTreeMap::new(),
    };
    for wanted in wanted {
        match wanted {
            Wanted::Outputs {
                drv_path, outputs, ..
            } => planner.add(drv_path, outputs).await?,
            Wanted::Given { drv_path, .. } => planner.add(drv_path, &WantedOutputs::All).await?,
            Wanted::Path(path, _) => planner.note_unknown(BTreeSet::from([path.clone()])).await?,
        }
    }
    Ok(planner.plan)
}

struct Planner<'a> {
    store: &'a Store,
    plan: Plan,
    /// What has been asked of each derivation, and whether it will be built.
    seen: BTreeMap<StorePath, (WantedOutputs, bool)>,
}

impl Planner<'_> {
    /// Adds a derivation and all that it needs, depth first with a stack of its own.
    async fn add(&mut self, drv_path: &StorePath, outputs: &WantedOutputs) -> Result<()> {
        let mut stack: Vec<Visit> = Vec::new();
        stack.extend(self.enter(drv_path, outputs).await?);
        while let Some(visit) = stack.last_mut() {
            if let Some((input, outputs)) = visit.pending.pop() {
                let entered = self.enter(&input, &outputs).await?;
                stack.extend(entered);
            } else if let Some(done) = stack.pop() {
                self.plan.will_build.push(done.drv_path);
            }
        }
        Ok(())
    }

    /// Looks at one derivation; returns its inputs if it must be built and was not seen before.
    async fn enter(
        &mut self,
        drv_path: &StorePath,
        outputs: &WantedOutputs,
    ) -> Result<Option<Visit>> {
        if let Some((asked, will_build)) = self.seen.get(drv_path)
            && (*will_build || asked.covers(outputs))
        {
            return Ok(None);
        }
        let message = QueryDerivation {
            drv_path: drv_path.clone(),
        };
        let derivation = self.store.ask(message).await?;
        let known = self.store.output_paths(Arc::clone(&derivation)).await?;
        let wanted = derivation.outputs.keys();
        let n_wanted = wanted.filter(|name| outputs.contains(name)).count();
        let paths: Vec<_> = known
            .into_iter()
            .filter(|(name, _)| outputs.contains(name))
            .map(|(_, path)| path)
            .collect();
        let n_valid = self.store.ask(QueryValidPaths { paths }).await?.len();
        let will_build = n_valid < n_wanted;
        let asked = self
            .seen
            .entry(drv_path.clone())
            .or_insert_with(|| (outputs.clone(), will_build));
        asked.0.widen(outputs);
        asked.1 = will_build;
        if !will_build {
            return Ok(None);
        }
        self.note_unknown(derivation.input_sources.clone()).await?;
        // The last one is looked at first.
        let pending = derivation
            .input_derivations
            .iter()
            .rev()
            .map(|(path, names)| (path.clone(), WantedOutputs::These(names.clone())));
        Ok(Some(Visit {
            drv_path: drv_path.clone(),
            pending: pending.collect(),
        }))
    }

    async fn note_unknown(&mut self, paths: BTreeSet<StorePath>) -> Result<()> {
        let message = QueryValidPaths {
            paths: paths.iter().cloned().collect(),
        };
        let valid = self.store.ask(message).await?;
        self.plan
            .unknown
            .extend(paths.into_iter().filter(|path| !valid.contains(path)));
        Ok(())
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
        list(
            "don't know how to build these paths",
            printed(&self.unknown, store),
        );
        Ok(())
    }

    fn to_json(&self, store: &Store) -> Value {
        json!({
            "willBuild": printed(&self.will_build, store),
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
