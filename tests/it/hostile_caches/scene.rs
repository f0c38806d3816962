//! A store, hostile caches beside it, and what becomes of what they say.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use it::archive::{Archive, Node};
use it::canary::Canary;
use it::measure::now;
use it::publication::{Publication, SigningKey};
use it::snapshot::Snapshot;
use it::web::{Authority, WebServer};
use it::{Finished, TestStore, debris, requirement};

use super::lie::{Lie, Truth, serve};

/// The most memory that goalctl may hold, whatever a cache sends it, also one that is not optimised.
/// What was measured is 25 to 37 MB, and 70 with forty caches at once.
const MAX_PEAK_KILOBYTES: u64 = 100_000;

/// How long a run may take: a machine that is busy takes long, and a hang takes for ever.
const IN_TIME: Duration = Duration::from_mins(1);

/// How long caches are waited for where a row says nothing of it.
const PATIENCE: (&str, &str) = ("cache-answer-timeout", "60");

/// How a line begins that warns.
const WARNING: &str = " WARN ";

/// When a lie is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// When the cache says what it is: it is as if there were no such cache.
    InWhatItIs,
    /// When it gives no answer in time, or none at all.
    Unanswered,
    /// When it says what a path is: it is as if it did not have the path.
    InAnswer,
    /// While the archive comes: the download has failed.
    InArchive,
}

/// Which of the two paths that a cache lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The one that is only asked for by itself.
    Taken,
    /// The one whose derivation is asked for.
    Built,
}

/// The hostile caches of a row, and the options of whoever asks them.
pub(super) struct Row {
    lies: Vec<Arc<Lie>>,
    options: Vec<(&'static str, &'static str)>,
    /// Addresses that are asked before all servers.
    elsewhere: Vec<&'static str>,
    /// Who may vouch for servers.
    authority: Option<Arc<Authority>>,
}

/// A store with derivations of everything that is lied about.
pub(super) struct Scene {
    pub(super) store: TestStore,
    canary: Canary,
    before: Snapshot,
    /// For each lie, what is only fetched and what can be built.
    pub(super) truths: Vec<[Truth; 2]>,
    drvs: Vec<String>,
}

impl Row {
    /// Collects hostile caches.
    pub(super) fn of(lies: impl IntoIterator<Item = Lie>) -> Self {
        Self {
            lies: lies.into_iter().map(Arc::new).collect(),
            options: Vec::new(),
            elsewhere: Vec::new(),
            authority: None,
        }
    }

    /// Trusts somebody who vouches for servers, and nobody else.
    pub(super) fn trusting(mut self, authority: &Arc<Authority>) -> Self {
        self.authority = Some(Arc::clone(authority));
        self
    }

    /// Asks caches at these addresses first.
    pub(super) fn behind(mut self, addresses: &[&'static str]) -> Self {
        self.elsewhere = addresses.to_vec();
        self
    }

    /// Sets an option of goalctl.
    pub(super) fn option(mut self, name: &'static str, value: &'static str) -> Self {
        self.options.push((name, value));
        self
    }

    /// Fails unless every lie is found out when it should be, and harms nobody.
    ///
    /// Each cache lies about two paths, `taken-N` and `built-N`.
    /// First it is the only one who has them, so that they are not to be had or are built; then there
    /// is one good cache at the end of the list.
    pub(super) fn assert_found(&self, found: Found) {
        let Some(scene) = Scene::new(self.lies.len()) else {
            return;
        };
        let bad = self.serve(&scene);
        let alone = self.run(&scene, &bad, &["ensure", "-k"], &scene.taken());
        alone.expect_status(1);
        self.assert_named(&scene, &bad, &alone, found);
        scene.assert_nothing_new();

        let bad = self.serve(&scene);
        let alone = self.run(&scene, &bad, &["build", "-k"], &scene.drvs);
        self.assert_named(&scene, &bad, &alone, found);
        if found == Found::InArchive {
            alone.expect_status(1);
            scene.assert_nothing_new();
            let bad = self.serve(&scene);
            let command = ["build", "-k", "--fallback"];
            self.run(&scene, &bad, &command, &scene.drvs)
                .expect_status(0);
        } else {
            alone.expect_status(0);
        }
        scene.assert_valid(Which::Built);
        assert_eq!(scene.n_builds(), self.lies.len());
        self.assert_overcome_in(&scene, found);
    }

    /// Fails unless every lie is found out when it should be, and there is one good cache at the end of
    /// the list.
    pub(super) fn assert_overcome(&self, found: Found) {
        if let Some(scene) = Scene::new(self.lies.len()) {
            self.assert_overcome_in(&scene, found);
        }
    }

    fn assert_overcome_in(&self, scene: &Scene, found: Found) {
        let n_built = scene.n_builds();
        let mut caches = self.serve(scene);
        caches.push(scene.serve_honestly());
        let fetched = self.run(scene, &caches, &["ensure"], &scene.taken());
        fetched.expect_status(0);
        caches.pop();
        self.assert_named(scene, &caches, &fetched, found);
        scene.assert_valid(Which::Taken);
        assert_eq!(scene.n_builds(), n_built);
        scene.assert_sound();
    }

    /// Fails unless what the caches say is believed, since nothing that matters is untrue.
    pub(super) fn assert_harmless(&self) {
        if let Some(scene) = self.fetch() {
            scene.assert_valid(Which::Taken);
        }
    }

    /// Fails unless what the caches send is taken and kept as it is, though it is something else than
    /// would be built.
    pub(super) fn assert_kept(&self) {
        if let Some(scene) = self.fetch() {
            let objects = Snapshot::of(&scene.store).objects;
            assert!(scene.taken().iter().all(|path| objects.contains_key(path)));
        }
    }

    /// Fetches from the hostile caches, which nobody complains about.
    fn fetch(&self) -> Option<Scene> {
        let scene = Scene::new(self.lies.len())?;
        let caches = self.serve(&scene);
        let fetched = self.run(&scene, &caches, &["ensure"], &scene.taken());
        fetched.expect_status(0);
        assert!(!fetched.error().contains(WARNING), "{fetched}");
        scene.assert_sound();
        Some(scene)
    }

    /// Starts the caches, of which nobody has heard yet.
    fn serve(&self, scene: &Scene) -> Vec<WebServer> {
        let lies = self.lies.iter().zip(&scene.truths);
        lies.map(|(lie, truths)| serve(lie, truths.to_vec()))
            .collect()
    }

    /// Runs goalctl with these caches in the order of the list; fails if it holds much memory or takes long.
    pub(super) fn run(
        &self,
        scene: &Scene,
        caches: &[WebServer],
        command: &[&str],
        wanted: &[String],
    ) -> Finished {
        let mut peak = Command::new(env!("CARGO_BIN_EXE_probe"));
        peak.arg("peak");
        let elsewhere = self.elsewhere.iter().map(|&address| address.to_owned());
        let servers = caches.iter().map(|cache| cache.url(""));
        let substituters: Vec<String> = elsewhere.chain(servers).collect();
        let signals = format!("/signals={}:rw", scene.store.signals().dir().display());
        let invocation = scene
            .store
            .goalctl(command)
            .args(wanted)
            .option("sandbox-paths", signals)
            .option("substituters", substituters.join(" "))
            .option("trusted-public-keys", key().public());
        let set = |invocation: it::Invocation, (name, value): &(&str, &str)| {
            invocation.option(name, value)
        };
        // Where time does not matter a busy machine must not, either.
        let is_timed = self.options.iter().any(|(name, _)| *name == PATIENCE.0);
        let patience = (!is_timed).then_some(PATIENCE);
        let options = self.options.iter().chain(&patience);
        let mut invocation = options.fold(invocation, set);
        if let Some(authority) = &self.authority {
            let file = scene.store.dir().join("authorities");
            std::fs::write(&file, authority.certificate()).expect("the folder is ours");
            invocation = invocation.env("NIX_SSL_CERT_FILE", file);
        }
        let begun = now();
        let finished = invocation.under(peak).run();
        let took = finished.ended_at - begun;
        let output = finished.output();
        let (_, peak) = output.split_once("peak ").expect("the probe says the peak");
        let peak: u64 = peak.trim().parse().expect("a peak is a number");
        requirement::say(&format!("{took:?}, {peak} kB"));
        assert!(peak < MAX_PEAK_KILOBYTES, "{peak} kB: {finished}");
        assert!(took < IN_TIME, "{took:?}: {finished}");
        finished
    }

    /// Fails unless each cache is warned of once, with the path that it lied about if that matters.
    /// That it is left alone from then on may be told besides.
    fn assert_named(&self, scene: &Scene, bad: &[WebServer], finished: &Finished, found: Found) {
        let error = finished.error();
        for ((cache, lie), truths) in bad.iter().zip(&self.lies).zip(&scene.truths) {
            let address = cache.url("");
            let is_named = |line: &&str| line.starts_with(WARNING) && line.contains(&address);
            let warnings: Vec<&str> = error.lines().filter(is_named).collect();
            let paths = truths.each_ref().map(|truth| &truth.path.path);
            let has_path = |line: &&&str| paths.iter().any(|path| line.contains(*path));
            let n_with_path = warnings.iter().filter(has_path).count();
            let n_without = warnings.len() - n_with_path;
            let is_right = match found {
                Found::InWhatItIs => n_with_path == 0 && n_without == 1,
                Found::InAnswer | Found::InArchive => n_with_path == 1 && n_without <= 1,
                Found::Unanswered => n_with_path <= 1 && n_without <= 1 && !warnings.is_empty(),
            };
            assert!(is_right, "{}: {warnings:#?} in {finished}", lie.name);
        }
    }
}

/// The key that is trusted.
pub(super) fn key() -> SigningKey {
    SigningKey::new("everybody-trusts-1", 7)
}

/// Returns what a path of this name really contains.
fn text(name: &str) -> String {
    format!("the true text of {name}")
}

impl Scene {
    /// Makes a store; `None`, which is said, where there is no genuine Nix.
    pub(super) fn new(n_lies: usize) -> Option<Self> {
        if !requirement::genuine_nix() {
            return None;
        }
        let store = TestStore::new();
        store.signals().tally("runs");
        let names = (0..n_lies).map(|idx| ["taken", "built"].map(|kind| format!("{kind}-{idx}")));
        let names: Vec<[String; 2]> = names.collect();
        let derivation = |name: &String| {
            let text = text(name);
            format!(
                "(mk \"{name}\" \"echo {name} >> /signals/runs; printf '{text}' > $out\" {{ }})"
            )
        };
        let derivations: Vec<String> = names.iter().flatten().map(derivation).collect();
        let drvs = store.instantiate(&format!("[ {} ]", derivations.join(" ")));
        let outputs = store.nix_store(["--query", "--outputs"]).args(&drvs);
        let outputs = outputs.succeed().output_lines();
        let find = |paths: &[String], end: &str| {
            let mut found = paths.iter().filter(|path| path.ends_with(end));
            found.next().expect("it was made").clone()
        };
        let canary = Canary::plant(&store);
        let is_built = |drv: &String| drv.contains("-built-");
        let mut scene = Self {
            truths: Vec::new(),
            drvs: drvs.iter().filter(|drv| is_built(drv)).cloned().collect(),
            before: Snapshot::of(&store),
            canary,
            store,
        };
        for names in &names {
            let [taken, built] = names.each_ref().map(|name| Publication {
                path: find(&outputs, &format!("-{name}")),
                archive: Archive::of(&Node::file(text(name))).into_bytes(),
                references: Vec::new(),
                deriver: Some(find(&drvs, &format!("-{name}.drv"))),
            });
            let truths = [scene.truth(&taken, &built), scene.truth(&built, &taken)];
            scene.truths.push(truths);
        }
        Some(scene)
    }

    /// Returns what a cache knows who has two paths.
    pub(super) fn truth(&self, path: &Publication, other: &Publication) -> Truth {
        Truth {
            path: path.clone(),
            other: other.clone(),
            key: key(),
            canary: Canary::secret(&self.store),
        }
    }

    /// Starts a cache that has everything and tells the truth.
    pub(super) fn serve_honestly(&self) -> WebServer {
        let truths = self.truths.iter().flatten().cloned();
        serve(&Arc::new(Lie::none()), truths.collect())
    }

    /// Returns the paths that are only fetched.
    pub(super) fn taken(&self) -> Vec<String> {
        let paths = self.truths.iter().map(|[taken, _]| taken.path.path.clone());
        paths.collect()
    }

    /// Returns how many builders have run.
    pub(super) fn n_builds(&self) -> usize {
        self.store.signals().count("runs")
    }

    /// Fails unless the store is as it was at first.
    pub(super) fn assert_nothing_new(&self) {
        self.before.assert_same_as(&Snapshot::of(&self.store));
        self.assert_untouched();
    }

    /// Fails unless everything that is fetched, or everything that is built, is valid and true.
    pub(super) fn assert_valid(&self, which: Which) {
        let objects = Snapshot::of(&self.store).objects;
        for truths in &self.truths {
            let Publication { path, archive, .. } = &truths[which as usize].path;
            assert!(objects.contains_key(path), "{path} is not valid");
            let contents = std::fs::read(self.store.real(path)).expect("it is a plain file");
            assert_eq!(&Archive::of(&Node::File(contents)).into_bytes(), archive);
        }
    }

    /// Fails unless genuine Nix finds nothing wrong, and nothing is left.
    pub(super) fn assert_sound(&self) {
        debris::assert_verifies(&self.store);
        self.assert_untouched();
    }

    fn assert_untouched(&self) {
        debris::assert_clean(&self.store);
        self.canary.assert_untouched(&self.store);
    }
}
