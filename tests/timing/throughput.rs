//! How many bytes go through in which time, beside the least that anybody would need for them.
//!
//! Machines differ and are busy with other things, so only ratios are asserted, of two sides that are
//! measured by turns. Where computing is counted the best of each counts, since whatever disturbs only
//! adds. Where time passes the best pair counts: a busy machine gives both sides of a pair about the
//! same share, but no pair the share of another.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use it::event_stream::{events, position};
use it::{Finished, TestStore, debris, measure, requirement};
use nix::pty::openpty;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::time::TimeValLike;

use crate::{alone, is_optimised};

/// How often both sides are measured at most; a ratio that holds needs no further proof.
const MAX_ROUNDS: usize = 8;

/// Size of the output that is registered: the costs that do not grow with it are hundredths then.
const OUTPUT_BYTES: u64 = 600_000_000;

/// What a line of the log says.
const LINE: &str = "forty-nine bytes of log, and a newline to end it";

/// How many lines are written through a terminal.
const N_LINES: u32 = 200_000;

#[test]
fn registering_an_output_costs_15_percent_more_than_its_hash_alone() {
    if !requirement::genuine_nix() || !requirement::programs(&["sha256sum"]) {
        return;
    }
    let _alone = alone();
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go", "end"]);
    // Text, as most of what is built is, and hence something to look for references in.
    let text = store.dir().join("text");
    std::fs::write(&text, self::text()).expect("a fresh file can be written");
    let n_times = OUTPUT_BYTES / text.metadata().expect("it was just written").len();
    let round = |idx: usize| {
        // Something else goes on meanwhile, so that goalctl is still there to be asked.
        let drvs = store.instantiate(&format!(
            r#"[
              (mk "large-{idx}" ''
                n=0; while [ $n -lt {n_times} ]; do cat $text; n=$((n + 1)); done > $out
                echo here > /signals/ready; read word < /signals/go
              '' {{ text = builtins.path {{ name = "text"; path = {}; }}; }})
              (mk "other-{idx}" "read word < /signals/end; echo made > $out" {{ }})
            ]"#,
            text.display(),
        ));
        let mut goalctl = store
            .build_with_signals(&drvs[0])
            .arg(&drvs[1])
            .args(["--json", "-j", "2"])
            .start();
        store.signals().await_word("ready");
        let before = computing_time(goalctl.pid(), Work::Everything);
        let go = store.signals().release("go");
        goalctl.await_line(|line| line.contains("\"finished\"") && line.contains(&drvs[0]));
        let registered = computing_time(goalctl.pid(), Work::Everything).saturating_sub(before);
        let end = store.signals().release("end");
        goalctl.finish().expect_status(0);
        drop((go, end));
        let output = store.real(&store.output_of(&drvs[0], "out"));
        (registered, computing_time_of_sha256sum(&output))
    };
    // Not optimised, the parts of goalctl's own are slow.
    let limit = if is_optimised() { 1.15 } else { 3.0 };
    assert_ratio(Best::OfEach, "registering beside hashing", limit, round);
    debris::assert_clean(&store);
}

#[test]
fn a_log_goes_through_at_four_fifths_of_what_a_bare_terminal_passes() {
    if !requirement::genuine_nix() {
        return;
    }
    let _alone = alone();
    let store = TestStore::new();
    let round = |idx: usize| {
        let drv = store.script(
            &format!("talkative-{idx}"),
            &format!("yes '{LINE}' | head -n {N_LINES}; echo made > $out"),
        );
        let finished = store.goalctl(["build", "--json", &drv]).succeed();
        (building_time(&finished, &drv), bare_terminal_time())
    };
    assert_ratio(Best::Pair, "a log beside a bare terminal", 1.0 / 0.8, round);
    debris::assert_clean(&store);
}

#[test]
fn a_log_costs_us_a_second_of_computing_for_100_megabytes() {
    if !requirement::genuine_nix() {
        return;
    }
    let _alone = alone();
    let store = TestStore::new();
    store.signals().pipes(&["before", "after", "go", "end"]);
    let mut best = Duration::MAX;
    let promised = crate::promise(Duration::from_secs(1)).mul_f64(log_bytes() / 100e6);
    for idx in 0..MAX_ROUNDS {
        let drv = store.script(
            &format!("talkative-{idx}"),
            &format!(
                "echo here > /signals/before; read word < /signals/go; \
                 yes '{LINE}' | head -n {N_LINES}; echo last; \
                 echo here > /signals/after; read word < /signals/end; echo made > $out"
            ),
        );
        // Compressing is done beside, and measured elsewhere.
        let mut goalctl = store
            .build_with_signals(&drv)
            .option("compress-build-log", "false")
            .start();
        store.signals().await_word("before");
        let before = computing_time(goalctl.pid(), Work::Own);
        let go = store.signals().release("go");
        goalctl.await_line(|line| line.ends_with("> last"));
        store.signals().await_word("after");
        let took = computing_time(goalctl.pid(), Work::Own).saturating_sub(before);
        let end = store.signals().release("end");
        goalctl.finish().expect_status(0);
        drop((go, end));
        best = best.min(took);
        requirement::say(&format!("{took:?} for {} bytes", log_bytes()));
        if best <= promised {
            break;
        }
    }
    assert!(best <= promised, "{best:?}, not {promised:?}");
    debris::assert_clean(&store);
}

/// Which measurements of many are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Best {
    /// The best of ours with the best of theirs.
    OfEach,
    /// Ours with theirs of the same round, of the round where we look best.
    Pair,
}

/// Measures ours and theirs by turns until the best of ours is within `limit` times the best of
/// theirs.
#[track_caller]
fn assert_ratio(best: Best, what: &str, limit: f64, round: impl Fn(usize) -> (Duration, Duration)) {
    let mut rounds = Vec::new();
    let mut reached = f64::MAX;
    for idx in 0..MAX_ROUNDS {
        let (ours, theirs) = round(idx);
        requirement::say(&format!("{what}: {ours:?} to {theirs:?}"));
        rounds.push((ours.as_secs_f64(), theirs.as_secs_f64()));
        reached = match best {
            Best::OfEach => {
                let [ours, theirs] = [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1]
                    .map(|side| rounds.iter().map(side).fold(f64::MAX, f64::min));
                ours / theirs
            }
            Best::Pair => reached.min(ours.as_secs_f64() / theirs.as_secs_f64()),
        };
        // Once is no ratio of the best.
        if idx > 0 && reached <= limit {
            return;
        }
    }
    panic!("{what}: {reached:.2} is more than {limit:.2}");
}

/// Returns the time that a builder ran.
fn building_time(finished: &Finished, drv: &str) -> Duration {
    let events = events(finished);
    let ended = &events[position(&events, "finished", drv)];
    let [started_at, stopped_at] = ["startedAtMs", "stoppedAtMs"]
        .map(|name| ended.value[name].as_u64().expect("it was built"));
    Duration::from_millis(stopped_at - started_at)
}

/// Returns how long `sha256sum` computes for a file.
fn computing_time_of_sha256sum(path: &Path) -> Duration {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("one's own usage can be asked for");
        [usage.user_time(), usage.system_time()]
            .map(|time| {
                let micros = time.num_microseconds();
                Duration::from_micros(u64::try_from(micros).expect("time is positive"))
            })
            .iter()
            .sum::<Duration>()
    };
    // This program's tests run alone, so no other child ends meanwhile.
    let before = used();
    let mut sha256sum = std::process::Command::new("sha256sum");
    let output = sha256sum.arg(path).output().expect("it was found before");
    assert!(output.status.success());
    used().saturating_sub(before)
}

/// Returns how long a bare reader takes for the same lines through a terminal of the same modes.
fn bare_terminal_time() -> Duration {
    let pair = openpty(None, None).expect("a pseudo-terminal can be opened");
    let mut modes = tcgetattr(&pair.slave).expect("a terminal has modes");
    cfmakeraw(&mut modes);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &modes).expect("one's own terminal can be set");
    let busybox = requirement::find_program("busybox").expect("builders need it as well");
    let script = format!("busybox yes '{LINE}' | busybox head -n {N_LINES}");
    let started_at = measure::now();
    let mut command = std::process::Command::new(busybox);
    command.args(["sh", "-c", &script]).stdin(Stdio::null());
    let mut child = command
        .stdout(pair.slave)
        .spawn()
        .expect("busybox can be run");
    // It holds the other end, which would never be seen to end.
    drop(command);
    let mut shown = File::from(pair.master);
    let mut buffer = vec![0; 64 * 1024];
    let mut n_bytes = 0;
    // An error is how the kernel says that nobody has the other end any more.
    while let Ok(n_read @ 1..) = shown.read(&mut buffer) {
        n_bytes += n_read;
    }
    let took = measure::now() - started_at;
    assert!(child.wait().expect("it is our child").success());
    assert_eq!(n_bytes, (LINE.len() + 1) * N_LINES as usize);
    took
}

/// Whose work for a process is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Its own.
    Own,
    /// The kernel's for it, too.
    Everything,
}

/// Returns how long a process has been computing.
fn computing_time(pid: u32, work: Work) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name may hold blanks; the state is the first word behind it.
    let (_, rest) = text.rsplit_once(") ").expect("the name is in parentheses");
    let ticks: Vec<u64> = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(|word| word.parse().expect("the kernel tells numbers"))
        .collect();
    let n_ticks = match work {
        Work::Own => ticks[0],
        Work::Everything => ticks.iter().sum(),
    };
    // The kernel counts in hundredths for everybody, whatever it uses itself.
    Duration::from_millis(n_ticks * 10)
}

fn log_bytes() -> f64 {
    f64::from(N_LINES) * f64::from(u32::try_from(LINE.len() + 1).expect("it is short"))
}

/// Returns lines that look like many others, and like store paths, without being alike.
fn text() -> String {
    let mut text = String::new();
    for idx in 0..2_000_u64 {
        let [word, path] = [7_919, 104_729].map(|factor| (idx + 1) * factor);
        writeln!(text, "{word} says /nix/store/{path} to {idx}").expect("a string takes any text");
    }
    text.repeat(1_000)
}
