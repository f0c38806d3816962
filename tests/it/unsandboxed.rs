//! Builds without a sandbox, in stores that lie where their paths say, beside genuine Nix: what is
//! there already is made elsewhere, and is the same in the end.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use it::snapshot::Snapshot;
use it::{Invocation, Machine, Pair, Profile, TestStore, debris, requirement};

use crate::floating;

/// Two outputs that mention each other's and their own paths in files, in a link and in a name.
const TWO: &str = "mk \"two\" ''mkdir $out $dev; echo $dev > $dev/self; echo x > $dev/header
        echo $out $dev > $out/both; ln -s $dev/header $out/link; echo y > $out/$(basename $out)
        echo ${placeholder \"dev\"} > $out/placeholder; cat $noticePath > $out/notice
        chmod 555 $out''
    { outputs = [ \"out\" \"dev\" ]; passAsFile = [ \"notice\" ];
      notice = \"made for ${placeholder \"out\"}\"; }";

/// Instantiates and builds.
fn built(pair: &Pair, expression: &str) -> String {
    let drv = pair.instantiate(expression);
    run(pair, &drv, &[]);
    drv
}

/// Has both build, with these flags.
fn run(pair: &Pair, drv: &str, flags: &[&str]) {
    let nix = pair.by_nix.nix_store_in_place(["--realise", drv]);
    unsandboxed(nix).args(flags).succeed();
    goalctl(&pair.by_goalctl, drv).args(flags).succeed();
}

fn unsandboxed(invocation: Invocation) -> Invocation {
    invocation.option("sandbox", "false")
}

fn goalctl(store: &TestStore, drv: &str) -> Invocation {
    unsandboxed(store.goalctl_in_place(["build", drv]))
}

#[test]
fn valid_outputs_are_checked_elsewhere_and_found_to_be_the_same() {
    for pair in Pair::all() {
        let drv = built(&pair, TWO);
        pair.assert_same();
        let before = Snapshot::of(&pair.by_goalctl);
        run(&pair, &drv, &["--check"]);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn what_is_corrupt_is_repaired_though_it_lies_where_it_is_built() {
    for pair in Pair::all() {
        let drv = built(&pair, TWO);
        let before = Snapshot::of(&pair.by_goalctl);
        let dev = pair.by_goalctl.output_of(&drv, "dev");
        for store in pair.stores() {
            let header = store.real(&dev).join("header");
            let set_mode = |mode| {
                fs::set_permissions(&header, fs::Permissions::from_mode(mode)).expect("it is ours");
            };
            set_mode(0o644);
            fs::write(&header, "y\n").expect("it is writable now");
            set_mode(0o444);
        }
        run(&pair, &drv, &["--repair"]);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn an_output_is_made_beside_one_that_stays_and_mentions_its_real_path() {
    for pair in Pair::all() {
        let drv = built(&pair, TWO);
        let before = Snapshot::of(&pair.by_goalctl);
        let out = pair.by_goalctl.output_of(&drv, "out");
        for store in pair.stores() {
            store.nix_store(["--delete", &out]).succeed();
            assert!(!store.real(&out).exists());
        }
        run(&pair, &drv, &[]);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn a_builder_that_fails_leaves_nothing_in_the_store_that_it_worked_in() {
    for pair in Pair::all() {
        let store = &pair.by_goalctl;
        let drv = store.script(
            "broken",
            "mkdir $out; echo x > $out/file; chmod 0 $out; exit 3",
        );
        goalctl(store, &drv).run().expect_status(100);
        debris::assert_clean(store);
        let kept = goalctl(store, &drv).arg("--keep-failed").run();
        let output = store.output_of(&drv, "out");
        assert!(!store.real(&output).exists());
        let said = kept.expect_status(100).error();
        let dir = said
            .split("keeping build directory '")
            .nth(1)
            .and_then(|rest| rest.split('\'').next())
            .unwrap_or_else(|| panic!("{said}"));
        // As the program saw it, the store's state lay below /nix.
        let dir = store.real(dir);
        let name = output.rsplit('/').next().expect("it is a path");
        let kept = dir.join("outputs").join(name);
        assert!(kept.symlink_metadata().is_ok(), "{said}");
    }
}

#[test]
fn nothing_is_built_without_a_sandbox_while_the_home_that_no_builder_has_exists() {
    for pair in Pair::all() {
        let drv = pair.script("homeless", "echo $HOME > $out");
        let machine = Machine::default().directory("/homeless-shelter");
        let run = |sandbox: &str| {
            let nix = pair.by_nix.nix_store_on(&machine, ["--realise", &drv]);
            let goalctl = pair.by_goalctl.goalctl_on(&machine, ["build", &drv]);
            [nix, goalctl].map(|program| program.option("sandbox", sandbox).run())
        };
        for finished in run("false") {
            finished.expect_status(1).expect_error(
                "home directory '/homeless-shelter' exists; please remove it to assure purity of \
                 builds without sandboxing",
            );
        }
        pair.assert_sound();
        // In a sandbox it is not there.
        for finished in run("true") {
            finished.expect_status(0);
        }
        pair.assert_same();
    }
}

#[test]
fn a_file_that_an_unsandboxed_builder_handed_out_is_no_file_of_the_store() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    for attributes in ["{ }", "ca", "(ca // { outputHashAlgo = \"sha512\"; })"] {
        let store = TestStore::of(Profile::Root);
        store.signals().pipes(&["ready", "go"]);
        let signals = store.signals().dir().display();
        let script = format!(
            "exec 3<>$out; echo good >&3; echo $$ > {signals}/ready; read go < {signals}/go"
        );
        let drvs = floating::instantiate(&store, &format!("mk \"open\" \"{script}\" {attributes}"));
        let build = unsandboxed(store.goalctl_in_place(["build", &drvs[0]]));
        let build = build
            .option("experimental-features", "ca-derivations")
            .start();
        let builder = store.signals().await_word("ready");
        // As somebody has it whom the builder has sent it to.
        let handed_out = fs::File::options()
            .write(true)
            .open(format!("/proc/{builder}/fd/3"))
            .expect("the builder has it open");
        let go = store.signals().release("go");
        let finished = build.finish();
        drop(go);
        let output = &finished.expect_status(0).output_lines()[0];
        handed_out.write_all_at(b"evil", 0).expect("it is open");
        let text = fs::read_to_string(store.real(output)).expect("it was made");
        assert_eq!(text, "good\n", "{attributes}");
        debris::assert_verifies(&store);
        debris::assert_clean(&store);
    }
}
