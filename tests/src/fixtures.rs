//! The reference vectors that genuine Nix 2.8.0 made, where they are at hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::invocation::Invocation;
use crate::requirement;
use crate::store::TestStore;

/// The derivations and answers of `fixtures/nix-2.8`.
#[derive(Debug, Clone)]
pub struct Fixtures {
    dir: PathBuf,
}

/// One line of `fail/index.tsv`: a build that genuine Nix refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingBuild {
    /// Its attribute within `fail`.
    pub attribute: String,
    /// Base name of its derivation.
    pub drv_name: String,
    /// The options that Nix was given.
    pub options: Vec<String>,
    /// Nix's exit status.
    pub status: i32,
}

impl Fixtures {
    /// Finds the vectors through `GOAL_SHARED`, else beside the repository; says so where they are
    /// not.
    #[must_use]
    pub fn find() -> Option<Self> {
        let shared = requirement::environment("GOAL_SHARED").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
            PathBuf::from,
        );
        let dir = shared.join("fixtures/nix-2.8");
        if dir.is_dir() {
            return Some(Self { dir });
        }
        requirement::say(&format!(
            "skipped: no reference vectors at {}",
            dir.display()
        ));
        None
    }

    /// Returns the folder of the derivations' expressions, where `default.nix` is.
    #[must_use]
    pub fn expressions(&self) -> PathBuf {
        self.dir.join("src")
    }

    /// Returns the cache whose archives are compressed in this way (`none`, `xz`, `br`...).
    #[must_use]
    pub fn cache(&self, compression: &str) -> PathBuf {
        self.dir.join(format!("cache-{compression}"))
    }

    /// Returns the key that the caches are signed with, for `trusted-public-keys`.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.read("keys/TEST-ONLY.pub").trim().to_owned()
    }

    /// Returns attribute and derivation path of one group of `attributes.json`.
    #[must_use]
    pub fn group(&self, name: &str) -> BTreeMap<String, String> {
        let text = self.read("attributes.json");
        let all: Value = serde_json::from_str(&text).expect("attributes.json is JSON");
        all[name]
            .as_object()
            .unwrap_or_else(|| panic!("attributes.json has no group {name}"))
            .iter()
            .map(|(attribute, facts)| {
                let drv = facts["drvPath"].as_str().expect("drvPath is a string");
                (attribute.clone(), drv.to_owned())
            })
            .collect()
    }

    /// Returns the builds of `fail/index.tsv` that are one derivation each, with a second column
    /// naming it.
    #[must_use]
    pub fn failing_builds(&self) -> Vec<FailingBuild> {
        self.read("fail/index.tsv")
            .lines()
            .filter_map(|line| {
                let columns: Vec<&str> = line.split('\t').collect();
                let &[attribute, drv_name, options, status, again] = columns.as_slice() else {
                    panic!("fail/index.tsv has a line of another shape: {line}");
                };
                // The lines without a second status are those of several derivations and modes.
                (!again.is_empty()).then(|| FailingBuild {
                    attribute: attribute.to_owned(),
                    drv_name: drv_name.to_owned(),
                    options: options.split_whitespace().map(str::to_owned).collect(),
                    status: status.parse().expect("an exit status is a number"),
                })
            })
            .collect()
    }

    /// Returns the outputs of each attribute of the group `ca-build`, by name, as Nix realised them.
    #[must_use]
    pub fn floating_outputs(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut outputs: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for line in self.read("ca/outputs.tsv").lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let &[attribute, _, name, path] = columns.as_slice() else {
                panic!("ca/outputs.tsv has a line of another shape: {line}");
            };
            let of_attribute = outputs.entry(attribute.to_owned()).or_default();
            of_attribute.insert(name.to_owned(), path.to_owned());
        }
        outputs
    }

    /// Prepares genuine Nix writing derivations of one group into a store. They need no tree of
    /// sources.
    #[must_use]
    pub fn instantiation(
        &self,
        store: &TestStore,
        group: &str,
        attributes: &[String],
    ) -> Invocation {
        let invocation = store
            .nix_program("nix-instantiate")
            .arg(self.expressions())
            .args(["--arg", "tree", "/var/empty"]);
        attributes.iter().fold(invocation, |it, attribute| {
            it.arg("-A").arg(format!("{group}.{attribute}"))
        })
    }

    fn read(&self, name: &str) -> String {
        let path = self.dir.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
