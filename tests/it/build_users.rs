//! Builders of root run as members of the group of build users, whoever else uses those.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use it::event_stream::events;
use it::{Invocation, Machine, Pair, Profile, TestStore, debris, processes, requirement};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Group, User};

/// The group that Nix's own installations make.
const GROUP: &str = "nixbld";

/// A store, and the uids of the group's members; none where the test cannot be run.
fn store_and_users() -> Option<(TestStore, Vec<u32>, MutexGuard<'static, ()>)> {
    if !requirement::genuine_nix() || !requirement::root() {
        return None;
    }
    let group = Group::from_name(GROUP).expect("groups can be read");
    let members = group.map(|group| group.mem).unwrap_or_default();
    if members.len() < 3 {
        requirement::skip(&format!("the group '{GROUP}' has less than three members"));
        return None;
    }
    let uid_of = |name: &String| User::from_name(name).ok().flatten().expect("it exists").uid;
    let uids = members.iter().map(|name| uid_of(name).as_raw()).collect();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some((TestStore::of(Profile::Root), uids, turn))
}

/// The tests run one after another: users are the machine's, whatever the store.
static TURN: Mutex<()> = Mutex::new(());

/// Takes users as another program on the same store would.
fn hold(store: &TestStore, uids: &[u32]) -> Vec<Flock<File>> {
    hold_in(&store.state().join("userpool"), uids)
}

fn hold_in(directory: &Path, uids: &[u32]) -> Vec<Flock<File>> {
    std::fs::create_dir_all(directory).expect("it can be made");
    let take = |uid: &u32| {
        let path = directory.join(uid.to_string());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .expect("it can be made");
        Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("nobody has it")
    };
    uids.iter().map(take).collect()
}

fn build(store: &TestStore, drvs: &[String]) -> Invocation {
    store
        .goalctl(["build", "--json", "-j", "8"])
        .option("build-users-group", GROUP)
        .args(drvs)
}

#[test]
fn a_pool_of_two_builds_twenty_goals_two_at_a_time() {
    let Some((store, uids, _turn)) = store_and_users() else {
        return;
    };
    let held = hold(&store, &uids[2..]);
    let drvs = store.instantiate(
        "builtins.genList (n: mk \"one-of-${toString n}\" \"sleep 0.1; echo $name > $out\" { }) 20",
    );
    let finished = build(&store, &drvs).succeed();
    let mut running: BTreeSet<(u64, String)> = BTreeSet::new();
    let mut most_at_once = 0;
    for event in events(&finished) {
        match event.kind.as_str() {
            "started" => {
                let uid = event.value["uid"].as_u64().expect("a number");
                assert!(
                    uids[..2].iter().any(|free| u64::from(*free) == uid),
                    "{uid}"
                );
                // Whoever had it has exited, though that may not have been registered yet.
                running.retain(|(taken, _)| *taken != uid);
                running.insert((uid, event.goal));
                most_at_once = most_at_once.max(running.len());
            }
            "finished" => running.retain(|(_, goal)| *goal != event.goal),
            _ => {}
        }
    }
    assert_eq!(most_at_once, 2);
    drop(held);
    debris::assert_clean(&store);
}

#[test]
fn a_user_that_another_process_has_is_waited_for_as_an_event() {
    let Some((store, uids, _turn)) = store_and_users() else {
        return;
    };
    let mut held = hold(&store, &uids);
    let drv = store.script("patient", "echo $name > $out");
    let mut goalctl = build(&store, &[drv]).start();
    goalctl.await_line(|line| line.contains("\"for\":\"buildUser\""));
    // Nothing happens before one comes free.
    std::thread::sleep(Duration::from_millis(200));
    drop(held.swap_remove(1));
    let finished = goalctl.finish();
    finished.expect_status(0);
    let events = events(&finished);
    let started = events.iter().find(|event| event.kind == "started");
    assert_eq!(started.expect("it ran").value["uid"], uids[1]);
    drop(held);
    debris::assert_clean(&store);
}

#[test]
fn an_interrupt_ends_the_wait_for_a_user() {
    let Some((store, uids, _turn)) = store_and_users() else {
        return;
    };
    let held = hold(&store, &uids);
    let drv = store.script("never", "echo $name > $out");
    let mut goalctl = build(&store, &[drv]).start();
    goalctl.await_line(|line| line.contains("\"for\":\"buildUser\""));
    goalctl.signal(nix::sys::signal::Signal::SIGINT);
    goalctl.finish().expect_status(130);
    drop(held);
    debris::assert_clean(&store);
}

#[test]
fn nix_and_goalctl_never_have_the_same_user() {
    let Some((store, uids, _turn)) = store_and_users() else {
        return;
    };
    // Whatever store it works on, Nix keeps its lock files here; it makes the directory.
    let build_by_nix = |name: &str| {
        let drv = store.script(name, "echo $name > $out");
        let realise = store.nix_store(["--realise", &drv]);
        realise.option("build-users-group", GROUP).start()
    };
    build_by_nix("first").finish().expect_status(0);
    let of_nix = Path::new("/nix/var/nix/userpool");
    let held = [hold(&store, &uids[1..]), hold_in(of_nix, &uids[1..])];
    store.signals().pipes(&["ready", "go"]);
    let drv = store.script(
        "owner",
        "echo here > /signals/ready; read word < /signals/go; echo x > $out",
    );
    let goalctl = store
        .build_with_signals(&drv)
        .option("build-users-group", GROUP)
        .start();
    store.signals().await_word("ready");
    // It looks again every five seconds.
    let nix = build_by_nix("second");
    let process = processes::Watched::new(nix.pid()).expect("it runs");
    assert!(!process.await_end(Duration::from_secs(2)));
    let open = store.signals().release("go");
    goalctl.finish().expect_status(0);
    drop(open);
    nix.finish().expect_status(0);
    drop(held);
    debris::assert_clean(&store);
}

#[test]
fn what_runs_as_a_build_user_already_is_killed_before_the_builder_starts() {
    let Some((store, uids, _turn)) = store_and_users() else {
        return;
    };
    let held = hold(&store, &uids[1..]);
    let mut left_behind = Command::new("setpriv")
        .args([&format!("--reuid={}", uids[0]), "--clear-groups"])
        .args(["sleep", "100000"])
        .spawn()
        .expect("it comes with util-linux");
    let drv = store.script("clean", "echo $name > $out");
    build(&store, &[drv]).succeed();
    // It was killed before the builder began, but has to be seen dying.
    let survivor = processes::Watched::new(left_behind.id());
    let is_gone = survivor.is_none_or(|survivor| survivor.await_end(Duration::from_secs(5)));
    left_behind.kill().expect("it is our child");
    let status = left_behind.wait().expect("it is our child");
    assert!(is_gone, "{status}");
    drop(held);
    debris::assert_clean(&store);
}

/// A machine whose build user is in a second group; such a user and such groups are on no other.
fn with_second_group(pair: &Pair) -> Machine {
    let lay_over = |machine: Machine, file: &str, lines: &str| {
        let path = Path::new("/etc").join(file);
        let text = std::fs::read_to_string(&path).expect("everybody may read it");
        let changed = pair.by_goalctl.dir().join(file);
        std::fs::write(&changed, text + lines).expect("the folder is ours");
        machine.mount(changed, path)
    };
    let machine = lay_over(
        Machine::default(),
        "passwd",
        "goal-builder:x:39950:39900::/var/empty:/bin/false\n",
    );
    lay_over(
        machine,
        "group",
        "goal-builders:x:39900:goal-builder\ngoal-second:x:39901:goal-builder\n",
    )
}

#[test]
fn a_build_user_keeps_its_other_groups_without_a_sandbox_and_has_none_within() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    for (sandbox, groups) in [("false", "39900 39901"), ("true", "100")] {
        let pair = Pair::of(Profile::Root);
        let machine = with_second_group(&pair);
        let drv = pair.script("groups", "id -u > $out; id -G >> $out");
        let nix = pair.by_nix.nix_store_on(&machine, ["--realise", &drv]);
        let goalctl = pair.by_goalctl.goalctl_on(&machine, ["build", &drv]);
        for program in [nix, goalctl] {
            program
                .option("sandbox", sandbox)
                .option("build-users-group", "goal-builders")
                .succeed();
        }
        let output = pair.by_goalctl.output_of(&drv, "out");
        let said = std::fs::read_to_string(pair.by_goalctl.real(&output)).expect("it was made");
        let user = if sandbox == "true" { 1000 } else { 39950 };
        assert_eq!(said, format!("{user}\n{groups}\n"));
        pair.assert_same();
    }
}
