//! What caches said in earlier runs (SECURITY N03, N10, F57).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use it::web::{Answer, WebServer};

use super::lie::{Asked, Lie, serve};
use super::scene::{Row, Scene, Which};

/// A cache that lies until it is told to stop.
fn until_told(
    tell: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static,
) -> (Lie, Arc<AtomicBool>) {
    let is_lying = Arc::new(AtomicBool::new(true));
    let lies = Arc::clone(&is_lying);
    let lie = Lie::new("at first", move |asked| {
        if lies.load(Ordering::SeqCst) {
            tell(asked)
        } else {
            asked.honest()
        }
    });
    (lie, is_lying)
}

fn n_requests(cache: &WebServer, end: &str) -> usize {
    let requests = cache.requests();
    let meant = requests
        .iter()
        .filter(|request| request.path.ends_with(end));
    meant.count()
}

#[test]
fn what_was_not_believed_or_not_kept_or_no_answer_is_not_remembered() {
    use super::lie::File;
    let lies: [fn(&Asked<'_>) -> Answer; 5] = [
        |asked| match asked.file {
            File::Archive => Answer::error(404),
            File::Info | File::Narinfo | File::Unknown => asked.honest(),
        },
        |asked| match asked.file {
            File::Archive => asked.honest().map_body(|body| [body, vec![0; 8]].concat()),
            File::Info | File::Narinfo | File::Unknown => asked.honest(),
        },
        |asked| match asked.file {
            File::Narinfo => asked.honest().with_field("NarSize", "1"),
            File::Info | File::Archive | File::Unknown => asked.honest(),
        },
        |asked| match asked.file {
            File::Narinfo => Answer::welcome_page(),
            File::Info | File::Archive | File::Unknown => asked.honest(),
        },
        |asked| match asked.file {
            File::Narinfo => Answer::error(500),
            File::Info | File::Archive | File::Unknown => asked.honest(),
        },
    ];
    let Some(scene) = Scene::new(lies.len()) else {
        return;
    };
    let (caches, switches): (Vec<WebServer>, Vec<Arc<AtomicBool>>) = lies
        .into_iter()
        .zip(&scene.truths)
        .map(|(tell, truths)| {
            let (lie, switch) = until_told(tell);
            (serve(&Arc::new(lie), truths.to_vec()), switch)
        })
        .unzip();
    let row = Row::of([]);
    let failed = row.run(&scene, &caches, &["ensure", "-k"], &scene.taken());
    failed.expect_status(1);
    scene.assert_nothing_new();
    for switch in switches {
        switch.store(false, Ordering::SeqCst);
    }
    let fetched = row.run(&scene, &caches, &["ensure"], &scene.taken());
    fetched.expect_status(0);
    scene.assert_valid(Which::Taken);
    scene.assert_sound();
    for cache in &caches {
        // What the cache is was true, and is remembered.
        assert_eq!(n_requests(cache, "/nix-cache-info"), 1);
    }
}

#[test]
fn an_offer_that_is_remembered_and_not_kept_any_more_is_built_or_fetched_elsewhere() {
    let Some(scene) = Scene::new(1) else { return };
    let (lie, is_gone) = until_told(|asked| match asked.file {
        super::lie::File::Archive => Answer::error(404),
        super::lie::File::Info | super::lie::File::Narinfo | super::lie::File::Unknown => {
            asked.honest()
        }
    });
    is_gone.store(false, Ordering::SeqCst);
    let mut caches = vec![serve(&Arc::new(lie), scene.truths[0].to_vec())];
    let row = Row::of([]);
    // Asks what there is to fetch, and fetches nothing.
    row.run(&scene, &caches, &["ensure", "--dry-run"], &scene.taken())
        .expect_status(0);
    assert_eq!(n_requests(&caches[0], ".narinfo"), 1);
    is_gone.store(true, Ordering::SeqCst);
    row.run(&scene, &caches, &["ensure"], &scene.taken())
        .expect_status(1);
    scene.assert_nothing_new();
    caches.push(scene.serve_honestly());
    row.run(&scene, &caches, &["ensure"], &scene.taken())
        .expect_status(0);
    scene.assert_valid(Which::Taken);
    scene.assert_sound();
}

/// Returns the files below a folder whose names begin like this.
fn files_named(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for listed in std::fs::read_dir(folder).expect("it is ours").flatten() {
            if listed.path().is_dir() {
                folders.push(listed.path());
            } else if listed.file_name().to_string_lossy().starts_with(start) {
                found.push(listed.path());
            }
        }
    }
    found
}

#[test]
fn a_memory_that_is_garbage_is_made_anew_and_told() {
    let Some(scene) = Scene::new(3) else { return };
    let caches = [scene.serve_honestly()];
    let row = Row::of([]);
    let taken = scene.taken();
    let first = row.run(&scene, &caches, &["ensure"], &taken[..1]);
    first.expect_status(0);
    let files = files_named(&scene.store.dir().join("home"), "binary-cache.sqlite");
    assert!(!files.is_empty());
    for file in &files {
        std::fs::write(file, "not a database, ".repeat(1000)).expect("it is ours");
    }
    let second = row.run(&scene, &caches, &["ensure"], &taken[1..2]);
    second.expect_status(0).expect_error("made anew");
    let third = row.run(&scene, &caches, &["ensure"], &taken[2..]);
    third.expect_status(0);
    assert!(!third.error().contains("WARN"), "{third}");
    scene.assert_valid(Which::Taken);
    scene.assert_sound();
}
