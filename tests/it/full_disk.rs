//! A file system that runs full, of bytes or of inodes, while builders and goalctl write to it.

use std::path::Path;
use std::process::Command;

use it::{Profile, TestStore, debris, requirement};

/// A small file system of one's own, unmounted at the end.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one; `options` are those of tmpfs.
    fn mount(options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "goal-it"])
            .arg(folder.path())
            .status()
            .expect("mount can be run");
        assert!(status.success(), "a tmpfs can be mounted by root");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that a failed test's processes do not keep it in the mount table.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        drop(unmounted);
    }
}

#[test]
fn a_builder_that_fills_the_disk_fails_for_now_and_leaves_it_empty() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    for profile in Profile::all() {
        let disk = SmallDisk::mount("size=40m");
        let store = TestStore::beneath(disk.path(), profile);
        let drv = store.script("greedy", "dd if=/dev/zero of=$out bs=1M");
        let finished = store.goalctl(["build", &drv]).run();
        // Transient: with more space it may succeed.
        finished.expect_status(1).expect_error(&drv);
        finished.expect_error("space");
        debris::assert_clean(&store);
        let modest = store.script("modest", "echo x > $out");
        store.goalctl(["build", &modest]).succeed();
        debris::assert_clean(&store);
    }
}

#[test]
fn a_builder_that_uses_up_the_inodes_fails_and_leaves_them_free() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    let disk = SmallDisk::mount("size=60m,nr_inodes=1500");
    let store = TestStore::beneath(disk.path(), Profile::Root);
    let drv = store.script(
        "scattering",
        "mkdir $out; cd $out; n=0; while : > $n; do n=$((n + 1)); done; exit 1",
    );
    let finished = store.goalctl(["build", &drv]).run();
    assert!([1, 100].contains(&finished.code()), "{finished}");
    finished.expect_error(&drv);
    debris::assert_clean(&store);
    let modest = store.script("modest", "echo x > $out");
    store.goalctl(["build", &modest]).succeed();
}

#[test]
fn an_archive_that_does_not_fit_is_not_imported_and_leaves_the_disk_empty() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    let source = TestStore::new();
    let exported = |name: &str, script: &str| {
        let drv = source.script(name, script);
        source.nix_store(["--realise", &drv]).succeed();
        let path = source.output_of(&drv, "out");
        let stream = source.goalctl(["export", &path]).succeed().output_bytes();
        let file = source.dir().join(name);
        std::fs::write(&file, stream).expect("a fresh file can be written");
        std::fs::File::open(&file).expect("it was just made")
    };
    let large = exported(
        "large",
        "mkdir $out; dd if=/dev/zero of=$out/x bs=1M count=20",
    );
    let modest = exported("modest", "echo x > $out");
    // Room for the archive that is put aside, but not for it and what is in it.
    let disk = SmallDisk::mount("size=32m");
    let store = TestStore::beneath(disk.path(), Profile::Root);
    let finished = store.goalctl(["import"]).input(large).run();
    finished
        .expect_status(1)
        .expect_error("writing '/nix/store/");
    finished.expect_error("space");
    debris::assert_clean(&store);
    store.goalctl(["import"]).input(modest).succeed();
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}
