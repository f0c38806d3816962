//! Servers that are slow, silent, broken or busy (SECURITY F55, F57).
//!
//! Time-outs are as short as a busy machine allows, and the same for good and bad caches.

use std::time::Duration;

use it::web::Answer;

use super::lie::{File, Lie};
use super::scene::{Found, Row, Scene, Which};

/// Asks caches who need not be waited for long.
fn impatient(lies: impl IntoIterator<Item = Lie>) -> Row {
    Row::of(lies)
        .option("cache-answer-timeout", "3")
        .option("connect-timeout", "3")
        .option("stalled-download-timeout", "2")
}

#[test]
fn a_cache_that_gives_no_answer_in_time_is_as_if_it_had_nothing() {
    let pause = Duration::from_secs(1);
    let lies = [
        Lie::new("silent", |_| Answer::silence()),
        Lie::of("silent after the first word", File::Narinfo, |_| {
            Answer::silence()
        }),
        Lie::of("stalling", File::Narinfo, |honest| {
            honest.stalling_after(50)
        }),
        Lie::of("byte by byte", File::Narinfo, move |honest| {
            honest.dripping(pause)
        }),
        Lie::of("slow to say what it is", File::Info, move |honest| {
            honest.dripping(pause)
        }),
        Lie::of("late", File::Narinfo, |honest| {
            honest.after(Duration::from_secs(8))
        }),
    ];
    impatient(lies).assert_found(Found::Unanswered);
}

#[test]
fn a_cache_that_answers_with_errors_is_as_if_it_had_nothing() {
    let error = |status: u16| {
        Lie::of(status.to_string(), File::Narinfo, move |_| {
            Answer::error(status)
        })
    };
    let lies = [
        error(500),
        error(503),
        Lie::new("down", |_| Answer::error(502)),
        Lie::new("busy", |_| Answer::busy(429, Duration::from_hours(1))),
        Lie::of("busy later", File::Narinfo, |_| {
            Answer::busy(503, Duration::from_hours(1))
        }),
        Lie::new("hanging up", |honest| honest.honest().hanging_up_after(0)),
        Lie::of("breaking off", File::Narinfo, |honest| {
            honest.resetting_after(30)
        }),
    ];
    impatient(lies).assert_found(Found::Unanswered);
}

#[test]
fn what_a_server_says_that_is_no_cache_is_not_an_answer() {
    let lies = [
        Lie::of("a page", File::Narinfo, |_| Answer::welcome_page()),
        Lie::of("endless", File::Narinfo, Answer::endless),
        Lie::of("encoded twice", File::Narinfo, |honest| {
            honest.with("Content-Encoding", "gzip")
        }),
        Lie::of("encoded in secret", File::Narinfo, |honest| {
            honest.with("Content-Encoding", "rot13")
        }),
    ];
    impatient(lies).assert_found(Found::InAnswer);
}

#[test]
fn an_archive_that_does_not_come_is_fetched_elsewhere() {
    let error = |status: u16| {
        Lie::of(status.to_string(), File::Archive, move |_| {
            Answer::error(status)
        })
    };
    let pause = Duration::from_secs(10);
    let lies = [
        error(404),
        error(410),
        error(403),
        error(500),
        Lie::of("busy", File::Archive, |_| {
            Answer::busy(429, Duration::from_hours(1))
        }),
        Lie::of("a page", File::Archive, |_| Answer::welcome_page()),
        Lie::of("silent", File::Archive, |_| Answer::silence()),
        Lie::of("half", File::Archive, |honest| honest.stalling_after(60)),
        Lie::of("byte by byte", File::Archive, move |honest| {
            honest.dripping(pause)
        }),
        Lie::of("breaking off", File::Archive, |honest| {
            honest.resetting_after(60)
        }),
        Lie::of("hanging up", File::Archive, |honest| {
            honest.hanging_up_after(0)
        }),
        Lie::of("a part that nobody asked for", File::Archive, |_| {
            Answer::range("bytes 5-9/10", b"parts")
        }),
    ];
    impatient(lies)
        .option("download-attempts", "2")
        .assert_found(Found::InArchive);
}

#[test]
fn an_answer_that_is_missing_once_is_asked_for_again() {
    let once = |name: &str, file: File, answer: fn() -> Answer| {
        Lie::new(name, move |asked| {
            if asked.file == file && asked.request.n_before == 0 {
                answer()
            } else {
                asked.honest()
            }
        })
    };
    let lies = [
        once("who it is", File::Info, || Answer::error(503)),
        once("what it has", File::Narinfo, || Answer::error(502)),
        once("the archive", File::Archive, || Answer::error(500)),
        once("the connection", File::Archive, || {
            Answer::file("x").hanging_up_after(0)
        }),
    ];
    Row::of(lies).assert_harmless();
}

#[test]
fn hosts_without_an_address_or_that_nothing_reaches_cost_seconds_and_are_named() {
    let Some(scene) = Scene::new(2) else { return };
    // Names and numbers that are kept for examples, so that nobody has them.
    let nowhere = [
        "http://cache.invalid",
        "http://192.0.2.1",
        "http://[100::1]",
    ];
    let row = impatient([]).behind(&nowhere);
    let caches = [scene.serve_honestly()];
    let fetched = row.run(&scene, &caches, &["ensure"], &scene.taken());
    fetched.expect_status(0);
    for address in nowhere {
        let told = format!("WARN '{address}' is left alone");
        assert_eq!(fetched.error().matches(&told).count(), 1, "{fetched}");
    }
    scene.assert_valid(Which::Taken);
    scene.assert_sound();
}
