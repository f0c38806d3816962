//! Builds without a sandbox, in stores that lie where their paths say, beside genuine Nix: what is
//! there already is made elsewhere, and is the same in the end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use it::snapshot::Snapshot;
use it::{Invocation, Profile, TestStore, debris, requirement};

/// Two outputs that mention each other's and their own paths in files, in a link and in a name.
const TWO: &str = "mk \"two\" ''mkdir $out $dev; echo $dev > $dev/self; echo x > $dev/header
        echo $out $dev > $out/both; ln -s $dev/header $out/link; echo y > $out/$(basename $out)
        echo ${placeholder \"dev\"} > $out/placeholder; cat $noticePath > $out/notice
        chmod 555 $out''
    { outputs = [ \"out\" \"dev\" ]; passAsFile = [ \"notice\" ];
      notice = \"made for ${placeholder \"out\"}\"; }";

/// The two programs, on stores of their own.
struct Pair {
    by_nix: TestStore,
    by_goalctl: TestStore,
}

impl Pair {
    fn all() -> Vec<Self> {
        if !requirement::genuine_nix() {
            return Vec::new();
        }
        let pair = |profile| Self {
            by_nix: TestStore::of(profile),
            by_goalctl: TestStore::of(profile),
        };
        Profile::all().into_iter().map(pair).collect()
    }

    fn stores(&self) -> [&TestStore; 2] {
        [&self.by_nix, &self.by_goalctl]
    }

    /// Instantiates and builds.
    fn build(&self, expression: &str) -> String {
        let drv = self.by_nix.instantiate_one(expression);
        assert_eq!(drv, self.by_goalctl.instantiate_one(expression));
        self.run(&drv, &[]);
        drv
    }

    /// Has both build, with these flags.
    fn run(&self, drv: &str, flags: &[&str]) {
        let nix = self.by_nix.nix_store_in_place(["--realise", drv]);
        unsandboxed(nix).args(flags).succeed();
        goalctl(&self.by_goalctl, drv).args(flags).succeed();
    }

    fn assert_same(&self) {
        Snapshot::of(&self.by_nix).assert_same_as(&Snapshot::of(&self.by_goalctl));
        debris::assert_verifies(&self.by_goalctl);
        debris::assert_clean(&self.by_goalctl);
    }
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
        let drv = pair.build(TWO);
        pair.assert_same();
        let before = Snapshot::of(&pair.by_goalctl);
        pair.run(&drv, &["--check"]);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn what_is_corrupt_is_repaired_though_it_lies_where_it_is_built() {
    for pair in Pair::all() {
        let drv = pair.build(TWO);
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
        pair.run(&drv, &["--repair"]);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn an_output_is_made_beside_one_that_stays_and_mentions_its_real_path() {
    for pair in Pair::all() {
        let drv = pair.build(TWO);
        let before = Snapshot::of(&pair.by_goalctl);
        let out = pair.by_goalctl.output_of(&drv, "out");
        for store in pair.stores() {
            store.nix_store(["--delete", &out]).succeed();
            assert!(!store.real(&out).exists());
        }
        pair.run(&drv, &[]);
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
