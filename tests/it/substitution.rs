//! What caches have is fetched and not built, beside genuine Nix (SPEC B1, B3, B4, E1, E2, E5).

use std::fs;

use it::{BinaryCache, Finished, Invocation, Pair, TestStore, damage, debris};

/// Three derivations, each of which counts its builds; the last has two outputs.
const CHAIN: &str = "let
    low = mk \"low\" \"echo low >> /signals/runs; mkdir $out; echo text > $out/file; ln -s file $out/link\" { };
    middle = mk \"middle\" \"echo middle >> /signals/runs; echo ${low} > $out\" { };
in mk \"top\" \"echo top >> /signals/runs; mkdir $out; echo ${middle} > $out/file; echo $out > $dev\"
    { outputs = [ \"out\" \"dev\" ]; }";

const COMPRESSIONS: &[&str] = &["none", "xz", "bzip2", "gzip", "zstd", "br"];

/// A cache that Nix has filled from a store of its own, and two stores that may use it.
struct Scene {
    origin: TestStore,
    cache: BinaryCache,
    pair: Pair,
}

/// What came of the same in both stores.
struct Both {
    nix: Finished,
    goalctl: Finished,
}

impl Both {
    /// Fails unless both programs ended like this.
    fn expect_status(&self, status: i32) -> &Self {
        self.nix.expect_status(status);
        self.goalctl.expect_status(status);
        self
    }
}

impl Scene {
    /// Makes one scene for each profile.
    fn all() -> Vec<Self> {
        let pairs = Pair::all().into_iter();
        pairs
            .map(|pair| {
                pair.tally();
                let origin = TestStore::of(pair.by_nix.profile());
                origin.signals().tally("runs");
                Self {
                    cache: BinaryCache::beside(&origin),
                    origin,
                    pair,
                }
            })
            .collect()
    }

    /// Builds an expression at its origin; returns the derivation and its outputs.
    fn built(&self, expression: &str) -> (String, Vec<String>) {
        let drv = self.origin.instantiate_one(expression);
        let outputs = self.origin.realise_with_signals(&drv).succeed();
        (drv, outputs.output_lines())
    }

    /// The same, with the derivation in both stores and all outputs in the cache.
    fn published(&self, expression: &str) -> String {
        let (drv, outputs) = self.built(expression);
        assert_eq!(drv, self.pair.instantiate(expression));
        self.cache.fill(&self.origin, outputs);
        drv
    }

    fn nix(&self, drv: &str) -> Invocation {
        self.cache.used_by(self.pair.nix(drv))
    }

    fn goalctl(&self, drv: &str) -> Invocation {
        self.cache.used_by(self.pair.goalctl(drv))
    }

    /// Has both programs realise a derivation with further options.
    fn realise(&self, drv: &str, options: &[(&str, &str)]) -> Both {
        let with = |invocation: Invocation| {
            let set = |invocation: Invocation, (name, value): &(&str, &str)| {
                invocation.option(name, value)
            };
            options.iter().fold(invocation, set).run()
        };
        Both {
            nix: with(self.nix(drv)),
            goalctl: with(self.goalctl(drv)),
        }
    }

    fn path(&self, name: &str) -> String {
        let objects = it::snapshot::Snapshot::of(&self.origin).objects;
        let mut named = objects
            .into_keys()
            .filter(|path| path.ends_with(&format!("-{name}")));
        named.next().expect("it was built")
    }

    /// Breaks the archive of a path, so that it is not what was promised.
    fn break_archive(&self, path: &str) {
        damage::flip_a_bit(&self.cache.archive(path));
    }
}

#[test]
fn outputs_that_nix_has_put_into_a_cache_are_fetched_in_every_compression() {
    for compression in COMPRESSIONS {
        for scene in Scene::all() {
            let (drv, outputs) = scene.built(CHAIN);
            assert_eq!(drv, scene.pair.instantiate(CHAIN));
            let parameters = format!("&compression={compression}");
            scene.cache.fill_with(&scene.origin, &parameters, outputs);
            scene.realise(&drv, &[]).expect_status(0);
            assert_eq!(scene.pair.n_runs(), (0, 0), "{compression}");
            scene.pair.assert_same();
        }
    }
}

#[test]
fn what_is_fetched_is_told_with_the_cache_that_has_it() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        let top = scene.path("top");
        let told = format!("copying path '{top}' from '{}'...", scene.cache.url());
        scene.goalctl(&drv).succeed().expect_error(&told);
    }
}

#[test]
fn a_derivation_that_allows_no_substitutes_is_built_unless_they_are_always_allowed() {
    for scene in Scene::all() {
        let expression = "mk \"own\" \"echo own >> /signals/runs; echo x > $out\"
            { allowSubstitutes = false; }";
        let drv = scene.published(expression);
        let always = scene
            .goalctl(&drv)
            .option("always-allow-substitutes", "true");
        always.succeed();
        assert_eq!(scene.pair.n_runs(), (0, 0));
        scene.pair.by_goalctl.collect_garbage();
        let drv = scene.pair.instantiate(expression);
        scene.realise(&drv, &[]).expect_status(0);
        assert_eq!(scene.pair.n_runs(), (1, 1));
        scene.pair.assert_same();
    }
}

#[test]
fn without_substitution_nobody_is_asked() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        scene
            .realise(&drv, &[("substitute", "false")])
            .expect_status(0);
        assert_eq!(scene.pair.n_runs(), (3, 3));
        scene.pair.assert_same();
    }
}

#[test]
fn a_download_that_fails_is_a_failure_and_with_fallback_a_build() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        let low = scene.path("low");
        scene.break_archive(&low);
        let failed = scene.realise(&drv, &[]);
        failed.expect_status(1);
        failed.goalctl.expect_error(&scene.cache.url());
        failed.goalctl.expect_error(&low);
        failed.goalctl.expect_error("fallback");
        assert_eq!(scene.pair.n_runs(), (0, 0));
        debris::assert_clean(&scene.pair.by_goalctl);
        scene
            .realise(&drv, &[("fallback", "true")])
            .expect_status(0);
        // What refers to something that cannot be fetched cannot be fetched, either.
        assert_eq!(scene.pair.n_runs(), (3, 3));
        scene.pair.assert_same();
    }
}

#[test]
fn what_a_cache_lacks_is_built_and_the_rest_fetched_then() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        scene.cache.remove(&scene.path("low"));
        scene.realise(&drv, &[]).expect_status(0);
        // Only what is missing is built, by either program.
        assert_eq!(scene.pair.n_runs(), (1, 1));
        scene.pair.assert_same();
    }
}

#[test]
fn without_build_slots_everything_is_fetched() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        scene.realise(&drv, &[("max-jobs", "0")]).expect_status(0);
        assert_eq!(scene.pair.n_runs(), (0, 0));
        scene.pair.assert_same();
    }
}

#[test]
fn a_derivation_that_is_not_there_is_fetched_first() {
    for scene in Scene::all() {
        let (drv, outputs) = scene.built(CHAIN);
        scene.cache.fill(&scene.origin, [&drv]);
        scene.realise(&drv, &[]).expect_status(0);
        assert_eq!(scene.pair.n_runs(), (3, 3));
        scene.pair.assert_same();
        // And one that nobody has is an error that names it.
        let elsewhere = TestStore::of(scene.pair.by_goalctl.profile());
        let missing = elsewhere.goalctl(["build", &drv]).run();
        missing.expect_status(1);
        missing.expect_error(&format!("cannot build missing derivation '{drv}'"));
        assert_eq!(outputs.len(), 2);
    }
}

#[test]
fn a_source_that_is_gone_is_fetched() {
    for scene in Scene::all() {
        let expression = "mk \"user\" \"cat ${builtins.toFile \"text\" \"contents\"} > $out\" { }";
        let (drv, _) = scene.built(expression);
        assert_eq!(drv, scene.pair.instantiate(expression));
        let text = scene.path("text");
        scene.cache.fill(&scene.origin, [&text]);
        for store in scene.pair.stores() {
            it::snapshot::open(&store.database())
                .execute_batch(&format!(
                    "delete from Refs where reference =
                         (select id from ValidPaths where path = '{text}');
                     delete from ValidPaths where path = '{text}';"
                ))
                .expect("the database can be changed");
            damage::lose(&store.real(&text));
        }
        scene.realise(&drv, &[]).expect_status(0);
        let user = scene.path("user");
        for store in scene.pair.stores() {
            let made = fs::read_to_string(store.real(&user)).expect("it was built");
            assert_eq!(made, "contents");
        }
    }
}

#[test]
fn what_nobody_has_signed_is_refused_unless_signatures_do_not_matter() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        for name in ["low", "middle", "top", "top-dev"] {
            scene.cache.strip_signatures(&scene.path(name));
        }
        let built = scene.realise(&drv, &[]);
        built.expect_status(0);
        built.goalctl.expect_error(&scene.cache.url());
        built.goalctl.expect_error(&scene.path("top"));
        assert_eq!(scene.pair.n_runs(), (3, 3));
        let other = Pair::of(scene.pair.by_nix.profile());
        other.tally();
        let drv = other.instantiate(CHAIN);
        for invocation in [other.nix(&drv), other.goalctl(&drv)] {
            let asking = scene.cache.used_by(invocation);
            asking.option("require-sigs", "false").succeed();
        }
        assert_eq!(other.n_runs(), (0, 0));
        other.assert_same();
    }
}

#[test]
fn what_follows_from_its_contents_needs_no_signature() {
    for scene in Scene::all() {
        let (_, outputs) = scene.built(
            "mk \"user\" \"cat ${builtins.toFile \"text\" \"contents\"} > $out; \
             echo ${builtins.toFile \"text\" \"contents\"} >> $out\" { }",
        );
        scene.cache.fill(&scene.origin, outputs);
        let text = scene.path("text");
        scene.cache.strip_signatures(&text);
        scene.realise(&text, &[]).expect_status(0);
        scene.pair.assert_same();
    }
}

#[test]
fn the_second_cache_has_what_the_first_one_breaks() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        let good = BinaryCache::beside(&scene.origin);
        let outputs = [scene.path("top"), scene.path("top-dev")];
        good.fill(&scene.origin, &outputs);
        scene.break_archive(&scene.path("low"));
        let both = format!("{} {}", scene.cache.url(), good.url());
        let keys = format!("{} {}", scene.cache.public_key(), good.public_key());
        let fetched = scene
            .pair
            .goalctl(&drv)
            .option("substituters", &both)
            .option("trusted-public-keys", &keys)
            .succeed();
        fetched.expect_error(&format!(
            "substituter '{}' does not give '{}'",
            scene.cache.url(),
            scene.path("low")
        ));
        assert_eq!(scene.pair.n_runs().1, 0);
        scene.pair.assert_sound();
    }
}

#[test]
fn paths_that_refer_to_one_another_are_an_error_and_not_a_hang() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        let (low, top) = (scene.path("low"), scene.path("top"));
        let base_name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let top_name = base_name(&top).expect("a path has a name");
        scene.cache.edit(&low, |info| {
            info.replace("References: \n", &format!("References: {top_name}\n"))
        });
        let cyclic = scene.goalctl(&drv).option("require-sigs", "false").run();
        cyclic.expect_status(1);
        cyclic.expect_error("in a ring");
        cyclic.expect_error(&low);
        debris::assert_clean(&scene.pair.by_goalctl);
    }
}

#[test]
fn a_path_by_itself_is_fetched_or_named() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        let top = scene.path("top");
        scene.realise(&top, &[]).expect_status(0);
        let dev = scene.path("top-dev");
        scene.cache.remove(&dev);
        let missing = scene.realise(&dev, &[]);
        missing.expect_status(1);
        missing.goalctl.expect_error(&format!(
            "path '{dev}' is not valid and no substituter has it"
        ));
        assert_eq!(drv, scene.pair.instantiate(CHAIN));
    }
}

#[test]
fn what_is_corrupt_is_repaired_from_a_cache() {
    for scene in Scene::all() {
        let drv = scene.published(CHAIN);
        scene.realise(&drv, &[]).expect_status(0);
        let (low, top) = (scene.path("low"), scene.path("top"));
        scene.pair.damage(&low);
        scene.pair.damage(&top);
        let store = &scene.pair.by_goalctl;
        let repaired = scene.goalctl(&drv).arg("--repair").run();
        repaired.expect_status(0);
        assert_eq!(scene.pair.n_runs(), (0, 0));
        debris::assert_verifies(store);
        // One path by itself, too, though its derivation has gone.
        damage::flip_a_bit(&store.real(&low));
        scene
            .cache
            .used_by(store.goalctl(["repair", &low]))
            .succeed();
        assert_eq!(scene.pair.n_runs(), (0, 0));
        debris::assert_verifies(store);
        debris::assert_clean(store);
    }
}

#[test]
fn a_source_without_a_deriver_is_repaired_from_a_cache() {
    for scene in Scene::all() {
        let (_, outputs) =
            scene.built("mk \"user\" \"echo ${builtins.toFile \"text\" \"contents\"} > $out\" { }");
        scene.cache.fill(&scene.origin, outputs);
        let text = scene.path("text");
        scene.realise(&text, &[]).expect_status(0);
        let store = &scene.pair.by_goalctl;
        damage::flip_a_bit(&store.real(&text));
        let repair = || store.goalctl(["repair", &text]);
        repair().run().expect_status(1);
        scene.cache.used_by(repair()).succeed();
        let contents = fs::read_to_string(store.real(&text)).expect("it is there");
        assert_eq!(contents, "contents");
        debris::assert_verifies(store);
    }
}
