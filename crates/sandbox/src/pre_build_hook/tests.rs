//! Hooks that are shell scripts, and what became of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::EventfdFlags;

use super::*;

fn parsed(text: &str) -> Result<Vec<String>, String> {
    let paths = parse(&text.into())?;
    Ok(paths.iter().map(ToString::to_string).collect())
}

fn never() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor can be had")
}

fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("hook");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a fresh file can be written");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&path, mode).expect("one's own file can be opened");
    path
}

/// Runs a script as a hook; returns its paths, or the message.
fn said(text: &str) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let environment = [("greeting".into(), "hello".into())].into();
    let args = ["/first".into(), "/second".into()];
    let program = script(dir.path(), text);
    match run(&program, &args, &environment, never().as_fd()) {
        Ok(paths) => Ok(paths.iter().map(ToString::to_string).collect()),
        Err(error) => Err(error
            .to_string()
            .replace(&dir.path().display().to_string(), "")),
    }
}

#[test]
fn paths_follow_their_command_until_an_empty_line() {
    assert_eq!(parsed(""), Ok(vec![]));
    let text = "extra-sandbox-paths\n/a\n/b=/c d\n\nextra-chroot-dirs\n/e?\n";
    let expected = ["/a", "/b=/c d", "/e?"].map(str::to_owned).to_vec();
    assert_eq!(parsed(text), Ok(expected));
    // Nix does not look at a line that does not end.
    assert_eq!(parsed("extra-sandbox-paths\n/a"), Ok(vec![]));
}

#[test]
fn what_nobody_understands_is_refused() {
    for (text, expected) in [
        ("nonsense\n", "gave the unknown command 'nonsense'"),
        ("\n", "gave the unknown command ''"),
        ("extra-sandbox-paths\n/a\n\n/b\n", "unknown command '/b'"),
        ("extra-sandbox-paths\nrelative\n", "'relative'"),
        ("extra-sandbox-paths\n/../x\n", "'/../x'"),
    ] {
        let error = parsed(text).expect_err(text);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_hook_gets_its_arguments_and_the_users_environment() {
    let text = "echo extra-sandbox-paths; echo \"$1=$2/$greeting/$#\"; cat; echo complaint >&2";
    assert_eq!(said(text), Ok(vec!["/first=/second/hello/2".to_owned()]));
}

#[test]
fn a_hook_that_fails_says_how() {
    for (text, expected) in [
        (
            "exit 3",
            "the pre-build hook '/hook' failed with exit code 3",
        ),
        (
            "kill -9 $$",
            "the pre-build hook '/hook' failed due to signal 9",
        ),
        (
            "while :; do echo extra-sandbox-paths; done",
            "the pre-build hook '/hook' wrote more than 1048576 bytes",
        ),
    ] {
        assert_eq!(said(text), Err(expected.to_owned()));
    }
    let missing = run(
        Path::new("/no/such/hook"),
        &[],
        &HostEnvironment::new(),
        never().as_fd(),
    );
    let error = missing.expect_err("there is no such file");
    assert!(matches!(error, Error::RunPreBuildHook { .. }), "{error}");
}

#[test]
fn what_a_hook_leaves_running_does_not_keep_the_build_waiting() {
    let text = "sleep 100 & echo extra-sandbox-paths; echo /a; echo $! > \"$0.pid\"";
    let dir = tempfile::tempdir().expect("a directory can be made");
    let program = script(dir.path(), text);
    let environment = [("PATH".into(), "/bin:/usr/bin".into())].into();
    let paths = run(&program, &[], &environment, never().as_fd()).expect("it succeeds");
    assert_eq!(paths.len(), 1);
    let pid = fs::read_to_string(dir.path().join("hook.pid")).expect("the hook wrote it");
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    rustix::process::kill_process(pid.expect("a number"), Signal::KILL).expect("it runs");
}

#[test]
fn a_hook_that_is_not_wanted_is_ended_with_what_it_started_even_if_it_will_not() {
    let text = "trap '' TERM; sleep 100 & echo $! > \"$0.part\"; mv \"$0.part\" \"$0.pid\"; wait; \
                sleep 100; sleep 100";
    let dir = tempfile::tempdir().expect("a directory can be made");
    let program = script(dir.path(), text);
    let given_up = Arc::new(never());
    let ended = {
        let given_up = Arc::clone(&given_up);
        let environment = [("PATH".into(), "/bin:/usr/bin".into())].into();
        thread::spawn(move || run(&program, &[], &environment, given_up.as_fd()))
    };
    let pid_file = dir.path().join("hook.pid");
    let pid = loop {
        match fs::read_to_string(&pid_file) {
            Ok(pid) => break pid.trim().parse().ok().and_then(Pid::from_raw),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    };
    let child = rustix::process::pidfd_open(pid.expect("a number"), PidfdFlags::empty());
    let child = child.expect("it runs");
    rustix::io::write(&given_up, &1_u64.to_ne_bytes()).expect("a counter can be raised");
    let result = ended.join().expect("it does not panic");
    assert!(matches!(result, Err(Error::GivenUp)), "{result:?}");
    let mut source = [PollFd::new(&child, PollFlags::IN)];
    let patience = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let n_ended = rustix::event::poll(&mut source, Some(&patience));
    assert_eq!(n_ended.expect("it can be watched"), 1);
}
