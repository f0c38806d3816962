//! Another store of this machine as a cache, beside genuine Nix (SPEC E1; SECURITY N01, V18).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use it::{Invocation, Pair, Profile, TestStore, damage, debris, requirement, snapshot};

/// Three derivations, each of which counts its builds; the last has two outputs.
const CHAIN: &str = "let
    low = mk \"low\" \"echo low >> /signals/runs; mkdir $out; echo text > $out/file; ln -s file $out/link;
        head -c 300000 /dev/zero > $out/zeros; chmod +x $out/zeros\" { };
    middle = mk \"middle\" \"echo middle >> /signals/runs; echo ${low} > $out\" { };
in mk \"top\" \"echo top >> /signals/runs; mkdir $out; echo ${middle} > $out/file; echo $out > $dev\"
    { outputs = [ \"out\" \"dev\" ]; }";

/// A store in which Nix has built and signed, and two stores that may take from it.
struct Scene {
    origin: TestStore,
    public_key: String,
    pair: Pair,
    drv: String,
}

impl Scene {
    fn all() -> Vec<Self> {
        Pair::all().into_iter().map(Self::of).collect()
    }

    fn of(pair: Pair) -> Self {
        pair.tally();
        let origin = TestStore::of(pair.by_nix.profile());
        origin.signals().tally("runs");
        let drv = origin.instantiate_one(CHAIN);
        assert_eq!(drv, pair.instantiate(CHAIN));
        let keys = ["secret", "public"].map(|name| origin.dir().join("home").join(name));
        origin
            .nix_store(["--generate-binary-cache-key", "origin-1"])
            .args(&keys)
            .succeed();
        let signed = origin.realise_with_signals(&drv);
        signed.option("secret-key-files", &keys[0]).succeed();
        let public_key = fs::read_to_string(&keys[1]).expect("Nix has written it");
        Self {
            origin,
            public_key: public_key.trim().to_owned(),
            pair,
            drv,
        }
    }

    /// Returns the address of the store that Nix has built in.
    fn url(&self) -> String {
        format!("local?root={}", self.origin.root().display())
    }

    /// Has a program ask that store by some address.
    fn asking(&self, invocation: Invocation, address: &str) -> Invocation {
        invocation
            .option("substituters", address)
            .option("trusted-public-keys", &self.public_key)
    }

    /// Has both programs realise the derivation.
    fn realise(&self, address: &str) {
        let nix = self.asking(self.pair.nix(&self.drv), address);
        nix.succeed();
        let goalctl = self.asking(self.pair.goalctl(&self.drv), address);
        goalctl.succeed();
    }

    fn path(&self, name: &str) -> String {
        let objects = snapshot::Snapshot::of(&self.origin).objects;
        let mut named = objects
            .into_keys()
            .filter(|path| path.ends_with(&format!("-{name}")));
        named.next().expect("it was built")
    }
}

/// Returns when everything below a folder was last changed.
fn changes(folder: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let mut changes = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it can be listed") {
            let entry = entry.expect("an entry can be read");
            let facts = entry.metadata().expect("it is there");
            if facts.is_dir() {
                folders.push(entry.path());
            }
            changes.insert(entry.path(), (facts.ctime(), facts.ctime_nsec()));
        }
    }
    changes
}

/// Fails unless nobody has changed anything in a store.
#[track_caller]
fn assert_unchanged(store: &TestStore, before: &BTreeMap<PathBuf, (i64, i64)>) {
    let after = changes(&store.root());
    let differs = |path: &&PathBuf| after.get(*path) != before.get(*path);
    let differing: Vec<_> = after.keys().chain(before.keys()).filter(differs).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn what_another_store_has_is_fetched_as_by_nix_with_its_signatures() {
    for scene in Scene::all() {
        let top = scene.path("top");
        let before = changes(&scene.origin.root());
        let goalctl = scene.pair.goalctl(&scene.drv);
        let fetched = scene.asking(goalctl, &scene.url()).succeed();
        fetched.expect_error(&format!("copying path '{top}' from '{}'...", scene.url()));
        // Neither a lock nor a log of the database.
        assert_unchanged(&scene.origin, &before);
        let nix = scene.pair.nix(&scene.drv);
        scene.asking(nix, &scene.url()).succeed();
        assert_eq!(scene.pair.n_runs(), (0, 0));
        scene.pair.assert_same();
    }
}

#[test]
fn a_path_names_a_store_by_its_root() {
    for scene in Scene::all() {
        scene.realise(&scene.origin.root().to_string_lossy());
        assert_eq!(scene.pair.n_runs(), (0, 0));
        scene.pair.assert_same();
    }
}

#[test]
fn what_nobody_trusted_has_signed_is_built_unless_the_store_is_trusted() {
    for scene in Scene::all() {
        let unknown = Invocation::option;
        let unsigned = scene.pair.goalctl(&scene.drv);
        let built = unknown(unsigned, "substituters", scene.url()).succeed();
        built.expect_error("not taking '");
        built.expect_error(&scene.url());
        let nix = unknown(scene.pair.nix(&scene.drv), "substituters", scene.url());
        nix.succeed();
        assert_eq!(scene.pair.n_runs(), (3, 3));
        let other = Pair::of(scene.pair.by_nix.profile());
        other.tally();
        let drv = other.instantiate(CHAIN);
        for invocation in [other.nix(&drv), other.goalctl(&drv)] {
            let trusted = format!("{}&trusted=true", scene.url());
            unknown(invocation, "substituters", trusted).succeed();
        }
        assert_eq!(other.n_runs(), (0, 0));
        other.assert_same();
    }
}

#[test]
fn a_store_in_which_somebody_writes_is_read_with_what_was_committed_last() {
    for scene in Scene::all() {
        // Its commits are in a log beside the database for as long as somebody has it open.
        let writer = snapshot::open(&scene.origin.database());
        writer
            .execute_batch(
                "pragma wal_autocheckpoint = 0;
                 update ValidPaths set registrationTime = 7;
                 begin immediate; delete from Refs; delete from ValidPaths;",
            )
            .expect("the database is ours");
        let before = changes(&scene.origin.root());
        let goalctl = scene.pair.goalctl(&scene.drv);
        scene.asking(goalctl, &scene.url()).succeed();
        assert_unchanged(&scene.origin, &before);
        assert_eq!(scene.pair.n_runs().1, 0);
        drop(writer);
        scene.pair.assert_sound();
    }
}

#[test]
fn a_store_that_does_not_have_what_its_database_says_is_found_out() {
    for scene in Scene::all() {
        let low = scene.path("low");
        damage::flip_a_bit(&scene.origin.real(&low));
        let asking = || scene.asking(scene.pair.goalctl(&scene.drv), &scene.url());
        let failed = asking().run();
        failed.expect_status(1);
        failed.expect_error(&format!(
            "substituter '{}' does not give '{low}'",
            scene.url()
        ));
        failed.expect_error("hash mismatch");
        debris::assert_clean(&scene.pair.by_goalctl);
        damage::lose(&scene.origin.real(&low));
        let failed = asking().run();
        failed.expect_status(1);
        failed.expect_error("is not there");
        asking().option("fallback", "true").succeed();
        assert_eq!(scene.pair.n_runs().1, 3);
        scene.pair.assert_sound();
    }
}

#[test]
fn no_link_of_another_store_leads_to_what_is_not_its_own() {
    for scene in Scene::all() {
        let low = scene.path("low");
        // The same contents, but somewhere else on this machine.
        let object = scene.origin.real(&low);
        let elsewhere = scene.origin.dir().join("elsewhere");
        let parent = object.parent().expect("an object lies in a folder");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&object, open).expect("the store is ours");
        fs::set_permissions(parent, fs::Permissions::from_mode(0o1775)).expect("it is ours");
        fs::rename(&object, &elsewhere).expect("both are in one file system");
        symlink(&elsewhere, &object).expect("the store is ours");
        let goalctl = scene.pair.goalctl(&scene.drv);
        let failed = scene.asking(goalctl, &scene.url()).run();
        failed.expect_status(1).expect_error(&low);
        debris::assert_clean(&scene.pair.by_goalctl);
    }
}

#[test]
fn addresses_that_name_no_store_are_told_and_nothing_is_made_there() {
    for scene in Scene::all() {
        let nowhere = scene.origin.dir().join("nowhere");
        let addresses = format!(
            "auto daemon ./store local?root=relative {} {}",
            nowhere.display(),
            scene.url()
        );
        let goalctl = scene.pair.goalctl(&scene.drv);
        let told = scene.asking(goalctl, &addresses).succeed();
        told.expect_error("'daemon' in 'substituters' is not used: no daemon is asked");
        told.expect_error("'./store' in 'substituters' is not used");
        told.expect_error("'root' is an absolute path, not 'relative'");
        told.expect_error(&format!("local?root={}", nowhere.display()));
        assert!(!nowhere.exists());
        assert_eq!(scene.pair.n_runs().1, 0);
    }
}

/// A file system whose files can share their contents, unmounted at the end.
struct SharingDisk {
    folder: tempfile::TempDir,
}

impl SharingDisk {
    /// Makes one, or says why not: few machines have the programs for it.
    fn mount(kind: &str) -> Option<Self> {
        let mkfs = requirement::find_program(&format!("mkfs.{kind}"));
        let Some(mkfs) = mkfs.filter(|_| nix::unistd::geteuid().is_root()) else {
            requirement::say(&format!("skipped: mkfs.{kind} and root are needed"));
            return None;
        };
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let [image, point] = ["image", "disk"].map(|name| folder.path().join(name));
        let file = fs::File::create(&image).expect("a fresh file can be made");
        file.set_len(400 << 20).expect("it has no contents");
        fs::create_dir(&point).expect("a fresh folder can be made");
        let run = |command: &mut Command| {
            let output = command.output().expect("it can be run");
            output.status.success()
        };
        let is_mounted = run(Command::new(mkfs).arg("-q").arg(&image))
            && run(Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &point]));
        if !is_mounted {
            requirement::say(&format!("skipped: no {kind} can be mounted here"));
            return None;
        }
        fs::set_permissions(&point, fs::Permissions::from_mode(0o1777)).expect("it is ours");
        Some(Self { folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Returns how many bytes are free when everything has been written.
    fn free(&self) -> u64 {
        let synced = Command::new("sync").arg("-f").arg(self.path()).status();
        assert!(synced.is_ok_and(|status| status.success()));
        let facts = nix::sys::statvfs::statvfs(&self.path()).expect("it is mounted");
        facts.blocks_free() * facts.fragment_size()
    }
}

impl Drop for SharingDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        drop(unmounted);
    }
}

#[test]
fn where_the_file_system_can_both_stores_share_the_contents_of_their_files() {
    const LARGE: u64 = 60 << 20;
    if !requirement::genuine_nix() {
        return;
    }
    for kind in ["btrfs", "xfs"] {
        let Some(disk) = SharingDisk::mount(kind) else {
            continue;
        };
        let [origin, taker] = [(); 2].map(|()| TestStore::beneath(&disk.path(), Profile::Root));
        let tree = origin.dir().join("tree");
        fs::create_dir_all(tree.join("sub/empty")).expect("a fresh folder can be made");
        // Nothing that a file system could leave out or pack.
        let noise = Command::new("head")
            .args(["-c", &LARGE.to_string(), "/dev/urandom"])
            .output()
            .expect("head can be run")
            .stdout;
        fs::write(tree.join("sub/large"), noise).expect("there is room");
        fs::write(tree.join("small"), "x").expect("there is room");
        fs::write(tree.join("nothing"), "").expect("there is room");
        symlink("small", tree.join("link")).expect("a fresh link can be made");
        let added = origin.nix_store(["--add"]).arg(&tree).succeed().output();
        let path = added.trim();
        fs::remove_dir_all(&tree).expect("it is ours");
        // Opens the store once, which takes room of its own.
        taker.goalctl(["store", "ping"]).succeed();
        let before = disk.free();
        let fetch = || {
            let root = origin.root();
            taker
                .goalctl(["ensure", path])
                .option("substituters", root.as_os_str())
        };
        fetch().succeed();
        let n_bytes = before.saturating_sub(disk.free());
        assert!(n_bytes < LARGE / 4, "{kind}: {n_bytes}");
        debris::assert_verifies(&taker);
        debris::assert_clean(&taker);
        let of = |store| snapshot::Snapshot::of(store).objects[path].clone();
        assert_eq!(of(&origin), of(&taker));
        // What was changed since is found out, though not a byte is copied.
        taker.nix_store(["--delete", path]).succeed();
        damage::flip_a_bit(&origin.real(path));
        let failed = fetch().run();
        failed.expect_status(1).expect_error("hash mismatch");
        debris::assert_clean(&taker);
        requirement::say(&format!("{kind}: {n_bytes} bytes for {LARGE}"));
    }
}
