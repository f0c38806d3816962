//! A fresh store with a busybox in it, a sandbox over it, and what came of a build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use sandbox::{
    BuildEvent, BuildExited, BuildId, BuildProgress, BuildVerdict, BuilderStarted, DisposeBuild,
    Disposition, HostEnvironment, SandboxSupervisor, StartBuild, StopSandbox,
};
use store_model::derivation::reference_graphs::GraphInfos;
use store_model::settings::StoreLayout;
use store_model::{
    Derivation, DerivationOutput, Hash, HashAlgorithm, OutputName, Settings, StorePath,
};
use tokio::sync::mpsc;

/// The hash part of every made-up store path; names tell them apart.
const HASH_PART: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// Longer than any build here takes, so that a hang fails instead of hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// Who a test runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Root,
    Unprivileged,
}

/// A store with a busybox.
pub(crate) struct Lab {
    root: tempfile::TempDir,
    pub(crate) layout: StoreLayout,
    pub(crate) settings: Settings,
    pub(crate) inputs: BTreeSet<StorePath>,
    pub(crate) host_environment: HostEnvironment,
    pub(crate) graphs: Arc<GraphInfos>,
}

/// What came of a build.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) pid: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) log: String,
    pub(crate) exited: BuildExited,
}

/// A build that has been asked for.
pub(crate) struct Building {
    pub(crate) build_id: BuildId,
    events: mpsc::UnboundedReceiver<BuildEvent>,
}

/// Passes on what an observer hears.
struct Probe(mpsc::UnboundedSender<BuildEvent>);

impl Actor for Probe {
    type Context = Context<Self>;
}

impl Handler<BuildProgress> for Probe {
    type Result = ();

    fn handle(&mut self, progress: BuildProgress, _ctx: &mut Self::Context) {
        // A test that has seen enough does not listen to the rest.
        drop(self.0.send(progress.event));
    }
}

/// Runs a test as the user that it is about.
///
/// Root runs unprivileged tests by starting this program again as another user; somebody else
/// cannot run root's.
pub(crate) fn run_as(profile: Profile, test_name: &str, test: impl AsyncFnOnce(Lab)) {
    let is_root = nix::unistd::geteuid().is_root();
    match (profile, is_root) {
        (Profile::Root, true) | (Profile::Unprivileged, false) => {
            actix::System::new().block_on(async {
                let lab = Lab::new();
                tokio::time::timeout(PATIENCE * 2, test(lab))
                    .await
                    .expect("the test hangs");
            });
        }
        (Profile::Unprivileged, true) => {
            let status = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test_name, "--nocapture", "--test-threads=1"])
                .status()
                .expect("setpriv is missing");
            assert!(status.success(), "failed as an unprivileged user");
        }
        (Profile::Root, false) => {
            let required = std::env::var_os("GOAL_REQUIRE_SANDBOX").is_some();
            assert!(!required, "{test_name} needs root");
            writeln_stderr(&format!("{test_name} cannot run here: it needs root"));
        }
    }
}

/// Says something to whoever reads a test's output.
pub(crate) fn writeln_stderr(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Makes two tests of one: as root and unprivileged.
macro_rules! in_both_profiles {
    ($($name:ident => $test:expr;)*) => {$(
        mod $name {
            #[test]
            fn as_root() {
                let name = concat!(module_path!(), "::as_root");
                let name = name.split_once("::").unwrap().1;
                $crate::lab::run_as($crate::lab::Profile::Root, name, $test);
            }

            #[test]
            fn unprivileged() {
                let name = concat!(module_path!(), "::unprivileged");
                let name = name.split_once("::").unwrap().1;
                $crate::lab::run_as($crate::lab::Profile::Unprivileged, name, $test);
            }
        }
    )*};
}
pub(crate) use in_both_profiles;

/// Makes a test that only root can run.
macro_rules! as_root {
    ($($name:ident => $test:expr;)*) => {$(
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            let name = name.split_once("::").unwrap().1;
            $crate::lab::run_as($crate::lab::Profile::Root, name, $test);
        }
    )*};
}
pub(crate) use as_root;

impl Lab {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // Builders of root are other users, and pass here where there is no sandbox.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let layout = StoreLayout::under_root(root.path());
        fs::create_dir_all(&layout.real_store_dir).unwrap();
        let mut lab = Self {
            root,
            layout,
            settings: Settings::default(),
            inputs: BTreeSet::new(),
            host_environment: BTreeMap::new(),
            graphs: Arc::default(),
        };
        lab.add_busybox();
        lab
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    fn add_busybox(&mut self) {
        let path = self.add_input("busybox");
        let bin = self.real(&path).join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        let applets = Command::new("/bin/busybox")
            .arg("--list")
            .output()
            .unwrap()
            .stdout;
        for applet in String::from_utf8(applets).unwrap().lines() {
            if applet != "busybox" {
                symlink("busybox", bin.join(applet)).unwrap();
            }
        }
    }

    /// Names an input; the caller makes it.
    pub(crate) fn add_input(&mut self, name: &str) -> StorePath {
        let path = store_path(name);
        self.inputs.insert(path.clone());
        path
    }

    /// Returns where an object is on the host.
    pub(crate) fn real(&self, path: &StorePath) -> PathBuf {
        self.layout.real_store_dir.join(path.base_name())
    }

    pub(crate) fn start(&self) -> Addr<SandboxSupervisor> {
        sandbox::start(
            self.layout.clone(),
            &self.settings,
            self.host_environment.clone(),
        )
        .unwrap()
    }

    /// A derivation that runs a shell script.
    pub(crate) fn script(&self, script: &str) -> Derivation {
        let bin = format!(
            "{}/bin",
            self.layout.store_dir.print(&store_path("busybox"))
        );
        let out = store_path("test");
        let env = BTreeMap::from([
            ("PATH".into(), bin.as_str().into()),
            ("out".into(), self.layout.store_dir.print(&out).into()),
        ]);
        Derivation {
            name: "test".to_owned(),
            outputs: BTreeMap::from([(
                OutputName::default(),
                DerivationOutput::InputAddressed(out),
            )]),
            input_derivations: BTreeMap::new(),
            input_sources: BTreeSet::new(),
            system: "x86_64-linux".into(),
            builder: format!("{bin}/sh").into(),
            args: vec!["-euc".into(), script.into()],
            env,
        }
    }

    /// The same with a fixed output, so on the host's network.
    pub(crate) fn fixed_script(&self, script: &str) -> Derivation {
        let mut derivation = self.script(script);
        let path = store_path("test");
        derivation.outputs.insert(
            OutputName::default(),
            DerivationOutput::Fixed {
                method: store_model::derivation::IngestionMethod::Flat,
                hash: Hash::digest(HashAlgorithm::Sha256, b""),
                path,
            },
        );
        derivation
    }

    /// Runs a script to its end in a sandbox of its own, and leaves nothing.
    pub(crate) async fn run(&self, script: &str) -> Built {
        self.run_derivation(self.script(script)).await
    }

    pub(crate) async fn run_derivation(&self, derivation: Derivation) -> Built {
        let supervisor = self.start();
        let built = self.build(&supervisor, 1, derivation).finish().await;
        supervisor.send(StopSandbox).await.unwrap();
        built
    }

    /// Asks for a build.
    pub(crate) fn build(
        &self,
        supervisor: &Addr<SandboxSupervisor>,
        build_id: u64,
        derivation: Derivation,
    ) -> Building {
        let (sender, events) = mpsc::unbounded_channel();
        let build_id = BuildId(build_id);
        supervisor.do_send(StartBuild {
            build_id,
            drv_path: store_path(&format!("{}.drv", derivation.name)),
            derivation: Arc::new(derivation),
            input_paths: Arc::new(self.inputs.clone()),
            graphs: Arc::clone(&self.graphs),
            settings: Arc::new(self.settings.clone()),
            observer: Probe(sender).start().recipient(),
        });
        Building { build_id, events }
    }

    /// Asserts that nothing of any build is left on disk.
    pub(crate) fn assert_clean(&self) {
        let names = |path: &Path| -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(path)
                .unwrap()
                .map(|found| found.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let inputs: Vec<String> = self
            .inputs
            .iter()
            .map(|path| path.base_name().to_owned())
            .collect();
        assert_eq!(names(&self.layout.real_store_dir), inputs);
        assert!(names(&self.layout.state_dir.join("builds")).is_empty());
        assert!(names(&self.layout.state_dir.join("sandbox-root")).is_empty());
    }
}

impl Building {
    pub(crate) async fn next(&mut self) -> BuildEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("the build hangs")
            .expect("the build ended without saying so")
    }

    /// Waits until the builder runs.
    pub(crate) async fn started(&mut self) -> BuilderStarted {
        match self.next().await {
            BuildEvent::Started(started) => started,
            event @ (BuildEvent::AwaitingUser | BuildEvent::Logged(_) | BuildEvent::Exited(_)) => {
                panic!("{event:?} before the builder runs")
            }
        }
    }

    /// Waits until the builder has written `text`.
    pub(crate) async fn wait_for(&mut self, text: &str) {
        loop {
            match self.next().await {
                BuildEvent::Logged(lines) if contains(&lines.text, text) => return,
                BuildEvent::Exited(exited) => panic!("ended early: {exited:?}"),
                BuildEvent::AwaitingUser | BuildEvent::Started(_) | BuildEvent::Logged(_) => {}
            }
        }
    }

    pub(crate) async fn finish(mut self) -> Built {
        let (mut pid, mut uid, mut log) = (None, None, String::new());
        loop {
            match self.next().await {
                BuildEvent::AwaitingUser => {}
                BuildEvent::Started(started) => {
                    pid = Some(started.pid);
                    uid = Some(started.uid);
                }
                BuildEvent::Logged(lines) => {
                    log.push_str(&String::from_utf8_lossy(&lines.text));
                    log.push('\n');
                }
                BuildEvent::Exited(exited) => {
                    assert!(
                        self.events.try_recv().is_err(),
                        "something came after the end"
                    );
                    return Built {
                        pid,
                        uid,
                        log,
                        exited: *exited,
                    };
                }
            }
        }
    }
}

impl Built {
    pub(crate) fn assert_success(&self) -> &Self {
        assert_eq!(
            self.exited.verdict,
            BuildVerdict::Exited { code: 0 },
            "{}",
            self.log
        );
        self
    }

    /// Reads an output before it is disposed of.
    pub(crate) fn output(&self) -> PathBuf {
        let scratch = self.exited.scratch.as_ref().expect("set-up got that far");
        scratch.path.join(store_path("test").base_name())
    }
}

/// Disposes of a build and waits for the answer.
pub(crate) async fn dispose(
    supervisor: &Addr<SandboxSupervisor>,
    build_id: u64,
    disposition: Disposition,
) -> Option<PathBuf> {
    let build_id = BuildId(build_id);
    supervisor
        .send(DisposeBuild {
            build_id,
            disposition,
        })
        .await
        .unwrap()
        .unwrap()
}

pub(crate) fn store_path(name: &str) -> StorePath {
    format!("{HASH_PART}-{name}").parse().unwrap()
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// Returns as whom this runs.
pub(crate) fn profile() -> Profile {
    if nix::unistd::geteuid().is_root() {
        Profile::Root
    } else {
        Profile::Unprivileged
    }
}

/// Returns a number of seconds that only one test sleeps for, so that it finds its own.
pub(crate) fn seconds(idx: u32) -> u32 {
    1_000_000 + 100 * std::process::id() + idx
}

/// Returns whether this machine runs a `sleep` of this many seconds.
pub(crate) fn is_sleeping(n_seconds: u32) -> bool {
    let arguments = format!("sleep\0{n_seconds}\0");
    fs::read_dir("/proc").unwrap().any(|found| {
        fs::read_to_string(found.unwrap().path().join("cmdline"))
            .is_ok_and(|cmdline| cmdline == arguments)
    })
}

/// Returns where the reference vectors are.
pub(crate) fn shared_fixtures() -> PathBuf {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    shared.join("fixtures")
}
