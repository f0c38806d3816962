//! What the tests of this crate share: stores in temporary directories, builders' scratch
//! directories, and the genuine `nix-store`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use store_model::derivation::IngestionMethod;
use store_model::derivation::output_checks::OutputChecks;
use store_model::settings::StoreLayout;
use store_model::{Hash, OutputName, PathInfo, Settings, StorePath};
use tempfile::TempDir;

use crate::actors::StoreRegistry;
use crate::messages::{
    LockAttempt, Occupied, OutputKind, RegisterError, RegisterOutputs, ScratchOutput, ScratchStore,
    StopRegistry, TryLockOutputs,
};
use crate::start::{Registry, start};
use crate::{CancelFlag, Error, staging};

/// A uid that owns nothing on any machine.
pub(crate) const BUILDER_UID: u32 = 872_415_000;

/// Returns a path whose hash part is one digit over and over.
pub(crate) fn path(digit: char, name: &str) -> StorePath {
    let hash_part: String = std::iter::repeat_n(digit, 32).collect();
    format!("{hash_part}-{name}").parse().unwrap()
}

/// A store of its own for one test.
pub(crate) struct TestStore {
    pub(crate) root: PathBuf,
    _dir: Option<TempDir>,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            root: dir.path().to_owned(),
            _dir: Some(dir),
        }
    }

    /// A store that another test has made, and will remove.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            _dir: None,
        }
    }

    pub(crate) fn layout(&self) -> StoreLayout {
        StoreLayout::under_root(&self.root)
    }

    pub(crate) fn start(&self) -> Registry {
        self.start_with(&Settings::default())
    }

    /// Starts a registry that has other settings.
    pub(crate) fn start_with(&self, settings: &Settings) -> Registry {
        start(self.layout(), settings).unwrap()
    }

    /// Starts a registry and waits until it has cleaned up after others, so that a test can plant
    /// what it would take for their leavings.
    pub(crate) async fn start_and_settle(&self) -> Registry {
        let registry = self.start();
        registry.store.send(AwaitCleanUp).await.unwrap().unwrap();
        registry
    }

    pub(crate) fn real_path(&self, path: &StorePath) -> PathBuf {
        self.layout().real_store_dir.join(path.base_name())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.layout().state_dir.join("db/db.sqlite")
    }

    /// Returns what lies in the store directory, without working directories.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        fs::read_dir(self.layout().real_store_dir)
            .unwrap()
            .map(|listed| listed.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".links" && !name.ends_with(staging::NAME))
            .collect()
    }

    /// Returns what lies in the working directories of registries.
    pub(crate) fn staged(&self) -> BTreeSet<PathBuf> {
        fs::read_dir(self.layout().real_store_dir)
            .unwrap()
            .map(|listed| listed.unwrap())
            .filter(|listed| listed.path().to_string_lossy().ends_with(staging::NAME))
            .flat_map(|dir| fs::read_dir(dir.path()).unwrap())
            .map(|listed| listed.unwrap().path())
            .collect()
    }

    /// Runs the genuine `nix-store` on this store; returns its output.
    pub(crate) fn nix_store(&self, args: &[&str]) -> String {
        let output = self.nix_store_command(args).output().unwrap();
        assert!(
            output.status.success(),
            "nix-store {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Prepares the genuine `nix-store` to run on this store.
    pub(crate) fn nix_store_command(&self, args: &[&str]) -> Command {
        // Nix's collector reads what every process has open, and gives up on the directories, too
        // deep to have a name, that other tests hold: it gets processes of its own to look at, and
        // inherits nothing.
        let mut command = Command::new("unshare");
        command.args(["--fork", "--pid", "--mount-proc"]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-current-user");
        }
        command
            .arg("nix-store")
            .arg("--store")
            .arg(&self.root)
            .args(args)
            .env("NIX_REMOTE", "");
        command
    }
}

/// Asks whether what dead processes left has been deleted.
#[derive(actix::Message)]
#[rtype(result = "Result<(), Error>")]
pub(crate) struct AwaitCleanUp;

impl actix::Handler<AwaitCleanUp> for StoreRegistry {
    type Result = actix::ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, _: AwaitCleanUp, _: &mut actix::Context<Self>) -> Self::Result {
        self.run(|queues| async move { queues.trash.queue.run(|()| Ok(())).await })
    }
}

impl Registry {
    /// Ends the registry's threads.
    pub(crate) async fn stop(&self) {
        self.store.send(StopRegistry).await.unwrap();
    }

    /// Waits until every lock is free that was let go of before.
    pub(crate) async fn locks_are_free(&self) {
        let paths = BTreeSet::new();
        // The thread that frees them takes its jobs in their order.
        let nothing = self.locks.send(TryLockOutputs { paths }).await.unwrap();
        assert!(matches!(nothing, Ok(LockAttempt::Acquired(_))));
    }

    /// Registers outputs and waits.
    pub(crate) async fn register(
        &self,
        request: RegisterOutputs,
    ) -> Result<Vec<PathInfo>, RegisterError> {
        self.store.send(request).await.unwrap()
    }
}

/// Returns once the kernel has a waiter for the lock: nothing else tells.
pub(crate) async fn until_waiting(lock: &Path) {
    let inode = format!(
        ":{} ",
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(lock).unwrap())
    );
    loop {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        if locks
            .lines()
            .any(|line| line.contains("->") && line.contains(&inode))
        {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Says why a test does nothing here; fails instead where everything must run.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("GOAL_REQUIRE_SANDBOX").is_none(),
        "cannot run: {reason}"
    );
    tracing::warn!("skipped: {reason}");
}

/// Returns whether this test runs as root; says so if not.
pub(crate) fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(&format!("{test} needs root"));
    }
    is_root
}

/// Returns whether the genuine `nix-store` is there; says so if not.
pub(crate) fn has_nix(test: &str) -> bool {
    let found = Command::new("nix-store").arg("--version").output().is_ok();
    if !found {
        skip(&format!("{test} needs nix-store"));
    }
    found
}

/// Returns the directory of reference vectors.
pub(crate) fn fixtures() -> Option<PathBuf> {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let dir = shared.join("fixtures/nix-2.8");
    if dir.is_dir() {
        return Some(dir);
    }
    skip("the reference vectors are not here");
    None
}

/// What a builder has left, owned by a builder if we are root, else by us.
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
    drv_path: StorePath,
    builder_uid: u32,
    outputs: Vec<ScratchOutput>,
    candidates: BTreeSet<StorePath>,
    pub(crate) checks: OutputChecks,
}

impl Scratch {
    /// Makes a scratch directory beside the store's objects.
    pub(crate) fn new(store: &TestStore) -> Self {
        let drv_path = path('d', "test.drv");
        let dir = store.root.join("nix/scratch");
        fs::create_dir_all(&dir).unwrap();
        let euid = rustix::process::geteuid();
        Self {
            dir,
            drv_path,
            builder_uid: if euid.is_root() {
                BUILDER_UID
            } else {
                euid.as_raw()
            },
            outputs: Vec::new(),
            candidates: BTreeSet::new(),
            checks: OutputChecks::default(),
        }
    }

    /// Declares an output and returns where its builder puts it.
    pub(crate) fn output(&mut self, name: &str, path: &StorePath) -> PathBuf {
        self.of_kind(name, path, OutputKind::InputAddressed)
    }

    /// Declares a fixed output.
    pub(crate) fn fixed(
        &mut self,
        path: &StorePath,
        method: IngestionMethod,
        hash: Hash,
    ) -> PathBuf {
        self.of_kind("out", path, OutputKind::Fixed { method, hash })
    }

    /// Declares an output of some kind.
    pub(crate) fn of_kind(&mut self, name: &str, path: &StorePath, kind: OutputKind) -> PathBuf {
        self.candidates.insert(path.clone());
        self.outputs.push(ScratchOutput {
            name: name.parse::<OutputName>().unwrap(),
            path: path.clone(),
            kind,
        });
        let place = self.dir.join(path.base_name());
        // An earlier build's file may be read-only by now, which stops everybody but root.
        if place.is_file() {
            fs::remove_file(&place).unwrap();
        }
        place
    }

    /// Lets the contents refer to a path.
    pub(crate) fn may_mention(&mut self, path: &StorePath) {
        self.candidates.insert(path.clone());
    }

    /// Gives everything to the builder, without following links.
    pub(crate) fn hand_over(&self) {
        if rustix::process::geteuid().is_root() {
            chown_all(&self.dir, self.builder_uid);
        }
    }

    /// Returns the request that registers everything.
    pub(crate) fn request(&self) -> RegisterOutputs {
        let dir: OwnedFd = fs::File::open(&self.dir).unwrap().into();
        RegisterOutputs {
            drv_path: self.drv_path.clone(),
            scratch: ScratchStore {
                dir: Arc::new(dir),
                redirected: BTreeMap::new(),
                is_exposed: false,
                path: self.dir.clone(),
            },
            builder_uid: self.builder_uid,
            outputs: self.outputs.clone(),
            other_outputs: BTreeMap::new(),
            checks: self.checks.clone(),
            reference_candidates: Arc::new(self.candidates.clone()),
            occupied: Occupied::Refused,
            realises: BTreeMap::new(),
            cancel: CancelFlag::default(),
        }
    }

    /// Hands everything over and returns the request.
    pub(crate) fn finish(&self) -> RegisterOutputs {
        self.hand_over();
        self.request()
    }
}

/// Changes the owner of everything below `dir`, itself left alone.
fn chown_all(dir: &Path, uid: u32) {
    for listed in fs::read_dir(dir).unwrap() {
        let listed = listed.unwrap();
        let file_type = listed.file_type().unwrap();
        if file_type.is_dir() {
            chown_all(&listed.path(), uid);
        }
        // Taking it over clears setuid bits, which a test may have set.
        let mode =
            (!file_type.is_symlink()).then(|| listed.metadata().unwrap().permissions().mode());
        std::os::unix::fs::lchown(listed.path(), Some(uid), None).unwrap();
        if let Some(mode) = mode {
            fs::set_permissions(listed.path(), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// A file that must survive whatever a test does.
pub(crate) struct Canary {
    path: PathBuf,
    state: CanaryState,
}

#[derive(Debug, PartialEq, Eq)]
struct CanaryState {
    contents: Vec<u8>,
    mode: u32,
    uid: u32,
    inode: u64,
    modified: i64,
}

impl Canary {
    pub(crate) fn new(path: PathBuf) -> Self {
        fs::write(&path, "CANARY").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let state = CanaryState::of(&path);
        Self { path, state }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if anything has changed.
    pub(crate) fn check(&self) {
        assert_eq!(CanaryState::of(&self.path), self.state);
    }
}

impl CanaryState {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::symlink_metadata(path).unwrap();
        Self {
            contents: fs::read(path).unwrap(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            inode: metadata.ino(),
            modified: metadata.mtime(),
        }
    }
}
