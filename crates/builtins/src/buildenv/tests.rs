//! Environments of small packages.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use super::*;

struct Room {
    dir: tempfile::TempDir,
    said: Vec<u8>,
}

impl Room {
    fn new(files: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        Self {
            dir,
            said: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn link(&self, name: &str, target: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        symlink(
            target.replace('~', self.dir.path().to_str().unwrap()),
            self.path(name),
        )
        .unwrap();
    }

    /// Makes an environment of packages `active priority name`.
    fn build(&mut self, packages: &[&str]) -> Result<(), String> {
        let derivations: Vec<String> = packages
            .iter()
            .map(|package| {
                let words: Vec<&str> = package.split(' ').collect();
                let path = self.path(words[2]);
                format!("{} {} 1 {}", words[0], words[1], path.display())
            })
            .collect();
        self.run(&derivations.join("\n "))
    }

    fn run(&mut self, derivations: &str) -> Result<(), String> {
        let out = self.path("out").into_os_string().into_encoded_bytes();
        let attributes = BTreeMap::from([
            (b"out".to_vec(), out),
            (b"manifest".to_vec(), b"/manifest".to_vec()),
            (b"derivations".to_vec(), derivations.into()),
        ]);
        run(Attributes(&attributes), &mut self.said).map_err(|error| error.to_string())
    }

    /// What is at a name of the environment: `-> target`, or the names in a directory.
    fn seen(&self, name: &str) -> String {
        let path = self.path("out").join(name);
        let Ok(facts) = fs::symlink_metadata(&path) else {
            return "nothing".to_owned();
        };
        if facts.is_symlink() {
            let target = fs::read_link(path).unwrap();
            let target = target.strip_prefix(self.dir.path()).unwrap_or(&target);
            return format!("-> {}", target.display());
        }
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    }
}

#[test]
fn directories_of_several_packages_are_merged_and_of_one_linked() {
    let mut room = Room::new(&[
        "a/bin/a",
        "a/share/doc/a",
        "a/only/a",
        "b/bin/b",
        "b/share/doc/b",
        "c/bin/c",
        "inactive/bin/x",
    ]);
    room.build(&["true 5 a", "true 5 b", "false 5 inactive", "true 5 c"])
        .unwrap();
    assert_eq!(room.seen(""), "bin manifest.nix only share");
    assert_eq!(room.seen("manifest.nix"), "-> /manifest");
    assert_eq!(room.seen("only"), "-> a/only");
    assert_eq!(room.seen("bin"), "a b c");
    assert_eq!(room.seen("share/doc"), "a b");
    assert_eq!(room.seen("bin/b"), "-> b/bin/b");
}

#[test]
fn the_smaller_priority_is_seen_whatever_the_order() {
    for packages in [["true 4 a", "true 5 b"], ["true 5 b", "true 4 a"]] {
        let mut room = Room::new(&["a/bin/x", "b/bin/x", "b/bin/y", "a/z", "b/z"]);
        room.build(&packages).unwrap();
        assert_eq!(room.seen("bin/x"), "-> a/bin/x");
        assert_eq!(room.seen("bin/y"), "-> b/bin/y");
        assert_eq!(room.seen("z"), "-> a/z");
    }
    let mut room = Room::new(&["a/bin/x", "b/bin/x"]);
    let refused = room.build(&["true 5 a", "true 5 b"]).unwrap_err();
    assert!(refused.contains("b/bin/x' and '"), "{refused}");
    assert!(refused.contains("have the same priority 5"), "{refused}");
}

#[test]
fn a_file_and_a_directory_never_share_a_place() {
    let mut room = Room::new(&["a/x/y", "b/x"]);
    assert!(
        room.build(&["true 4 a", "true 5 b"]).is_ok(),
        "only a link is in the way"
    );
    assert_eq!(room.seen("x"), "-> a/x");

    let mut room = Room::new(&["a/x/y", "b/x/z", "c/x"]);
    let refused = room
        .build(&["true 4 a", "true 5 b", "true 6 c"])
        .unwrap_err();
    assert!(
        refused.contains("collision between non-directory"),
        "{refused}"
    );

    let mut room = Room::new(&["a/x", "b/x/y"]);
    let refused = room.build(&["true 4 a", "true 5 b"]).unwrap_err();
    assert!(refused.contains("and non-directory"), "{refused}");
}

#[test]
fn what_packages_ask_for_comes_after_everything_else_and_once() {
    let mut room = Room::new(&["a/bin/a", "b/bin/b", "b/bin/a", "c/bin/c", "c/bin/b"]);
    let ask = |room: &Room, package: &str, wanted: &[&str]| {
        let file = room
            .path(package)
            .join("nix-support/propagated-user-env-packages");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let paths: Vec<String> = wanted
            .iter()
            .map(|wanted| room.path(wanted).display().to_string())
            .collect();
        fs::write(file, paths.join(" ") + "\n").unwrap();
    };
    ask(&room, "a", &["b", "a"]);
    ask(&room, "b", &["c", "a", "b"]);
    room.build(&["true 5 a"]).unwrap();
    assert_eq!(room.seen("bin"), "a b c");
    assert_eq!(room.seen("bin/a"), "-> a/bin/a");
    assert_eq!(room.seen("bin/b"), "-> b/bin/b");
    assert_eq!(room.seen("nix-support"), "nothing");
}

#[test]
fn what_is_hidden_dangling_or_no_directory_is_left_out() {
    let mut room = Room::new(&[
        "a/.hidden",
        "a/share/info/dir",
        "a/share/info/a.info",
        "a/log",
        "a/manifest.json",
        "a/lib/perllocal.pod",
        "a/lib/x",
        "file",
    ]);
    room.link("a/dangling", "nowhere");
    room.link("b/lib", "~/a/lib");
    room.link("b/share/info/b.info", "~/a/share/info/a.info");
    room.build(&["true 5 a", "true 6 b", "true 7 file"])
        .unwrap();
    assert_eq!(room.seen(""), "lib manifest.nix share");
    // One is reached through a link, and both are the same file.
    assert_eq!(room.seen("lib"), "x");
    assert_eq!(room.seen("lib/x"), "-> a/lib/x");
    assert_eq!(room.seen("share/info"), "a.info b.info");
    let said = String::from_utf8(room.said.clone()).unwrap();
    assert!(said.contains("skipping dangling symlink"), "{said}");
    assert!(said.contains("because it's not a directory"), "{said}");
}

#[test]
fn a_list_that_ends_early_is_refused() {
    for derivations in [
        "true",
        "true 5",
        "true 5 2 /a",
        "true x 1 /a",
        "true 5 y /a",
    ] {
        let mut room = Room::new(&[]);
        let refused = room.run(derivations).unwrap_err();
        assert!(refused.contains("'derivations' is malformed"), "{refused}");
    }
    let mut room = Room::new(&[]);
    room.run("").unwrap();
    assert_eq!(room.seen(""), "manifest.nix");
}
