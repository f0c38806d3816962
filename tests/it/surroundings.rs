//! What builders are given beside their inputs: attributes, graphs of references, paths of the
//! host, and what the user's hook adds. With genuine Nix beside it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use it::processes::Watched;
use it::snapshot::Snapshot;
use it::{Invocation, Profile, TestStore, debris, requirement};
use nix::sys::signal::Signal;

/// Two stores that hold the same derivations: one for Nix, one for goalctl.
struct Pair {
    by_nix: TestStore,
    by_goalctl: TestStore,
    drvs: Vec<String>,
}

impl Pair {
    fn new(profile: Profile, expression: &str) -> Self {
        let (by_nix, by_goalctl) = (TestStore::of(profile), TestStore::of(profile));
        let drvs = by_nix.instantiate(expression);
        assert_eq!(drvs, by_goalctl.instantiate(expression));
        Self {
            by_nix,
            by_goalctl,
            drvs,
        }
    }

    /// Builds everything by each program, told the same, and compares the stores.
    fn assert_built_alike(&self, tell: impl Fn(Invocation) -> Invocation) {
        let by_nix = self.by_nix.nix_store(["--realise"]).args(&self.drvs);
        let by_goalctl = self.by_goalctl.goalctl(["build"]).args(&self.drvs);
        let [nix_printed, printed] = [by_nix, by_goalctl].map(|invocation| -> BTreeSet<String> {
            let finished = tell(invocation).succeed();
            finished.output_lines().into_iter().collect()
        });
        assert_eq!(printed, nix_printed);
        Snapshot::of(&self.by_nix).assert_same_as(&Snapshot::of(&self.by_goalctl));
        debris::assert_clean(&self.by_goalctl);
        debris::assert_verifies(&self.by_goalctl);
    }
}

/// Writes a hook beside a store; it is run by the store's user.
fn hook(store: &TestStore, script: &str) -> PathBuf {
    let path = store.dir().join("hook");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("the folder is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn graphs_of_references_are_those_of_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    // Files, links and folders; a graph that holds a derivation, and so the outputs that it names;
    // and structured ones with several roots.
    let expression = r#"
        let
          dep = mk "dep" "mkdir $out; echo ${tools} > $out/t; echo $out > $out/self" { };
          two = mk "two" "echo ${dep} > $out; mkdir $dev; ln -s $out $dev/link" {
            outputs = [ "out" "dev" ];
          };
          top = mk "top" "ln -s ${two.dev} $out" { };
          graphs = {
            exportReferencesGraph = [ "one" top "two.x" "${dep}/t" "_three" top.drvPath "one" two ];
          };
          structured = {
            __structuredAttrs = true;
            exportReferencesGraph.graph = [ top dep ];
            exportReferencesGraph.single = dep;
            exportReferencesGraph.recipe = top.drvPath;
            kept = "kept";
          };
        in [
          (mk "files" "cat one two.x _three > $out" graphs)
          (mk "values" "cat .attrs.json .attrs.sh > ${placeholder "out"}" structured)
        ]
    "#;
    for profile in Profile::all() {
        let pair = Pair::new(
            profile,
            &expression.replace("placeholder", "builtins.placeholder"),
        );
        pair.assert_built_alike(|invocation| invocation);
        let output = pair.by_goalctl.output_of(&pair.drvs[0], "out");
        let graphs = text(&pair.by_goalctl.real(&output));
        assert!(graphs.contains("-top.drv\n"), "no derivation in\n{graphs}");
    }
}

#[test]
fn attributes_are_read_where_they_are_structured_as_where_they_are_not() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"
        let
          both = name: script: attributes: [
            (mk name "out=${builtins.placeholder "out"}; ${script}" attributes)
            (mk "${name}-structured" "out=${builtins.placeholder "out"}; ${script}"
              (attributes // { __structuredAttrs = true; }))
          ];
        in builtins.concatLists [
          (both "impure" "echo -n \"$SHOWN $ABSENT.\" > $out" {
            impureEnvVars = [ "SHOWN" "ABSENT" ];
            outputHashAlgo = "sha256";
            outputHash = builtins.hashString "sha256" "shown .";
          })
          (both "host" "cat @HOST@ > $out" { __impureHostDeps = [ "@HOST@" ]; })
          (both "features" "echo > $out" { requiredSystemFeatures = [ "first" "second" ]; })
          (both "as-file" "env | grep -c Path= > $out || true" {
            passAsFile = [ "long" ];
            long = "text";
          })
        ]
    "#;
    for profile in Profile::all() {
        // A path that is the same for both stores, and the same file.
        let shared = tempfile::tempdir().expect("a folder can be made");
        let opened = fs::Permissions::from_mode(0o755);
        fs::set_permissions(shared.path(), opened).expect("the folder is ours");
        let file = shared.path().join("file");
        fs::write(&file, "of the host\n").expect("the folder is ours");
        let expression = expression.replace("@HOST@", &file.to_string_lossy());
        let pair = Pair::new(profile, &expression);
        let allowed = shared.path().to_string_lossy();
        pair.assert_built_alike(|invocation| {
            invocation
                .option("allowed-impure-host-deps", &*allowed)
                .option("system-features", "first second third")
                .env("SHOWN", "shown")
        });
    }
}

#[test]
fn a_builder_is_shown_the_machine_that_nix_shows_it() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"
        let look = system: mk "machine-${system}" "uname -smr > $out; pwd >> $out" {
              inherit system;
            };
        in map look [ "x86_64-linux" "i686-linux" ]
    "#;
    for profile in Profile::all() {
        for linux_26 in ["false", "true"] {
            let pair = Pair::new(profile, expression);
            pair.assert_built_alike(|invocation| {
                invocation.option("impersonate-linux-26", linux_26)
            });
            let told: String = pair
                .drvs
                .iter()
                .map(|drv| {
                    let out = pair.by_goalctl.output_of(drv, "out");
                    text(&pair.by_goalctl.real(&out))
                })
                .collect();
            assert!(told.contains(" i686\n"), "{told}");
            assert_eq!(told.contains("Linux 2.6."), linux_26 == "true", "{told}");
        }
    }
}

#[test]
fn a_derivation_that_asks_for_what_it_cannot_have_fails_as_in_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let cases = [
        ("exportReferencesGraph = \"a\";", "odd number"),
        (
            "exportReferencesGraph = [ \".a\" tools ];",
            "file name '.a'",
        ),
        (
            "exportReferencesGraph = \"a /etc/passwd\";",
            "non-store path '/etc/passwd'",
        ),
        (
            "exportReferencesGraph = \"a ${text}\";",
            "not in the input closure",
        ),
        (
            "exportReferencesGraph = [ \"a\" (builtins.unsafeDiscardOutputDependency \
             (mk \"unbuilt\" \"\" { }).drvPath) ];",
            "-unbuilt' is not valid",
        ),
        (
            "__structuredAttrs = true; exportReferencesGraph.a = text;",
            "not in the input closure",
        ),
        (
            "__structuredAttrs = true; exportReferencesGraph.a = \"/etc/passwd\";",
            "non-store path '/etc/passwd'",
        ),
        ("__noChroot = true;", "__noChroot"),
        ("__structuredAttrs = true; __noChroot = true;", "__noChroot"),
        (
            "__structuredAttrs = true; __noChroot = 1;",
            "must be a Boolean",
        ),
        ("__impureHostDeps = \"/etc/passwd\";", "/etc/passwd"),
        (
            "__structuredAttrs = true; requiredSystemFeatures = [ 1 ];",
            "must be a list of strings",
        ),
    ];
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        for (attributes, words) in cases {
            let expression = format!(
                "let text = builtins.unsafeDiscardStringContext (builtins.toFile \"x\" \"y\"); \
                 in mk \"asks\" \"echo > $out\" {{ {attributes} }}"
            );
            let drv = store.instantiate_one(&expression);
            let by_nix = store.nix_store(["--realise", &drv]).run();
            let by_goalctl = store.goalctl(["build", &drv]).run();
            assert_eq!(
                by_goalctl.code(),
                by_nix.code(),
                "{attributes}\n{}\n{}",
                by_goalctl.error(),
                by_nix.error()
            );
            by_goalctl.expect_error(words);
            by_goalctl.expect_error(&drv);
        }
        debris::assert_sound(&store);
    }
}

#[test]
fn a_pre_build_hook_is_told_the_same_as_by_nix_and_shows_the_same() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"[
        (mk "shown" "ls /first > $out; cat /first/file /second >> $out" { })
        (mk "structured" "cat /second > ${builtins.placeholder "out"}" { __structuredAttrs = true; })
    ]"#;
    for profile in Profile::all() {
        let pair = Pair::new(profile, expression);
        let mut told = Vec::new();
        for store in [&pair.by_nix, &pair.by_goalctl] {
            let dir = store.dir().display();
            let shown = store.dir().join("home/shown");
            fs::create_dir(&shown).expect("the folder is ours");
            fs::write(shown.join("file"), "of the host\n").expect("the folder is ours");
            let script = format!(
                "echo $# $1 $2 >> {dir}/home/told; test -d \"$2\" || exit 9\n\
                 echo \"$GREETING\" >> {dir}/home/told\n\
                 echo extra-sandbox-paths; echo /first={dir}/home/shown; echo\n\
                 echo extra-chroot-dirs; echo /second={dir}/home/shown/file"
            );
            let hook = hook(store, &script);
            let run = |invocation: Invocation| {
                let hook = hook.to_string_lossy().into_owned();
                let invocation = invocation.option("pre-build-hook", hook);
                // One after the other, so that the hook's lines are in order.
                let one = invocation.args(["-j", "1"]).env("GREETING", "hello");
                one.args(&pair.drvs).succeed();
            };
            if std::ptr::eq(store, &raw const pair.by_nix) {
                run(store.nix_store(["--realise"]));
            } else {
                run(store.goalctl(["build"]));
            }
            let lines = text(&store.dir().join("home/told"));
            let lines = lines.replace(&store.root().display().to_string(), "");
            told.push(lines.lines().map(str::to_owned).collect::<BTreeSet<_>>());
        }
        assert_eq!(told[0], told[1]);
        let expected = format!("2 {0} {0}.chroot", pair.drvs[0]);
        assert!(told[0].contains(&expected), "{:?}", told[0]);
        Snapshot::of(&pair.by_nix).assert_same_as(&Snapshot::of(&pair.by_goalctl));
        debris::assert_clean(&pair.by_goalctl);
    }
}

#[test]
fn a_pre_build_hook_that_fails_fails_its_goal_as_in_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("hooked", "echo > $out");
    let cases = [
        ("exit 3", "failed with exit code 3"),
        ("kill -9 $$", "failed due to signal 9"),
        ("echo nonsense", "unknown command 'nonsense'"),
        (
            "echo extra-sandbox-paths; echo; echo /x",
            "unknown command '/x'",
        ),
    ];
    for (script, words) in cases {
        let path = hook(&store, script);
        let hook = path.to_string_lossy();
        let by_nix = store.nix_store(["--realise", &drv]);
        by_nix
            .option("pre-build-hook", &*hook)
            .run()
            .expect_status(1);
        let by_goalctl = store.goalctl(["build", &drv]);
        let by_goalctl = by_goalctl.option("pre-build-hook", &*hook).run();
        by_goalctl.expect_status(1);
        for words in [words, &drv, "pre-build hook", &hook] {
            by_goalctl.expect_error(words);
        }
    }
    let missing = store.goalctl(["build", &drv]);
    let missing = missing.option("pre-build-hook", "/no/such/hook").run();
    missing.expect_status(1);
    missing.expect_error("'/no/such/hook': No such file");

    // What it says beside is heard, and one that says nothing changes nothing.
    let path = hook(&store, "echo look here >&2");
    let finished = store
        .goalctl(["build", &drv])
        .option("pre-build-hook", path.to_string_lossy().as_ref())
        .succeed();
    finished.expect_error("look here");
    debris::assert_sound(&store);
}

#[test]
fn a_missing_path_of_the_host_fails_its_goal_alone_where_nix_ends_the_run() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let pair = Pair::new(
            profile,
            r#"[ (mk "lacks" "echo > $out" { }) (mk "other" "echo > $out" { }) ]"#,
        );
        let run = |invocation: Invocation, store: &TestStore| {
            let script = "case $1 in *-lacks.drv) echo extra-sandbox-paths; echo /no/such;; esac";
            let hook = hook(store, script);
            let invocation = invocation.option("pre-build-hook", hook.to_string_lossy().as_ref());
            // In this order: one after the other.
            invocation
                .args(["-j", "1", "--keep-going"])
                .args(&pair.drvs)
                .run()
        };
        let by_nix = run(pair.by_nix.nix_store(["--realise"]), &pair.by_nix);
        by_nix.expect_status(1).expect_error("'/no/such'");
        let by_goalctl = run(pair.by_goalctl.goalctl(["build"]), &pair.by_goalctl);
        by_goalctl.expect_status(100).expect_error(&format!(
            "while setting up the build environment of '{}': showing '/no/such' as '/no/such': No \
             such file or directory",
            pair.drvs[0]
        ));
        let output = pair.by_goalctl.output_of(&pair.drvs[1], "out");
        assert_eq!(by_goalctl.output_lines(), [output]);
        debris::assert_clean(&pair.by_goalctl);

        // What may be missing is left out by both.
        for program in [
            pair.by_nix.nix_store(["--realise"]),
            pair.by_goalctl.goalctl(["build"]),
        ] {
            let program = program.option("extra-sandbox-paths", "/no/such?");
            program.args(&pair.drvs).succeed();
        }
        Snapshot::of(&pair.by_nix).assert_same_as(&Snapshot::of(&pair.by_goalctl));
    }
}

#[test]
fn an_interrupt_ends_a_hook_that_hangs_and_leaves_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.signals().pipes(&["ready"]);
        let drv = store.script("hooked", "echo > $out");
        let signals = store.signals().dir().display();
        let script = format!(
            "trap '' TERM INT\nsleep 1000 & echo $$ > {signals}/ready; wait; sleep 1000; sleep 1000"
        );
        let hook = hook(&store, &script);
        let goalctl = store
            .goalctl(["build", &drv])
            .option("pre-build-hook", hook.to_string_lossy().as_ref())
            .start();
        let pid = store.signals().await_word("ready");
        let hook = Watched::new(pid.trim().parse().expect("a number")).expect("the hook runs");
        goalctl.signal(Signal::SIGINT);
        goalctl.finish().expect_status(130);
        assert!(hook.await_end(Duration::ZERO), "the hook outlives goalctl");
        debris::assert_clean(&store);
        store.goalctl(["build", &drv]).succeed();
    }
}

#[test]
fn a_store_path_among_the_sandbox_paths_brings_its_closure_and_no_reference() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let drvs = store.instantiate(
            r#"rec {
              a-deep = mk "deep" "mkdir $out; echo deep > $out/file" { };
              b-link = mk "link" "ln -s ${a-deep} $out" { };
              c-shown = mk "shown" "mkdir $out; ln -s ${b-link}/file $out/file" { };
              d-apart = mk "apart" "echo > $out" { };
            }"#,
        );
        store.goalctl(["build"]).args(&drvs).succeed();
        let outputs: Vec<String> = drvs.iter().map(|drv| store.output_of(drv, "out")).collect();
        let drv = store.script(
            "sees",
            "ls /nix/store; cat /a/place/file; ls -a /link; readlink /link; \
             ! echo x > /a/place/new; ! echo x > /a/place/file; \
             { cat /a/place/file; readlink /a/place/file; } > $out",
        );
        let paths = format!("/a/place={}:rw /link={}", outputs[2], outputs[1]);
        let both = format!("{paths} {}", outputs[1]);
        let built = store
            .goalctl(["build", &drv])
            .option("sandbox-paths", &both)
            .succeed();
        let seen = text(&store.real(&store.output_of(&drv, "out")));
        assert_eq!(seen, format!("deep\n{}/file\n", outputs[1]));
        let log = store.goalctl(["log", &drv]).succeed().output();
        for (output, is_seen) in outputs.iter().zip([true, true, true, false]) {
            let name = output.rsplit('/').next().expect("a path has a name");
            assert_eq!(log.contains(name), is_seen, "{name} in\n{log}{built}");
        }
        // The output mentions one of them, which was never its input.
        let snapshot = Snapshot::of(&store);
        let object = &snapshot.objects[&store.output_of(&drv, "out")];
        assert_eq!(object.references, BTreeSet::new());
        debris::assert_clean(&store);

        // What is no valid path is a path of the host, which need not be there.
        let absent = "/nix/store/00000000000000000000000000000000-absent";
        let drv = store.script("optional", "test ! -e /absent; echo > $out");
        let built = store.goalctl(["build", &drv]);
        built
            .option("sandbox-paths", format!("/absent={absent}?"))
            .succeed();
        debris::assert_clean(&store);
    }
}
