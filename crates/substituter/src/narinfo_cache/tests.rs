//! What is remembered, for how long, and what becomes of a damaged file.

use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;

const NOW: UnixTime = 1_800_000_000;
const HOUR: UnixTime = 3600;

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("goalctl").join(FILE_NAME)
    }

    /// Does something with a process's own thread, and waits until that has ended.
    async fn run<T>(&self, work: impl AsyncFnOnce(&NarInfoCache) -> T) -> T {
        self.run_at(NOW, work).await
    }

    async fn run_at<T>(&self, now: UnixTime, work: impl AsyncFnOnce(&NarInfoCache) -> T) -> T {
        let lifetimes = Lifetimes::from_settings(&Settings::default());
        let dir = self.dir.path().join("goalctl");
        let (cache, thread) = NarInfoCache::start(dir, lifetimes, now).unwrap();
        let outcome = work(&cache).await;
        drop(cache);
        thread.join().unwrap();
        outcome
    }
}

fn key(file: &str) -> FileKey {
    FileKey {
        cache: "https://cache".into(),
        file: file.to_owned(),
    }
}

fn contents(text: &str) -> Remembered {
    Remembered::Contents(text.to_owned())
}

#[tokio::test]
async fn what_one_process_heard_the_next_one_knows() {
    let bench = Bench::new();
    bench
        .run(async |cache| {
            assert_eq!(cache.recall(key("a"), NOW).await, None);
            cache.note(key("a"), contents("text"), NOW);
            cache.note(key("b"), Remembered::Absent, NOW);
            assert_eq!(cache.recall(key("a"), NOW).await, Some(contents("text")));
        })
        .await;
    bench
        .run(async |cache| {
            assert_eq!(cache.recall(key("a"), NOW).await, Some(contents("text")));
            assert_eq!(cache.recall(key("b"), NOW).await, Some(Remembered::Absent));
            let other = FileKey {
                cache: "https://other".into(),
                file: "a".to_owned(),
            };
            assert_eq!(cache.recall(other, NOW).await, None);
            cache.forget(key("a"));
            assert_eq!(cache.recall(key("a"), NOW).await, None);
        })
        .await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.file()), 0o600);
    assert_eq!(mode(bench.file().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn answers_are_good_for_as_long_as_the_settings_say_whatever_the_clock_does() {
    let (positive, negative, info) = (30 * 24 * HOUR, HOUR, 7 * 24 * HOUR);
    Bench::new()
        .run(async |cache| {
            cache.note(key("a"), contents("text"), NOW);
            cache.note(key("b"), Remembered::Absent, NOW);
            cache.note(key(INFO_FILE), contents("text"), NOW);
            for (file, lifetime) in [("a", positive), ("b", negative), (INFO_FILE, info)] {
                for (now, is_good) in [
                    (NOW, true),
                    (NOW + lifetime - 1, true),
                    (NOW + lifetime, false),
                    (NOW - 1, false),
                    (0, false),
                    (i64::MAX, false),
                    (i64::MIN, false),
                ] {
                    let recalled = cache.recall(key(file), now).await;
                    assert_eq!(recalled.is_some(), is_good, "{file} {}", now - NOW);
                }
            }
        })
        .await;
}

#[tokio::test]
async fn what_is_too_old_or_from_the_future_is_deleted_once_a_day() {
    let bench = Bench::new();
    let note_three = async |cache: &NarInfoCache| {
        cache.note(key("old"), contents("text"), NOW - 31 * 24 * HOUR);
        cache.note(key("future"), contents("text"), NOW + 25 * HOUR);
        cache.note(key("good"), contents("text"), NOW - HOUR);
    };
    let files = || -> String {
        let connection = Connection::open(bench.file()).unwrap();
        let question = "select group_concat(file) from Files";
        connection
            .query_row(question, [], |row| row.get(0))
            .unwrap()
    };
    bench.run(note_three).await;
    assert_eq!(files(), "future,good,old");
    let look = async |cache: &NarInfoCache| drop(cache.recall(key("good"), NOW).await);
    for (now, left) in [
        (NOW + 23 * HOUR, "future,good,old"),
        (NOW + 24 * HOUR, "good"),
        (NOW - 1, "good"),
    ] {
        bench.run_at(now, look).await;
        assert_eq!(files(), left);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_or_another_one_is_made_anew() {
    for break_it in [
        |path: &Path| fs::write(path, "garbage".repeat(1000)).unwrap(),
        |path: &Path| {
            let connection = Connection::open(path).unwrap();
            connection.pragma_update(None, "user_version", 9).unwrap();
        },
        |path: &Path| {
            // Sound at first sight, and broken where the table is.
            let mut bytes = fs::read(path).unwrap();
            assert!(bytes.len() > 4096 + 200);
            bytes[4096..4096 + 200].fill(0xa5);
            fs::write(path, bytes).unwrap();
        },
    ] {
        let bench = Bench::new();
        bench
            .run(async |cache| cache.note(key("a"), contents("text"), NOW))
            .await;
        break_it(&bench.file());
        bench
            .run(async |cache| {
                assert_eq!(cache.recall(key("a"), NOW).await, None);
                cache.note(key("a"), contents("new"), NOW);
                assert_eq!(cache.recall(key("a"), NOW).await, Some(contents("new")));
            })
            .await;
    }
}

#[tokio::test]
async fn without_a_directory_nothing_is_remembered_and_nothing_hangs() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("goalctl"), "a file").unwrap();
    bench
        .run(async |cache| {
            cache.note(key("a"), contents("text"), NOW);
            assert_eq!(cache.recall(key("a"), NOW).await, None);
        })
        .await;
}

#[tokio::test]
async fn ten_thousand_questions_are_answered_from_one_thread() {
    Bench::new()
        .run(async |cache| {
            for idx in 0..10_000 {
                cache.note(key(&idx.to_string()), contents("text"), NOW);
            }
            let questions = (0..10_000).map(|idx| cache.recall(key(&idx.to_string()), NOW));
            let answers = futures_util::future::join_all(questions).await;
            assert!(answers.iter().all(Option::is_some));
        })
        .await;
}
