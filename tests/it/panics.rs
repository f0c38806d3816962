//! A panic in each actor: the run fails and says so, and nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use it::{TestStore, binaries, debris, processes};
use scheduler::messages::PanickingActor;
use scheduler::{
    BuildMode, BuildReport, BuildRequest, Config, Error, HostEnvironment, Scheduler, Wanted,
};
use store_model::settings::{SandboxPath, StoreLayout};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Settings, StoreDir};

/// How long a killed build may take to be gone.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A builder that waits for ever, except in a store whose `/signals/again` exists.
const STUCK: &str = r"
if [ -e /signals/again ]; then echo made > $out; exit 0; fi
mkdir half-made; echo half > $out
setsid sleep 1000 &
echo here > /signals/ready
sleep 1000
";

#[test]
fn a_panic_in_a_goal_fails_that_goal_and_kills_its_builder() {
    let report = panic_in(PanickingActor::DerivationGoals).expect("the scheduler lives on");
    assert_says(&report, "crashed");
}

#[test]
fn a_panic_in_a_session_fails_its_build_and_kills_its_builder() {
    let report = panic_in(PanickingActor::BuilderSessions).expect("the scheduler lives on");
    assert!(!report.is_success());
}

#[test]
fn a_panic_in_the_sandbox_supervisor_fails_the_builds_and_kills_their_builders() {
    let report = panic_in(PanickingActor::SandboxSupervisor).expect("the scheduler lives on");
    assert_says(&report, "the sandbox supervisor crashed");
}

#[test]
fn a_panic_in_the_store_registry_fails_the_goals_and_kills_their_builders() {
    let report = panic_in(PanickingActor::StoreRegistry).expect("the scheduler lives on");
    assert_says(&report, "the store registry crashed");
}

#[test]
fn a_panic_in_the_lock_keeper_fails_the_goals_and_kills_their_builders() {
    let report = panic_in(PanickingActor::LockKeeper).expect("the scheduler lives on");
    assert_says(&report, "the lock keeper crashed");
}

#[test]
fn a_panic_in_the_scheduler_is_told_to_its_clients_and_kills_the_builders() {
    let stopped = panic_in(PanickingActor::Scheduler);
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
}

#[track_caller]
fn assert_says(report: &BuildReport, words: &str) {
    assert!(!report.is_success());
    let message = &report.outcomes[0].1.message;
    assert!(message.contains(words), "{message}");
}

/// Has one actor panic while a builder runs, and checks what is left; returns the report.
#[track_caller]
fn panic_in(actor: PanickingActor) -> Result<BuildReport, Error> {
    let store = TestStore::new();
    store.signals().pipes(&["ready"]);
    let drv = store.script("stuck", STUCK);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime can be made");
    let report = runtime.block_on(build_and_panic(&store, &drv, actor));
    processes::await_none_touching(store.dir(), AT_ONCE);
    let mounts = processes::mounts_below(store.dir());
    assert!(mounts.is_empty(), "left mounted: {mounts:#?}");

    std::fs::write(store.signals().dir().join("again"), "").expect("the folder is ours");
    store.build_with_signals(&drv).succeed();
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
    report
}

async fn build_and_panic(
    store: &TestStore,
    drv: &str,
    actor: PanickingActor,
) -> Result<BuildReport, Error> {
    let settings = Arc::new(Settings {
        max_jobs: 1,
        sandbox_init: Some(binaries::sandbox_init()),
        sandbox_paths: vec![SandboxPath {
            target: "/signals".into(),
            source: store.signals().dir().to_owned(),
            optional: false,
            writable: true,
        }],
        substituters: Vec::new(),
        ..Settings::default()
    });
    let scheduler = Scheduler::start(Config {
        layout: StoreLayout::under_root(&store.root()),
        settings: Arc::clone(&settings),
        host_environment: HostEnvironment::new(),
        cache_dir: None,
        nix_config: String::new(),
    })?;
    let drv_path = StoreDir::default().parse(drv).expect("nix prints paths");
    let request = BuildRequest {
        wanted: vec![Wanted::Outputs {
            drv_path,
            outputs: WantedOutputs::All,
            mode: BuildMode::Normal,
        }],
        settings,
        priority: 0,
    };
    let building = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.build_paths(request).await }
    });
    tokio::task::block_in_place(|| store.signals().await_word("ready"));
    scheduler.force_panic(actor);
    let report = building
        .await
        .expect("the client's own task does not panic");
    scheduler.stop().await;
    report
}
