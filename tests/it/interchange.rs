//! Paths, what is known of them, and trust in them, from goalctl's stores to those of genuine Nix and
//! back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use it::snapshot::Snapshot;
use it::{Invocation, TestStore, damage, debris, requirement};
use nix::sys::signal::Signal;

/// How long a program may take to read what it is sent.
const PATIENCE: Duration = Duration::from_mins(1);

/// A store with a closure that genuine Nix built: derivations, outputs that refer to others and to
/// themselves, links, and a file that is large enough not to be kept in memory.
fn built_store() -> Option<(TestStore, Vec<String>)> {
    requirement::genuine_nix().then(|| {
        let store = TestStore::new();
        let drvs = store.instantiate(
            r#"
            let
              lib = mk "lib" ''
                mkdir -p $out/a/b $dev
                echo $out > $out/a/b/self
                ln -s b $out/a/link
                seq 40000 > $out/numbers
                printf 'exit\n' > $out/run
                chmod +x $out/run
                echo $out > $dev/header
              '' { outputs = [ "out" "dev" ]; };
            in [ lib (mk "user" "echo ${lib.dev} > $out" { }) ]
            "#,
        );
        let built = store.nix_store(["--realise"]).args(&drvs).succeed();
        let closure = store
            .nix_store(["--query", "--requisites"])
            .args(&drvs)
            .args(built.output_lines())
            .succeed();
        (store, closure.output_lines())
    })
}

/// Puts bytes into a file beside a store.
fn file_of(store: &TestStore, name: &str, bytes: &[u8]) -> PathBuf {
    let file = store.dir().join(name);
    fs::write(&file, bytes).expect("a file beside the store can be written");
    file
}

fn open(file: &Path) -> File {
    File::open(file).expect("it was just made")
}

/// Exports a closure with goalctl, into a file.
fn exported(store: &TestStore, closure: &[String]) -> PathBuf {
    let stream = store.goalctl(["export"]).args(closure).succeed();
    file_of(store, "stream", &stream.output_bytes())
}

#[test]
fn streams_are_those_of_nix_and_each_program_reads_what_the_other_wrote() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let ours = exported(&store, &closure);
    let theirs = store.nix_store(["--export"]).args(&closure).succeed();
    let theirs = file_of(&store, "theirs", &theirs.output_bytes());
    assert!(
        fs::read(&ours).expect("it is there") == fs::read(&theirs).expect("it is there"),
        "the streams differ"
    );
    let (of_goalctl, of_nix) = (TestStore::new(), TestStore::new());
    let told = of_goalctl
        .goalctl(["import"])
        .input(open(&theirs))
        .succeed();
    let nix_told = of_nix.nix_store(["--import"]).input(open(&ours)).succeed();
    assert_eq!(told.output(), nix_told.output());
    let imported: BTreeSet<String> = told.output_lines().into_iter().collect();
    assert_eq!(imported, closure.iter().cloned().collect());
    Snapshot::of(&of_goalctl).assert_same_as(&Snapshot::of(&of_nix));
    debris::assert_clean(&of_goalctl);
    debris::assert_verifies(&of_goalctl);
    // What is valid already is left alone.
    let again = of_goalctl.goalctl(["import"]).input(open(&ours)).succeed();
    assert_eq!(again.output(), told.output());
    Snapshot::of(&of_goalctl).assert_same_as(&Snapshot::of(&of_nix));
}

#[test]
fn a_stream_that_breaks_off_leaves_only_what_was_whole() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let stream = fs::read(exported(&store, &closure)).expect("it is there");
    let whole = TestStore::new();
    let file = file_of(&store, "whole", &stream);
    whole.goalctl(["import"]).input(open(&file)).succeed();
    let whole = Snapshot::of(&whole);
    for n_bytes in [0, 7, stream.len() / 2, stream.len() - 1] {
        let target = TestStore::new();
        let cut = file_of(&store, "cut", &stream[..n_bytes]);
        let failed = target.goalctl(["import"]).input(open(&cut)).run();
        failed.expect_status(1).expect_error("ends too early");
        assert_eq!(failed.output(), "");
        debris::assert_clean(&target);
        for (path, object) in Snapshot::of(&target).objects {
            assert_eq!(whole.objects.get(&path), Some(&object), "{path}");
        }
    }
    let other = file_of(&store, "other", b"not a stream of anything");
    let target = TestStore::new();
    let failed = target.goalctl(["import"]).input(open(&other)).run();
    failed.expect_status(1).expect_error("--export");
}

#[test]
fn a_path_is_not_imported_before_what_it_refers_to() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let user = closure.iter().find(|path| path.ends_with("-user"));
    let user = user.expect("it was built").clone();
    let stream = exported(&store, &[user]);
    let target = TestStore::new();
    let failed = target.goalctl(["import"]).input(open(&stream)).run();
    failed.expect_status(1).expect_error("-lib-dev");
    assert!(Snapshot::of(&target).objects.is_empty());
    debris::assert_clean(&target);
}

#[test]
fn what_has_changed_on_the_disk_is_not_exported_by_either_program() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let lib = closure.iter().find(|path| path.ends_with("-lib"));
    let lib = lib.expect("it was built");
    damage::flip_a_bit(&store.real(lib));
    let failed = store.goalctl(["export", lib]).run();
    failed.expect_status(1).expect_error("is corrupt");
    store.nix_store(["--export", lib]).run().expect_status(1);
}

#[test]
fn an_import_that_is_killed_is_finished_by_the_next_one_and_leaves_nothing() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let file = exported(&store, &closure);
    let stream = fs::read(&file).expect("it is there");
    let target = TestStore::new();
    for part in 1..8 {
        let (end, mut pipe) = std::io::pipe().expect("descriptors are free");
        let end = File::from(OwnedFd::from(end));
        let running = target.goalctl(["import"]).input(end).start();
        let part = stream[..stream.len() * part / 8].to_vec();
        let (written, is_written) = mpsc::channel();
        thread::spawn(move || {
            // Returns when the program has read all but what a pipe holds, or is gone, which it must
            // not be: its status tells.
            let _written = pipe.write_all(&part);
            // The pipe stays open until the program was killed.
            let _nobody_waits = written.send(pipe);
        });
        let pipe = is_written.recv_timeout(PATIENCE);
        running.signal(Signal::SIGKILL);
        let killed = running.finish();
        killed.expect_status(137);
        pipe.expect("it was read");
    }
    target.goalctl(["import"]).input(open(&file)).succeed();
    debris::assert_clean(&target);
    debris::assert_verifies(&target);
    assert_eq!(Snapshot::of(&target).objects.len(), closure.len());
}

/// Copies the objects of a store into a fresh one that knows nothing of them.
fn copied(store: &TestStore, closure: &[String]) -> TestStore {
    let copy = TestStore::new();
    // Makes the directories and the database.
    copy.nix_store(["--dump-db"]).succeed();
    let cp = requirement::find_program("cp").expect("every system has it");
    for path in closure {
        copy.program(&cp)
            .args(["--archive", "--"])
            .arg(store.real(path))
            .arg(copy.objects())
            .succeed();
    }
    copy
}

#[test]
fn what_a_database_knows_is_printed_and_believed_as_by_nix() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    for paths in [&closure[..], &[]] {
        let ours = store.goalctl(["dump-db"]).args(paths).succeed();
        let theirs = store.nix_store(["--dump-db"]).args(paths).succeed();
        assert_eq!(ours.output(), theirs.output());
    }
    let dump = store.goalctl(["dump-db"]).args(&closure).succeed();
    let dump = file_of(&store, "dump", dump.output().as_bytes());
    let load = |program: fn(&TestStore) -> Invocation| {
        let copy = copied(&store, &closure);
        program(&copy).input(open(&dump)).succeed();
        // Said again, it is what it was.
        program(&copy).input(open(&dump)).succeed();
        Snapshot::of(&copy)
    };
    let ours = load(|copy| copy.goalctl(["load-db"]));
    let theirs = load(|copy| copy.nix_store(["--load-db"]));
    ours.assert_same_as(&theirs);
    assert_eq!(ours.objects.len(), closure.len());

    let empty = TestStore::new();
    let failed = empty.goalctl(["load-db"]).input(open(&dump)).run();
    failed.expect_status(1).expect_error("No such file");
    assert!(Snapshot::of(&empty).objects.is_empty());
}

#[test]
fn what_lies_in_a_store_is_registered_as_by_nix() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let dump = store.goalctl(["dump-db"]).args(&closure).succeed();
    let with_hashes = dump.output();
    let with = file_of(&store, "with", with_hashes.as_bytes());
    // The same without the two lines after each path.
    let mut lines = with_hashes.lines();
    let mut kept = Vec::new();
    while let Some(path) = lines.next() {
        let mut rest = lines.by_ref().skip(2);
        let deriver = rest.next().expect("a line for the deriver");
        let count = rest.next().expect("a line for the count");
        kept.extend([path, deriver, count]);
        kept.extend(rest.take(count.parse().expect("it is a number")));
    }
    let without_hashes = kept.join("\n") + "\n";
    let without = file_of(&store, "without", without_hashes.as_bytes());
    for (flags, said) in [(&["--hash-given"][..], &with), (&[], &without)] {
        let register = |program: fn(&TestStore) -> Invocation| {
            let copy = copied(&store, &closure);
            spoil_metadata(&copy, &closure);
            program(&copy).args(flags).input(open(said)).succeed();
            program(&copy)
                .args(flags)
                .arg("--reregister")
                .input(open(said))
                .succeed();
            Snapshot::of(&copy)
        };
        let ours = register(|copy| copy.goalctl(["register-validity"]));
        // Genuine Nix looks for the contents where the paths say.
        let theirs = register(|copy| copy.nix_store_in_place(["--register-validity"]));
        ours.assert_same_as(&theirs);
        assert_eq!(ours.objects.len(), closure.len());
    }
    let copy = copied(&store, &closure);
    let lib = closure.iter().find(|path| path.ends_with("-lib"));
    damage::flip_a_bit(&copy.real(lib.expect("it was built")));
    let failed = copy
        .goalctl(["register-validity", "--hash-given"])
        .input(open(&with))
        .run();
    failed.expect_status(1).expect_error("hash mismatch in");
    assert!(Snapshot::of(&copy).objects.is_empty());
}

/// Gives objects modes that no store has.
fn spoil_metadata(store: &TestStore, closure: &[String]) {
    for path in closure {
        let real = store.real(path);
        let mode = if real.is_dir() { 0o755 } else { 0o640 };
        fs::set_permissions(real, fs::Permissions::from_mode(mode)).expect("the store is ours");
    }
}

#[test]
fn signatures_and_keys_are_those_of_nix() {
    let Some((store, closure)) = built_store() else {
        return;
    };
    let nix = |args: &[&str]| store.nix_program("nix").args(args);
    let secret = store.goalctl(["key", "generate", "test-1"]).succeed();
    let secret = secret.output_bytes();
    assert!(!secret.ends_with(b"\n"));
    let file = file_of(&store, "secret", &secret);
    let own = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("the file is ours");
    };
    let ours = store
        .goalctl(["key", "convert-secret-to-public"])
        .input(open(&file))
        .succeed();
    let theirs = nix(&["key", "convert-secret-to-public"])
        .input(open(&file))
        .succeed();
    assert_eq!(ours.output_bytes(), theirs.output_bytes());
    let public = ours.output().trim().to_owned();

    own(0o600);
    let file = file.to_str().expect("paths of tests are plain");
    let user = closure.iter().find(|path| path.ends_with("-user"));
    let user = user.expect("it was built");
    let verify = || {
        nix(&["store", "verify", "--recursive", user])
            .args(["--sigs-needed", "1", "--option", "trusted-public-keys"])
            .arg(&public)
            .run()
    };
    assert_ne!(verify().code(), 0);
    let sign = ["sign", "--key-file", file, "--recursive", user];
    let signed = store.goalctl(sign).succeed();
    assert_eq!(signed.error(), "");
    let once = Snapshot::of(&store);
    nix(&["store", "sign", "--key-file", file, "--recursive", user]).succeed();
    // Its signatures are ours, so there is none more.
    Snapshot::of(&store).assert_same_as(&once);
    verify().expect_status(0);
    let signatures = nix(&["path-info", "--sigs", user]).succeed().output();
    assert!(signatures.contains(" test-1:"), "{signatures}");

    own(0o644);
    let warned = store.goalctl(sign).succeed();
    assert!(warned.error().contains("mode 0644"), "{warned}");
}

#[test]
fn a_secret_key_is_in_no_message() {
    let store = TestStore::new();
    let secret = store.goalctl(["key", "generate", "test-1"]).succeed();
    let secret = secret.output();
    let secret = secret.trim();
    let digits = &secret["test-1:".len()..];
    let corrupt = [
        format!("{secret}!"),
        format!("test-1:{}", &digits[..digits.len() - 8]),
        format!("test-1:AAAA{}", &digits[4..]),
        digits.to_owned(),
    ];
    for text in corrupt {
        let file = file_of(&store, "corrupt", text.as_bytes());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let path = "/nix/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a";
        let signing = store.goalctl(["sign", "-k"]).arg(&file).arg(path);
        let converting = store.goalctl(["key", "convert-secret-to-public"]);
        for failed in [signing.run(), converting.input(open(&file)).run()] {
            failed.expect_status(1);
            let said = failed.error() + &failed.output();
            let pieces = digits.as_bytes().windows(8);
            for piece in pieces {
                let piece = std::str::from_utf8(piece).expect("base-64 is text");
                assert!(!said.contains(piece), "{said}");
            }
        }
    }
}
