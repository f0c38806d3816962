//! What a start finds, what a stop leaves, and the order in which things reach the disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::messages::{DiscardInvalidPaths, QueryValidPaths};
use crate::testing::{Scratch, TestStore, path, skip};

#[actix::test]
async fn a_stop_leaves_no_thread_no_file_and_no_row_behind() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("out", &path('a', "out")), "x").unwrap();
    // Asked for, but not waited for: a stop does what is queued.
    let registering = registry.store.send(scratch.finish());
    let registering = actix::spawn(registering);
    tokio::task::yield_now().await;
    registry.stop().await;
    registering.await.unwrap().unwrap().unwrap();
    let names: BTreeSet<String> = fs::read_dir(store.layout().real_store_dir)
        .unwrap()
        .map(|listed| listed.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted = [".links".to_owned(), path('a', "out").to_string()];
    assert_eq!(names, wanted.into());
    let temp_roots = store.layout().state_dir.join("temproots");
    assert_eq!(fs::read_dir(temp_roots).unwrap().count(), 0);
    let wal = store.layout().state_dir.join("db/db.sqlite-wal");
    assert!(!wal.exists(), "the last connection folds the log");
    registry.stop().await;
}

#[actix::test]
async fn what_a_crash_leaves_is_removed_by_the_next_start_or_the_next_build() {
    let store = TestStore::new();
    store.start().stop().await;
    let objects = store.layout().real_store_dir;
    // A copy half made, trash, a lock, and an output in place whose row was never written.
    fs::create_dir_all(objects.join("tmp-99999-0/3/sub")).unwrap();
    fs::create_dir_all(objects.join(".tmp-old")).unwrap();
    let ours = objects.join(path('c', "goalctl-tmp").base_name());
    fs::create_dir_all(ours.join("3/sub")).unwrap();
    fs::set_permissions(&ours, fs::Permissions::from_mode(0o700)).unwrap();
    // An object may have such a name, too.
    let object = path('f', "goalctl-tmp").to_string();
    fs::create_dir(objects.join(&object)).unwrap();
    fs::set_permissions(objects.join(&object), fs::Permissions::from_mode(0o555)).unwrap();
    let leftover = path('a', "out");
    fs::write(objects.join(format!("{leftover}.lock")), "").unwrap();
    fs::write(objects.join(leftover.base_name()), "half").unwrap();
    // What the sandbox cleans up itself is not ours to touch.
    let chroot = format!("{}.chroot", path('b', "x.drv"));
    fs::create_dir(objects.join(&chroot)).unwrap();
    let alive = fs::File::open(&objects).unwrap();
    fs::create_dir(objects.join("tmp-alive")).unwrap();
    let alive_dir = fs::File::open(objects.join("tmp-alive")).unwrap();
    rustix::fs::flock(&alive_dir, rustix::fs::FlockOperation::LockExclusive).unwrap();
    drop(alive);

    let registry = store.start();
    let paths = vec![leftover.clone()];
    let valid = registry.store.send(QueryValidPaths { paths }).await;
    assert_eq!(valid.unwrap().unwrap(), BTreeSet::new());
    let paths = vec![leftover.clone()];
    let discarded = registry.store.send(DiscardInvalidPaths { paths }).await;
    discarded.unwrap().unwrap();
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("out", &leftover), "whole").unwrap();
    registry.register(scratch.finish()).await.unwrap();
    registry.stop().await;
    let names: BTreeSet<String> = fs::read_dir(&objects)
        .unwrap()
        .map(|listed| listed.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted = [
        ".links".to_owned(),
        "tmp-alive".to_owned(),
        object,
        chroot,
        leftover.to_string(),
    ];
    assert_eq!(names, wanted.into());
    assert_eq!(fs::read(store.real_path(&leftover)).unwrap(), b"whole");
}

/// Runs another test of this program under strace; returns the calls of the registry's threads.
fn trace(test: &str, calls: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let ran = Command::new("strace")
        .args(["-f", "-y", "--decode-pids=comm", "-e", calls, "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .output();
    let Ok(output) = ran else {
        skip("strace is not here");
        return None;
    };
    assert!(output.status.success(), "{output:?}");
    let traced = fs::read_to_string(&log).unwrap();
    let of_registry = |line: &&str| line.contains("<registry-");
    Some(
        traced
            .lines()
            .filter(of_registry)
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

#[test]
fn contents_and_names_are_synced_before_the_row_is_written() {
    let test = "ingest::outputs::tests::references_among_outputs_and_to_oneself_are_recorded";
    let Some(calls) = trace(test, "trace=renameat2,syncfs,fsync,fdatasync") else {
        return;
    };
    let position = |what: &str| {
        calls
            .find(what)
            .unwrap_or_else(|| panic!("no {what} in:\n{calls}"))
    };
    let renamed = calls.rfind("renameat2(").unwrap();
    // Either the whole file system at once, or each file and then the directory of their names.
    let synced = if calls.contains("syncfs(") {
        assert_eq!(calls.matches("syncfs(").count(), 1, "{calls}");
        position("syncfs(")
    } else {
        for output in [path('a', "out"), path('b', "out-dev")] {
            assert!(
                position(&format!("/nix/store/{output}>)")) > renamed,
                "{calls}"
            );
        }
        position("/nix/store>)")
    };
    let row = calls.rfind("db.sqlite-wal").unwrap();
    assert!(renamed < synced && synced < row, "{calls}");
}

#[test]
fn no_metadata_is_ever_set_by_a_path_that_a_builder_could_change() {
    let test = "ingest::outputs::tests::an_output_gets_the_metadata_that_every_object_has";
    let calls = "trace=chmod,chown,lchown,utime,utimes,futimesat,fchmodat,fchownat,utimensat,\
                 rename,renameat,renameat2,unlink,rmdir,open,openat,lstat,newfstatat";
    let Some(calls) = trace(test, calls) else {
        return;
    };
    let mut n_lines = 0;
    for line in calls.lines().filter(|line| line.contains("-out")) {
        n_lines += 1;
        // With -y a descriptor is shown with its path; an argument that is a path is quoted.
        for quoted in line.split('"').skip(1).step_by(2) {
            assert!(!quoted.contains('/'), "{line}");
        }
    }
    assert!(n_lines > 10, "{calls}");
}

#[actix::test]
async fn a_store_that_is_read_only_is_told_apart_at_the_start() {
    if !crate::testing::is_root("a_store_that_is_read_only_is_told_apart_at_the_start") {
        return;
    }
    let store = TestStore::new();
    store.start().stop().await;
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && exec \"$0\" \
                  --exact start::tests::inner_start_of_a_read_only_store --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(store.layout().real_store_dir)
        .env("GOAL_TEST_ROOT", &store.root)
        .output();
    let Ok(output) = output else {
        return skip("unshare is not here");
    };
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("mount") {
        return skip("mounting is not allowed here");
    }
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("refused: "), "{said}");
}

/// The other half of the test above, and nothing on its own.
#[actix::test]
#[expect(clippy::print_stdout, reason = "the outer test reads it")]
async fn inner_start_of_a_read_only_store() {
    let Some(root) = std::env::var_os("GOAL_TEST_ROOT") else {
        return;
    };
    let layout = StoreLayout::under_root(Path::new(&root));
    let Err(Error::File {
        operation,
        path,
        source,
    }) = start(layout.clone(), &Settings::default())
    else {
        panic!("not refused");
    };
    assert_eq!(path, layout.real_store_dir);
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    println!("refused: {operation}");
}

/// Runs the inner test below on `store` while calls of the kernel fail; returns what it said.
fn register_under(store: &TestStore, injection: &str) -> Option<String> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qqq", "-o", "/dev/null", "-e", injection]);
    if injection.starts_with("inject=pwrite64:error") {
        // Only where rows are written: the index beside them is made at every start.
        let log = store.layout().state_dir.join("db/db.sqlite-wal");
        strace.arg("-P").arg(log);
    }
    let ran = strace
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "start::tests::inner_registration", "--nocapture"])
        .env("GOAL_TEST_ROOT", &store.root)
        .output();
    let Ok(output) = ran else {
        skip("strace is not here");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(format!("{said}{}", output.status))
}

#[actix::test]
async fn a_kernel_that_fails_registers_nothing_and_leaves_nothing() {
    for (injection, words) in [
        ("inject=syncfs,fsync:error=EIO", ["syncing", "syncing"]),
        // The log of the database; or contents, where much is unwritten.
        ("inject=fsync:error=EIO", ["disk I/O error", "syncing"]),
        (
            "inject=renameat2:error=ENOSPC",
            ["moving a build output"; 2],
        ),
        ("inject=pwrite64:error=ENOSPC", ["is full"; 2]),
    ] {
        let store = TestStore::new();
        store.start().stop().await;
        let Some(said) = register_under(&store, injection) else {
            return;
        };
        assert!(said.contains("failed: "), "{injection}: {said}");
        let is_told = words.iter().any(|words| said.contains(words));
        assert!(is_told, "{injection}: {said}");
        assert_eq!(store.objects(), BTreeSet::new(), "{injection}");
        expect_working(&store).await;
    }
}

#[actix::test]
async fn a_program_killed_at_any_call_leaves_a_store_that_works() {
    for call in ["renameat2", "syncfs,fsync", "fsync", "pwrite64", "unlinkat"] {
        for nth in 1..=4 {
            let store = TestStore::new();
            store.start().stop().await;
            let injection = format!("inject={call}:signal=KILL:when={nth}");
            let Some(said) = register_under(&store, &injection) else {
                return;
            };
            let is_done = said.contains("registered");
            let registry = store.start_and_settle().await;
            let paths = vec![path('a', "out")];
            let valid = registry.store.send(QueryValidPaths { paths }).await;
            let is_valid = !valid.unwrap().unwrap().is_empty();
            assert!(is_valid || !is_done, "{injection}: {said}");
            // A valid path has its contents.
            if is_valid {
                let contents = fs::read(store.real_path(&path('a', "out"))).unwrap();
                assert_eq!(contents, b"contents");
            }
            registry.stop().await;
            if !is_valid {
                expect_working(&store).await;
            }
        }
    }
}

/// Registers the same output again, as the next build would.
async fn expect_working(store: &TestStore) {
    let registry = store.start();
    let paths = vec![path('a', "out")];
    let discarded = registry.store.send(DiscardInvalidPaths { paths }).await;
    discarded.unwrap().unwrap();
    let mut scratch = Scratch::new(store);
    fs::write(scratch.output("out", &path('a', "out")), "contents").unwrap();
    registry.register(scratch.finish()).await.unwrap();
    registry.stop().await;
    let names: BTreeSet<String> = fs::read_dir(store.layout().real_store_dir)
        .unwrap()
        .map(|listed| listed.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted = [".links".to_owned(), path('a', "out").to_string()];
    assert_eq!(names, wanted.into());
}

/// The other half of the two tests above, and nothing on its own.
#[actix::test]
#[expect(clippy::print_stdout, reason = "the outer test reads it")]
async fn inner_registration() {
    let Some(root) = std::env::var_os("GOAL_TEST_ROOT") else {
        return;
    };
    let store = TestStore::at(Path::new(&root));
    let registry = match start(store.layout(), &Settings::default()) {
        Ok(registry) => registry,
        Err(error) => return println!("failed: {error:?}"),
    };
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("out", &path('a', "out")), "contents").unwrap();
    match registry.register(scratch.finish()).await {
        Ok(_) => println!("registered"),
        Err(error) => println!("failed: {error} {error:?}"),
    }
    registry.stop().await;
}
