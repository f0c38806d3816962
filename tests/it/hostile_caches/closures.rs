//! Closures that do not hold together, and derivations that are none (SECURITY N12, P08, P10).

use std::path::Path;
use std::sync::Arc;

use it::archive::{Archive, Node};
use it::publication::Publication;
use it::snapshot::Snapshot;
use it::web::WebServer;
use it::{TestStore, requirement};

use super::lie::{Lie, Truth, serve};
use super::scene::{Row, Scene, Which};

/// Asks caches that say what is so.
fn asking() -> Row {
    Row::of([])
}

#[test]
fn a_path_is_not_valid_before_what_it_refers_to() {
    let Some(mut scene) = Scene::new(1) else {
        return;
    };
    let [taken, built] = scene.truths[0].clone();
    scene.truths[0][0].path.references = vec![built.path.path.clone()];
    let taken = Truth {
        path: scene.truths[0][0].path.clone(),
        ..taken
    };
    let wanted = [taken.path.path.clone()];
    let honest = Arc::new(Lie::none());
    let without = [serve(&honest, vec![taken.clone()])];
    let failed = asking().run(&scene, &without, &["ensure"], &wanted);
    failed.expect_status(1).expect_error(&built.path.path);
    scene.assert_nothing_new();

    let both = [
        serve(&honest, vec![taken.clone()]),
        serve(&honest, vec![built.clone()]),
    ];
    let fetched = asking().run(&scene, &both, &["ensure"], &wanted);
    fetched.expect_status(0);
    let objects = Snapshot::of(&scene.store).objects;
    let references = &objects[&taken.path.path].references;
    assert!(references.iter().eq([&built.path.path]));
    scene.assert_valid(Which::Built);
    scene.assert_sound();
}

#[test]
fn signed_paths_that_refer_to_one_another_are_named_and_are_not_valid() {
    let Some(mut scene) = Scene::new(1) else {
        return;
    };
    let paths = scene.truths[0]
        .each_ref()
        .map(|truth| truth.path.path.clone());
    for (truth, other) in scene.truths[0].iter_mut().zip(paths.iter().rev()) {
        truth.path.references = vec![other.clone()];
    }
    let ring = [serve(&Arc::new(Lie::none()), scene.truths[0].to_vec())];
    let failed = asking().run(&scene, &ring, &["ensure", "-k"], &paths);
    failed.expect_status(1).expect_error("in a ring");
    scene.assert_nothing_new();
}

#[test]
fn a_closure_with_2_to_the_40_ways_through_it_is_fetched_at_once() {
    let Some(scene) = Scene::new(0) else { return };
    let path = |layer: usize, side: usize| format!("/nix/store/{layer:031}{side}-diamond");
    let all: Vec<Truth> = (0..=40)
        .flat_map(|layer| [0, 1].map(|side| (layer, side)))
        .map(|(layer, side)| {
            let below = (layer > 0).then(|| [0, 1].map(|side| path(layer - 1, side)));
            let published = Publication {
                path: path(layer, side),
                archive: Archive::of(&Node::file(format!("{layer}, {side}"))).into_bytes(),
                references: below.into_iter().flatten().collect(),
                deriver: None,
            };
            scene.truth(&published, &published)
        })
        .collect();
    let n_paths = Snapshot::of(&scene.store).objects.len() + all.len();
    let cache = [serve(&Arc::new(Lie::none()), all)];
    let top = [path(40, 0), path(40, 1)];
    asking()
        .run(&scene, &cache, &["ensure"], &top)
        .expect_status(0);
    assert_eq!(Snapshot::of(&scene.store).objects.len(), n_paths);
    scene.assert_sound();
}

/// Makes something else of the text of a derivation.
type Garble = fn(Vec<u8>) -> Vec<u8>;

fn edit(text: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(text).expect("it is one of ours");
    let edited = text.replacen(from, to, 1);
    assert_ne!(edited, text);
    edited.into_bytes()
}

const GARBLED: [(&str, Garble); 8] = [
    ("cut", |mut text| {
        text.truncate(text.len() / 2);
        text
    }),
    ("nothing", |_| Vec::new()),
    ("open string", |text| edit(text, "\")])", "")),
    ("more behind", |text| [text, b"x".to_vec()].concat()),
    ("no text", |text| edit(text, "x86_64-linux", "\u{0}")),
    ("of a later version", |text| {
        let nested = b"DrvWithVersion(\"x\",".repeat(100_000);
        [nested, text].concat()
    }),
    ("output of another", |text| {
        edit(text, "/nix/store/", "/nix/store/0")
    }),
    ("output elsewhere", |text| {
        edit(text, "/nix/store/", "/etc/")
    }),
];

#[test]
fn a_derivation_that_is_none_is_not_valid_and_builds_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    let names: Vec<String> = (0..GARBLED.len())
        .map(|idx| format!("made-{idx}"))
        .collect();
    let made = |name: &String| format!("(mk \"{name}\" \"echo {name} > $out\" {{ }})");
    let expression: Vec<String> = names.iter().map(made).collect();
    let origin = TestStore::new();
    let drvs = origin.instantiate(&format!("[ {} ]", expression.join(" ")));
    // Everything that they need but themselves.
    let Some(scene) = Scene::new(1) else { return };
    let references = |drv: &str| {
        let objects = Snapshot::of(&origin).objects;
        objects[drv].references.iter().cloned().collect()
    };
    let truths: Vec<Truth> = drvs
        .iter()
        .map(|drv| {
            let text = std::fs::read(origin.real(drv)).expect("it was written");
            let published = Publication {
                path: drv.clone(),
                archive: Archive::of(&Node::file(text)).into_bytes(),
                references: references(drv),
                deriver: None,
            };
            scene.truth(&published, &published)
        })
        .collect();
    let text_of = |drv: &str, origin: &Path| {
        std::fs::read(origin.join(drv.trim_start_matches('/'))).expect("it was written")
    };
    let bad: Vec<WebServer> = GARBLED
        .into_iter()
        .zip(&truths)
        .map(|((name, garble), truth)| {
            let text = garble(text_of(&truth.path.path, &origin.root()));
            let archive = Archive::of(&Node::file(text)).into_bytes();
            let lie = Lie::evil(name, move |_| archive.clone());
            serve(&Arc::new(lie), vec![truth.clone()])
        })
        .collect();
    let failed = asking().run(&scene, &bad, &["build", "-k"], &drvs);
    failed.expect_status(1);
    for drv in &drvs {
        failed.expect_error(drv);
    }
    scene.assert_nothing_new();

    let mut all = bad;
    all.push(serve(&Arc::new(Lie::none()), truths));
    let built = asking().run(&scene, &all, &["build"], &drvs);
    built.expect_status(0);
    for cache in &all[..GARBLED.len()] {
        built.expect_error(&cache.url(""));
    }
    scene.assert_sound();
}
