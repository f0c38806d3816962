//! What is left when our own processes are killed.

#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::{BuildVerdict, StopSandbox};

use crate::lab::{
    Lab, Profile, in_both_profiles, is_sleeping, profile, run_as, seconds, writeln_stderr,
};

/// Tells this program that it is the victim of `killed_supervisor`.
const VICTIM: &str = "GOAL_TEST_VICTIM";

in_both_profiles! {
    builders_die_with_their_launcher_and_the_next_ones_get_another => super::killed_launcher;
    builders_die_with_their_supervisor => super::killed_supervisor;
    a_killed_process_1_takes_the_builder_with_it => super::killed_reaper;
    a_missing_launcher_is_said_so => super::no_launcher;
    a_launcher_that_is_something_else_is_said_so => super::wrong_launcher;
}

async fn killed_launcher(lab: Lab) {
    let supervisor = lab.start();
    let long = seconds(7);
    let script = format!("echo here; sleep {long}");
    let mut building = lab.build(&supervisor, 1, lab.script(&script));
    let started = building.started().await;
    building.wait_for("here").await;
    let launcher = parent_of(started.pid);
    kill(Pid::from_raw(launcher), Signal::SIGKILL).unwrap();
    let built = building.finish().await;
    assert_eq!(built.exited.verdict, BuildVerdict::Signalled { signal: 9 });
    assert!(!is_sleeping(long));

    let next = lab
        .build(&supervisor, 2, lab.script("echo next"))
        .finish()
        .await;
    assert_eq!(next.assert_success().log, "next\n");
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn killed_supervisor(lab: Lab) {
    if std::env::var_os(VICTIM).is_some() {
        let supervisor = lab.start();
        let long = seconds(8);
        let script = format!("echo here; sleep {long}");
        let mut building = lab.build(&supervisor, 1, lab.script(&script));
        let started = building.started().await;
        building.wait_for("here").await;
        let root = lab.root().display();
        writeln_stderr(&format!("{VICTIM} {} {long} {root}", started.pid));
        std::future::pending::<()>().await;
    }
    let test = match profile() {
        Profile::Root => "as_root",
        Profile::Unprivileged => "unprivileged",
    };
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!(
            "deaths::builders_die_with_their_supervisor::{test}"
        ))
        .env(VICTIM, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = BufReader::new(victim.stderr.take().unwrap());
    let line = errors
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with(VICTIM))
        .expect("the victim is ready");
    let mut words = line.split(' ').skip(1);
    let builder: u32 = words.next().unwrap().parse().unwrap();
    let long: u32 = words.next().unwrap().parse().unwrap();
    let root = std::path::PathBuf::from(words.next().unwrap());
    let launcher = parent_of(builder);
    assert!(is_sleeping(long));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let begun = Instant::now();
    while is_sleeping(long) || is_alive(launcher) {
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "the builder outlives its supervisor"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // The next start on that store cleans up.
    assert_eq!(
        fs::read_dir(root.join("nix/var/nix/builds"))
            .unwrap()
            .count(),
        1
    );
    let layout = store_model::settings::StoreLayout::under_root(&root);
    let environment = lab.host_environment.clone();
    let supervisor = sandbox::start(layout.clone(), &lab.settings, environment).unwrap();
    supervisor.send(StopSandbox).await.unwrap();
    assert_eq!(
        fs::read_dir(layout.state_dir.join("builds"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(fs::read_dir(&layout.real_store_dir).unwrap().count(), 1);
    fs::remove_dir_all(root).unwrap();
}

async fn killed_reaper(lab: Lab) {
    let supervisor = lab.start();
    let long = seconds(9);
    let script = format!("echo here; sleep {long}");
    let mut building = lab.build(&supervisor, 1, lab.script(&script));
    let started = building.started().await;
    building.wait_for("here").await;
    kill(
        Pid::from_raw(i32::try_from(started.pid).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    let built = building.finish().await;
    assert_eq!(built.exited.verdict, BuildVerdict::Signalled { signal: 9 });
    assert!(!is_sleeping(long));
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn no_launcher(lab: Lab) {
    let mut lab = lab;
    lab.settings.sandbox_init = Some("/no/such/launcher".into());
    let built = lab.run("true").await;
    let message = "starting the launcher '/no/such/launcher': No such file or directory";
    let BuildVerdict::SetupFailed { message: said, .. } = &built.exited.verdict else {
        panic!("{:?}", built.exited.verdict);
    };
    assert!(said.starts_with(message), "{said}");
    lab.assert_clean();
}

async fn wrong_launcher(lab: Lab) {
    let mut lab = lab;
    lab.settings.sandbox_init = Some("/bin/true".into());
    let built = lab.run("true").await;
    let BuildVerdict::SetupFailed { message, .. } = &built.exited.verdict else {
        panic!("{:?}", built.exited.verdict);
    };
    assert!(message.contains("the launcher"), "{message}");
    lab.assert_clean();
}

/// Returns whether a process is there and not merely waiting to be reaped.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| !cmdline.is_empty())
}

fn parent_of(pid: u32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_machine_without_user_namespaces_refuses_instead_of_building_unprotected() {
    run_as(
        Profile::Root,
        "deaths::a_machine_without_user_namespaces_refuses_instead_of_building_unprotected",
        refused_namespaces,
    );
}

async fn refused_namespaces(_lab: Lab) {
    // A user namespace in which no further one can be made, and whose root is nobody outside.
    let test = "deaths::in_a_world_without_namespaces";
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" --exact \"$1\" --nocapture";
    let status = Command::new("unshare")
        .args(["-U", "--map-root-user", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(VICTIM, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn in_a_world_without_namespaces() {
    if std::env::var_os(VICTIM).is_none() {
        // Only of use to the test above, which makes that world.
        return;
    }
    run_as(Profile::Root, "", async |lab: Lab| {
        let built = lab.run("true").await;
        let BuildVerdict::SetupFailed { message, .. } = &built.exited.verdict else {
            panic!("{:?}", built.exited.verdict);
        };
        assert!(message.contains("user.max_user_namespaces"), "{message}");
        lab.assert_clean();
    });
}
