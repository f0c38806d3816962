//! Measures what a trivial build costs, what a large closure adds, and how fast a log passes.
//!
//! `cargo run --release -p sandbox --example measure [BUILDS [WHAT]]` prints one line for each figure, all
//! of them wall time from the request to the end. Run it on a quiet machine, in a fresh store
//! directory, and compare figures of one run only.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::Write;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler};
use sandbox::{
    BuildEvent, BuildId, BuildProgress, BuildVerdict, DisposeBuild, Disposition, SandboxSupervisor,
    StartBuild, StopSandbox,
};
use store_model::settings::StoreLayout;
use store_model::{Derivation, DerivationOutput, OutputName, Settings, StorePath};
use tokio::sync::mpsc;
use tokio::time::Instant;

const HASH_PART: &str = "0123456789abcdfghijklmnpqrsvwxyz";

struct Observer(mpsc::UnboundedSender<BuildVerdict>);

impl Actor for Observer {
    type Context = Context<Self>;
}

impl Handler<BuildProgress> for Observer {
    type Result = ();

    fn handle(&mut self, progress: BuildProgress, _ctx: &mut Self::Context) {
        if let BuildEvent::Exited(exited) = progress.event {
            drop(self.0.send(exited.verdict));
        }
    }
}

struct Bench {
    settings: Arc<Settings>,
    /// Only what has this in its name is measured.
    wanted: String,
    n_builds: u64,
    supervisor: Addr<SandboxSupervisor>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let n_builds = std::env::args()
        .nth(1)
        .map_or(Ok(300), |text| text.parse())?;
    let wanted = std::env::args().nth(2).unwrap_or_default();
    actix::System::new().block_on(measure(n_builds, wanted))
}

async fn measure(n_builds: u64, wanted: String) -> Result<(), Box<dyn Error>> {
    let root = tempfile::tempdir()?;
    let layout = StoreLayout::under_root(root.path());
    fs::create_dir_all(&layout.real_store_dir)?;
    let busybox = layout.real_store_dir.join(path("busybox")?.base_name());
    fs::create_dir(&busybox)?;
    fs::copy("/bin/busybox", busybox.join("busybox"))?;
    for idx in 0..1000 {
        fs::create_dir(
            layout
                .real_store_dir
                .join(path(&format!("input-{idx}"))?.base_name()),
        )?;
    }
    let settings = Arc::new(Settings::default());
    let supervisor = sandbox::start(layout, &settings, BTreeMap::new())?;
    let mut bench = Bench {
        settings,
        wanted,
        n_builds: 0,
        supervisor,
    };
    bench.run("warming up", 20, 1, 1, "true").await?;
    bench
        .run("trivial build, one after another", n_builds, 1, 1, "true")
        .await?;
    bench
        .run("trivial build, two at once", n_builds, 2, 1, "true")
        .await?;
    bench.run("8 inputs", n_builds / 3, 1, 8, "true").await?;
    bench.run("9 inputs", n_builds / 3, 1, 9, "true").await?;
    bench
        .run("100 inputs", n_builds / 3, 1, 100, "true")
        .await?;
    bench
        .run("1000 inputs", n_builds / 10, 1, 1000, "true")
        .await?;
    bench
        .run(
            "200 MB of log",
            1,
            1,
            1,
            "yes 0123456789012345678901234567890123456789 | head -c 200000000",
        )
        .await?;
    bench.supervisor.send(StopSandbox).await?;
    Ok(())
}

impl Bench {
    async fn run(
        &mut self,
        what: &str,
        n_builds: u64,
        n_at_once: u64,
        n_inputs: usize,
        script: &str,
    ) -> Result<(), Box<dyn Error>> {
        if !what.contains(&self.wanted) {
            return Ok(());
        }
        let (sender, mut verdicts) = mpsc::unbounded_channel();
        let observer = Observer(sender).start().recipient();
        let derivation = Arc::new(derivation(script)?);
        let mut inputs = BTreeSet::from([path("busybox")?]);
        for idx in 1..n_inputs {
            inputs.insert(path(&format!("input-{idx}"))?);
        }
        let inputs = Arc::new(inputs);
        let begun = Instant::now();
        let (mut n_started, mut n_ended) = (0, 0);
        let first_id = self.n_builds;
        while n_ended < n_builds {
            while n_started < n_builds && n_started - n_ended < n_at_once {
                self.supervisor.do_send(StartBuild {
                    build_id: BuildId(first_id + n_started),
                    drv_path: path(&format!("bench-{n_started}.drv"))?,
                    derivation: Arc::clone(&derivation),
                    input_paths: Arc::clone(&inputs),
                    graphs: Arc::default(),
                    settings: Arc::clone(&self.settings),
                    observer: observer.clone(),
                });
                n_started += 1;
            }
            let verdict = verdicts.recv().await.ok_or("the sandbox is gone")?;
            if verdict != (BuildVerdict::Exited { code: 0 }) {
                return Err(format!("{verdict:?}").into());
            }
            self.supervisor.do_send(DisposeBuild {
                build_id: BuildId(first_id + n_ended),
                disposition: Disposition::Delete,
            });
            n_ended += 1;
        }
        self.n_builds += n_builds;
        let each = begun.elapsed().as_secs_f64() * 1000.0 / f64::from(u32::try_from(n_builds)?);
        writeln!(std::io::stdout(), "{what}: {each:.2} ms each")?;
        Ok(())
    }
}

fn derivation(script: &str) -> Result<Derivation, Box<dyn Error>> {
    let busybox = format!("/nix/store/{}/busybox", path("busybox")?);
    let (builder, args): (String, Vec<&str>) = if script == "true" {
        (busybox, vec!["true"])
    } else {
        (busybox, vec!["sh", "-c", script])
    };
    Ok(Derivation {
        name: "bench".to_owned(),
        outputs: BTreeMap::from([(
            OutputName::default(),
            DerivationOutput::InputAddressed(path("bench")?),
        )]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: "x86_64-linux".into(),
        builder: builder.into(),
        args: args.into_iter().map(Into::into).collect(),
        env: BTreeMap::new(),
    })
}

fn path(name: &str) -> Result<StorePath, store_model::Error> {
    format!("{HASH_PART}-{name}").parse()
}
