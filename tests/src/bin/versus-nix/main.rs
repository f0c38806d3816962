//! goalctl against genuine Nix 2.8: the same derivations, by turns, each time in a fresh store.
//!
//! `versus-nix [ROUNDS [WHAT]]` prints medians and ratios as a table, of those rows whose title has
//! WHAT in it. Run it on a quiet machine and in
//! the release profile: `just versus-nix`.

#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

mod copying;
mod fetching;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use it::graph::LayeredGraph;
use it::hand_over::{self, Program};
use it::{Profile, TestStore, measure, requirement};

use self::copying::Stock;
use self::fetching::{Distance, Goods, LARGE, SMALL, Shelf};

/// How often each program does each thing, if nobody says otherwise.
const ROUNDS: usize = 5;

/// Something to build.
struct Workload {
    title: &'static str,
    expression: String,
    /// Whether everything is built already when the clock starts.
    is_valid_before: bool,
}

fn main() {
    if !requirement::genuine_nix() {
        return;
    }
    let n_rounds = std::env::args()
        .nth(1)
        .map_or(ROUNDS, |word| word.parse().expect("ROUNDS is a number"));
    let parent = fresh_block_group();
    println!(
        "{n_rounds} rounds by turns, fresh stores, sandboxed, `-j 2`, as {:?}; medians of wall time.\n",
        Profile::native()
    );
    println!("| what | Nix 2.8 | goalctl | ratio |");
    println!("|---|---:|---:|---:|");
    let wanted = std::env::args().nth(2).unwrap_or_default();
    let is_wanted = |title: &str| title.contains(&wanted);
    for workload in workloads() {
        if !is_wanted(workload.title) {
            continue;
        }
        compare(workload.title, n_rounds, |program, _| {
            workload.run(program, parent.path())
        });
    }
    for (title, goods, distance) in shelves() {
        if is_wanted(title) {
            let shelf = Shelf::fill(&goods, distance, parent.path());
            compare(title, n_rounds, |program, _| {
                shelf.fetch(program, parent.path())
            });
        }
    }
    for (title, goods) in stocks() {
        if is_wanted(title) {
            let stock = Stock::build(&goods, parent.path());
            compare(title, n_rounds, |program, _| stock.copy(program));
        }
    }
    let title = "lock hand-over from Nix";
    if is_wanted(title) {
        compare(title, n_rounds, |program, round| {
            let store = TestStore::beneath(parent.path(), Profile::native());
            hand_over::prepare(&store);
            hand_over::measure(&store, Program::GenuineNix, program, round)
        });
    }
}

fn shelves() -> Vec<(&'static str, Goods, Distance)> {
    let goods = |expression, compression| Goods {
        expression,
        compression,
    };
    let away = Distance::Server(Duration::from_millis(20));
    let small = "1,000 small paths of a directory";
    vec![
        (small, goods(SMALL, "none"), Distance::Directory),
        (
            "1,000 small paths of a directory, xz",
            goods(SMALL, "xz"),
            Distance::Directory,
        ),
        (
            "1,000 small paths of a server that takes 20 ms for each answer",
            goods(SMALL, "none"),
            away,
        ),
        (
            "a path of 400 MB of a directory",
            goods(LARGE, "none"),
            Distance::Directory,
        ),
    ]
}

fn stocks() -> Vec<(&'static str, Goods)> {
    let goods = |expression, compression| Goods {
        expression,
        compression,
    };
    vec![
        ("copying 1,000 small paths", goods(SMALL, "none")),
        ("copying 1,000 small paths, xz", goods(SMALL, "xz")),
        ("copying a path of 400 MB", goods(LARGE, "none")),
        // One thread would compress it by xz for minutes.
        ("copying a path of 400 MB, zstd", goods(LARGE, "zstd")),
    ]
}

fn workloads() -> Vec<Workload> {
    let built = |title, expression: &str| Workload {
        title,
        expression: expression.to_owned(),
        is_valid_before: false,
    };
    let trivial =
        r#"builtins.genList (n: mk "trivial-${toString n}" "echo ${toString n} > $out" { }) 200"#;
    let graph = LayeredGraph {
        n_layers: 10,
        width: 40,
        n_inputs: 3,
        seed: 400,
    };
    vec![
        built("200 trivial builds", trivial),
        built("a graph of 10 by 40", &graph.expression("")),
        built(
            "an output of 20,000 files",
            r#"mk "many" "mkdir $out; cd $out; seq 1 20000 | xargs touch" { }"#,
        ),
        built(
            "an output of 400 MB",
            r#"mk "large" "dd if=/dev/urandom of=$out bs=1M count=400" { }"#,
        ),
        built(
            "30 MB of log",
            r#"mk "talkative" "yes 'forty-nine bytes of log, and a newline to end it' | head -n 600000; echo x > $out" { }"#,
        ),
        Workload {
            title: "the 200 again, all valid",
            expression: trivial.to_owned(),
            is_valid_before: true,
        },
    ]
}

impl Workload {
    /// Builds it once in a fresh store; returns the wall time.
    fn run(&self, program: Program, parent: &Path) -> Duration {
        let store = TestStore::beneath(parent, Profile::native());
        let drvs = store.instantiate(&self.expression);
        let build = || {
            let invocation = match program {
                Program::Goalctl => store.goalctl(["build", "-j", "2"]),
                Program::GenuineNix => store.nix_store(["--realise", "-j", "2"]),
            };
            let started_at = measure::now();
            let finished = invocation.args(&drvs).succeed();
            finished.ended_at - started_at
        };
        if self.is_valid_before {
            build();
        }
        build()
    }
}

/// Runs both programs by turns and prints a row of the table.
fn compare(title: &str, n_rounds: usize, run: impl Fn(Program, usize) -> Duration) {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..n_rounds {
        times[0].push(run(Program::GenuineNix, round));
        times[1].push(run(Program::Goalctl, round));
    }
    let [nix, goalctl] = times.map(|times| measure::median(&times).as_secs_f64());
    println!(
        "| {title} | {:.1} ms | {:.1} ms | {:.2} |",
        nix * 1000.0,
        goalctl * 1000.0,
        goalctl / nix
    );
}

/// Makes a folder whose files ext4 puts into a block group of their own, where it can: after many
/// deletions making a file elsewhere costs fifteen times as much, for both programs.
fn fresh_block_group() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let is_set = Command::new("chattr")
        .arg("+T")
        .arg(folder.path())
        .status()
        .is_ok_and(|status| status.success());
    if !is_set {
        requirement::say("no fresh block group: chattr +T does nothing here");
    }
    // Stores of an ordinary user lie below it as well.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).expect("one's own folder can be opened");
    folder
}
