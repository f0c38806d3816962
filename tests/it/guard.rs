//! Hostile builders under guard: the canary that must survive them, and the probe that they run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use it::canary::Canary;
use it::{Finished, Profile, TestStore, debris, requirement};

/// Defines `probe` for a builder's script; see `tests/src/bin/probe.rs`.
pub(crate) const PROBE: &str = "probe() { ${tools}/lib/loader --library-path ${tools}/lib \
                                ${tools}/lib/probe \"$@\"; }\n";

/// Makes a store with canaries and a valid bystander for each profile.
pub(crate) fn guarded_stores() -> Vec<(TestStore, Canary)> {
    if !requirement::genuine_nix() {
        return Vec::new();
    }
    Profile::all()
        .into_iter()
        .map(|profile| {
            let store = TestStore::of(profile);
            store.provide_with_libraries(Path::new(env!("CARGO_BIN_EXE_probe")));
            let bystander = store.script("bystander", "echo unharmed > $out");
            store.goalctl(["build", &bystander]).succeed();
            let canary = Canary::plant(&store);
            (store, canary)
        })
        .collect()
}

/// Builds a hostile script under guard for each profile, and hands what became of it to `judge`.
/// `@SECRET@` in the script stands for the canary's path.
pub(crate) fn under_guard(script: &str, judge: impl Fn(&TestStore, &str, &Finished)) {
    for (store, canary) in guarded_stores() {
        let secret = Canary::secret(&store);
        let script = script.replace("@SECRET@", &secret.to_string_lossy());
        let drv = store.script("hostile", &format!("{PROBE}{script}"));
        let finished = store.goalctl(["build", &drv]).run();
        judge(&store, &drv, &finished);
        canary.assert_untouched(&store);
        debris::assert_clean(&store);
    }
}

/// Returns the output, a text file, of a build that must succeed.
#[track_caller]
pub(crate) fn output_text(store: &TestStore, drv: &str, finished: &Finished) -> String {
    finished.expect_status(0);
    let output = store.real(&store.output_of(drv, "out"));
    fs::read_to_string(output).expect("the output is a text file")
}

/// Returns what the probe says of one attempt.
#[track_caller]
pub(crate) fn answer<'a>(report: &'a str, name: &str) -> &'a str {
    report
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("the probe says nothing of {name}:\n{report}"))
}

/// Returns a field of `/proc/PID/status`.
#[track_caller]
pub(crate) fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in\n{status}"))
        .trim()
}

/// Fails unless a folder belongs to the store's owner and nobody else can enter it.
#[track_caller]
pub(crate) fn assert_shut(store: &TestStore, folder: &Path) {
    let facts = folder.symlink_metadata().expect("it was seen just now");
    assert!(facts.is_dir(), "{} is no folder", folder.display());
    assert_eq!(facts.uid(), store.profile().uid(), "{}", folder.display());
    assert_eq!(
        facts.mode() & 0o077,
        0,
        "{} can be entered",
        folder.display()
    );
}
