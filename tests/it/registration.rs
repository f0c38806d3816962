//! What becomes of outputs once their builder is gone: checks, fixed outputs that are something else,
//! signatures, shared files. Genuine Nix does the same beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;

use it::snapshot::Snapshot;
use it::{Finished, Profile, TestStore, debris, requirement};

/// Two keys that `nix key generate-secret` made for these tests.
const KEYS: [&str; 2] = [
    "test-1:HLrbbGmUL6bYFf1jU+fz2bV/XT98CX8MOmOsY6kwCfsoXP0KGE6pJ24M92qonf97TRY5l2fKAVYdO3hpVF8WDA==",
    "test-2:o/L+NBPB27zpgaFGMrdSZpSHcaBxgdh9eWJibLHZ2tOsWJCojWr6KPpgSv7XaN2H+otB09cbINfVKMyw5YdOZw==",
];

/// A chain of three, and something that refers to its end.
const CHAIN: &str = r#"
  bottom = mk "bottom" "echo bottom > $out" { };
  middle = mk "middle" "echo ${bottom} > $out" { };
  top = attrs: mk "top" "echo ${middle} $out > $out; echo $out > $dev"
    ({ outputs = [ "out" "dev" ]; } // attrs);
"#;

/// Builds a derivation by each program in a store of its own, and compares how that ends and what
/// is in the stores then; returns what goalctl said.
fn assert_alike(profile: Profile, expression: &str, options: &[(&str, &str)]) -> Finished {
    let [by_nix, by_goalctl] = [TestStore::of(profile), TestStore::of(profile)];
    let drv = by_nix.instantiate_one(expression);
    assert_eq!(drv, by_goalctl.instantiate_one(expression));
    let mut nix = by_nix.nix_store(["--realise", &drv]);
    let mut goalctl = by_goalctl.goalctl(["build", &drv]);
    for (name, value) in options {
        nix = nix.option(name, value);
        goalctl = goalctl.option(name, value);
    }
    let (nix, goalctl) = (nix.run(), goalctl.run());
    goalctl.expect_status(nix.code());
    Snapshot::of(&by_nix).assert_same_as(&Snapshot::of(&by_goalctl));
    for store in [&by_nix, &by_goalctl] {
        debris::assert_verifies(store);
    }
    debris::assert_clean(&by_goalctl);
    assert_eq!(shared_files(&by_goalctl), shared_files(&by_nix));
    goalctl
}

/// Builds by each program what has checks, which both pass if there are no words, and else fail with
/// status 1; goalctl says all of the words.
fn assert_checked_alike(profile: Profile, expression: &str, words: &[&str]) {
    let finished = assert_alike(profile, expression, &[]);
    finished.expect_status(i32::from(!words.is_empty()));
    for word in words {
        finished.expect_error(word);
    }
}

/// Returns what `.links` has: names, and how many names each file has.
fn shared_files(store: &TestStore) -> BTreeMap<String, u64> {
    let links = store.objects().join(".links");
    debris::names_in(&links)
        .into_iter()
        .map(|name| {
            let facts = links.join(&name).symlink_metadata();
            (name, facts.expect("it was listed just now").nlink())
        })
        .collect()
}

#[test]
fn what_outputs_may_refer_to_is_decided_as_by_nix_and_every_offender_is_named_with_its_way() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for (attributes, words) in [
            ("allowedReferences = [ middle \"out\" ];", &[][..]),
            (
                "allowedReferences = [ ];",
                &["allowedReferences", "-middle"],
            ),
            ("disallowedReferences = [ bottom ];", &[]),
            (
                "disallowedReferences = [ middle \"dev\" ];",
                &["disallowedReferences", "-middle"],
            ),
            ("allowedRequisites = [ middle bottom \"out\" ];", &[]),
            (
                "allowedRequisites = [ \"out\" ];",
                &[
                    "allowedRequisites",
                    "-middle",
                    "-bottom, through /nix/store/",
                    "-top-dev",
                ],
            ),
            (
                "disallowedRequisites = [ bottom ];",
                &[
                    "disallowedRequisites",
                    "-bottom, through /nix/store/",
                    "-middle",
                ],
            ),
            ("disallowedRequisites = [ tools ];", &[]),
            (
                "allowedReferences = [ \"nonsense\" ];",
                &["illegal", "'nonsense'"],
            ),
        ] {
            let expression = format!("let {CHAIN} in top {{ {attributes} }}");
            assert_checked_alike(profile, &expression, words);
        }
    }
}

#[test]
fn structured_checks_are_of_one_output_as_in_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for (attributes, words) in [
            (
                "outputChecks.out.allowedReferences = [ middle \"out\" ];",
                &[][..],
            ),
            (
                "outputChecks.out.allowedReferences = [ middle ];",
                &["allowedReferences", "-top"],
            ),
            (
                "outputChecks.out.allowedRequisites = [ middle bottom ];",
                &["allowedRequisites", "-top"],
            ),
            (
                "outputChecks.dev.disallowedReferences = [ \"out\" ];",
                &["disallowedReferences", "-top"],
            ),
            ("outputChecks.dev.disallowedReferences = [ middle ];", &[]),
            (
                "outputChecks.dev.disallowedRequisites = [ bottom ];",
                &["disallowedRequisites", "-bottom, through /nix/store/"],
            ),
            (
                "outputChecks.out = { maxSize = 1000; maxClosureSize = 1000; };",
                &[],
            ),
            (
                "outputChecks.out.maxSize = 10;",
                &["-top", "limit is 10 bytes"],
            ),
            (
                "outputChecks.dev.maxClosureSize = 300;",
                &["closure", "-top-dev", "limit is 300 bytes"],
            ),
        ] {
            let expression = format!(
                "let {CHAIN} structured = mk \"top\" \"echo ${{middle}} ${{placeholder \"out\"}} > \
                 ${{placeholder \"out\"}}; echo ${{placeholder \"out\"}} > ${{placeholder \"dev\"}}\" \
                 {{ __structuredAttrs = true; outputs = [ \"out\" \"dev\" ]; {attributes} }}; \
                 in structured"
            );
            assert_checked_alike(profile, &expression, words);
        }
    }
}

#[test]
fn references_are_discarded_and_an_output_may_need_itself_where_the_derivation_says_so() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.instantiate_one(&format!(
        "let {CHAIN} in mk \"image\" \"echo ${{middle}} > ${{placeholder \"out\"}}; \
         echo ${{middle}} ${{placeholder \"out\"}} ${{placeholder \"dev\"}} > \
         ${{placeholder \"dev\"}}\" \
         {{ __structuredAttrs = true; outputs = [ \"out\" \"dev\" ]; \
            unsafeDiscardReferences.out = true; \
            outputChecks.dev = {{ \
              ignoreSelfRefs = true; allowedRequisites = [ middle bottom \"out\" ]; }}; }}"
    ));
    store.goalctl(["build", &drv]).succeed();
    let objects = Snapshot::of(&store).objects;
    let image = store.output_of(&drv, "out");
    assert!(objects[&image].references.is_empty());
    let dev = &objects[&store.output_of(&drv, "dev")].references;
    assert!(dev.len() == 3 && dev.contains(&image), "{dev:?}");
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}

#[test]
fn a_fixed_output_that_is_something_else_is_registered_as_that() {
    if !requirement::genuine_nix() {
        return;
    }
    let fixed = |script: &str, mode: &str, algorithm: &str, digits: usize| {
        format!(
            "let {CHAIN} in mk \"fixed\" ''{script}'' {{ outputHashMode = \"{mode}\"; \
             outputHashAlgo = \"{algorithm}\"; outputHash = \"{}\"; }}",
            "0".repeat(digits)
        )
    };
    for profile in Profile::all() {
        for expression in [
            fixed("echo other > $out", "flat", "md5", 32),
            fixed("echo other > $out", "flat", "sha512", 128),
            fixed("mkdir $out; echo x > $out/x", "recursive", "sha1", 40),
            fixed("echo ${bottom} > $out", "recursive", "sha256", 64),
        ] {
            let finished = assert_alike(profile, &expression, &[]);
            finished.expect_status(102).expect_error("hash mismatch");
        }
    }
}

#[test]
fn a_fixed_output_that_refers_to_another_path_is_accepted_with_a_warning() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let expression = |hash: &str| {
        format!(
            "let {CHAIN} in mk \"fixed\" \"echo ${{bottom}} > $out\" \
             {{ outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; \
                outputHash = \"{hash}\"; }}"
        )
    };
    let drv = store.instantiate_one(&expression(&"0".repeat(64)));
    let refused = store.goalctl(["build", &drv]).run();
    let got = refused.error();
    let got = got
        .lines()
        .find_map(|line| line.trim().strip_prefix("got:"))
        .expect("the hash that it has is named");
    let drv = store.instantiate_one(&expression(got.trim()));
    let built = store.goalctl(["build", &drv]).succeed();
    built
        .expect_error("refers to '/nix/store/")
        .expect_error("-bottom'");
    let out = store.output_of(&drv, "out");
    let objects = Snapshot::of(&store).objects;
    let references: Vec<&String> = objects[&out].references.iter().collect();
    assert!(
        references.len() == 1 && references[0].ends_with("-bottom"),
        "{references:?}"
    );
    assert_eq!(objects[&out].content_address, None);
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}

#[test]
fn outputs_are_signed_with_every_key() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let keys = TestStore::of(profile);
        let files: Vec<String> = KEYS
            .iter()
            .enumerate()
            .map(|(idx, key)| {
                let file = keys.dir().join(format!("key-{idx}"));
                std::fs::write(&file, key).expect("a fresh file can be written");
                file.display().to_string()
            })
            .collect();
        let files = files.join(" ");
        let expression = format!("let {CHAIN} in top {{ }}");
        let options = [("secret-key-files", files.as_str())];
        assert_alike(profile, &expression, &options).expect_status(0);

        let store = TestStore::of(profile);
        let drv = store.instantiate_one(&expression);
        store
            .goalctl(["build", &drv])
            .option("secret-key-files", &files)
            .succeed();
        for (path, object) in Snapshot::of(&store).outputs() {
            let signatures = object.signatures.as_deref().unwrap_or_default();
            let names: BTreeSet<&str> = signatures
                .split(' ')
                .filter_map(|signature| Some(signature.split_once(':')?.0))
                .collect();
            let is_built = object.deriver.is_some();
            assert_eq!(
                names.len(),
                if is_built { 2 } else { 0 },
                "{path}: {names:?}"
            );
        }
    }
}

#[test]
fn a_key_that_cannot_be_used_is_told_before_anything_is_built() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("signed", "echo x > $out");
    let file = store.dir().join("key");
    let build = || {
        store
            .goalctl(["build", &drv])
            .option("secret-key-files", &file)
            .run()
    };
    let missing = build();
    missing
        .expect_status(1)
        .expect_error("secret-key-files")
        .expect_error("No such file");
    for text in ["", "nonsense", "name:AAAA", "secret:c2VjcmV0"] {
        std::fs::write(&file, text).expect("a fresh file can be written");
        let malformed = build();
        malformed.expect_status(1).expect_error("secret-key-files");
        assert!(!malformed.error().contains("c2VjcmV0"), "{malformed}");
    }
    assert!(!store.real(&store.output_of(&drv, "out")).exists());
    // Who only asks needs no key.
    store
        .goalctl(["query", "--outputs", &drv])
        .option("secret-key-files", &file)
        .succeed();
}

#[test]
fn equal_files_are_shared_as_nix_shares_them() {
    if !requirement::genuine_nix() {
        return;
    }
    let script = "mkdir -p $out/sub; echo same > $out/a; cp $out/a $out/sub/b; ln $out/a $out/c
        cp $out/a $out/run; chmod +x $out/run; : > $out/empty; : > $out/sub/empty
        ln -s a $out/link; ln -s a $out/sub/link; echo same > $dev";
    let attributes = "{ outputs = [ \"out\" \"dev\" ]; }";
    let shared = format!("mk \"shared\" ''{script}'' {attributes}");
    for profile in Profile::all() {
        let options = [("auto-optimise-store", "true")];
        assert_alike(profile, &shared, &options).expect_status(0);

        // What one program has added, the other shares; what is corrupt, it does not.
        let store = TestStore::of(profile);
        let drvs = store.instantiate(&format!(
            "[ ({shared}) (mk \"second\" \"mkdir $out; echo same > $out/z\" {{ }}) \
             (mk \"third\" \"echo same > $out\" {{ }}) ]"
        ));
        let realise = store.nix_store(["--realise", &drvs[0]]);
        realise.option("auto-optimise-store", "true").succeed();
        let before = shared_files(&store);
        let build = |drv: &str| {
            let build = store.goalctl(["build", drv]);
            build.option("auto-optimise-store", "true").succeed();
        };
        build(&drvs[1]);
        let after = shared_files(&store);
        assert_eq!(
            after.values().sum::<u64>(),
            before.values().sum::<u64>() + 1
        );
        assert_eq!(after.len(), before.len());
        debris::assert_verifies(&store);

        let first = store.real(&store.output_of(&drvs[1], "out")).join("z");
        let inode = |path: &std::path::Path| path.metadata().expect("it is there").ino();
        let third = store.real(&store.output_of(&drvs[2], "out"));
        let damaged = inode(&first);
        damage(&first);
        build(&drvs[2]);
        assert_eq!(std::fs::read(&third).expect("it is there"), b"same\n");
        assert_ne!(inode(&third), damaged);
    }
}

/// Changes a byte of a file, and nothing else of it.
fn damage(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let set_mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file, mode).expect("the file is ours");
    };
    set_mode(0o644);
    std::fs::write(file, "lame\n").expect("the file is writable");
    set_mode(0o444);
    let opened = std::fs::File::open(file).expect("the file is there");
    let one_second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    opened.set_modified(one_second).expect("the file is ours");
}

#[test]
fn a_key_that_others_can_read_signs_with_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = store.instantiate(&format!("let {CHAIN} in [ bottom (top {{ }}) ]"));
    let key = store.dir().join("key");
    std::fs::write(&key, KEYS[0]).expect("a fresh file can be written");
    for (mode, n_told) in [(0o640, 1), (0o600, 0)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&key, mode).expect("the file is ours");
        let built = store
            .goalctl(["build"])
            .args(&drvs)
            .option("secret-key-files", &key)
            .succeed();
        let told = format!("secret key file '{}' has mode 0640", key.display());
        assert_eq!(built.error().matches(&told).count(), n_told, "{built}");
    }
}
