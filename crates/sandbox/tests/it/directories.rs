//! The directories of a build: who may pass them, what stays, and what goes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use sandbox::{Disposition, StopSandbox};

use crate::lab::{Lab, dispose, in_both_profiles};

in_both_profiles! {
    a_builder_writes_its_output_into_the_scratch_directory => super::writes_output;
    nobody_passes_the_outer_directories => super::outer_directories;
    everything_a_builder_leaves_can_be_deleted => super::hostile_trees;
    deleting_follows_no_link => super::links;
    a_kept_build_keeps_its_files_and_its_outputs => super::kept;
    a_failed_output_is_not_left_in_the_store => super::failed_output;
    leftovers_of_a_dead_program_are_deleted => super::leftovers;
    a_directory_of_another_program_is_left_alone => super::others;
    a_build_directory_that_everybody_may_write_is_refused => super::world_writable;
    another_build_directory_can_be_chosen => super::chosen;
}

async fn writes_output(lab: Lab) {
    let supervisor = lab.start();
    let derivation = lab.script("echo hello; mkdir $out; echo content > $out/file");
    let built = lab.build(&supervisor, 1, derivation).finish().await;
    built.assert_success();
    assert_eq!(built.log, "hello\n");
    assert_eq!(built.exited.log_tail, ["hello"]);
    let file = built.output().join("file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content\n");
    let scratch = built.exited.scratch.as_ref().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().uid(), scratch.builder_uid);
    assert_eq!(built.uid, Some(scratch.builder_uid));
    assert!(built.pid.is_some());
    let store = fs::metadata(&lab.layout.real_store_dir).unwrap();
    assert_eq!(fs::metadata(&scratch.path).unwrap().dev(), store.dev());
    assert_eq!(dispose(&supervisor, 1, Disposition::Delete).await, None);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn outer_directories(lab: Lab) {
    let supervisor = lab.start();
    let script = "chmod 777 . /nix/store $PWD/.. || true; touch $out; echo ready; sleep 60";
    let mut building = lab.build(&supervisor, 1, lab.script(script));
    building.wait_for("ready").await;
    let own_uid = fs::metadata("/proc/self").unwrap().uid();
    let mut n_outer = 0;
    for parent in [
        lab.layout.state_dir.join("builds"),
        lab.layout.real_store_dir.clone(),
    ] {
        for found in fs::read_dir(parent).unwrap() {
            let found = found.unwrap();
            let name = found.file_name().into_string().unwrap();
            if name.ends_with(".chroot") || name.starts_with("nix-build-test.drv-") {
                let stat = found.metadata().unwrap();
                assert_eq!(
                    (stat.mode() & 0o7777, stat.uid()),
                    (0o700, own_uid),
                    "{name}"
                );
                n_outer += 1;
            }
        }
    }
    assert_eq!(n_outer, 2);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn hostile_trees(lab: Lab) {
    let script = "for place in /build /tmp $out; do mkdir -p $place/d/e; touch $place/d/e/f; \
                  mkfifo $place/fifo; chmod 000 $place/d/e; chmod 100 $place/d; done; \
                  mkdir deep; cd deep; for i in $(seq 300); do mkdir x; cd x; done; \
                  echo bottom > file; chmod 000 .; chmod 555 $out; exit 1";
    lab.run(script).await;
    lab.assert_clean();
}

async fn links(lab: Lab) {
    let precious = lab.root().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!("ln -s {} link; ln -s {0} $out; exit 1", precious.display());
    lab.run(&script).await;
    lab.assert_clean();
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "kept");
}

async fn kept(lab: Lab) {
    let supervisor = lab.start();
    let script = "echo evidence > file; mkdir $out; echo partly > $out/file; chmod 777 .; exit 1";
    lab.build(&supervisor, 1, lab.script(script)).finish().await;
    let kept = dispose(&supervisor, 1, Disposition::Keep).await.unwrap();
    supervisor.send(StopSandbox).await.unwrap();
    assert_eq!(
        fs::read_to_string(kept.join("build/file")).unwrap(),
        "evidence\n"
    );
    let output = kept.join("outputs/0123456789abcdfghijklmnpqrsvwxyz-test/file");
    assert_eq!(fs::read_to_string(output).unwrap(), "partly\n");
    let stat = fs::metadata(&kept).unwrap();
    assert_eq!(stat.mode() & 0o777, 0o700);
    assert_eq!(stat.uid(), fs::metadata("/proc/self").unwrap().uid());
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 2);
    assert_eq!(fs::read_dir(&lab.layout.real_store_dir).unwrap().count(), 1);

    // Neither the next start nor the next failure touches it.
    let supervisor = lab.start();
    lab.build(&supervisor, 1, lab.script("exit 1"))
        .finish()
        .await;
    let second = dispose(&supervisor, 1, Disposition::Keep).await.unwrap();
    supervisor.send(StopSandbox).await.unwrap();
    assert_ne!(kept, second);
    assert!(kept.join("build/file").exists());
}

async fn failed_output(lab: Lab) {
    let supervisor = lab.start();
    let script = "touch $out; chmod 0777 $out; exit 1";
    let built = lab.build(&supervisor, 1, lab.script(script)).finish().await;
    let scratch = built.exited.scratch.as_ref().unwrap();
    assert_ne!(scratch.path, lab.layout.real_store_dir);
    assert!(
        !lab.layout
            .real_store_dir
            .join(built.output().file_name().unwrap())
            .exists()
    );
    dispose(&supervisor, 1, Disposition::Delete).await;
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn leftovers(lab: Lab) {
    lab.run("true").await.assert_success();
    let builds = lab.layout.state_dir.join("builds");
    fs::create_dir_all(builds.join("nix-build-dead.drv-0/build/x")).unwrap();
    let name = "0123456789abcdfghijklmnpqrsvwxyz-dead.drv.chroot";
    let chroot = lab.layout.real_store_dir.join(name);
    fs::create_dir_all(chroot.join("goalctl-store/y")).unwrap();
    let supervisor = lab.start();
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn others(lab: Lab) {
    // A running Nix does not lock its own.
    let name = "0123456789abcdfghijklmnpqrsvwxyz-test.drv.chroot";
    let chroot = lab.layout.real_store_dir.join(name);
    fs::create_dir_all(chroot.join("root/nix/store")).unwrap();
    let builds = lab.layout.state_dir.join("builds");
    fs::create_dir_all(builds.join("nix-build-dead.drv-0")).unwrap();
    lab.run("true").await.assert_success();
    assert!(chroot.join("root/nix/store").exists());
    assert!(!builds.join("nix-build-dead.drv-0").exists());
}

async fn world_writable(lab: Lab) {
    let mut lab = lab;
    let open = lab.root().join("open");
    fs::create_dir(&open).unwrap();
    let refused = |lab: &Lab| {
        let environment = lab.host_environment.clone();
        let error = sandbox::start(lab.layout.clone(), &lab.settings, environment).unwrap_err();
        error.to_string()
    };
    for mode in [0o777, 0o1777] {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        lab.settings.build_dir = Some(open.clone());
        assert!(refused(&lab).contains("can be written by everybody"));
    }
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    lab.settings.build_dir = Some(open.join("below"));
    assert!(refused(&lab).contains("can be written by everybody"));
    symlink(&open, lab.root().join("link")).unwrap();
    lab.settings.build_dir = Some(lab.root().join("link"));
    assert!(refused(&lab).contains("can be written by everybody"));
}

async fn chosen(lab: Lab) {
    let mut lab = lab;
    let chosen = lab.root().join("chosen");
    lab.settings.build_dir = Some(chosen.clone());
    lab.settings.sandbox_build_dir = "/work/here".into();
    let built = lab
        .run("pwd; echo $TMPDIR; touch file; grep -c :/work/here: /etc/passwd")
        .await;
    assert_eq!(built.assert_success().log, "/work/here\n/work/here\n2\n");
    assert_eq!(fs::read_dir(chosen).unwrap().count(), 0);
}
