//! Archives that nobody should unpack, described truly and signed by a key that is trusted (SECURITY
//! N01, P01 to P06, P12, P13).

use std::fs;
use std::os::unix::fs::symlink;

use it::archive::{Archive, Node};

use super::lie::{Lie, Truth};
use super::scene::{Found, Row, Scene, Which};

/// Sends the archive of a tree.
fn tree(name: &str, tree: impl Fn(&Truth) -> Node + Send + Sync + 'static) -> Lie {
    Lie::evil(name, move |truth| Archive::of(&tree(truth)).into_bytes())
}

/// Sends the archive of a directory with these entries.
fn entries(name: &str, entries: impl IntoIterator<Item = (&'static str, Node)>) -> Lie {
    let node = Node::directory(entries);
    tree(name, move |_| node.clone())
}

/// Sends just this.
fn words(name: &str, archive: Archive) -> Lie {
    Lie::evil(name, move |_| archive.clone().into_bytes())
}

/// A file that is where it should not be, if it is.
fn file() -> Node {
    Node::file("written by a cache")
}

#[test]
fn names_that_are_repeated_or_out_of_order_write_through_no_link() {
    let through = |name: &str, second: fn() -> Node| {
        tree(name, move |truth| {
            let folder = truth.canary.parent().expect("it is in one");
            let link = Node::link(folder.as_os_str().as_encoded_bytes());
            Node::directory([("a", link), ("a", second())])
        })
    };
    let onto = tree("a link to a file, and contents for it", |truth| {
        let link = Node::link(truth.canary.as_os_str().as_encoded_bytes());
        Node::directory([("a", link), ("a", file())])
    });
    let lies = [
        through("a link, and a file", file),
        through("a link, and a directory in its place", || {
            Node::directory([("canary", file())])
        }),
        onto,
        entries("files", [("a", file()), ("a", file())]),
        entries(
            "directories",
            [("a", Node::nested(1)), ("a", Node::nested(1))],
        ),
        entries("out of order", [("b", file()), ("a", file())]),
        entries("upper case last", [("a", file()), ("A", file())]),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn names_that_could_leave_the_path_are_refused() {
    let names: [&[u8]; 11] = [
        b"",
        b".",
        b"..",
        b"../canary",
        b"meow/nya",
        b"/etc/goalctl-canary",
        b"meow\0nya",
        b"x~nix~case~hack~1",
        b"a/",
        &[b'n'; 256],
        &[b'n'; 5000],
    ];
    let lies = names.map(|name| {
        let shown = String::from_utf8_lossy(&name[..name.len().min(20)]).into_owned();
        tree(&shown, move |_| Node::directory([(name, file())]))
    });
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn links_that_no_disk_can_hold_as_they_are_written_are_refused() {
    let long = "t".repeat(4096);
    let targets = ["", "foo\0junk", &long];
    let lies = targets.map(|target| {
        let node = Node::link(target);
        tree(&target[..target.len().min(8)], move |_| node.clone())
    });
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn archives_with_two_spellings_are_refused() {
    let begun = || {
        Archive::default()
            .word("nix-archive-1")
            .words(["(", "type"])
    };
    let padded = |padding: u8| {
        let mut bytes = Archive::of(&Node::file("seven b")).into_bytes();
        // The byte after the seven.
        let end = bytes.len() - 16 - 1;
        assert_eq!(bytes[end], 0);
        bytes[end] = padding;
        Lie::evil("padding", move |_| bytes.clone())
    };
    let lies = [
        padded(1),
        words(
            "a program with a word",
            begun().words(["regular", "executable", "yes", "contents", "x", ")"]),
        ),
        words("more after the end", Archive::of(&file()).word(")")),
        words("twice", Archive::of(&file()).node(&file())),
        words(
            "a type twice",
            begun().words(["regular", "type", "regular", ")"]),
        ),
        words("no end", begun().words(["regular", "contents", "x"])),
        words("an unknown type", begun().words(["socket", ")"])),
        words(
            "a link to two",
            begun().words(["symlink", "target", "a", "target", "b", ")"]),
        ),
        words("contents twice", {
            let contents = ["regular", "contents", "x", "contents", "y", ")"];
            begun().words(contents)
        }),
        words(
            "another version",
            Archive::default().word("nix-archive-2").node(&file()),
        ),
        words("nothing", Archive::default().word("")),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn a_length_that_lies_is_refused_wherever_it_stands() {
    let tree = Node::directory([
        ("a", file()),
        ("b", Node::link("a")),
        ("c", Node::Program(b"run".to_vec())),
    ]);
    let archive = Archive::of(&tree);
    let lengths = [
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        1 << 32,
        u64::from(u32::MAX),
        4097,
    ];
    // Every third word, which meets every kind of word, since each costs a cache.
    let lies = (0..archive.n_words()).step_by(3).map(|word_idx| {
        let length = lengths[word_idx / 3 % lengths.len()];
        let name = format!("{length} at {word_idx}");
        words(&name, archive.clone().claiming(word_idx, length))
    });
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn directories_in_directories_without_end_are_refused() {
    // Made word by word, since a test's own stack has an end, too.
    let begun = Archive::default().word("nix-archive-1");
    let opened = (0..100_000).fold(begun, |archive, _| {
        let begun = archive.words(["(", "type", "directory", "entry", "("]);
        begun.words(["name", "d", "node"])
    });
    // As many as are allowed are made, which takes a disk some seconds: once is enough.
    let row = Row::of([words("a hundred thousand", opened)]);
    row.assert_overcome(Found::InArchive);
}

#[test]
fn what_an_archive_holds_where_it_lies_is_never_followed() {
    // Links in a ring, and to what is none of the store's business: a store may hold them.
    let lies = [tree("links", |truth| {
        let canary = truth.canary.as_os_str().as_encoded_bytes();
        Node::directory([
            ("a", Node::link("b")),
            ("b", Node::link("a")),
            ("c", Node::link("c/c")),
            ("d", Node::link(canary)),
            ("e", Node::link("../../../../../..")),
            ("f", Node::link("/dev/zero")),
        ])
    })];
    Row::of(lies).assert_kept();
}

#[test]
fn what_lies_at_a_path_without_being_valid_is_not_written_through() {
    let Some(scene) = Scene::new(4) else { return };
    let taken = scene.taken();
    let at = |idx: usize| scene.store.real(&taken[idx]);
    let planted = "the store is ours";
    symlink(&scene.truths[0][0].canary, at(0)).expect(planted);
    symlink("/nowhere", at(1)).expect(planted);
    fs::create_dir(at(2)).expect(planted);
    fs::write(at(2).join("file"), "left behind").expect(planted);
    fs::write(at(3), "left behind").expect(planted);
    let caches = [scene.serve_honestly()];
    let fetched = Row::of([]).run(&scene, &caches, &["ensure"], &taken);
    fetched.expect_status(0);
    scene.assert_valid(Which::Taken);
    scene.assert_sound();
}
