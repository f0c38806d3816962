//! The scheduler as a library: what a program gets that imports it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use it::{TestStore, binaries, debris, measure, requirement};
use scheduler::{
    BuildMode, BuildRequest, Config, EventKind, HostEnvironment, Scheduler, SchedulerHandle,
    Status, Wanted,
};
use store_model::derivation::HashModuloCache;
use store_model::settings::{SandboxPath, StoreLayout};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, DerivationOutput, OutputName, Settings, StoreDir, StorePath};

/// How long a worker thread may take to do what it was told.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_derivation_that_is_in_no_store_is_built_without_being_put_there() {
    let store = TestStore::new();
    block_on(async {
        let scheduler = start(&store);
        let (drv_path, derivation) = in_memory("memory", "echo $name > $out", &[]);
        let report = scheduler
            .build_derivation(drv_path.clone(), derivation, settings(&store))
            .await
            .expect("the scheduler runs");
        let outcome = &report.outcomes[0].1;
        assert_eq!(outcome.status, Status::Built, "{}", outcome.message);
        let output = &outcome.outputs[&OutputName::default()];
        let real = store.objects().join(output.base_name());
        assert_eq!(
            std::fs::read_to_string(real).expect("it is there"),
            "memory\n"
        );
        assert!(!store.objects().join(drv_path.base_name()).exists());
        scheduler.stop().await;
    });
    debris::assert_clean(&store);
}

#[test]
fn a_missing_input_of_a_derivation_in_memory_is_a_result_that_names_it() {
    let store = TestStore::new();
    block_on(async {
        let scheduler = start(&store);
        let source: StorePath = format!("{}-absent", "0".repeat(32))
            .parse()
            .expect("a valid path");
        let (drv_path, derivation) = in_memory("needy", "exit 0", &[source]);
        let report = scheduler
            .build_derivation(drv_path, derivation, settings(&store))
            .await
            .expect("the scheduler runs");
        let outcome = &report.outcomes[0].1;
        assert_eq!(outcome.status, Status::DependencyFailed);
        assert!(outcome.message.contains("-absent"), "{}", outcome.message);
        assert_eq!(report.exit_status(), 1);
        scheduler.stop().await;
    });
    debris::assert_clean(&store);
}

#[test]
fn a_path_is_repaired_by_the_derivation_that_made_it() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let in_store = store.script("written", "echo written > $out");
    let output: StorePath = store.output_of(&in_store, "out")["/nix/store/".len()..]
        .parse()
        .expect("a store path");
    let real = store.objects().join(output.base_name());
    block_on(async {
        let scheduler = start(&store);
        let drv_path = in_store["/nix/store/".len()..].parse().expect("a path");
        let request = BuildRequest {
            wanted: vec![Wanted::Outputs {
                drv_path,
                outputs: WantedOutputs::All,
                mode: BuildMode::Normal,
            }],
            settings: settings(&store),
            priority: 0,
        };
        let built = scheduler.build_paths(request).await;
        assert!(built.expect("the scheduler runs").is_success());
        // Twice, for what was good once need not be for ever.
        for _ in 0..2 {
            damage(&real);
            let repaired = scheduler.repair_path(output.clone(), settings(&store));
            let report = repaired.await.expect("the scheduler runs");
            assert_eq!(report.outcomes[0].1.status, Status::Built);
            let contents = std::fs::read_to_string(&real).expect("it is there");
            assert_eq!(contents, "written\n");
        }
        let repaired = scheduler.repair_path(output.clone(), settings(&store));
        let report = repaired.await.expect("the scheduler runs");
        assert_eq!(report.outcomes[0].1.status, Status::AlreadyValid);

        let (drv_path, derivation) = in_memory("memory", "echo $name > $out", &[]);
        let building = scheduler.build_derivation(drv_path, derivation, settings(&store));
        let report = building.await.expect("the scheduler runs");
        let output = report.outcomes[0].1.outputs[&OutputName::default()].clone();
        let real = store.objects().join(output.base_name());
        damage(&real);
        let repaired = scheduler.repair_path(output, settings(&store));
        let report = repaired.await.expect("the scheduler runs");
        let outcome = &report.outcomes[0].1;
        assert_eq!(outcome.status, Status::NoSubstituters);
        let words = "-memory.drv' is not in the store";
        assert!(outcome.message.ends_with(words), "{}", outcome.message);
        scheduler.stop().await;
    });
    debris::assert_clean(&store);
}

/// Changes what a file of the store holds.
fn damage(file: &Path) {
    let set_mode = |mode| {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    set_mode(0o644);
    std::fs::write(file, "damaged\n").expect("it is writable now");
    let opened = std::fs::File::open(file).expect("it is there");
    opened
        .set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1))
        .expect("it is ours");
    set_mode(0o444);
}

#[test]
fn two_schedulers_live_in_one_process_on_two_stores() {
    let stores = [TestStore::new(), TestStore::new()];
    block_on(async {
        let schedulers = stores.each_ref().map(start);
        let builds = schedulers.each_ref().map(|scheduler| {
            let (drv_path, derivation) = in_memory("twin", "echo twin > $out", &[]);
            scheduler.build_derivation(drv_path, derivation, settings(&stores[0]))
        });
        for build in builds {
            let report = build.await.expect("the scheduler runs");
            assert!(report.is_success(), "{:?}", report.outcomes);
        }
        for scheduler in schedulers {
            scheduler.stop().await;
        }
    });
    for store in &stores {
        debris::assert_clean(store);
    }
}

#[test]
fn a_client_that_drops_its_request_cancels_it() {
    let store = TestStore::new();
    store.signals().pipes(&["ready"]);
    block_on(async {
        let scheduler = start(&store);
        let mut events = scheduler.subscribe().await.expect("the scheduler runs");
        let script = "echo here > /signals/ready; sleep 1000";
        let (drv_path, derivation) = in_memory("unwanted", script, &[]);
        let building = tokio::spawn({
            let scheduler = scheduler.clone();
            let settings = settings(&store);
            async move {
                scheduler
                    .build_derivation(drv_path, derivation, settings)
                    .await
            }
        });
        tokio::task::block_in_place(|| store.signals().await_word("ready"));
        building.abort();
        let outcome = loop {
            let event = events
                .recv()
                .await
                .expect("the goal ends before the stream");
            if let EventKind::Finished(outcome) = event.kind {
                break outcome;
            }
        };
        assert_eq!(outcome.status, Status::Cancelled);
        scheduler.stop().await;
    });
    debris::assert_clean(&store);
}

#[test]
fn one_derivation_that_two_requests_want_is_built_once() {
    let store = TestStore::new();
    block_on(async {
        let scheduler = start(&store);
        let (drv_path, derivation) =
            in_memory("shared", "echo run >> /signals/runs; echo > $out", &[]);
        let request = || BuildRequest {
            wanted: vec![Wanted::Given {
                drv_path: drv_path.clone(),
                derivation: Arc::clone(&derivation),
                mode: BuildMode::Normal,
            }],
            settings: settings(&store),
            priority: 0,
        };
        let (first, second) = tokio::join!(
            scheduler.build_paths(request()),
            scheduler.build_paths(request())
        );
        for report in [first, second] {
            assert!(report.expect("the scheduler runs").is_success());
        }
        scheduler.stop().await;
    });
    let runs = std::fs::read_to_string(store.signals().dir().join("runs"));
    assert_eq!(runs.expect("the builder ran"), "run\n");
    debris::assert_clean(&store);
}

#[test]
fn what_a_report_says_is_kept_as_long_as_the_report_and_no_longer() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    block_on(async {
        let scheduler = start(&store);
        let mut reports = Vec::new();
        let mut built = Vec::new();
        for name in ["kept", "dropped"] {
            let (drv_path, derivation) = in_memory(name, "echo $name > $out", &[]);
            let building = scheduler.build_derivation(drv_path, derivation, settings(&store));
            let report = building.await.expect("the scheduler runs");
            let output = report.outcomes[0].1.outputs[&OutputName::default()].clone();
            built.push(store.objects().join(output.base_name()));
            reports.push(report);
        }
        store.collect_garbage();
        assert!(built[0].exists() && built[1].exists());
        reports.truncate(1);
        // Two of four roots are idle now, the derivation's path and the output's; another goal's
        // comes and goes, and they are more than half.
        let absent: StorePath = format!("{}-absent", "2".repeat(32))
            .parse()
            .expect("a valid path");
        let ensured = scheduler.ensure_path(absent, settings(&store)).await;
        drop(ensured.expect("the scheduler runs"));
        let roots = || {
            let folder = store.state().join("temproots");
            std::fs::read_to_string(folder.join(std::process::id().to_string()))
                .expect("the scheduler has a roots file")
        };
        let deadline = measure::now() + PATIENCE;
        while roots().contains("-dropped") {
            assert!(measure::now() < deadline, "still roots: {:?}", roots());
            tokio::task::yield_now().await;
        }
        store.collect_garbage();
        assert!(built[0].exists(), "the report is still here");
        assert!(!built[1].exists(), "nobody has its report any more");
        scheduler.stop().await;
    });
    debris::assert_clean(&store);
}

#[test]
fn a_path_that_nobody_has_is_a_result_and_not_an_error() {
    let store = TestStore::new();
    block_on(async {
        let scheduler = start(&store);
        let path: StorePath = format!("{}-absent", "1".repeat(32))
            .parse()
            .expect("a valid path");
        let report = scheduler
            .ensure_path(path, settings(&store))
            .await
            .expect("the scheduler runs");
        assert_eq!(report.outcomes[0].1.status, Status::NoSubstituters);
        scheduler.stop().await;
        let stopped = scheduler.subscribe().await;
        assert!(matches!(stopped, Err(scheduler::Error::Stopped)));
    });
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made")
        .block_on(test);
}

fn settings(store: &TestStore) -> Arc<Settings> {
    let host = |path: &str| SandboxPath {
        target: path.into(),
        source: path.into(),
        optional: true,
        writable: false,
    };
    let mut sandbox_paths: Vec<SandboxPath> = ["/bin", "/usr", "/lib", "/lib64"].map(host).into();
    sandbox_paths.push(SandboxPath {
        target: "/signals".into(),
        source: store.signals().dir().to_owned(),
        optional: false,
        writable: true,
    });
    Arc::new(Settings {
        max_jobs: 2,
        sandbox_init: Some(binaries::sandbox_init()),
        sandbox_paths,
        substituters: Vec::new(),
        ..Settings::default()
    })
}

fn start(store: &TestStore) -> SchedulerHandle {
    Scheduler::start(Config {
        layout: StoreLayout::under_root(&store.root()),
        settings: settings(store),
        host_environment: HostEnvironment::new(),
        cache_dir: None,
        nix_config: String::new(),
    })
    .expect("a fresh store can be opened")
}

/// Returns a derivation that runs a shell script, and the path that it would have.
fn in_memory(name: &str, script: &str, sources: &[StorePath]) -> (StorePath, Arc<Derivation>) {
    let mut derivation = Derivation {
        name: name.to_owned(),
        outputs: BTreeMap::from([(OutputName::default(), DerivationOutput::Deferred)]),
        input_derivations: BTreeMap::new(),
        input_sources: sources.iter().cloned().collect::<BTreeSet<_>>(),
        system: Settings::default().system.into(),
        builder: "/bin/sh".into(),
        args: vec!["-ec".into(), script.into()],
        env: BTreeMap::from([
            ("name".into(), name.into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ]),
    };
    derivation
        .fill_output_paths(&mut HashModuloCache::new(StoreDir::default()))
        .expect("it has no inputs whose hashes could be missing");
    let drv_path = derivation
        .derivation_path(&StoreDir::default())
        .expect("the name is a valid one");
    (drv_path, Arc::new(derivation))
}
