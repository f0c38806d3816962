//! All the ways in which a build ends.

#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::time::{Duration, Instant};

use sandbox::{BuildVerdict, CancelBuild, StopSandbox};

use crate::lab::{Built, Lab, in_both_profiles, is_sleeping, seconds};

/// Enough for a busy machine, and far less than what the builders here would take.
const SOON: Duration = Duration::from_secs(10);

in_both_profiles! {
    an_exit_status_is_passed_on => super::exit_status;
    a_signal_is_passed_on => super::own_signal;
    a_background_process_does_not_delay_the_end => super::background;
    a_daemon_that_left_everything_dies_too => super::daemon;
    a_builder_that_closes_its_output_is_not_cut_off => super::closed_output;
    a_builder_that_cannot_be_executed_fails_by_itself => super::not_executable;
    too_long_a_run_is_ended => super::timeout;
    ignored_signals_do_not_save_a_builder => super::ignored_signals;
    a_stopped_builder_is_ended_too => super::stopped;
    a_builder_that_waits_in_an_open_is_ended_too => super::blocked;
    silence_is_ended_and_talk_is_not => super::silence;
    too_long_a_log_ends_the_build => super::log_limit;
    a_cancelled_build_says_so => super::cancelled;
    cancelling_before_the_start_works => super::cancelled_early;
    many_builds_end_once_each => super::many;
    stopping_kills_what_runs => super::stop;
}

async fn exit_status(lab: Lab) {
    let built = lab.run("exit 100").await;
    assert_eq!(built.exited.verdict, BuildVerdict::Exited { code: 100 });
    assert!(built.exited.scratch.is_some());
    lab.assert_clean();
}

async fn own_signal(lab: Lab) {
    let built = lab.run("kill -SEGV $$").await;
    assert_eq!(built.exited.verdict, BuildVerdict::Signalled { signal: 11 });
}

async fn background(lab: Lab) {
    let built = soon(lab.run("sleep 1000 & echo started; touch $out")).await;
    assert_eq!(built.assert_success().log, "started\n");
}

async fn daemon(lab: Lab) {
    let long = seconds(1);
    let script = format!(
        "(setsid sh -c '(trap \"\" HUP TERM; sleep {long} < /dev/null > /dev/null 2>&1 &)' &); \
         sleep 0.3; ps -o args | grep -c '^sleep {long}$'"
    );
    let built = soon(lab.run(&script)).await;
    assert_eq!(built.assert_success().log, "1\n");
    assert!(!is_sleeping(long));
}

async fn closed_output(lab: Lab) {
    let script = "exec > /dev/null 2>&1; sleep 0.5; echo late > $out";
    let supervisor = lab.start();
    let built = lab.build(&supervisor, 1, lab.script(script)).finish().await;
    built.assert_success();
    assert_eq!(std::fs::read_to_string(built.output()).unwrap(), "late\n");
    supervisor.send(StopSandbox).await.unwrap();
}

async fn not_executable(lab: Lab) {
    let cases = [
        ("/no/such/builder", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/nix/store", "Permission denied"),
        ("/etc/passwd/x", "Not a directory"),
    ];
    for (builder, reason) in cases {
        let mut derivation = lab.script("true");
        derivation.builder = builder.into();
        let built = lab.run_derivation(derivation).await;
        assert_eq!(built.exited.verdict, BuildVerdict::Exited { code: 1 });
        assert_eq!(built.log, format!("executing '{builder}': {reason}\n"));
        assert_eq!(
            built.exited.log_tail,
            [format!("executing '{builder}': {reason}")]
        );
    }
}

async fn timeout(lab: Lab) {
    let mut lab = lab;
    let after = Duration::from_secs(1);
    lab.settings.timeout = Some(after);
    let built = soon(lab.run("while :; do echo chatty; sleep 0.1; done")).await;
    assert_eq!(built.exited.verdict, BuildVerdict::TimedOut { after });
    let took = built
        .exited
        .stopped_at
        .duration_since(built.exited.started_at)
        .unwrap();
    assert!(took >= after, "{took:?}");
    lab.assert_clean();
}

async fn ignored_signals(lab: Lab) {
    let mut lab = lab;
    lab.settings.timeout = Some(Duration::from_secs(1));
    let script = "trap '' TERM INT HUP QUIT; while :; do sleep 1000; done";
    let built = soon(lab.run(script)).await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::TimedOut { .. }
    ));
}

async fn stopped(lab: Lab) {
    let mut lab = lab;
    lab.settings.timeout = Some(Duration::from_secs(1));
    let built = soon(lab.run("kill -STOP $$; exit 0")).await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::TimedOut { .. }
    ));
}

async fn blocked(lab: Lab) {
    let mut lab = lab;
    lab.settings.timeout = Some(Duration::from_secs(1));
    let built = soon(lab.run("mkfifo fifo; cat fifo")).await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::TimedOut { .. }
    ));
    lab.assert_clean();
}

async fn silence(lab: Lab) {
    let mut lab = lab;
    let after = Duration::from_secs(1);
    lab.settings.max_silent_time = Some(after);
    let chatty = soon(lab.run("for i in 1 2 3 4 5; do printf .; sleep 0.4; echo; done")).await;
    chatty.assert_success();
    let built = soon(lab.run("echo last words; sleep 1000")).await;
    assert_eq!(built.exited.verdict, BuildVerdict::Silent { after });
    assert_eq!(built.exited.log_tail, ["last words"]);
}

async fn log_limit(lab: Lab) {
    let mut lab = lab;
    lab.settings.max_build_log_size_bytes = Some(10_000);
    let built = soon(lab.run("yes")).await;
    assert_eq!(
        built.exited.verdict,
        BuildVerdict::LogLimitExceeded {
            limit_bytes: 10_000
        }
    );
    assert_eq!(built.log.len(), 10_000);
    let exactly = lab.run("yes | head -c 10000").await;
    exactly.assert_success();
}

async fn cancelled(lab: Lab) {
    let supervisor = lab.start();
    let mut building = lab.build(&supervisor, 1, lab.script("echo here; sleep 1000"));
    building.wait_for("here").await;
    let build_id = building.build_id;
    supervisor.send(CancelBuild { build_id }).await.unwrap();
    let built = soon(building.finish()).await;
    assert_eq!(built.exited.verdict, BuildVerdict::Cancelled);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn cancelled_early(lab: Lab) {
    let supervisor = lab.start();
    for build_id in 1..20 {
        let building = lab.build(&supervisor, build_id, lab.script("sleep 1000"));
        tokio::task::yield_now().await;
        let build_id = building.build_id;
        supervisor.send(CancelBuild { build_id }).await.unwrap();
        let built = soon(building.finish()).await;
        assert_eq!(built.exited.verdict, BuildVerdict::Cancelled);
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn many(lab: Lab) {
    let supervisor = lab.start();
    let building: Vec<_> = (1..=20)
        .map(|build_id| {
            let script = format!("echo {build_id}; exit {build_id}");
            lab.build(&supervisor, build_id, lab.script(&script))
        })
        .collect();
    for (build, code) in building.into_iter().zip(1..) {
        let built = build.finish().await;
        assert_eq!(built.exited.verdict, BuildVerdict::Exited { code });
        assert_eq!(built.log, format!("{code}\n"));
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn stop(lab: Lab) {
    let supervisor = lab.start();
    let long = seconds(2);
    let script = format!("echo here; sleep {long}");
    let mut building = lab.build(&supervisor, 1, lab.script(&script));
    building.wait_for("here").await;
    let begun = Instant::now();
    supervisor.send(StopSandbox).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!is_sleeping(long));
    let built = building.finish().await;
    assert_eq!(built.exited.verdict, BuildVerdict::Cancelled);
    lab.assert_clean();
}

async fn soon(build: impl Future<Output = Built>) -> Built {
    tokio::time::timeout(SOON, build)
        .await
        .expect("it takes too long")
}
