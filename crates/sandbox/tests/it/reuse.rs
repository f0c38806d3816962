//! Directories that one build after another gets: nothing of the first reaches the second.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use actix::Addr;
use sandbox::{BuildId, CancelBuild, Disposition, SandboxSupervisor, StopSandbox};
use store_model::settings::SandboxPath;
use store_model::{Derivation, StorePath};
use tokio::time::Instant;

use crate::lab::{Built, Lab, Profile, dispose, in_both_profiles, profile, store_path};

in_both_profiles! {
    directories_are_used_again_and_nothing_shows_it => super::used_again;
    a_directory_that_a_builder_altered_is_not_used_again => super::altered;
    each_build_sees_its_own_inputs => super::inputs;
    a_closure_that_was_mounted_before_is_mounted_again_and_locked => super::mounted_before;
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

async fn mounted_before(mut lab: Lab) {
    for idx in 0..40 {
        let path = lab.add_input(&format!("input-{idx:02}"));
        fs::write(lab.real(&path), "old").unwrap();
    }
    let supervisor = lab.start();
    let script = "cd /nix/store; cat *-input-* | sed 's/old/o/g; s/new/n/g'; echo; ls | wc -l; \
                  unshare -Urm sh -c 'umount *-input-00 || umount -l *-input-00 || \
                  mount -o remount,rw,bind *-input-00' 2>/dev/null && exit 1; \
                  rm -f *-input-00 2>/dev/null && exit 2; \
                  mv *-input-01 x 2>/dev/null && exit 3; for input in *-input-02; do echo >> $input && exit 4; done; \
                  echo mine > mine; exit 0";
    let mut first = lab.build(&supervisor, 2, lab.script("echo here; sleep 60"));
    let launcher = parent(first.started().await.pid);
    supervisor.do_send(CancelBuild {
        build_id: BuildId(2),
    });
    first.finish().await;
    dispose(&supervisor, 2, Disposition::Delete).await;
    let mut n_descriptors = Vec::new();
    // Overlays first, then mounts that only one build has, then the same for several.
    for _ in 0..8 {
        let built = run(&lab, &supervisor, lab.script(script)).await;
        let log = &built.assert_success().log;
        assert!(
            log.starts_with(&format!("{}\n41\n", "o".repeat(40))),
            "{log}"
        );
        n_descriptors.extend(fs::read_dir(format!("/proc/{launcher}/fd")).map(Iterator::count));
    }
    if profile() == Profile::Root {
        let (first, last) = (n_descriptors[0], n_descriptors[n_descriptors.len() - 1]);
        assert_eq!(last, first + 1, "the view is kept: {n_descriptors:?}");
    }
    // Another object of the same name, as after a collection or a repair.
    let path = lab.real(&store_path("input-07"));
    let other = lab.root().join("other");
    fs::write(&other, "new").unwrap();
    fs::rename(&other, &path).unwrap();
    for _ in 0..4 {
        let built = run(&lab, &supervisor, lab.script(script)).await;
        let expected = format!("{}n{}\n41\n", "o".repeat(7), "o".repeat(32));
        let log = &built.assert_success().log;
        assert!(log.starts_with(&expected), "{log}");
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

/// Returns the parent of a process.
fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
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
