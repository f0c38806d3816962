//! Builders that do what nobody expects, and how long the others wait for them.

use std::path::Path;
use std::time::Duration;

use it::snapshot::Snapshot;
use it::{Finished, Profile, TestStore, debris, event_stream, measure, requirement};

use crate::guard::PROBE;

/// How long a build may take whose builder does nothing that takes time.
const SOON: Duration = Duration::from_secs(10);

/// Builds one script in a fresh store for each profile; returns the store, its derivation and what
/// became of it.
fn build_script(script: &str, options: &[&str]) -> Vec<(TestStore, String, Finished)> {
    if !requirement::genuine_nix() {
        return Vec::new();
    }
    Profile::all()
        .into_iter()
        .map(|profile| {
            let store = TestStore::of(profile);
            let drv = store.script("odd", script);
            let finished = store.goalctl(["build", &drv]).args(options).run();
            debris::assert_clean(&store);
            (store, drv, finished)
        })
        .collect()
}

/// Builds a script that must end at once, whatever it leaves behind.
fn build_soon(script: &str) {
    let started_at = measure::now();
    for (_, _, finished) in build_script(script, &[]) {
        finished.expect_status(0);
        let took = finished.ended_at - started_at;
        assert!(took < SOON * 2, "the build waited: {took:?}");
    }
}

/// Builds a script that must be killed by a time-out of one second, give or take one.
fn build_until_killed(script: &str, options: &[&str]) {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let drv = store.script("slow", script);
        let started_at = measure::now();
        let finished = store.goalctl(["build", &drv]).args(options).run();
        finished.expect_status(101).expect_error(&drv);
        let took = finished.ended_at - started_at;
        assert!(took >= Duration::from_secs(1), "killed after {took:?}");
        assert!(took < Duration::from_secs(3), "killed after {took:?}");
        debris::assert_clean(&store);
    }
}

#[test]
fn a_child_that_keeps_the_log_open_does_not_keep_the_build_waiting() {
    build_soon("sleep 1000 & echo done > $out");
}

#[test]
fn a_daemon_that_the_builder_leaves_behind_dies_with_the_build() {
    build_soon(
        "(setsid sh -c 'exec sleep 1000 > /dev/null 2>&1 < /dev/null' &) ; \
         (setsid setsid sleep 1001 &); echo done > $out",
    );
}

#[test]
fn a_builder_that_closes_its_output_may_work_on() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.signals().pipes(&["ready", "go"]);
        let drv = store.script(
            "mute",
            "echo before; exec > /dev/null 2>&1; exec >&- 2>&-; \
             read word < /signals/ready; read word < /signals/go; echo late > $out",
        );
        let goalctl = store.build_with_signals(&drv).start();
        // Both pipes are written only after the log is closed.
        let _first = store.signals().release("ready");
        let _second = store.signals().release("go");
        goalctl.finish().expect_status(0);
        let output = store.real(&store.output_of(&drv, "out"));
        assert_eq!(std::fs::read(output).expect("it was made"), b"late\n");
        debris::assert_clean(&store);
    }
}

#[test]
fn an_output_being_hashed_delays_no_other_goal() {
    const SIZE_BYTES: u64 = 600_000_000;
    const N_SMALL: usize = 5;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["go"]);
    let drvs = store.instantiate(&format!(
        r#"
        let
          # Sparse, so that nothing but the hashing takes time.
          big = mk "big" ''
            dd if=/dev/zero of=$out bs=1 count=1 seek={}
            echo go > /signals/go
          '' {{ }};
          small = n: mk "small-${{toString n}}" ''
            ${{if n == 0 then "read word < /signals/go" else ""}}
            echo $input > $out
          '' {{ input = if n == 0 then null else small (n - 1); }};
        in [ big (small {}) ]
        "#,
        SIZE_BYTES - 1,
        N_SMALL - 1
    ));
    let finished = store
        .build_with_signals(&drvs[0])
        .arg(&drvs[1])
        .args(["-j", "2", "--json"])
        .succeed();
    let events = event_stream::events(&finished);
    let [big, small] = [0, 1].map(|idx| event_stream::position(&events, "finished", &drvs[idx]));
    // The small ones were let go when the big one's builder ended, one after another.
    assert!(small < big, "five small builds waited for one hash");
    let objects = Snapshot::of(&store).objects;
    let size = objects[&store.output_of(&drvs[0], "out")].nar_size_bytes;
    assert_eq!(size, i64::try_from(SIZE_BYTES).expect("it fits") + 112);
    debris::assert_clean(&store);
}

#[test]
fn an_output_nested_4000_deep_is_stored_and_one_of_5000_is_refused() {
    if !requirement::genuine_nix() {
        return;
    }
    let nested =
        |depth: usize| format!("{PROBE}mkdir $out; cd $out; probe nest {depth}; cd /; ls $out");
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.provide_with_libraries(Path::new(env!("CARGO_BIN_EXE_probe")));
        let shallow = store.script("shallow", &nested(4000));
        store.goalctl(["build", &shallow]).succeed();
        let deep = store.script("deep", &nested(5000));
        let finished = store.goalctl(["build", &deep]).run();
        finished.expect_status(1).expect_error(&deep);
        finished.expect_error("4096");
        // The harness's own walk would be as deep: only look at the top.
        assert!(!store.real(&store.output_of(&deep, "out")).exists());
        assert!(debris::names_in(&store.state().join("builds")).is_empty());
    }
}

#[test]
fn a_hundred_processes_that_ignore_every_signal_die_at_the_time_out() {
    build_until_killed(
        "trap '' TERM INT HUP QUIT PIPE; n=0; \
         while [ $n -lt 100 ]; do (trap '' TERM INT HUP QUIT; while true; do sleep 1000; done) & \
         n=$((n + 1)); done; while true; do sleep 1000; done",
        &["--timeout", "1"],
    );
}

#[test]
fn a_builder_that_stops_itself_is_killed_at_the_time_out() {
    build_until_killed("kill -STOP $$; echo never > $out", &["--timeout", "1"]);
}

#[test]
fn a_builder_that_hangs_in_the_kernel_is_killed_at_the_time_out() {
    build_until_killed("mkfifo pipe; cat < pipe", &["--timeout", "1"]);
}

#[test]
fn a_silent_builder_is_killed() {
    build_until_killed("echo once; exec sleep 1000", &["--max-silent-time", "1"]);
}

#[test]
fn a_chatty_builder_is_killed_at_the_time_out_though_never_silent() {
    build_until_killed(
        "while true; do printf .; sleep 0.1; done",
        &["--timeout", "1", "--max-silent-time", "30"],
    );
}

#[test]
fn a_flood_of_log_is_cut_off_at_its_limit() {
    for (flood, what) in [
        ("yes", "lines"),
        ("cat /dev/zero", "one line without end"),
        ("yes | tr '\\n' '\\r'", "carriage returns"),
    ] {
        for (store, drv, finished) in
            build_script(flood, &["--option", "max-build-log-size", "1000000"])
        {
            finished.expect_status(1).expect_error(&drv);
            finished.expect_error("1000000");
            let log = kept_log(&store, &drv);
            // Whole blocks are read, so a little more may be kept.
            assert!(log.len() >= 900_000, "{what}: only {} bytes", log.len());
            assert!(log.len() <= 2_000_000, "{what}: {} bytes", log.len());
        }
    }
}

#[test]
fn a_hundred_megabytes_of_log_cost_no_memory_and_lose_nothing() {
    const N_LINES: usize = 2_000_000;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    let drv = store.script(
        "talkative",
        &format!(
            "yes 'forty-nine bytes of log, and a newline to end it' | head -n {N_LINES}; \
             echo here > /signals/ready; read word < /signals/go; echo made > $out"
        ),
    );
    let goalctl = store.build_with_signals(&drv).start();
    store.signals().await_word("ready");
    let peak_kilobytes = peak_memory_kilobytes(goalctl.pid());
    let _open = store.signals().release("go");
    goalctl.finish().expect_status(0);
    assert!(peak_kilobytes < 100_000, "{peak_kilobytes} kB");
    let n_kept = kept_log(&store, &drv)
        .split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"forty-nine"))
        .count();
    assert_eq!(n_kept, N_LINES);
    debris::assert_clean(&store);
}

#[test]
fn a_failure_quotes_the_last_lines_and_keeps_the_whole_log() {
    for (store, drv, finished) in build_script("seq 1 1000; echo oops >&2; exit 3", &[]) {
        finished.expect_status(100).expect_error("exit code 3");
        finished.expect_error("1000").expect_error("oops");
        let log = kept_log(&store, &drv);
        let n_lines = log.split(|byte| *byte == b'\n').count();
        assert!(n_lines >= 1001, "{n_lines} lines were kept");
        let shown = store.goalctl(["log", &drv]).succeed().output();
        assert!(shown.starts_with("1\n2\n3\n"), "{shown:.40}");
        assert!(shown.contains("999\n1000\noops\n"));
    }
}

#[test]
fn a_build_directory_full_of_oddities_is_removed() {
    build_soon(
        "mkdir -p a/b/c; chmod 000 a/b/c; mkdir -p r/x; touch r/x/f; chmod 555 r/x r; mkfifo pipe; \
         ln -s /etc link; n=0; while [ $n -lt 500 ]; do ln pipe hard-$n; n=$((n + 1)); done; \
         mkdir 'new\nline' -- '-rf'; chmod 000 a; echo done > $out",
    );
}

#[test]
fn strange_modes_within_an_output_become_canonical() {
    for (store, drv, finished) in build_script(
        "mkdir -p $out/shut/in $out/sticky; echo x > $out/shut/in/file; echo x > $out/none; \
         chmod 1755 $out/sticky; chmod 000 $out/none $out/shut/in/file $out/shut/in $out/shut",
        &[],
    ) {
        finished.expect_status(0);
        let objects = Snapshot::of(&store).objects;
        let files = &objects[&store.output_of(&drv, "out")].files;
        assert_eq!(files.len(), 6);
        debris::assert_verifies(&store);
    }
}

#[test]
fn an_output_may_hold_names_that_are_no_text() {
    for (store, drv, finished) in build_script(
        "mkdir $out; cd $out; touch -- \"$(printf '\\377\\001')\" \"$(printf 'a\\nb')\" -rf ' ' \
         \"$(printf 'x%.0s' $(seq 1 255))\"",
        &[],
    ) {
        finished.expect_status(0);
        let objects = Snapshot::of(&store).objects;
        assert_eq!(objects[&store.output_of(&drv, "out")].files.len(), 6);
        debris::assert_verifies(&store);
    }
}

/// Returns the bytes of the log that is kept of a build, as genuine Nix reads it.
fn kept_log(store: &TestStore, drv: &str) -> Vec<u8> {
    let lines = store.nix_store(["--read-log", drv]).succeed().lines;
    let mut log = Vec::new();
    for line in lines {
        log.extend_from_slice(&line.bytes);
        log.push(b'\n');
    }
    log
}

/// Returns the most memory that a process has ever held.
fn peak_memory_kilobytes(pid: u32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .expect("the process runs")
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .expect("the kernel tells")
}
