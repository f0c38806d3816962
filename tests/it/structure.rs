//! What the workspace promises about itself: who imports whom, and which test proves what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use it::binaries::repository;
use serde_json::Value;

/// Every edge that `ARCHITECTURE.md` draws, from importer to imported, between crates that exist
/// or are planned. The tests may import everything.
const EDGES: &[(&str, &str)] = &[
    ("builtins", "store-model"),
    ("cli", "daemon"),
    ("cli", "registry"),
    ("cli", "sandbox"),
    ("cli", "scheduler"),
    ("cli", "store-model"),
    ("cli", "substituter"),
    ("daemon", "scheduler"),
    ("daemon", "store-model"),
    ("registry", "store-model"),
    ("sandbox", "builtins"),
    ("sandbox", "store-model"),
    ("scheduler", "registry"),
    ("scheduler", "sandbox"),
    ("scheduler", "store-model"),
    ("scheduler", "substituter"),
    ("substituter", "store-model"),
];

/// The rows of the specification: a letter or two, and how many there are.
const SPECIFICATION: &[(&str, u32)] = &[
    ("F", 7),
    ("A", 11),
    ("B", 12),
    ("C", 18),
    ("D", 8),
    ("E", 7),
    ("H", 2),
    ("W", 2),
];

/// The rows of the list of holes and faults, by letter; `-` joins a range.
const SECURITY: &[(&str, &str)] = &[
    ("V", "1-36"),
    ("P", "1-14"),
    ("N", "1-12"),
    ("D", "1-10"),
    ("C", "1-10"),
    ("X", "1-3 8"),
    ("F", "1-30 33-35 38-43 46-47 51-57 59-63"),
];

#[test]
fn no_crate_imports_another_but_as_drawn() {
    let metadata = cargo_metadata();
    let packages = metadata["packages"]
        .as_array()
        .expect("metadata has packages");
    let names: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    for package in packages {
        let from = package["name"].as_str().expect("a package has a name");
        if from == "it" {
            continue;
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let onto = dependency["name"]
                .as_str()
                .expect("a dependency has a name");
            assert!(
                !names.contains(onto) || EDGES.contains(&(from, onto)),
                "{from} imports {onto}, which is not drawn"
            );
        }
    }
}

#[test]
fn the_pure_crate_knows_neither_tokio_nor_actix() {
    let metadata = cargo_metadata();
    let packages = metadata["packages"]
        .as_array()
        .expect("metadata has packages");
    let model = packages
        .iter()
        .find(|package| package["name"] == "store-model")
        .expect("there is a store-model");
    for dependency in model["dependencies"].as_array().into_iter().flatten() {
        let name = dependency["name"]
            .as_str()
            .expect("a dependency has a name");
        assert!(
            !["tokio", "actix", "rusqlite", "nix", "rustix"].contains(&name),
            "{name}"
        );
    }
}

#[test]
fn only_the_sandbox_may_hold_unsafe_code_and_only_in_one_file() {
    for file in sources() {
        let text = fs::read_to_string(&file).expect("a source is text");
        let is_the_one = file.ends_with("crates/sandbox/src/init/sys.rs");
        // A probe makes the calls that a hostile builder would.
        let is_probe = file.starts_with(repository().join("tests/src/bin"));
        let holds = text.lines().any(|line| {
            let code = line.trim_start();
            !code.starts_with("//") && (code.contains("unsafe {") || code.contains("unsafe fn"))
        });
        // This very file names what it looks for.
        let is_this = file.ends_with("tests/it/structure.rs");
        assert!(
            !holds || is_the_one || is_probe || is_this,
            "{}",
            file.display()
        );
    }
}

#[test]
fn no_test_is_ignored_or_expected_to_panic() {
    for file in sources() {
        let text = fs::read_to_string(&file).expect("a source is text");
        for attribute in ["ignore", "should_panic"] {
            let written = format!("#[{attribute}");
            assert!(!text.contains(&written), "{}: {written}", file.display());
        }
    }
}

#[test]
fn every_source_opens_with_what_it_is_for_and_stays_readable() {
    for file in sources() {
        let text = fs::read_to_string(&file).expect("a source is text");
        assert!(
            text.starts_with("//!"),
            "{} has no introduction",
            file.display()
        );
        let code = text
            .split("#[cfg(test)]")
            .next()
            .expect("there is a first part");
        assert!(
            code.lines().count() <= 600,
            "{} is too long",
            file.display()
        );
    }
}

#[test]
fn every_row_of_the_specification_is_in_the_parity_list() {
    let page = read_page("docs/parity.md");
    for (letter, n_rows) in SPECIFICATION {
        for number in 1..=*n_rows {
            assert_row(&page, &format!("{letter}{number}"));
        }
    }
}

#[test]
fn every_known_hole_is_in_the_security_list() {
    let page = read_page("docs/security.md");
    for (letter, ranges) in SECURITY {
        for range in ranges.split(' ') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let bounds = [first, last].map(|bound| bound.parse::<u32>().expect("a number"));
            for number in bounds[0]..=bounds[1] {
                assert_row(&page, &format!("{letter}{number:02}"));
            }
        }
    }
    for row in ["V15b", "V20b"] {
        assert_row(&page, row);
    }
}

#[test]
fn every_test_that_a_page_names_exists() {
    let tests = all_tests();
    let modules: BTreeSet<&str> = tests
        .iter()
        .filter_map(|test| test.split("::").next())
        .collect();
    for name in ["docs/parity.md", "docs/security.md"] {
        let page = read_page(name);
        let mut n_named = 0;
        for word in page.split('`').skip(1).step_by(2) {
            let is_test = word.split("::").count() > 1
                && word
                    .split("::")
                    .next()
                    .is_some_and(|first| modules.contains(first));
            if is_test {
                n_named += 1;
                assert!(
                    tests.contains(word),
                    "{name} names {word}, which is no test"
                );
            }
        }
        assert!(n_named > 0, "{name} names no test at all");
    }
}

/// Fails unless a page has a table row, or a heading, for an id.
#[track_caller]
fn assert_row(page: &str, id: &str) {
    let is_there = page.lines().any(|line| {
        line.trim_start_matches(['|', ' ', '`'])
            .strip_prefix(id)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
    });
    assert!(is_there, "no row for {id}");
}

fn read_page(name: &str) -> String {
    let path = repository().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cargo_metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(repository())
        .output()
        .expect("cargo can be run");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// Returns every Rust file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["crates", "tests"] {
        collect(&repository().join(folder), &mut files);
    }
    assert!(
        files.len() > 20,
        "there must be more sources than {files:?}"
    );
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

/// Returns every test as `crate::path::test_name`, read from the sources.
fn all_tests() -> BTreeSet<String> {
    let crates: BTreeMap<PathBuf, String> = crate_roots();
    let mut tests = BTreeSet::new();
    for file in sources() {
        let Some((root, name)) = crates
            .iter()
            .filter(|(root, _)| file.starts_with(root))
            .max_by_key(|(root, _)| root.as_os_str().len())
        else {
            continue;
        };
        let mut path = vec![name.replace('-', "_")];
        let inside = file.strip_prefix(root).expect("it was found by its root");
        path.extend(
            inside
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .filter(|part| !["lib", "main", "mod"].contains(&part.as_str())),
        );
        let text = fs::read_to_string(&file).expect("a source is text");
        collect_tests(&text, &path, &mut tests);
    }
    tests
}

/// Returns the folders whose files' paths are module paths, with the crate's name.
fn crate_roots() -> BTreeMap<PathBuf, String> {
    let mut roots: BTreeMap<PathBuf, String> = ["it", "timing"]
        .map(|name| (repository().join("tests").join(name), name.to_owned()))
        .into();
    for entry in fs::read_dir(repository().join("crates")).expect("there are crates") {
        let folder = entry.expect("an entry can be read").path();
        let name = folder.file_name().expect("a folder has a name");
        let name = name.to_string_lossy().into_owned();
        roots.insert(folder.join("src"), name.clone());
        roots.insert(folder.join("tests"), name);
    }
    roots
}

/// Adds the tests of one file: functions below `#[test]` and its kin, within the inline modules
/// whose braces, as rustfmt sets them, enclose them.
fn collect_tests(text: &str, path: &[String], tests: &mut BTreeSet<String>) {
    let mut modules: Vec<(usize, String)> = Vec::new();
    let mut is_test = false;
    for line in text.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code == "}" {
            modules.retain(|(opened_at, _)| *opened_at < indent);
        }
        let words = code
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ");
        if let Some(name) = words
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            modules.push((indent, name.to_owned()));
        }
        if code.starts_with("#[test]")
            || code.starts_with("#[tokio::test")
            || code.starts_with("#[actix::test")
        {
            is_test = true;
        }
        let function = words.trim_start_matches("async ").strip_prefix("fn ");
        if let Some(rest) = function.filter(|_| is_test) {
            is_test = false;
            let name = rest.split('(').next().expect("there is a first part");
            let inner = modules.iter().map(|(_, name)| name.clone());
            let full: Vec<String> = path
                .iter()
                .cloned()
                .chain(inner)
                .chain([name.to_owned()])
                .collect();
            tests.insert(full.join("::"));
        }
    }
}

#[test]
fn tests_are_found_where_they_are() {
    let tests = all_tests();
    assert!(tests.contains("it::structure::tests_are_found_where_they_are"));
    assert!(
        tests.contains("store_model::hash::tests::sri_is_read_and_printed") || tests.len() > 50
    );
}
