//! A machine that refuses: syncs that fail, a database that somebody else has locked, an unusual
//! environment.

use it::event_stream::{events, position};
use it::{Profile, TestStore, debris, requirement, snapshot};

#[test]
fn a_sync_that_fails_registers_nothing_and_is_no_success() {
    if !requirement::genuine_nix() || !requirement::programs(&["strace"]) {
        return;
    }
    let strace = requirement::find_program("strace").expect("it was found just now");
    let calls = "fsync,fdatasync,syncfs";
    let mut n_refused = 0;
    for nth in 1..100 {
        let store = TestStore::new();
        let drv = store.script("synced", "mkdir $out; echo x > $out/x");
        let mut wrapper = store.profile().command(&strace);
        wrapper.args(["-f", "-q", "-o", "/dev/null", "-e"]);
        wrapper.arg(format!("trace={calls}")).arg("-e");
        wrapper.arg(format!("inject={calls}:error=EIO:when={nth}"));
        let finished = store.goalctl(["build", &drv]).under(wrapper).run();
        requirement::say(&format!("sync {nth} refused: {}", finished.code()));
        assert!(!finished.error().contains("panicked"), "{finished}");
        if finished.code() == 0 {
            break;
        }
        n_refused += 1;
        finished.expect_status(1).expect_error("nput/output error");
        let objects = snapshot::Snapshot::of(&store).objects;
        assert!(!objects.contains_key(&store.output_of(&drv, "out")));
        store.goalctl(["build", &drv]).succeed();
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
    assert!(n_refused > 0, "nothing was ever synced");
}

#[test]
fn a_database_that_somebody_writes_to_is_waited_for() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    let drv = store.script(
        "patient",
        "echo here > /signals/ready; read word < /signals/go; echo x > $out",
    );
    let mut goalctl = store.build_with_signals(&drv).arg("--json").start();
    store.signals().await_word("ready");
    let database = snapshot::open(&store.database());
    database
        .execute_batch("begin immediate")
        .expect("nobody else writes now");
    let _open = store.signals().release("go");
    goalctl.await_line(|line| line.contains("registration"));
    database
        .execute_batch("rollback")
        .expect("what was begun can be ended");
    let finished = goalctl.finish();
    finished.expect_status(0);
    let events = events(&finished);
    let ended = position(&events, "finished", &drv);
    assert_eq!(events[ended].value["status"], "Built");
    debris::assert_clean(&store);
}

#[test]
fn neither_umask_nor_a_missing_home_nor_the_callers_terminal_matter() {
    if !requirement::genuine_nix() || !requirement::programs(&["sh", "setsid"]) {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let drv = store.script("plain", "umask; mkdir $out; echo x > $out/x");
        let shell = requirement::find_program("sh").expect("it was found just now");
        let mut wrapper = profile.command(&shell);
        wrapper.args([
            "-c",
            "umask 077; unset HOME LC_ALL; exec setsid -w \"$@\"",
            "sh",
        ]);
        let finished = store.goalctl(["build", &drv]).under(wrapper).run();
        finished.expect_status(0);
        let log = store.goalctl(["log", &drv]).succeed().output();
        assert_eq!(log, "0022\n");
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
}
