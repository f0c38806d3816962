//! `realisation`: which paths outputs were realised by, as `nix realisation info` 2.8 prints it.

use std::collections::{BTreeMap, BTreeSet};

use registry::{QueryDerivation, QueryRealisationInfos, QueryRealisations};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{DrvOutput, Realisation, Settings, StorePath};

use super::instantiate::instantiate_file;
use super::query::path_info as valid_path_info;
use crate::args::RealisationInfoArguments;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::{Finder, Target};

/// What was asked for: realisations first, then plain paths, each in order, as Nix has them.
#[derive(Default)]
struct Found {
    realisations: BTreeMap<DrvOutput, Realisation>,
    opaque_paths: BTreeSet<StorePath>,
}

/// Prints what is known about the realisations of outputs; a plain path is printed as it is.
pub(super) async fn info(
    store: &Store,
    finder: &Finder<'_>,
    settings: &Settings,
    arguments: &RealisationInfoArguments,
    output: &mut Output,
) -> Result<()> {
    let mut found = Found::default();
    for word in &arguments.wanted {
        match finder.target(word)? {
            Target::Outputs { drv_path, outputs } => {
                let infos = infos(store, drv_path, &outputs).await?;
                found.realisations.extend(infos);
            }
            Target::Path(path) => {
                valid_path_info(store, &path).await?;
                found.opaque_paths.insert(path);
            }
            Target::Goals {
                file,
                goal,
                outputs,
            } => {
                let made = instantiate_file(store, &file, goal.as_deref(), settings).await?;
                for (_, made) in made {
                    let infos = infos(store, made.drv_path, &outputs).await?;
                    found.realisations.extend(infos);
                }
            }
        }
    }
    let print = |path: &StorePath| store.dir().print(path);
    if arguments.json {
        let realisations = found.realisations.values().map(Realisation::to_json);
        let paths = found.opaque_paths.iter().map(|path| {
            let path = print(path);
            serde_json::json!({ "opaquePath": path }).to_string()
        });
        let members: Vec<String> = realisations.chain(paths).collect();
        return output.line(format_args!("[{}]", members.join(",")));
    }
    for (id, realisation) in &found.realisations {
        output.line(format_args!("{id} {}", print(&realisation.out_path)))?;
    }
    found
        .opaque_paths
        .iter()
        .try_for_each(|path| output.line(print(path)))
}

/// Returns the realisations of a derivation's outputs.
///
/// # Errors
/// One of them has none.
async fn infos(
    store: &Store,
    drv_path: StorePath,
    wanted: &WantedOutputs,
) -> Result<BTreeMap<DrvOutput, Realisation>> {
    let printed = store.dir().print(&drv_path);
    let derivation = store.ask(QueryDerivation { drv_path }).await?;
    let names = wanted.names(&derivation)?;
    let mut ids = store.ask(QueryRealisations { derivation }).await?.ids;
    ids.retain(|name, _| names.contains(name));
    let outputs: BTreeSet<DrvOutput> = ids.into_values().collect();
    let infos = store
        .ask(QueryRealisationInfos {
            outputs: outputs.clone(),
        })
        .await?;
    if let Some(missing) = outputs.iter().find(|output| !infos.contains_key(output)) {
        return Err(Failure::message(format!(
            "no realisation of output '{}' of '{printed}' is known",
            missing.output_name
        ))
        .advise(format!("build it with 'goalctl build {printed}'")));
    }
    Ok(infos)
}
