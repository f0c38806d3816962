//! What a builder can reach, and above all what it cannot.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};

use sandbox::BuildVerdict;
use store_model::settings::SandboxPath;

use crate::lab::{Lab, in_both_profiles};

in_both_profiles! {
    only_three_descriptors_are_open => super::descriptors;
    nothing_of_the_host_is_in_sight => super::host_files;
    inputs_cannot_be_changed => super::inputs_are_read_only;
    not_even_root_of_a_nested_namespace_changes_inputs => super::inputs_stay_read_only;
    a_nested_sandbox_can_be_made => super::nesting;
    nesting_is_denied_and_proc_covered_on_demand => super::no_nesting;
    inputs_of_every_kind_are_seen_as_they_are => super::kinds_of_inputs;
    a_large_closure_is_seen_too => super::large_closure;
    the_root_directory_is_read_only => super::sealed_root;
    the_machine_cannot_be_configured => super::kernel_knobs;
    other_processes_cannot_be_touched => super::other_processes;
    there_is_no_terminal_to_type_into => super::no_terminal;
    devices_are_there => super::devices;
    abstract_sockets_of_the_host_are_out_of_reach => super::abstract_sockets;
    fixed_outputs_see_the_hosts_network => super::host_network;
    host_paths_are_shown_as_configured => super::host_paths;
    mount_points_are_never_made_on_the_host => super::no_mount_point_on_host;
    a_builder_in_proc_or_dev_is_refused => super::builder_in_proc;
    the_launcher_cannot_be_overwritten => super::launcher_is_sealed;
    no_mount_is_left_on_the_host => super::no_mounts_left;
}

async fn descriptors(lab: Lab) {
    let built = lab.run("exec ls -1 /proc/self/fd").await;
    // The fourth is how ls reads the directory.
    assert_eq!(built.assert_success().log, "0\n1\n2\n3\n");
    let built = lab
        .run("for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done")
        .await;
    let lines: Vec<&str> = built.assert_success().log.lines().collect();
    assert_eq!(lines[0], "/dev/null");
    assert_eq!(lines[1], lines[2]);
    let built = lab
        .run("echo one > /dev/stdout; echo two > /proc/self/fd/2")
        .await;
    assert_eq!(built.assert_success().log, "one\ntwo\n");
}

async fn host_files(lab: Lab) {
    let canary = lab.root().join("canary");
    fs::write(&canary, "secret").unwrap();
    let script = format!(
        "ls -1A /; ls -1 /etc; ls -1A /nix/store; \
         cat {} && exit 1; cat /proc/self/mountinfo; ls /proc/1/root/ && exit 1; \
         ls /proc/self/cwd/../..; exit 0",
        canary.display()
    );
    let built = lab.run(&script).await;
    built.assert_success();
    let store = "0123456789abcdfghijklmnpqrsvwxyz-busybox";
    let expected = format!("build\ndev\netc\nnix\nproc\ntmp\ngroup\nhosts\npasswd\n{store}\n");
    assert!(built.log.starts_with(&expected), "{}", built.log);
    assert!(!built.log.contains("secret"), "{}", built.log);
    for line in built.log.lines().filter(|line| line.contains(" - ")) {
        assert!(
            !line.contains("master:") && !line.contains("shared:"),
            "{line}"
        );
    }
}

async fn inputs_are_read_only(lab: Lab) {
    let mut lab = lab;
    let input = lab.add_input("input");
    let real = lab.real(&input);
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "original").unwrap();
    let script = "input=/nix/store/*-input; \
         chmod -R u+w $input && exit 1; echo x >> $input/file && exit 2; rm -rf $input && exit 3; \
         touch $input/new && exit 4; mv $input /nix/store/moved && exit 5; umount $input && exit 6; \
         echo mine > /nix/store/mine; cat $input/file";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(built.log.ends_with("original\n"), "{}", built.log);
    assert_eq!(fs::read_to_string(real.join("file")).unwrap(), "original");
}

async fn inputs_stay_read_only(lab: Lab) {
    let mut lab = lab;
    let input = lab.add_input("input");
    let real = lab.real(&input);
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "original").unwrap();
    let script = "unshare -Urm sh -c '\
         id -u; input=$(echo /nix/store/*-input); \
         mount -o remount,rw,bind $input $input && exit 1; \
         mount -o remount,rw $input && exit 2; \
         umount $input && exit 3; umount -l $input && exit 4; \
         echo x >> $input/file && exit 5; chmod u+w $input/file && exit 6; \
         mount -o bind $input /tmp && echo x >> /tmp/file && exit 7; \
         echo survived'";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(built.log.starts_with("0\n"), "{}", built.log);
    assert!(built.log.ends_with("survived\n"), "{}", built.log);
    assert_eq!(fs::read_to_string(real.join("file")).unwrap(), "original");
}

async fn nesting(lab: Lab) {
    let script = "unshare -Urmpf sh -c 'mount -t proc proc /proc && ls -d /proc/1 && \
                  mount -t tmpfs tmpfs /tmp && echo works'";
    let built = lab.run(script).await;
    assert_eq!(built.assert_success().log, "/proc/1\nworks\n");
}

async fn no_nesting(lab: Lab) {
    let mut lab = lab;
    lab.settings.allow_nested_userns = false;
    let script = "unshare -Ur true && exit 1; echo 1 > /proc/sys/kernel/panic && exit 2; \
                  for f in keys sysrq-trigger kcore timer_list; do \
                  test ! -e /proc/$f || test -z \"$(cat /proc/$f)\" || exit 3; done; \
                  ls -d /proc/self && echo done";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(built.log.contains("Read-only file system"), "{}", built.log);
    assert!(built.log.ends_with("/proc/self\ndone\n"), "{}", built.log);
}

async fn kinds_of_inputs(lab: Lab) {
    let mut lab = lab;
    let file = lab.add_input("file");
    fs::write(lab.real(&file), "a file").unwrap();
    let program = lab.add_input("program");
    fs::write(lab.real(&program), "#!/nix/store/none\n").unwrap();
    fs::set_permissions(lab.real(&program), fs::Permissions::from_mode(0o555)).unwrap();
    let link = lab.add_input("link");
    symlink("0123456789abcdfghijklmnpqrsvwxyz-file", lab.real(&link)).unwrap();
    let script = "cat /nix/store/*-file; readlink /nix/store/*-link; cat /nix/store/*-link; \
                  test -x /nix/store/*-program; echo; \
                  rm -f /nix/store/*-file && exit 1; ls /nix/store | wc -l";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(
        built
            .log
            .starts_with("a file0123456789abcdfghijklmnpqrsvwxyz-file\na file\n"),
        "{}",
        built.log
    );
    assert!(built.log.ends_with("\n4\n"), "{}", built.log);
}

async fn large_closure(lab: Lab) {
    let mut lab = lab;
    for idx in 0..300 {
        let input = lab.add_input(&format!("input-{idx}"));
        let real = lab.real(&input);
        match idx % 3 {
            0 => fs::create_dir(&real).unwrap(),
            1 => fs::write(&real, "a file").unwrap(),
            _ => symlink("nowhere", &real).unwrap(),
        }
    }
    let script = "ls /nix/store | wc -l; cat /nix/store/*-input-1; readlink /nix/store/*-input-2; \
         touch /nix/store/*-input-0/x && exit 1; rm -rf /nix/store/*-input-1 && exit 2; \
         mkdir $out; echo made > $out/file; ln -s $out /nix/store/also; ls /nix/store | wc -l";
    let supervisor = lab.start();
    let built = lab.build(&supervisor, 1, lab.script(script)).finish().await;
    built.assert_success();
    assert!(
        built.log.starts_with("301\na filenowhere\n"),
        "{}",
        built.log
    );
    assert!(built.log.ends_with("303\n"), "{}", built.log);
    assert_eq!(
        fs::read_to_string(built.output().join("file")).unwrap(),
        "made\n"
    );
    // The scratch directory holds what the builder made and no mount point.
    let scratch = built.exited.scratch.as_ref().unwrap();
    assert_eq!(fs::read_dir(&scratch.path).unwrap().count(), 2);
    supervisor.send(sandbox::StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn sealed_root(lab: Lab) {
    let script = "for place in / /etc /dev /nix; do touch $place/x && exit 1; done; \
                  mkdir /etc/ld.so.preload && exit 2; rm -f /etc/passwd && exit 3; \
                  touch /tmp/x /build/x /dev/shm/x /nix/store/x; ln -s a /nix/store/y; \
                  stat -c '%a' /etc /tmp /nix/store /build";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(
        built.log.ends_with("555\n1777\n1775\n700\n"),
        "{}",
        built.log
    );
}

async fn kernel_knobs(lab: Lab) {
    let script = "for knob in /proc/sys/kernel/panic /proc/sys/kernel/core_pattern \
                  /proc/sysrq-trigger /proc/sys/vm/drop_caches; do \
                  echo 1 > $knob && exit 1; done; \
                  cat /proc/kcore > /dev/null && exit 2; \
                  hostname other && exit 3; ip link set lo down && exit 4; \
                  mount -t tmpfs tmpfs /tmp && exit 5; mknod /tmp/null c 1 3 && exit 6; \
                  chroot / true && exit 7; ls /sys && exit 8; exit 0";
    lab.run(script).await.assert_success();
}

async fn other_processes(lab: Lab) {
    let script = "set +e; ls -1d /proc/[0-9]*; kill -9 1; kill -STOP 1; \
                  readlink /proc/1/exe && exit 1; cat /proc/1/mem && exit 2; \
                  cat /proc/1/environ && exit 3; echo alive";
    let built = lab.run(script).await;
    built.assert_success();
    // Process 1 and the shell.
    assert_eq!(
        built
            .log
            .lines()
            .filter(|line| line.starts_with("/proc/"))
            .count(),
        2
    );
    assert!(built.log.ends_with("alive\n"), "{}", built.log);
}

async fn no_terminal(lab: Lab) {
    let built = lab.run("cat < /dev/tty").await;
    assert!(
        built.log.contains("No such device or address"),
        "{}",
        built.log
    );
}

async fn devices(lab: Lab) {
    let script = "ls -1 /dev | tr '\\n' ' '; echo; ls -1 /dev/pts; \
                  head -c 4 /dev/zero | xxd -p; head -c 1 /dev/urandom | wc -c; \
                  echo gone > /dev/null; echo x > /dev/full && exit 1; \
                  df /dev/shm > /dev/null; stat -c %a /dev/shm; readlink /dev/ptmx; readlink /dev/fd";
    let built = lab.run(script).await;
    built.assert_success();
    let expected = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero \n\
                    ptmx\n00000000\n1\n";
    assert!(built.log.starts_with(expected), "{}", built.log);
    assert!(
        built.log.ends_with("1777\n/dev/pts/ptmx\n/proc/self/fd\n"),
        "{}",
        built.log
    );
}

async fn abstract_sockets(lab: Lab) {
    let name = format!("goalctl-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    // Even where the network is the host's. busybox's nc knows no abstract sockets, so this looks
    // at what a connection would need: the kernel lists what the namespace has.
    let script = format!("grep -c {name} /proc/net/unix; exit 0");
    let built = lab.run(&script).await;
    assert_eq!(built.log, "0\n");
    assert!(listener.accept().is_err());
}

async fn host_network(lab: Lab) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("nc -w 2 127.0.0.1 {port} < /dev/null && echo connected");
    // Not one of tokio's threads, for which the end would wait if nobody connects.
    std::thread::spawn(move || listener.accept().map(drop));
    let fixed = lab.run_derivation(lab.fixed_script(&script)).await;
    assert_eq!(fixed.assert_success().log, "connected\n");
    let not_fixed = lab.run(&script).await;
    assert_ne!(not_fixed.exited.verdict, BuildVerdict::Exited { code: 0 });

    let files = lab
        .run_derivation(lab.fixed_script("cat /etc/nsswitch.conf; ls -1 /etc"))
        .await;
    assert!(
        files.log.starts_with("hosts: files dns\nservices: files\n"),
        "{}",
        files.log
    );
    let expected = fs::exists("/etc/resolv.conf").unwrap();
    assert_eq!(
        files.log.lines().any(|line| line == "resolv.conf"),
        expected
    );
}

async fn host_paths(lab: Lab) {
    let mut lab = lab;
    let shown = lab.root().join("shown");
    fs::create_dir(&shown).unwrap();
    fs::set_permissions(&shown, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(shown.join("file"), "of the host").unwrap();
    symlink("/nowhere", lab.root().join("link")).unwrap();
    let path = |target: &str, source: &str, optional, writable| SandboxPath {
        target: target.into(),
        source: lab.root().join(source),
        optional,
        writable,
    };
    lab.settings.sandbox_paths = vec![
        path("/shown/here", "shown", false, false),
        path("/writable", "shown", false, true),
        path("/bin/sh", "shown/file", false, false),
        path("/link", "link", false, false),
        path("/missing", "missing", true, false),
    ];
    let script = "cat /shown/here/file /bin/sh; echo; touch /shown/here/new && exit 1; \
                  touch /writable/new; readlink /link; test ! -e /missing";
    let built = lab.run(script).await;
    built.assert_success();
    assert!(
        built.log.starts_with("of the hostof the host\n"),
        "{}",
        built.log
    );
    assert!(built.log.ends_with("/nowhere\n"), "{}", built.log);
    assert!(shown.join("new").exists());

    lab.settings.sandbox_paths = vec![path_of(&lab, "/missing", "missing")];
    let built = lab.run("true").await;
    let BuildVerdict::SetupFailed { message, .. } = &built.exited.verdict else {
        panic!("{:?}", built.exited.verdict);
    };
    assert!(
        message.ends_with("as '/missing': No such file or directory"),
        "{message}"
    );
}

fn path_of(lab: &Lab, target: &str, source: &str) -> SandboxPath {
    SandboxPath {
        target: target.into(),
        source: lab.root().join(source),
        optional: false,
        writable: false,
    }
}

async fn no_mount_point_on_host(lab: Lab) {
    let mut lab = lab;
    fs::create_dir(lab.root().join("shown")).unwrap();
    fs::write(lab.root().join("file"), "").unwrap();
    let mut shown = path_of(&lab, "/shown", "shown");
    shown.writable = true;
    lab.settings.sandbox_paths = vec![shown.clone(), path_of(&lab, "/shown/in/it", "file")];
    let built = lab.run("true").await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::SetupFailed { .. }
    ));
    assert_eq!(fs::read_dir(lab.root().join("shown")).unwrap().count(), 0);

    symlink("/etc", lab.root().join("shown/trap")).unwrap();
    lab.settings.sandbox_paths = vec![shown.clone(), path_of(&lab, "/shown/trap/canary", "file")];
    let built = lab.run("true").await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::SetupFailed { .. }
    ));
    assert!(!fs::exists("/etc/canary").unwrap());

    lab.settings.sandbox_paths = vec![path_of(&lab, "/a/../../escape", "file")];
    let built = lab.run("true").await;
    let BuildVerdict::SetupFailed { message, .. } = &built.exited.verdict else {
        panic!("{:?}", built.exited.verdict);
    };
    assert!(
        message.ends_with("the path escapes the sandbox"),
        "{message}"
    );
}

async fn builder_in_proc(lab: Lab) {
    for builder in [
        "/proc/self/exe",
        "/proc/1/exe",
        "/dev/fd/3",
        "/dev/null",
        "bin/sh",
    ] {
        let mut derivation = lab.script("true");
        derivation.builder = builder.into();
        let built = lab.run_derivation(derivation).await;
        assert_eq!(
            built.exited.verdict,
            BuildVerdict::Exited { code: 1 },
            "{builder}"
        );
        assert!(
            built.log.starts_with(&format!("executing '{builder}': ")),
            "{}",
            built.log
        );
    }
}

async fn launcher_is_sealed(lab: Lab) {
    let mut lab = lab;
    let trap = lab.add_input("trap");
    fs::write(lab.real(&trap), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(lab.real(&trap), fs::Permissions::from_mode(0o555)).unwrap();
    let mut derivation = lab.script("true");
    derivation.builder = lab.layout.store_dir.print(&trap).into();
    let launcher = env!("CARGO_BIN_EXE_sandbox-init");
    let before = fs::metadata(launcher).unwrap().modified().unwrap();
    let built = lab.run_derivation(derivation).await;
    assert_ne!(built.exited.verdict, BuildVerdict::Exited { code: 0 });
    assert_eq!(fs::metadata(launcher).unwrap().modified().unwrap(), before);
}

async fn no_mounts_left(lab: Lab) {
    lab.run("mkdir $out").await.assert_success();
    lab.run("exit 3").await;
    // Others on this machine may mount and unmount meanwhile.
    let root = lab.root().to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(root)).collect();
    assert!(left.is_empty(), "{left:?}");
    lab.assert_clean();
}
