//! Caches on servers that take files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use it::cache_server::{Asked, CacheServer, Files};
use it::web::Answer;

use super::{Scene, assert_tidy, assert_whole, files};

impl Scene {
    /// Serves the cache, which takes files.
    fn serve(&self) -> CacheServer {
        let server = CacheServer::start(self.cache.dir());
        server.take_files();
        server
    }

    fn to_server(&self, server: &CacheServer, parameters: &str) -> String {
        let key = self.cache.secret_key().display();
        format!("{}?secret-key={key}{parameters}", server.url())
    }
}

/// Returns the contents of the files of a cache.
fn contents(cache: &it::BinaryCache) -> BTreeMap<String, Vec<u8>> {
    let files = files(cache.dir()).into_iter();
    // Of the folders a directory has two that only Nix needs.
    let files = files.filter(|(name, _)| !["nar", "log", "realisations"].contains(&name.as_str()));
    files
        .map(|(name, (_, contents))| (name, contents))
        .collect()
}

/// Fails unless each of some files was sent once.
#[track_caller]
fn assert_each_once(server: &CacheServer, files: &Files, n_files: usize) {
    let puts = server.puts(files);
    let different: BTreeSet<&String> = puts.iter().collect();
    assert_eq!(puts.len(), different.len(), "{puts:?}");
    assert_eq!(puts.len(), n_files, "{puts:?}");
}

/// Returns whether somebody sends a file for the first time.
fn is_first_put(asked: &Asked<'_>) -> bool {
    // Before an archive is sent it is asked for.
    asked.request.method == "PUT" && asked.request.n_before < 2
}

#[test]
fn a_cache_on_a_server_is_the_same_as_in_a_directory_and_nix_reads_it_back() {
    for compression in ["none", "xz"] {
        let Some(scene) = Scene::new() else { return };
        let server = scene.serve();
        let parameters = format!("&compression={compression}&write-nar-listing=1");
        let address = scene.to_server(&server, &parameters);
        scene.copy_to(&address).succeed();
        assert_each_once(&server, &Files::Nars, 12);
        assert_each_once(&server, &Files::Narinfos, 12);
        assert_each_once(&server, &Files::Info, 1);
        assert_eq!(assert_whole(scene.cache.dir()), 12);
        assert_tidy(scene.cache.dir());
        let directory = it::BinaryCache::beside(&scene.origin);
        let key = scene.cache.secret_key().display();
        let there = format!("{}?secret-key={key}{parameters}", directory.url());
        scene.copy_to(&there).succeed();
        assert!(
            contents(&scene.cache) == contents(&directory),
            "{compression}"
        );
        scene.assert_nix_fetches_from(&server.url());
        let again = scene.copy_to(&address).succeed();
        again.expect_error("12 were there");
        assert_each_once(&server, &Files::All, 12 * 3 + 1);
    }
}

#[test]
fn a_server_that_is_busy_or_breaks_off_is_asked_again() {
    let plays: [fn(&Asked<'_>) -> Answer; 3] = [
        |_| Answer::error(503),
        |_| Answer::busy(429, Duration::from_secs(1)),
        |_| Answer::error(500).resetting_after(0),
    ];
    for play in plays {
        let Some(scene) = Scene::new() else { return };
        let server = scene.serve();
        let refuse_once = move |asked: &Asked<'_>| {
            if is_first_put(asked) {
                play(asked)
            } else {
                asked.honest()
            }
        };
        server.play(Files::Nars, refuse_once);
        server.play(Files::Narinfos, refuse_once);
        let address = scene.to_server(&server, "&compression=none");
        scene.copy_to(&address).succeed();
        assert_eq!(assert_whole(scene.cache.dir()), 12);
        let n_puts = server.puts(&Files::All).len();
        assert!(n_puts > 12 * 3, "{n_puts}");
    }
}

#[test]
fn a_server_that_takes_no_files_says_so_and_is_not_asked_for_every_path() {
    for status in [401, 403, 405] {
        let Some(scene) = Scene::new() else { return };
        let server = scene.serve();
        server.play(Files::Nars, move |asked| {
            if asked.request.method == "PUT" {
                Answer::error(status)
            } else {
                asked.honest()
            }
        });
        let address = scene.to_server(&server, "&compression=none");
        let copied = scene
            .copy_to(&address)
            .option("http-connections", "2")
            .run();
        copied.expect_status(1);
        copied.expect_error(&format!("cannot copy to '{}'", server.url()));
        copied.expect_error(&format!("cannot write '{}/nar/", server.url()));
        copied.expect_error(&format!("does not allow it: HTTP status {status}"));
        copied.expect_error("12 were not copied");
        let n_puts = server.puts(&Files::Nars).len();
        assert!(n_puts <= 2, "{n_puts}");
        assert_eq!(assert_whole(scene.cache.dir()), 0);
    }
    let Some(scene) = Scene::new() else { return };
    let server = CacheServer::start(scene.cache.dir());
    let copied = scene.copy_to(&server.url()).run();
    copied.expect_status(1);
    copied.expect_error(&format!("cannot write '{}/nix-cache-info'", server.url()));
    assert_eq!(server.puts(&Files::All).len(), 1);
}

#[test]
fn a_copy_that_was_broken_off_goes_on_where_it_stopped() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    // What refers to others cannot be announced yet.
    let referrers: Vec<String> = scene.paths[..8].to_vec();
    for path in &referrers {
        let file = format!("{}.narinfo", it::binary_cache::hash_part(path));
        server.play(Files::One(file), |asked| {
            if asked.request.method == "PUT" {
                Answer::error(403)
            } else {
                asked.honest()
            }
        });
    }
    let address = scene.to_server(&server, "&compression=none");
    scene.copy_to(&address).run().expect_status(1);
    assert_eq!(assert_whole(scene.cache.dir()), 4);
    server.repent();
    scene.copy_to(&address).succeed();
    assert_eq!(assert_whole(scene.cache.dir()), 12);
    assert_each_once(&server, &Files::Nars, 12);
    assert_tidy(scene.cache.dir());
}

#[test]
fn a_server_that_falls_silent_is_not_waited_for() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    server.play(Files::Nars, |asked| {
        if asked.request.method == "PUT" {
            Answer::silence()
        } else {
            asked.honest()
        }
    });
    let address = scene.to_server(&server, "&compression=none");
    let copied = scene
        .copy_to(&address)
        .option("stalled-download-timeout", "1")
        .run();
    copied.expect_status(1);
    copied.expect_error("the server sent nothing");
    assert_eq!(assert_whole(scene.cache.dir()), 0);
}
