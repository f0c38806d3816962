//! Directories that one build after another gets: nothing of the first reaches the second.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use actix::Addr;
use sandbox::{Disposition, SandboxSupervisor, StopSandbox};
use store_model::settings::SandboxPath;
use store_model::{Derivation, StorePath};
use tokio::time::Instant;

use crate::lab::{Built, Lab, dispose, in_both_profiles};

in_both_profiles! {
    directories_are_used_again_and_nothing_shows_it => super::used_again;
    a_directory_that_a_builder_altered_is_not_used_again => super::altered;
    each_build_sees_its_own_inputs => super::inputs;
    a_fixed_outputs_directories_are_never_used_again => super::fixed_output;
    with_a_directory_of_the_host_each_build_has_its_own_tmp => super::host_directory;
    what_waits_is_deleted_in_the_end => super::deleted;
}

/// Prints what tells directories apart, and everything that is in them.
const LOOK: &str = "stat -c %i /build /nix/store /tmp; stat -c %a /build /nix/store /tmp; \
                    ls -A /build /tmp; ls -A /nix/store";

/// Runs a build, and waits until its directories are gone or wait for another.
async fn run(lab: &Lab, supervisor: &Addr<SandboxSupervisor>, derivation: Derivation) -> Built {
    run_and_hold(lab, supervisor, derivation).await.0
}

/// The same. As long as the directories are held no other gets the number of one of them; somebody
/// whom the builder has passed a descriptor could hold them too.
async fn run_and_hold(
    lab: &Lab,
    supervisor: &Addr<SandboxSupervisor>,
    derivation: Derivation,
) -> (Built, Vec<fs::File>) {
    let built = lab.build(supervisor, 1, derivation).finish().await;
    let builds = lab.layout.state_dir.join("builds");
    let is_used = |name: &String| name.contains("test.drv");
    let outer = builds.join(names(&builds).into_iter().find(is_used).unwrap());
    let scratch = built.exited.scratch.as_ref().unwrap().path.clone();
    let held = [outer.join("build"), scratch, outer.join("tmp")].map(|path| {
        // Of a directory without any permissions too.
        let flags = nix::libc::O_PATH;
        fs::File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .unwrap()
    });
    dispose(supervisor, 1, Disposition::Delete).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while in_use(lab) {
        assert!(Instant::now() < deadline, "the directories stay in use");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (built, held.into())
}

fn in_use(lab: &Lab) -> bool {
    let builds = names(&lab.layout.state_dir.join("builds"));
    let store = names(&lab.layout.real_store_dir);
    builds.iter().any(|name| name.contains("test.drv"))
        || store.iter().any(|name| name.ends_with(".chroot"))
}

fn n_idle(lab: &Lab) -> usize {
    let builds = names(&lab.layout.state_dir.join("builds"));
    builds
        .iter()
        .filter(|name| name.starts_with("nix-build-idle"))
        .count()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|found| found.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn inodes(built: &Built) -> Vec<String> {
    let log = &built.assert_success().log;
    log.lines().take(3).map(str::to_owned).collect()
}

async fn used_again(lab: Lab) {
    let supervisor = lab.start();
    let first = run(&lab, &supervisor, lab.script(LOOK)).await;
    let mess = "for place in /build /tmp /nix/store; do mkdir -p $place/.d/e; touch $place/.d/e/f; \
                ln -s / $place/link; mkfifo $place/fifo; chmod 0 $place/.d; done; touch $out; \
                mv /nix/store/*-busybox /nix/store/moved 2>&1 && exit 1; \
                rmdir /nix/store/*-busybox 2>&1 && exit 1; echo done";
    let messed = run(&lab, &supervisor, lab.script(mess)).await;
    assert!(messed.assert_success().log.ends_with("done\n"));
    let second = run(&lab, &supervisor, lab.script(LOOK)).await;
    assert_eq!(inodes(&first).len(), 3);
    assert_eq!(first.assert_success().log, second.assert_success().log);
    let expected = "700\n1775\n1777\n/build:\n\n/tmp:\n0123456789abcdfghijklmnpqrsvwxyz-busybox\n";
    assert!(first.log.ends_with(expected), "{}", first.log);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn altered(lab: Lab) {
    let supervisor = lab.start();
    // The last two are the store owner's where that is root, and then cannot be altered.
    for directory in ["/build", "/nix/store", "/tmp"] {
        let first = run(&lab, &supervisor, lab.script(LOOK)).await;
        let alter = format!("chmod 0711 {directory} || echo refused");
        let (altered, held) = run_and_hold(&lab, &supervisor, lab.script(&alter)).await;
        let is_refused = altered.assert_success().log.contains("refused");
        let second = run(&lab, &supervisor, lab.script(LOOK)).await;
        assert_eq!(
            inodes(&first) == inodes(&second),
            is_refused,
            "{directory}: {} {}",
            first.log,
            second.log
        );
        let modes = |built: &Built| built.log.lines().skip(3).take(3).collect::<String>();
        assert_eq!(modes(&second), "70017751777");
        drop(held);
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn inputs(mut lab: Lab) {
    let busybox = lab.inputs.clone();
    let mut closures = Vec::new();
    for generation in 0..24_u32 {
        // Small and large ones, so that both ways of mounting have their turn, and directories,
        // files and links that take each other's places.
        let n_inputs = if generation % 5 == 0 { 3 } else { 30 };
        lab.inputs.clone_from(&busybox);
        for idx in 0..n_inputs {
            let path = lab.add_input(&format!("input-{}", generation % 7 * 10 + idx));
            let real = lab.real(&path);
            if real.symlink_metadata().is_ok() {
                continue;
            }
            match idx % 3 {
                0 => {
                    fs::create_dir(&real).unwrap();
                    fs::write(real.join("content"), path.base_name()).unwrap();
                }
                1 => fs::write(&real, path.base_name()).unwrap(),
                _ => std::os::unix::fs::symlink(path.base_name(), &real).unwrap(),
            }
        }
        closures.push(lab.inputs.clone());
    }
    let supervisor = lab.start();
    let script = "cd /nix/store; for input in *-input-*; do \
                      if [ -L $input ]; then [ $(readlink $input) = $input ]; \
                      elif [ -d $input ]; then [ $(cat $input/content) = $input ]; \
                      else [ $(cat $input) = $input ]; fi; done; \
                  touch *-input-* 2>/dev/null && exit 1; ls -A; : > $out";
    let mut kinds_of_store = std::collections::BTreeSet::new();
    for closure in closures {
        lab.inputs = closure;
        let mounted = format!("{script}; stat -f -c %t /nix/store > $out");
        let built = run(
            &lab,
            &supervisor,
            lab.script(&format!("{mounted}; cat $out")),
        )
        .await;
        let mut lines: Vec<&str> = built.assert_success().log.lines().collect();
        kinds_of_store.insert(lines.pop().unwrap().to_owned());
        let expected: Vec<&str> = lab.inputs.iter().map(StorePath::base_name).collect();
        assert_eq!(lines, expected);
    }
    assert_eq!(kinds_of_store.len(), 2, "an overlay and the disk itself");
    supervisor.send(StopSandbox).await.unwrap();
}

async fn fixed_output(lab: Lab) {
    let supervisor = lab.start();
    run(&lab, &supervisor, lab.fixed_script(": > $out")).await;
    assert_eq!(n_idle(&lab), 0);
    run(&lab, &supervisor, lab.script(": > $out")).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while n_idle(&lab) < 2 {
        assert!(Instant::now() < deadline, "nothing waits");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn host_directory(mut lab: Lab) {
    let shared = lab.root().join("shared");
    fs::create_dir(&shared).unwrap();
    lab.settings.sandbox_paths.push(SandboxPath {
        target: "/shared".into(),
        source: shared,
        optional: false,
        writable: false,
    });
    let supervisor = lab.start();
    let (first, held) = run_and_hold(&lab, &supervisor, lab.script(LOOK)).await;
    let second = run(&lab, &supervisor, lab.script(LOOK)).await;
    let (first, second) = (inodes(&first), inodes(&second));
    assert_eq!(first[..2], second[..2]);
    assert_ne!(first[2], second[2], "/tmp, whose inode is still held");
    drop(held);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn deleted(lab: Lab) {
    let supervisor = lab.start();
    run(&lab, &supervisor, lab.script(": > $out")).await;
    // Without being told to stop.
    drop(supervisor);
    let deadline = Instant::now() + Duration::from_secs(20);
    while n_idle(&lab) > 0 {
        assert!(Instant::now() < deadline, "it waits for ever");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    lab.assert_clean();
}
