//! Both programs on the same derivations, each in a store of its own.

use crate::invocation::Invocation;
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::store::TestStore;
use crate::{damage, debris, requirement};

/// Two stores that belong to one profile's user: one for genuine Nix, one for goalctl.
///
/// Builders of [`nix`](Self::nix) and [`goalctl`](Self::goalctl) see `/signals`, which is how a test
/// counts their runs and tells them what to make.
#[derive(Debug)]
pub struct Pair {
    /// What genuine Nix works on.
    pub by_nix: TestStore,
    /// What goalctl works on.
    pub by_goalctl: TestStore,
}

impl Pair {
    /// Makes one pair for each profile; none, which is said, where there is no genuine Nix.
    #[must_use]
    pub fn all() -> Vec<Self> {
        if !requirement::genuine_nix() {
            return Vec::new();
        }
        Profile::all().into_iter().map(Self::of).collect()
    }

    /// Makes a pair for one profile.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        Self {
            by_nix: TestStore::of(profile),
            by_goalctl: TestStore::of(profile),
        }
    }

    /// Returns both stores, Nix's first.
    #[must_use]
    pub fn stores(&self) -> [&TestStore; 2] {
        [&self.by_nix, &self.by_goalctl]
    }

    /// Instantiates an expression that is one derivation in both stores; it has the same path.
    #[must_use]
    pub fn instantiate(&self, expression: &str) -> String {
        let drv = self.by_nix.instantiate_one(expression);
        assert_eq!(drv, self.by_goalctl.instantiate_one(expression));
        drv
    }

    /// Instantiates a script in both stores.
    #[must_use]
    pub fn script(&self, name: &str, script: &str) -> String {
        let drv = self.by_nix.script(name, script);
        assert_eq!(drv, self.by_goalctl.script(name, script));
        drv
    }

    /// Prepares a build by genuine Nix.
    #[must_use]
    pub fn nix(&self, drv: &str) -> Invocation {
        self.by_nix.realise_with_signals(drv)
    }

    /// Prepares a build by goalctl.
    #[must_use]
    pub fn goalctl(&self, drv: &str) -> Invocation {
        self.by_goalctl.build_with_signals(drv)
    }

    /// Has both build a derivation.
    pub fn build(&self, drv: &str) {
        self.nix(drv).succeed();
        self.goalctl(drv).succeed();
    }

    /// Writes a word that builders find in `/signals/salt`.
    pub fn salt(&self, salt: &str) {
        for store in self.stores() {
            std::fs::write(store.signals().dir().join("salt"), format!("{salt}\n"))
                .expect("the folder is ours");
        }
    }

    /// Makes `/signals/runs`, to which builders add a line for each run.
    pub fn tally(&self) {
        for store in self.stores() {
            store.signals().tally("runs");
        }
    }

    /// Returns how many lines builders have added, Nix's first.
    #[must_use]
    pub fn n_runs(&self) -> (usize, usize) {
        let [by_nix, by_goalctl] = self.stores().map(|store| store.signals().count("runs"));
        (by_nix, by_goalctl)
    }

    /// Finds a valid path of goalctl's store by its name.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        let objects = Snapshot::of(&self.by_goalctl).objects;
        let mut named = objects
            .into_keys()
            .filter(|path| path.ends_with(&format!("-{name}")));
        named.next().expect("it was built")
    }

    /// Flips one bit of an object in both stores.
    pub fn damage(&self, path: &str) {
        for store in self.stores() {
            damage::flip_a_bit(&store.real(path));
        }
    }

    /// Fails unless both stores hold the same, and goalctl's is as it should be.
    #[track_caller]
    pub fn assert_same(&self) {
        Snapshot::of(&self.by_nix).assert_same_as(&Snapshot::of(&self.by_goalctl));
        self.assert_sound();
    }

    /// Fails unless genuine Nix finds nothing wrong with goalctl's store, and nothing is left in it.
    #[track_caller]
    pub fn assert_sound(&self) {
        debris::assert_verifies(&self.by_goalctl);
        debris::assert_clean(&self.by_goalctl);
    }
}
