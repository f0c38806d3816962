//! The live view of `goalctl build`, as somebody at a terminal sees it.

use std::time::Duration;

use it::hand_over::{self, PATIENT};
use it::invocation::OutputOf;
use it::{Profile, Terminal, TestStore, debris, measure, requirement};

/// One build that is quick, one that fails, three for two slots that begin after the quick one and
/// go on until they are let go, and one that needs one of them.
const BUSY: &str = r#"
let
  quick = mk "a-quick" "echo made > $out" { };
  slow = name: mk name ''
    echo first step
    echo $name is at work
    read word < /signals/go-$name
    echo made > $out
  '' { input = quick; };
  c-slow = slow "c-slow";
in [
  quick
  (mk "b-broken" "echo it is broken; exit 1" { })
  c-slow
  (slow "d-slow")
  (slow "e-queued")
  (mk "f-needs-c" "cat $input > $out" { input = c-slow; })
]
"#;

/// The names of the builds of [`BUSY`] that wait to be let go.
const SLOW: [&str; 3] = ["c-slow", "d-slow", "e-queued"];

/// What makes a terminal do things: colours that never end, a cleared screen, another screen, a
/// cursor that moves and hides, a bell, a title, a link, a clipboard, a question, other letters, a
/// reset, a line that overwrites itself, text that runs backwards, and bytes that are no text.
const HOSTILE: &str = r"
printf '\033[31;7mred for ever\n'
printf 'c\033[2J\033[H\033[?1049h\033[?25l\033[5;10r\033[3A\033[1Kleared\n'
printf 'ding\007 \033]0;title\007\033]8;;http://x\033\\\\linked\033]52;c;eHg=\007\n'
printf '\033[6n\033[c\033[18t\033(0\033)0\016\033=\033>\033c\033#8asked\n'
printf '\033P1$r0m\033\\\\\033_apc\033\\\\\033^pm\033\\\\strings\n'
printf '\302\233 2J\302\220 \342\200\256sdrawkcab\n'
printf 'an unfinished \033]0;sequence\n'
printf 'one\rtwo\r\n'
printf '\377\376\000\b\b\b\v\f\177 last \033[1mwords\n'
";

/// Whether a row is the first one of the view.
fn is_summary(row: &str) -> bool {
    row.split_once(" built, ").is_some_and(|(count, rest)| {
        count.chars().all(|digit| digit.is_ascii_digit()) && rest.contains(" running, ")
    })
}

/// Returns the rows of the view: the last that begins like one, and what follows.
fn view(rows: &[String]) -> Vec<&str> {
    let start = rows
        .iter()
        .rposition(|row| is_summary(row))
        .unwrap_or(rows.len());
    rows[start..]
        .iter()
        .map(String::as_str)
        .filter(|row| !row.is_empty())
        .collect()
}

/// Fails if anything of a view is among the rows.
#[track_caller]
fn assert_no_view(rows: &[String]) {
    let is_of_view = |row: &String| is_summary(row) || row.starts_with("  ");
    let left: Vec<&String> = rows.iter().filter(|row| is_of_view(row)).collect();
    assert_eq!(left, Vec::<&String>::new(), "of {rows:#?}");
}

/// Returns how many seconds a row says that a build has been running.
fn age(row: &str, name: &str) -> Option<u64> {
    let rest = row.strip_prefix(&format!("  {name} "))?;
    rest.split(' ').next()?.strip_suffix('s')?.parse().ok()
}

/// Makes what the builders of [`BUSY`] need; returns the store, and the derivations in the order of
/// their names.
fn busy_store() -> (TestStore, Vec<String>) {
    let store = TestStore::new();
    for name in SLOW {
        store.signals().pipes(&[&format!("go-{name}")]);
    }
    let drvs = store.instantiate(BUSY);
    (store, drvs)
}

#[test]
fn the_view_shows_what_runs_and_counts_the_rest_and_leaves_only_the_result() {
    if !requirement::genuine_nix() {
        return;
    }
    let (store, drvs) = busy_store();
    let mut terminal = Terminal::open(24, 200);
    let goalctl = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .args(["-k", "-j", "2"])
        .start_at(&mut terminal, OutputOf::Terminal);

    let ages = |rows: &[String]| -> Option<[u64; 2]> {
        let view = view(rows);
        let [summary, first, second, waits] = view.as_slice() else {
            return None;
        };
        // Any two of the three may be the first that are ready.
        let age_of = |row: &str| {
            SLOW.into_iter().find_map(|name| {
                let age = age(row, name)?;
                row.ends_with(&format!("s {name} is at work"))
                    .then_some(age)
            })
        };
        let is_right = *summary == "1 built, 2 running, 2 waiting, 1 failed"
            && *waits == "  1 waiting for a build slot; 1 waiting for inputs";
        is_right.then_some([age_of(first)?, age_of(second)?])
    };
    let rows = terminal.await_rows(|rows| ages(rows).is_some());
    let before = ages(&rows).expect("it has just been so");
    // Time passes for those that say nothing, too.
    terminal.await_rows(|rows| {
        ages(rows).is_some_and(|ages| ages[0] > before[0] && ages[1] > before[1])
    });
    // What happens once is told above, and stays.
    let told = rows.iter().filter(|row| row.starts_with("building '"));
    assert_eq!(told.count(), 4, "{rows:#?}");

    let open = SLOW.map(|name| store.signals().release(&format!("go-{name}")));
    goalctl.finish().expect_status(100);
    drop(open);
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert_no_view(&rows);
    let paths = rows.iter().filter(|row| row.starts_with("/nix/store/"));
    assert_eq!(paths.count(), 5, "{rows:#?}");
    assert!(rows.contains(&"5 built, 1 failed".to_owned()), "{rows:#?}");
    debris::assert_clean(&store);
}

#[test]
fn a_lock_that_another_process_holds_is_named_in_the_view() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    hand_over::prepare(&store);
    let drv = store.script("wanted-twice", PATIENT);
    let first = store.build_with_signals(&drv).start();
    store.signals().await_word("ready");
    let mut terminal = Terminal::open(24, 100);
    let second = store
        .build_with_signals(&drv)
        .start_at(&mut terminal, OutputOf::Terminal);
    let reason = format!(
        "  wanted-twice waiting for a lock held by process {}",
        first.pid()
    );
    terminal.await_rows(|rows| view(rows) == ["0 built, 0 running, 1 waiting", &reason]);

    let open = store.signals().release("go");
    let output = first.finish().output_lines();
    second.finish().expect_status(0);
    drop(open);
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert_no_view(&rows);
    assert_eq!(rows.last(), output.first());
    debris::assert_clean(&store);
}

#[test]
fn a_warning_stands_above_the_view_and_does_not_tear_it() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["go", "later"]);
    // Something that is warned of as it is registered, while something else is being shown.
    let drvs = store.instantiate(
        r#"
        let first = mk "a-first" "read word < /signals/go; echo made > $out" { };
        in [
          first
          (mk "b-second" "read word < /signals/later; echo made > $out" { })
          (mk "c-warned" "echo ${first} > $out" {
            outputHashAlgo = "sha256";
            outputHash = builtins.hashString "sha256"
              (builtins.unsafeDiscardStringContext "${first}\n");
          })
        ]"#,
    );
    let mut terminal = Terminal::open(24, 400);
    let goalctl = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .args(["-j", "2"])
        .start_at(&mut terminal, OutputOf::Pipe);
    terminal.await_rows(|rows| view(rows).first() == Some(&"0 built, 2 running, 1 waiting"));
    let open = store.signals().release("go");
    let rows =
        terminal.await_rows(|rows| view(rows).first() == Some(&"2 built, 1 running, 0 waiting"));
    let warnings = rows
        .iter()
        .filter(|row| row.contains("refers to '/nix/store/"));
    assert_eq!(warnings.count(), 1, "{rows:#?}");
    let summaries = rows.iter().filter(|row| is_summary(row));
    assert_eq!(summaries.count(), 1, "{rows:#?}");
    let later = store.signals().release("later");
    goalctl.finish().expect_status(0);
    drop((open, later));
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert_no_view(&rows);
    debris::assert_clean(&store);
}

#[test]
fn a_pipe_gets_the_paths_alone_while_the_terminal_shows_the_view() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["go"]);
    let drv = store.script("piped", "read word < /signals/go; echo made > $out");
    let mut terminal = Terminal::open(24, 100);
    let goalctl = store
        .build_with_signals(&drv)
        .start_at(&mut terminal, OutputOf::Pipe);
    terminal.await_rows(|rows| view(rows).first() == Some(&"0 built, 1 running, 0 waiting"));
    let open = store.signals().release("go");
    let finished = goalctl.finish();
    drop(open);
    finished.expect_status(0);
    let path = store.output_of(&drv, "out");
    assert_eq!(finished.lines.len(), 1);
    assert_eq!(finished.lines[0].bytes, path.as_bytes());
    let rows = terminal.await_end();
    terminal.assert_as_before();
    // Nothing of the view, and no path.
    assert_no_view(&rows);
    assert!(!rows.contains(&path), "{rows:#?}");
    debris::assert_clean(&store);
}

#[test]
fn a_narrow_terminal_cuts_the_lines_of_the_view() {
    const N_COLUMNS: u16 = 40;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["go"]);
    // Letters of one column, of two columns, of none, and one that moves to the next eighth.
    let drvs = store.instantiate(
        r#"
        let patient = name: line: mk name ''
            printf '%s\n' "${line}"
            read word < /signals/go
            echo made > $out
          '' { };
        in [
          (patient "a" "0123456789 0123456789 0123456789 0123456789")
          (patient "b" "全角文字全角文字全角文字全角文字全角文字全角文字全角文字")
          (patient "c" "a	b	c	d	e	f	g	h	i	j")
          (patient "d" "éééééééééééééééééééééééééééééé")
          (patient "e-that-has-a-name-of-more-than-forty-letters" "unseen")
        ]
        "#,
    );
    let mut terminal = Terminal::open(40, N_COLUMNS);
    let goalctl = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .args(["-j", "5"])
        .start_at(&mut terminal, OutputOf::Pipe);
    let rows = terminal.await_rows(|rows| {
        let view = view(rows);
        let has_said_something = |row: &&str| row.split_whitespace().count() > 2;
        // The longest name leaves no room for what its builder says.
        view.first() == Some(&"0 built, 5 running, 0 waiting")
            && view.len() == 6
            && view[1..]
                .iter()
                .filter(|row| has_said_something(row))
                .count()
                == 4
    });
    // One row for each, so none took two; in the order in which they started.
    let mut running = view(&rows).split_off(1);
    running.sort_unstable();
    let expected = [
        ("  a ", "s 0123456789 0123456789 0123456789"),
        ("  b ", "s 全角文字全角文字全角文字全角文字"),
        ("  c ", "d"),
        ("  d ", "éé"),
        ("  e-", "forty-l"),
    ];
    assert_eq!(running.len(), expected.len(), "{rows:#?}");
    for (row, (start, end)) in running.iter().zip(expected) {
        assert!(row.starts_with(start) && row.ends_with(end), "{rows:#?}");
    }

    let open: Vec<_> = (0..5).map(|_| store.signals().release("go")).collect();
    goalctl.finish().expect_status(0);
    drop(open);
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert_no_view(&rows);
    debris::assert_clean(&store);
}

#[test]
fn a_low_terminal_shows_what_it_has_room_for_and_is_left_clean() {
    if !requirement::genuine_nix() {
        return;
    }
    let (store, drvs) = busy_store();
    let mut terminal = Terminal::open(3, 80);
    let goalctl = store
        .build_with_signals(&drvs[2])
        .args(&drvs[3..])
        .args(["-j", "3"])
        .start_at(&mut terminal, OutputOf::Pipe);
    terminal.await_rows(|rows| {
        let view = view(rows);
        view.len() == 3
            && view[0] == "1 built, 3 running, 1 waiting"
            && view[1..].iter().all(|row| row.ends_with(" is at work"))
    });
    let open = SLOW.map(|name| store.signals().release(&format!("go-{name}")));
    goalctl.finish().expect_status(0);
    drop(open);
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert_no_view(&rows);
    debris::assert_clean(&store);
}

#[test]
fn nothing_that_a_builder_prints_is_obeyed_by_the_terminal() {
    if !requirement::genuine_nix() {
        return;
    }
    for flags in [&[][..], &["-L"]] {
        for (ending, status) in [("echo made > $out", 0), ("exit 1", 100)] {
            let store = TestStore::new();
            store.signals().pipes(&["go"]);
            let script = format!("{HOSTILE}read word < /signals/go; {ending}");
            let drv = store.script("hostile", &script);
            let mut terminal = Terminal::open(30, 80);
            let goalctl = store
                .build_with_signals(&drv)
                .args(flags)
                .start_at(&mut terminal, OutputOf::Pipe);
            let rows = terminal.await_rows(|rows| {
                let view = view(rows);
                view.first() == Some(&"0 built, 1 running, 0 waiting")
                    && view.get(1).is_some_and(|row| row.ends_with(" last words"))
            });
            assert_eq!(view(&rows).len(), 2, "{rows:#?}");
            let open = store.signals().release("go");
            goalctl.finish().expect_status(status);
            drop(open);
            let rows = terminal.await_end();
            terminal.assert_as_before();
            assert_no_view(&rows);
            assert_only_harmless_sequences(terminal.transcript());
            let shown = rows.join("\n");
            let is_shown = !flags.is_empty() || status != 0;
            for words in ["red for ever", "two", "linked", "last words"] {
                assert_eq!(shown.contains(words), is_shown, "{words}: {rows:#?}");
            }
            for words in ["title", "one", "http", "eHg", "sequence"] {
                assert!(!shown.contains(words), "{words}: {rows:#?}");
            }
            debris::assert_clean(&store);
        }
    }
}

#[test]
fn ctrl_c_at_the_terminal_ends_the_build_and_leaves_the_terminal_as_it_was() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        hand_over::prepare(&store);
        let drv = store.script("interrupted", PATIENT);
        let mut terminal = Terminal::open(24, 100);
        let goalctl = store
            .build_with_signals(&drv)
            .start_at(&mut terminal, OutputOf::Terminal);
        store.signals().await_word("ready");
        let seconds = |rows: &[String]| {
            let view = view(rows);
            let summary_is_right = view.first() == Some(&"0 built, 1 running, 0 waiting");
            age(view.get(1)?, "interrupted").filter(|_| summary_is_right && view.len() == 2)
        };
        terminal.await_rows(|rows| seconds(rows).is_some());
        // What is typed meanwhile is not shown, so it does not tear the view.
        terminal.type_in("\nwords\n");
        let rows = terminal.await_rows(|rows| seconds(rows).is_some_and(|seconds| seconds >= 1));
        let summaries = rows.iter().filter(|row| is_summary(row));
        assert_eq!(summaries.count(), 1, "{rows:#?}");

        let typed_at = measure::now();
        terminal.type_in("\x03");
        let finished = goalctl.finish();
        finished.expect_status(130);
        assert!(finished.ended_at - typed_at < Duration::from_secs(2));
        let rows = terminal.await_end();
        terminal.assert_as_before();
        assert_no_view(&rows);
        assert!(!store.real(&store.output_of(&drv, "out")).exists());
        debris::assert_clean(&store);
    }
}

#[test]
fn a_terminal_that_can_only_print_gets_lines_that_stay() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("plain", "echo said; exit 1");
    let mut terminal = Terminal::open(24, 200);
    let goalctl = store
        .goalctl(["build", &drv])
        .env("TERM", "dumb")
        .start_at(&mut terminal, OutputOf::Terminal);
    goalctl.finish().expect_status(100);
    let rows = terminal.await_end();
    terminal.assert_as_before();
    assert!(!terminal.transcript().contains(&b'\x1b'));
    let told = |words: &str| rows.iter().any(|row| row.contains(words));
    assert!(told("building '"), "{rows:#?}");
    assert!(told("plain> said"), "{rows:#?}");
    assert!(told("error: "), "{rows:#?}");
    debris::assert_clean(&store);
}

/// Fails unless every escape sequence sets a colour, clears a row or moves the cursor within the
/// view.
#[track_caller]
fn assert_only_harmless_sequences(transcript: &[u8]) {
    for after in transcript.split(|byte| *byte == b'\x1b').skip(1) {
        let end = after
            .iter()
            .position(|byte| (b'@'..=b'~').contains(byte) && *byte != b'[');
        let sequence = end.map_or(after, |end| &after[..=end]);
        let is_harmless = sequence.starts_with(b"[")
            && sequence
                .last()
                .is_some_and(|last| b"mKABCDG".contains(last));
        assert!(is_harmless, "ESC {}", sequence.escape_ascii());
    }
}
