//! Builders without a sandbox: only on request, and even then not in the store itself where there
//! is another way.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use sandbox::{BuildVerdict, StopSandbox, redirected_path};
use store_model::StoreDir;
use store_model::settings::SandboxMode;

use crate::lab::{Lab, Profile, in_both_profiles, is_sleeping, profile, seconds, store_path};

in_both_profiles! {
    a_relocated_store_forces_the_sandbox => super::relocated;
    a_builder_sees_the_host_but_is_nobody_there => super::sees_host;
    what_is_there_already_is_made_elsewhere => super::made_elsewhere;
    what_a_builder_leaves_running_is_killed => super::left_running;
    a_cancelled_builder_takes_its_children_along => super::cancelled;
    relaxed_lets_out_only_who_asks => super::relaxed;
    a_builtin_builds_as_a_builder_would => super::builtin;
}

/// Makes the real store the logical one.
fn unrelocated(lab: &mut Lab) {
    let real = lab.layout.real_store_dir.to_str().unwrap().to_owned();
    lab.layout.store_dir = StoreDir::new(&real).unwrap();
    lab.settings.sandbox = SandboxMode::Never;
}

async fn relocated(lab: Lab) {
    let mut lab = lab;
    lab.settings.sandbox = SandboxMode::Never;
    let built = lab.run("pwd").await;
    assert_eq!(built.assert_success().log, "/build\n");
}

async fn sees_host(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    let canary = lab.root().join("canary");
    fs::write(&canary, "of the host").unwrap();
    let supervisor = lab.start();
    let script = format!(
        "cat {}; echo; pwd; echo $TMPDIR; touch file; echo made > $out; id -u; \
         grep -E 'Cap|NoNew|Groups' /proc/self/status; ls -l /proc/self/fd | wc -l",
        canary.display()
    );
    let built = lab
        .build(&supervisor, 1, lab.script(&script))
        .finish()
        .await;
    built.assert_success();
    assert!(built.log.starts_with("of the host\n"), "{}", built.log);
    let scratch = built.exited.scratch.as_ref().unwrap();
    let lines: Vec<&str> = built.log.lines().collect();
    assert_eq!(lines[1], lines[2]);
    assert!(lines[1].contains("/nix/var/nix/builds/nix-build-test.drv-0/build"));
    assert_eq!(lines[3], scratch.builder_uid.to_string());
    assert!(built.log.contains("CapBnd:\t0000000000000000\n") || profile() != Profile::Root);
    assert!(built.log.contains("CapEff:\t0000000000000000\n"));
    assert!(built.log.contains("NoNewPrivs:\t1\n"));
    assert!(built.log.ends_with("\n5\n"), "{}", built.log);
    assert_eq!(fs::read_to_string(built.output()).unwrap(), "made\n");
    let real = lab
        .layout
        .real_store_dir
        .join(built.output().file_name().unwrap());
    assert!(!real.exists(), "nothing stays in the store unregistered");
    if profile() == Profile::Root {
        assert_ne!(scratch.builder_uid, 0);
    }
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn made_elsewhere(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    let real_store = lab.layout.real_store_dir.clone();
    let (drv_path, output) = (store_path("test.drv"), store_path("test"));
    let elsewhere = redirected_path(&lab.layout.store_dir, &drv_path, &output).unwrap();
    let valid = real_store.join(output.base_name());
    fs::write(&valid, "valid").unwrap();
    // What a builder that was killed with everything around it has left.
    let leftover = real_store.join(elsewhere.base_name());
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("file"), "old").unwrap();
    let mut derivation = lab.script("echo $out; mkdir $out; echo $also > $out/file; chmod 0 $out");
    let also = format!("{}/file", lab.layout.store_dir.print(&output));
    derivation.env.insert("also".into(), also.into());
    let supervisor = lab.start();
    let built = lab.build(&supervisor, 1, derivation).finish().await;
    built.assert_success();
    let scratch = built.exited.scratch.as_ref().unwrap();
    assert_eq!(scratch.redirected, [(output, elsewhere.clone())].into());
    let told = lab.layout.store_dir.print(&elsewhere);
    assert_eq!(built.log, format!("{told}\n"));
    assert_eq!(fs::read_to_string(&valid).unwrap(), "valid");
    assert!(!leftover.exists(), "it is not where others could reach it");
    let made = scratch.path.join(elsewhere.base_name());
    fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).unwrap();
    let text = fs::read_to_string(made.join("file")).unwrap();
    assert_eq!(text, format!("{told}/file\n"));
    fs::remove_file(valid).unwrap();
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn left_running(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    let (hidden, plain) = (seconds(3), seconds(4));
    let script = format!(
        "(setsid sh -c '(trap \"\" HUP TERM; sleep {hidden} > /dev/null 2>&1 &)' &); \
         sleep {plain} & sleep 0.3; exit 7"
    );
    let built = lab.run(&script).await;
    assert_eq!(built.exited.verdict, BuildVerdict::Exited { code: 7 });
    assert!(!is_sleeping(hidden) && !is_sleeping(plain));
}

async fn cancelled(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    lab.settings.timeout = Some(std::time::Duration::from_secs(1));
    let (child, own) = (seconds(5), seconds(6));
    let script = format!("trap '' TERM; setsid sleep {child} & sleep {own}");
    let built = lab.run(&script).await;
    assert!(matches!(
        built.exited.verdict,
        BuildVerdict::TimedOut { .. }
    ));
    assert!(!is_sleeping(child) && !is_sleeping(own));
    lab.assert_clean();
}

async fn relaxed(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    lab.settings.sandbox = SandboxMode::Relaxed;
    let built = lab.run("pwd").await;
    assert_eq!(built.assert_success().log, "/build\n");
    let mut derivation = lab.script("pwd");
    derivation.env.insert("__noChroot".into(), "1".into());
    let built = lab.run_derivation(derivation).await;
    assert!(
        built
            .assert_success()
            .log
            .contains("/nix-build-test.drv-0/build")
    );
}

async fn builtin(lab: Lab) {
    let mut lab = lab;
    unrelocated(&mut lab);
    let canary = lab.root().join("canary");
    fs::write(&canary, "of the host").unwrap();
    let mut derivation = lab.fixed_script("");
    derivation.builder = "builtin:fetchurl".into();
    for (name, value) in [
        ("url", format!("file://{}", canary.display())),
        ("outputHashMode", "flat".to_owned()),
        ("outputHash", String::new()),
    ] {
        derivation.env.insert(name.into(), value.into());
    }
    let supervisor = lab.start();
    let built = lab.build(&supervisor, 1, derivation.clone()).finish().await;
    built.assert_success();
    assert_eq!(fs::read_to_string(built.output()).unwrap(), "of the host");
    let owner = fs::metadata(built.output()).unwrap().uid();
    assert_eq!(Some(owner), built.uid);
    if profile() == Profile::Unprivileged {
        fs::remove_file(built.output()).unwrap();
    }

    derivation.builder = "builtin:nothing".into();
    let built = lab.build(&supervisor, 2, derivation).finish().await;
    assert_eq!(built.exited.verdict, BuildVerdict::Exited { code: 1 });
    assert_eq!(built.log, "error: unsupported builtin builder 'nothing'\n");
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}
