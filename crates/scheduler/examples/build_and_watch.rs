//! Imports the scheduler, writes two derivations into a store, builds them, and prints every event.
//!
//! ```text
//! cargo build -p sandbox --bins && cargo run -p scheduler --example build_and_watch [ROOT]
//! ```
//!
//! Without ROOT the store lies in a temporary directory and goes with it.

#![expect(
    clippy::print_stdout,
    reason = "it is a program that shows what it hears"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry::{AddText, Added};
use scheduler::{
    BuildMode, BuildRequest, Config, EventKind, HostEnvironment, Scheduler, SchedulerHandle, Wanted,
};
use store_model::derivation::HashModuloCache;
use store_model::settings::{SandboxPath, Settings, StoreLayout};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, DerivationOutput, OutputName, StoreDir, StorePath};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = std::env::temp_dir().join(format!("build-and-watch-{}", std::process::id()));
    let given = std::env::args().nth(1).map(PathBuf::from);
    let root = given.clone().unwrap_or_else(|| temporary.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let built = runtime.block_on(build(&root));
    if given.is_none() {
        std::fs::remove_dir_all(&temporary)?;
    }
    built
}

async fn build(root: &Path) -> Result<(), Box<dyn Error>> {
    let settings = Arc::new(Settings {
        max_jobs: 2,
        substituters: Vec::new(),
        sandbox_paths: host_tools(),
        ..Settings::default()
    });
    let scheduler = Scheduler::start(Config {
        layout: StoreLayout::under_root(root),
        settings: Arc::clone(&settings),
        host_environment: HostEnvironment::new(),
        cache_dir: None,
        nix_config: String::new(),
    })?;

    let mut hashes = HashModuloCache::new(StoreDir::default());
    let greeting = script("greeting", "echo hello > $out", None);
    let greeting = write(&scheduler, &mut hashes, greeting).await?;
    let shout = script("shout", "tr a-z A-Z < $input | tee $out", Some(&greeting));
    // Both stay in the store at least as long as these values: there may be a collector at work.
    let (shout, _) = write(&scheduler, &mut hashes, shout).await?;

    let mut events = scheduler.subscribe().await?;
    let watching = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event.kind {
                EventKind::Created { key, .. } => println!("goal {}: {key}", event.goal),
                EventKind::Waiting { reason } => println!("goal {}: {reason:?}", event.goal),
                EventKind::Started { pid, uid, .. } => {
                    println!("goal {}: started as {pid}, uid {uid}", event.goal);
                }
                EventKind::Fetching { cache, .. } => {
                    println!("goal {}: comes from {cache}", event.goal);
                }
                EventKind::Fetched { n_bytes, .. } => {
                    println!("goal {}: {n_bytes} bytes", event.goal);
                }
                EventKind::Logged(lines) | EventKind::HookLogged(lines) => {
                    println!(
                        "goal {}: {}",
                        event.goal,
                        String::from_utf8_lossy(&lines.text)
                    );
                }
                EventKind::Finished(outcome) => {
                    println!(
                        "goal {}: {:?} {}",
                        event.goal, outcome.status, outcome.message
                    );
                }
            }
        }
    });
    let report = scheduler
        .build_paths(BuildRequest {
            wanted: vec![Wanted::Outputs {
                drv_path: shout.path.clone(),
                outputs: WantedOutputs::All,
                mode: BuildMode::Normal,
            }],
            settings,
            priority: 0,
        })
        .await?;
    // Stopping ends the stream of events, and so the watcher.
    scheduler.stop().await;
    watching.await?;

    for (_, outcome) in &report.outcomes {
        for path in outcome.outputs.values() {
            let real_path = root.join("nix/store").join(path.base_name());
            let contents = std::fs::read_to_string(&real_path)?;
            println!("{}: {contents}", real_path.display());
            assert_eq!(contents, "HELLO\n");
        }
    }
    match report.exit_status() {
        0 => Ok(()),
        status => Err(format!("the build failed with status {status}").into()),
    }
}

/// Returns the directories of the host's shell and tools, read-only in the sandbox.
fn host_tools() -> Vec<SandboxPath> {
    ["/bin", "/usr", "/lib", "/lib64"]
        .into_iter()
        .map(|path| SandboxPath {
            target: path.into(),
            source: path.into(),
            optional: true,
            writable: false,
        })
        .collect()
}

/// Returns a derivation that runs a shell script, with the `out` of another as `$input`.
fn script(name: &str, text: &str, input: Option<&(Added, StorePath)>) -> Derivation {
    let mut env = BTreeMap::from([
        ("name".into(), name.into()),
        ("PATH".into(), "/usr/bin:/bin".into()),
    ]);
    let mut input_derivations = BTreeMap::new();
    if let Some((drv, output)) = input {
        env.insert("input".into(), StoreDir::default().print(output).into());
        let wanted = BTreeSet::from([OutputName::default()]);
        input_derivations.insert(drv.path.clone(), wanted);
    }
    Derivation {
        name: name.to_owned(),
        outputs: BTreeMap::from([(OutputName::default(), DerivationOutput::Deferred)]),
        input_derivations,
        input_sources: BTreeSet::new(),
        system: Settings::default().system.into(),
        builder: "/bin/sh".into(),
        args: vec!["-ec".into(), text.into()],
        env,
    }
}

/// Computes a derivation's output paths and writes it into the store; returns where it is, and the
/// path of its `out`.
async fn write(
    scheduler: &SchedulerHandle,
    hashes: &mut HashModuloCache,
    mut derivation: Derivation,
) -> Result<(Added, StorePath), Box<dyn Error>> {
    let store_dir = StoreDir::default();
    derivation.fill_output_paths(hashes)?;
    let references = derivation
        .input_derivations
        .keys()
        .chain(&derivation.input_sources);
    let added = scheduler
        .store()
        .send(AddText {
            name: format!("{}.drv", derivation.name),
            contents: derivation.to_aterm(&store_dir),
            references: references.cloned().collect(),
        })
        .await??;
    let output = derivation.known_outputs().next();
    let (_, output) = output.ok_or("a filled derivation has its output's path")?;
    let output = output.clone();
    let mut unknown = |path: &StorePath| -> Result<Arc<Derivation>, store_model::Error> {
        unreachable!("{path} was written before what needs it")
    };
    hashes.hash(&added.path, &Arc::new(derivation), &mut unknown)?;
    Ok((added, output))
}
