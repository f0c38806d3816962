//! What a builder writes, on its way and on the disk.

use std::io::Read;
use std::time::Duration;

use sandbox::{BuildEvent, BuildVerdict, StopSandbox};

use crate::lab::{Lab, in_both_profiles};

in_both_profiles! {
    the_log_is_kept_compressed => super::kept_compressed;
    an_empty_log_is_kept_too => super::kept_empty;
    a_log_is_kept_as_the_settings_say => super::kept_otherwise;
    a_later_log_replaces_the_earlier_one => super::replaced;
    bytes_come_as_they_were_written => super::raw_bytes;
    an_unfinished_last_line_is_passed_on => super::unfinished_line;
    the_tail_shows_what_a_terminal_would => super::tail;
    a_large_log_is_passed_on_whole => super::large;
    a_reader_that_keeps_lines_slows_the_builder_down => super::back_pressure;
}

fn path(lab: &Lab, suffix: &str) -> std::path::PathBuf {
    let directory = lab.layout.log_dir.join("drvs/01");
    directory.join(format!("23456789abcdfghijklmnpqrsvwxyz-test.drv{suffix}"))
}

fn decompressed(lab: &Lab) -> Vec<u8> {
    let file = std::fs::File::open(path(lab, ".bz2")).unwrap();
    let mut bytes = Vec::new();
    bzip2::read::BzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

async fn kept_compressed(lab: Lab) {
    let built = lab.run("echo one; echo two >&2; exit 1").await;
    assert_eq!(built.exited.log_path, Some(path(&lab, ".bz2")));
    assert_eq!(decompressed(&lab), b"one\ntwo\n");
    assert!(!path(&lab, "").exists());
    assert!(!path(&lab, ".bz2.tmp").exists());
}

async fn kept_empty(lab: Lab) {
    lab.run("touch $out").await.assert_success();
    assert_eq!(
        std::fs::read(path(&lab, ".bz2")).unwrap(),
        b"BZh9\x17rE8P\x90\0\0\0\0"
    );
}

async fn kept_otherwise(lab: Lab) {
    let mut lab = lab;
    lab.settings.compress_log = false;
    let built = lab.run("echo plain").await;
    assert_eq!(built.exited.log_path, Some(path(&lab, "")));
    assert_eq!(std::fs::read(path(&lab, "")).unwrap(), b"plain\n");
    lab.settings.keep_log = false;
    let built = lab.run("echo forgotten").await;
    assert_eq!(built.exited.log_path, None);
    assert_eq!(std::fs::read(path(&lab, "")).unwrap(), b"plain\n");
}

async fn replaced(lab: Lab) {
    let mut lab = lab;
    lab.run("echo first").await;
    lab.run("echo second").await;
    assert_eq!(decompressed(&lab), b"second\n");
    lab.settings.compress_log = false;
    lab.run("echo third").await;
    assert_eq!(std::fs::read(path(&lab, "")).unwrap(), b"third\n");
    assert!(!path(&lab, ".bz2").exists());
}

async fn raw_bytes(lab: Lab) {
    let script = r"printf 'a\tb\r\nc\004\003\032\377\nd\r'";
    lab.run(script).await.assert_success();
    assert_eq!(decompressed(&lab), b"a\tb\r\nc\x04\x03\x1a\xff\nd\r");
}

async fn unfinished_line(lab: Lab) {
    let built = lab.run("printf 'whole\nunfinished'").await;
    assert_eq!(built.log, "whole\nunfinished\n");
    assert_eq!(built.exited.log_tail, ["whole", "unfinished"]);
    assert_eq!(decompressed(&lab), b"whole\nunfinished");
}

async fn tail(lab: Lab) {
    let mut lab = lab;
    lab.settings.log_lines = 3;
    let built = lab.run(r"seq 1000; printf '10%%\r100%%\n'; exit 1").await;
    assert_eq!(built.exited.log_tail, ["999", "1000", "100%"]);
    assert_eq!(built.log.lines().count(), 1001);
}

async fn large(lab: Lab) {
    let n_bytes = 30_000_000;
    let built = lab
        .run(&format!("yes 0123456789abcdef | head -c {n_bytes}"))
        .await;
    built.assert_success();
    assert_eq!(built.log.trim_end().len(), n_bytes);
    assert_eq!(decompressed(&lab).len(), n_bytes);
}

async fn back_pressure(lab: Lab) {
    let mut lab = lab;
    // Waiting for a reader is not silence.
    lab.settings.max_silent_time = Some(Duration::from_secs(1));
    let supervisor = lab.start();
    let script = "yes | head -c 20000000; echo done";
    let mut building = lab.build(&supervisor, 1, lab.script(script));
    let mut kept = Vec::new();
    let mut n_kept = 0;
    while n_kept < 4_000_000 {
        if let BuildEvent::Logged(lines) = building.next().await {
            n_kept += lines.text.len();
            kept.push(lines);
        }
    }
    let more = tokio::time::timeout(Duration::from_secs(3), async {
        loop {
            match building.next().await {
                BuildEvent::Logged(lines) => kept.push(lines),
                event @ (BuildEvent::AwaitingUser
                | BuildEvent::Started(_)
                | BuildEvent::Exited(_)) => panic!("{event:?}"),
            }
        }
    });
    assert!(more.await.is_err(), "the builder is held back");
    let n_kept: usize = kept.iter().map(|lines| lines.text.len()).sum();
    assert!(n_kept <= 4 << 20, "{n_kept}");
    drop(kept);
    let built = building.finish().await;
    assert_eq!(built.exited.verdict, BuildVerdict::Exited { code: 0 });
    assert!(built.log.ends_with("\ndone\n"));
    supervisor.send(StopSandbox).await.unwrap();
    assert_eq!(decompressed(&lab).len(), 20_000_005);
}
