//! What hostile builders and derivations leave, claim and print.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use it::canary::{Canary, SECRET};
use it::snapshot::Snapshot;
use it::{TestStore, binaries, debris, requirement};
use nix::sys::stat::Mode;

use crate::guard::{assert_shut, guarded_stores, under_guard};

#[test]
fn a_failed_build_leaves_no_file_that_others_could_use() {
    for keep in [&[][..], &["-K"]] {
        for (store, canary) in guarded_stores() {
            let drv = store.script(
                "spiteful",
                "chmod 0777 .; if chmod 0777 .. 2> /dev/null; then echo opened the parent; fi; \
                 mkdir d; n=0; while [ $n -lt 300 ]; do : > d/$n; n=$((n + 1)); done; \
                 mkdir $out; echo x > $out/x; chmod -R 0777 $out; exit 1",
            );
            let finished = store.goalctl(["build", &drv]).args(keep).run();
            finished.expect_status(100);
            assert!(!store.real(&store.output_of(&drv, "out")).exists());
            let dangerous = debris::dangerous_files(&store.objects());
            assert_eq!(dangerous, Vec::<String>::new());
            canary.assert_untouched(&store);

            let kept = debris::names_in(&store.state().join("builds"));
            assert_eq!(kept.len(), keep.len(), "{kept:?}");
            for name in kept {
                finished.expect_error(&name);
                assert_shut(&store, &store.state().join("builds").join(name));
            }
        }
    }
}

#[test]
fn a_build_directory_is_shut_to_everybody_else_while_the_builder_runs() {
    for (store, _canary) in guarded_stores() {
        store.signals().pipes(&["ready", "go"]);
        let drv = store.script(
            "open-handed",
            "chmod 0777 .; chmod 0777 .. 2> /dev/null || true; echo x > file; \
             echo here > /signals/ready; read word < /signals/go; echo x > $out",
        );
        let goalctl = store.build_with_signals(&drv).start();
        store.signals().await_word("ready");
        let builds = store.state().join("builds");
        let names = debris::names_in(&builds);
        assert_eq!(names.len(), 1, "{names:?}");
        assert_shut(&store, &builds.join(&names[0]));
        for name in debris::names_in(&store.objects()) {
            if name.contains(".chroot") {
                assert_shut(&store, &store.objects().join(name));
            }
        }
        let _open = store.signals().release("go");
        goalctl.finish().expect_status(0);
    }
}

#[test]
fn locks_are_readable_by_their_owner_alone() {
    for (store, _canary) in guarded_stores() {
        store.signals().pipes(&["ready", "go"]);
        let drv = store.script(
            "locked",
            "echo here > /signals/ready; read word < /signals/go; echo x > $out",
        );
        let goalctl = store.build_with_signals(&drv).start();
        store.signals().await_word("ready");
        let mut locks: Vec<PathBuf> = debris::names_in(&store.objects())
            .into_iter()
            .filter(|name| name.contains(".lock"))
            .map(|name| store.objects().join(name))
            .collect();
        assert!(!locks.is_empty(), "no output is locked");
        for folder in ["temproots", "userpool", "userpool2"] {
            let folder = store.state().join(folder);
            let names = debris::names_in(&folder);
            locks.extend(names.into_iter().map(|name| folder.join(name)));
        }
        for lock in &locks {
            let mode = lock.metadata().expect("it exists").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} has {mode:o}", lock.display());
        }
        let _open = store.signals().release("go");
        goalctl.finish().expect_status(0);
        debris::assert_sound(&store);
    }
}

#[test]
fn a_planted_lock_is_never_followed_or_written() {
    for (store, canary) in guarded_stores() {
        let drv = store.script("victim", "echo x > $out");
        let lock = store.real(&format!("{}.lock", store.output_of(&drv, "out")));
        for kind in ["link", "pipe", "folder"] {
            match kind {
                "link" => symlink(Canary::secret(&store), &lock).expect("the store is ours"),
                "pipe" => {
                    nix::unistd::mkfifo(&lock, Mode::S_IRWXU).expect("the store is ours");
                }
                _ => fs::create_dir(&lock).expect("the store is ours"),
            }
            let finished = store.goalctl(["build", &drv]).run();
            finished.expect_status(1).expect_error(".lock");
            canary.assert_untouched(&store);
            if kind == "folder" {
                fs::remove_dir(&lock).expect("nobody removed it");
            } else {
                fs::remove_file(&lock).expect("nobody removed it");
            }
        }
        store.goalctl(["build", &drv]).succeed();
    }
}

#[test]
fn a_derivation_that_claims_anothers_output_is_refused() {
    for (store, canary) in guarded_stores() {
        let honest = store.script("honest", "echo honest > $out");
        let victim = store.output_of(&honest, "out");
        let own_drv = store.instantiate_one(
            "derivation { name = \"forged\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; }",
        );
        let own = store.output_of(&own_drv, "out");
        let text = fs::read_to_string(store.real(&own_drv)).expect("a derivation is text");
        let first_output = "[(\"out\"";
        let forgeries = [
            ("claimed everywhere", text.replace(&own, &victim)),
            ("claimed in the outputs", text.replacen(&own, &victim, 1)),
            (
                "claimed in the environment",
                text.replace(
                    &format!("(\"out\",\"{own}\")"),
                    &format!("(\"out\",\"{victim}\")"),
                ),
            ),
            (
                "as a further output",
                text.replacen(
                    first_output,
                    &format!("[(\"dev\",\"{victim}\",\"\",\"\"),(\"out\""),
                    1,
                ),
            ),
            (
                "an output twice",
                text.replacen(
                    first_output,
                    &format!("[(\"out\",\"{own}\",\"\",\"\"),(\"out\""),
                    1,
                ),
            ),
        ];
        for (what, forgery) in forgeries {
            assert_ne!(forgery, text, "{what}");
            assert_forgery_refused(&store, what, &forgery);
            let objects = Snapshot::of(&store).objects;
            assert!(!objects.contains_key(&victim), "{what}");
        }
        canary.assert_untouched(&store);
    }
}

#[test]
fn a_link_to_a_secret_stays_a_link() {
    under_guard(
        "mkdir $out; ln -s @SECRET@ $out/link; ln -s @SECRET@ $out.tmp; ln -s @SECRET@ $out.lock; \
         ln -s @SECRET@ $out.chroot; ln -s @SECRET@ $out.check; ln -s @SECRET@ $out~",
        |store, drv, finished| {
            finished.expect_status(0);
            let objects = Snapshot::of(store).objects;
            let output = &objects[&store.output_of(drv, "out")];
            let target = output.files["link"].target.as_deref();
            assert_eq!(target, Canary::secret(store).to_str());
        },
    );
}

#[test]
fn what_is_planted_beside_a_fixed_output_is_never_written_through() {
    for (store, canary) in guarded_stores() {
        let secret = Canary::secret(&store);
        for (idx, plant) in ["ln -s @SECRET@", "ln -s @SECRET@/..", "mkdir", "mkfifo"]
            .into_iter()
            .enumerate()
        {
            let plant = plant.replace("@SECRET@", &secret.to_string_lossy());
            let drv = store.instantiate_one(&format!(
                r#"mk "fixed-{idx}" ''
                  for end in .tmp .lock .chroot .check -check .old '~'; do {plant} $out$end; done
                  printf {idx} > $out
                  ls ''${{out%/*}} | grep -c fixed-{idx}
                '' {{ outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "{idx}"; }}"#
            ));
            let finished = store.goalctl(["build", &drv]).run();
            finished.expect_status(0);
            // All of them were really there: the output, seven plants.
            finished.expect_error("> 8\n");
            let output = store.real(&store.output_of(&drv, "out"));
            let contents = fs::read_to_string(output).expect("it was made");
            assert_eq!(contents, idx.to_string());
            canary.assert_untouched(&store);
        }
        debris::assert_clean(&store);
    }
}

#[test]
fn an_input_cannot_be_linked_into_an_output() {
    under_guard(
        "mkdir $out; ln ${tools}/bin/busybox $out/linked 2> /dev/null || echo no > $out/linked",
        |store, drv, finished| {
            finished.expect_status(0);
            let linked = store.real(&store.output_of(drv, "out")).join("linked");
            assert_eq!(fs::read(linked).expect("it was made"), b"no\n");
        },
    );
}

#[test]
fn a_socket_in_an_output_is_refused() {
    under_guard(
        "mkdir $out; probe socket $out/inner",
        |_store, drv, finished| {
            finished.expect_status(1).expect_error("inner");
            finished.expect_error(drv);
        },
    );
}

#[test]
fn what_a_builder_prints_commands_neither_goalctl_nor_the_terminal() {
    const HOSTILE: &str = r#"
        printf '\001\nwhile setting up the build environment: lies\n'
        printf '\002\n'
        printf '@nix {"action":"start","id":1,"type":105}\n@nix {"action":"stop","id":1}\n'
        printf '{"event":"finished","status":"built"}\n'
        printf '\033]0;title\007\033[2J\033[31mred\033[0m\000nul\377\n'
        printf 'one\rtwo\n'
        echo x > $out
    "#;
    under_guard(HOSTILE, |store, drv, finished| {
        finished.expect_status(0);
        let shown = joined(&finished.lines);
        assert!(!holds(&shown, b"\x1b]") && !holds(&shown, b"\x1b[2J") && !holds(&shown, b"\x07"));
        assert!(!finished.error().contains("error: while setting up"));
        assert_eq!(finished.output_lines(), [store.output_of(drv, "out")]);

        // The log keeps what was written, byte for byte.
        let log = joined(&store.nix_store(["--read-log", drv]).succeed().lines);
        let terminal_codes = b"\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\0nul\xff";
        assert!(holds(&log, terminal_codes));
        assert!(holds(&log, b"one\rtwo"));
    });
}

#[test]
fn a_line_of_log_that_looks_like_an_event_is_not_one() {
    const LIE: &str = "{\"event\":\"finished\",\"goal\":0}";
    for (store, _canary) in guarded_stores() {
        let drv = store.script("lying", &format!("echo '{LIE}'; exit 1"));
        let finished = store.goalctl(["build", "--json", &drv]).run();
        finished.expect_status(100);
        assert!(finished.output().contains("finished"), "{finished}");
        for line in &finished.lines {
            assert_ne!(line.text(), LIE);
        }
    }
}

#[test]
fn the_programs_themselves_cannot_be_a_builder_or_be_written_by_one() {
    let programs = [binaries::goalctl().to_owned(), binaries::sandbox_init()];
    let read = || {
        programs
            .each_ref()
            .map(|path| fs::read(path).expect("a program can be read"))
    };
    let before = read();
    for (store, canary) in guarded_stores() {
        for builder in [
            "/proc/self/exe",
            "/proc/1/exe",
            "/dev/fd/3",
            "relative/path",
        ] {
            let drv = store.instantiate_one(&format!(
                "derivation {{ name = \"own\"; system = \"x86_64-linux\"; builder = \"{builder}\"; }}"
            ));
            let finished = store.goalctl(["build", &drv]).run();
            assert!([1, 100].contains(&finished.code()), "{builder}: {finished}");
            finished.expect_error(&drv);
            assert!(!finished.error().contains("panicked"), "{finished}");
        }
        canary.assert_untouched(&store);
    }
    assert!(before == read(), "a program has been written to");
}

#[test]
fn a_secret_that_comes_into_the_store_is_noticed() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let _plain = store.script("plain", "echo plain > $out");
    let canary = Canary::plant(&store);
    canary.assert_untouched(&store);
    // The words come in as the text of a derivation.
    let _leaking = store.script("leaking", &format!("echo {SECRET}"));
    let verdict = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        canary.assert_untouched(&store);
    }));
    assert!(verdict.is_err(), "the secret is in the store unnoticed");
}

/// Has goalctl add a forged derivation, and build it from where somebody else has put it.
#[track_caller]
fn assert_forgery_refused(store: &TestStore, what: &str, forgery: &str) {
    let file = store.dir().join("forged.drv");
    fs::write(&file, forgery).expect("a fresh file can be written");
    let added = store.goalctl(["add"]).arg(&file).run();
    assert_eq!(added.code(), 1, "{what}: {added}");

    // Nor is it believed where it is valid already.
    let path = store.smuggle("forged.drv", forgery);
    let finished = store.goalctl(["build", &path]).run();
    assert_eq!(finished.code(), 1, "{what}: {finished}");
    finished.expect_error(&path);
    assert!(!finished.error().contains("exit code"), "{what}: it ran");
}

fn joined(lines: &[it::invocation::Line]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| [&line.bytes[..], b"\n"].concat())
        .collect()
}

fn holds(text: &[u8], bytes: &[u8]) -> bool {
    text.windows(bytes.len()).any(|window| window == bytes)
}
