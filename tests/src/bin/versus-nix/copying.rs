//! Paths that are put into caches.

use std::path::Path;
use std::time::Duration;

use it::hand_over::Program;
use it::{BinaryCache, Profile, TestStore, measure, requirement};

use super::fetching::Goods;

/// Paths in a store, to be copied.
pub(crate) struct Stock {
    origin: TestStore,
    paths: Vec<String>,
    compression: &'static str,
}

impl Stock {
    /// Builds something.
    pub(crate) fn build(goods: &Goods, parent: &Path) -> Self {
        let origin = TestStore::beneath(parent, Profile::native());
        let drvs = origin.instantiate(goods.expression);
        let built = origin.goalctl(["build", "-j", "2"]).args(&drvs).succeed();
        Self {
            paths: built.output_lines(),
            origin,
            compression: goods.compression,
        }
    }

    /// Copies all of it into a fresh cache, signed; returns the wall time.
    pub(crate) fn copy(&self, program: Program) -> Duration {
        let cache = BinaryCache::beside(&self.origin);
        let key = cache.secret_key().display();
        let url = format!(
            "{}?compression={}&secret-key={key}",
            cache.url(),
            self.compression
        );
        let invocation = match program {
            Program::Goalctl => self.origin.goalctl(["copy", "--to", &url]),
            Program::GenuineNix => {
                let nix = requirement::find_program("nix").expect("it comes with Nix");
                let nix = self.origin.program(&nix).args(["copy", "--to", &url]);
                nix.arg("--store").arg(self.origin.root())
            }
        };
        let started_at = measure::now();
        let finished = invocation.args(&self.paths).succeed();
        finished.ended_at - started_at
    }
}
