//! Paths that come from caches.

use std::path::Path;
use std::time::Duration;

use it::cache_server::CacheServer;
use it::hand_over::Program;
use it::{BinaryCache, Profile, TestStore, measure};

/// Paths in a cache of their own.
pub(crate) struct Shelf {
    /// Where they were built, and where the cache lies.
    _origin: TestStore,
    cache: BinaryCache,
    server: Option<CacheServer>,
    paths: Vec<String>,
}

/// How far away a cache is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Distance {
    /// In a directory of this machine.
    Directory,
    /// On a server that takes this long for every answer.
    Server(Duration),
}

/// What is put into a cache.
pub(crate) struct Goods {
    /// What to build.
    pub(crate) expression: &'static str,
    /// How the cache compresses it.
    pub(crate) compression: &'static str,
}

/// A thousand paths of three files each.
pub(crate) const SMALL: &str = r#"builtins.genList (n: mk "small-${toString n}"
    "mkdir -p $out/bin; echo ${toString n} > $out/bin/program; chmod +x $out/bin/program; echo text > $out/text; ln -s bin/program $out/link" { }) 1000"#;

/// One file that does not compress.
pub(crate) const LARGE: &str = r#"mk "large" "dd if=/dev/urandom of=$out bs=1M count=400" { }"#;

impl Shelf {
    /// Builds something and has Nix copy it into a cache.
    pub(crate) fn fill(goods: &Goods, distance: Distance, parent: &Path) -> Self {
        let origin = TestStore::beneath(parent, Profile::native());
        let drvs = origin.instantiate(goods.expression);
        let built = origin.goalctl(["build", "-j", "2"]).args(&drvs).succeed();
        let paths = built.output_lines();
        let cache = BinaryCache::beside(&origin);
        let parameters = format!("&compression={}", goods.compression);
        cache.fill_with(&origin, &parameters, &paths);
        let server = match distance {
            Distance::Directory => None,
            Distance::Server(delay) => {
                let server = CacheServer::start(cache.dir());
                server.delay(delay);
                Some(server)
            }
        };
        Self {
            _origin: origin,
            cache,
            server,
            paths,
        }
    }

    /// Fetches all of it into a fresh store; returns the wall time.
    ///
    /// Nix counts what it fetches among its builds, so it may have as many of those as goalctl may fetch
    /// at once.
    pub(crate) fn fetch(&self, program: Program, parent: &Path) -> Duration {
        let store = TestStore::beneath(parent, Profile::native());
        let invocation = match program {
            Program::Goalctl => store.goalctl(["ensure"]),
            Program::GenuineNix => store.nix_store(["--realise", "-j", "32"]),
        };
        let url = self
            .server
            .as_ref()
            .map_or_else(|| self.cache.url(), CacheServer::url);
        let started_at = measure::now();
        let finished = self
            .cache
            .used_by(invocation)
            .option("substituters", &url)
            .args(&self.paths)
            .succeed();
        finished.ended_at - started_at
    }
}
