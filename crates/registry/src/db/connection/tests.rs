//! Which databases are opened, and which refused.

use std::process::Command;

use store_model::settings::StoreLayout;

use super::*;
use crate::messages::{QueryAllValidPaths, QueryPathInfo};
use crate::start::{Registry, start, start_with};
use crate::testing::{TestStore, fixtures, has_nix, path};

fn options() -> DatabaseOptions {
    DatabaseOptions::from_settings(&Settings::default())
}

fn open(store: &TestStore) -> Result<Database, Error> {
    let layout = Layout::open(store.layout(), &Settings::default())?;
    drop(prepare(&layout, options())?);
    Database::open(&layout, options())
}

fn db_file(store: &TestStore, name: &str) -> PathBuf {
    store.layout().state_dir.join("db").join(name)
}

/// Runs a test on a store with a database, changed by `damage`, and expects these words.
fn expect_refusal(words: &str, damage: impl FnOnce(&TestStore)) {
    let store = TestStore::new();
    drop(open(&store).unwrap());
    damage(&store);
    let message = open(&store).err().map(|error| error.to_string());
    assert!(
        message
            .as_ref()
            .is_some_and(|message| message.contains(words)),
        "{message:?}"
    );
}

/// Returns every statement that a database has stored.
fn statements(database: &Database) -> String {
    let mut statement = database
        .connection
        .prepare("select sql || ';' from sqlite_master where sql is not null order by rowid")
        .unwrap();
    let statements: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    statements.join("\n")
}

fn with_realisations() -> DatabaseOptions {
    DatabaseOptions {
        realisations: Realisations::Kept,
        ..options()
    }
}

#[test]
fn the_tables_of_realisations_are_those_of_nix_and_made_when_they_are_first_needed() {
    let Some(fixtures) = fixtures() else { return };
    let theirs = fs::read_to_string(fixtures.join("ca/db/schema.sql")).unwrap();
    // Nix's own table of what it numbers is no statement of anybody.
    let theirs: Vec<&str> = theirs
        .trim_end()
        .lines()
        .filter(|line| !line.contains("sqlite_sequence"))
        .collect();
    let store = TestStore::new();
    drop(open(&store).unwrap());
    assert!(!db_file(&store, "ca-schema").exists());
    let layout = Layout::open(store.layout(), &Settings::default()).unwrap();
    for _ in 0..2 {
        drop(prepare(&layout, with_realisations()).unwrap());
        let ours = statements(&Database::open(&layout, options()).unwrap());
        let ours: Vec<&str> = ours
            .lines()
            .filter(|line| !line.contains("sqlite_sequence"))
            .collect();
        assert_eq!(ours, theirs);
        let version = fs::read(db_file(&store, "ca-schema")).unwrap();
        assert_eq!(
            version,
            fs::read(fixtures.join("ca/db/ca-schema-version")).unwrap()
        );
    }
    // A crash between the tables and the file is made good.
    fs::remove_file(db_file(&store, "ca-schema")).unwrap();
    drop(prepare(&layout, with_realisations()).unwrap());
    assert!(db_file(&store, "ca-schema").exists());
}

#[test]
fn tables_of_realisations_of_another_version_are_refused_only_where_they_are_needed() {
    let store = TestStore::new();
    let layout = Layout::open(store.layout(), &Settings::default()).unwrap();
    drop(prepare(&layout, with_realisations()).unwrap());
    for (version, words) in [("2", "version 2 is older"), ("4", "version 4 is newer")] {
        fs::write(db_file(&store, "ca-schema"), version).unwrap();
        let refused = prepare(&layout, with_realisations()).unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert!(prepare(&layout, options()).is_ok());
    }
}

#[test]
fn the_tables_are_those_of_nix_to_the_byte() {
    let Some(fixtures) = fixtures() else { return };
    let store = TestStore::new();
    let database = open(&store).unwrap();
    let theirs = fs::read_to_string(fixtures.join("db/schema.sql")).unwrap();
    assert_eq!(statements(&database), theirs.trim_end());
    let pragmas: Vec<String> = [
        "user_version",
        "application_id",
        "page_size",
        "journal_mode",
        "auto_vacuum",
    ]
    .iter()
    .map(|pragma| {
        database
            .connection
            .query_row(&format!("pragma {pragma}"), [], |row| {
                Ok(match row.get_ref(0)?.as_i64() {
                    Ok(number) => number.to_string(),
                    Err(_) => row.get(0)?,
                })
            })
            .unwrap()
    })
    .collect();
    let theirs = fs::read_to_string(fixtures.join("db/pragmas.txt")).unwrap();
    assert_eq!(pragmas.join("\n"), theirs.trim_end());
    let version = fs::read(db_file(&store, "schema")).unwrap();
    let theirs = fs::read(fixtures.join("db/schema-version")).unwrap();
    assert_eq!(version, theirs.trim_ascii_end());
}

#[test]
fn commits_are_durable_and_references_enforced() {
    let store = TestStore::new();
    let database = open(&store).unwrap();
    let pragma = |name: &str| -> i64 {
        let sql = format!("pragma {name}");
        database
            .connection
            .query_row(&sql, [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(pragma("synchronous"), 2, "full");
    assert_eq!(pragma("foreign_keys"), 1);
    assert!(rusqlite::version_number() >= NEEDED_SQLITE);
}

#[test]
fn locks_and_reserved_room_are_private() {
    use std::os::unix::fs::MetadataExt as _;
    let store = TestStore::new();
    drop(open(&store).unwrap());
    for name in ["big-lock", "reserved"] {
        let metadata = fs::metadata(db_file(&store, name)).unwrap();
        assert_eq!(metadata.mode(), 0o100_600, "{name}");
    }
    let reserved = fs::metadata(db_file(&store, "reserved")).unwrap();
    assert_eq!(reserved.len(), RESERVED_BYTES);
}

#[actix::test]
async fn a_database_that_nix_wrote_reads_as_nix_dumps_it() {
    let Some(fixtures) = fixtures() else { return };
    let store = TestStore::new();
    fs::create_dir_all(db_file(&store, "")).unwrap();
    let database = fs::read(fixtures.join("db/db.sqlite")).unwrap();
    fs::write(store.database(), database).unwrap();
    fs::write(db_file(&store, "schema"), "10").unwrap();
    let registry = store.start();
    let dump = dump(&registry, &store.layout()).await;
    let theirs = fs::read_to_string(fixtures.join("db/dump-db.txt")).unwrap();
    assert_eq!(dump, theirs);
    registry.stop().await;
}

/// Prints a registry's memory as `nix-store --dump-db` does.
async fn dump(registry: &Registry, layout: &StoreLayout) -> String {
    use std::fmt::Write as _;
    let print = |path: &store_model::StorePath| layout.store_dir.print(path);
    let all = registry
        .store
        .send(QueryAllValidPaths)
        .await
        .unwrap()
        .unwrap();
    let mut text = String::new();
    for path in all {
        let question = QueryPathInfo { path };
        let info = registry
            .store
            .send(question)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let deriver = info.deriver.as_ref().map(print).unwrap_or_default();
        writeln!(
            text,
            "{}\n{}\n{}\n{deriver}\n{}",
            print(&info.path),
            info.nar_hash.to_hash().to_base16(),
            info.nar_size_bytes,
            info.references.len()
        )
        .unwrap();
        for reference in &info.references {
            writeln!(text, "{}", print(reference)).unwrap();
        }
    }
    text
}

#[test]
fn nix_opens_what_we_made_and_we_what_nix_made() {
    if !has_nix("nix_opens_what_we_made_and_we_what_nix_made") {
        return;
    }
    let ours = TestStore::new();
    drop(open(&ours).unwrap());
    assert_eq!(ours.nix_store(&["--dump-db"]), "");
    let theirs = TestStore::new();
    theirs.nix_store(&["--dump-db"]);
    drop(open(&theirs).unwrap());
}

#[test]
fn a_newer_or_older_schema_is_refused() {
    expect_refusal("schema version 11 is newer", |store| {
        fs::write(db_file(store, "schema"), "11").unwrap();
    });
    expect_refusal("schema version 9 is older", |store| {
        fs::write(db_file(store, "schema"), "9").unwrap();
    });
    expect_refusal("is corrupt", |store| {
        fs::write(db_file(store, "schema"), "ten").unwrap();
    });
}

#[test]
fn an_empty_schema_file_is_corrupt_not_new() {
    expect_refusal("is corrupt", |store| {
        fs::write(db_file(store, "schema"), "").unwrap();
    });
}

#[test]
fn a_crash_before_the_schema_file_was_written_is_mended() {
    let store = TestStore::new();
    drop(open(&store).unwrap());
    fs::remove_file(db_file(&store, "schema")).unwrap();
    drop(open(&store).unwrap());
    assert_eq!(fs::read(db_file(&store, "schema")).unwrap(), b"10");
    // Even where the tables themselves had not been made, and another program left it empty.
    let store = TestStore::new();
    fs::create_dir_all(db_file(&store, "")).unwrap();
    fs::write(db_file(&store, "schema"), "").unwrap();
    drop(open(&store).unwrap());
}

#[test]
fn damage_is_told_from_a_new_database() {
    expect_refusal("is corrupt", |store| {
        fs::write(
            store.database(),
            "not a database, but long enough to be read",
        )
        .unwrap();
    });
    expect_refusal("is corrupt", |store| {
        let file = fs::File::options()
            .write(true)
            .open(store.database())
            .unwrap();
        file.set_len(5_000).unwrap();
    });
    expect_refusal("is corrupt", |store| {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options()
            .write(true)
            .open(store.database())
            .unwrap();
        file.write_all_at(&[0; 4096], 4096 * 2).unwrap();
    });
    expect_refusal("is corrupt", |store| {
        fs::write(store.database(), "").unwrap();
    });
}

#[test]
fn other_tables_are_not_taken_for_ours() {
    expect_refusal("does not have 'CREATE TABLE Refs", |store| {
        let connection = Connection::open(store.database()).unwrap();
        connection.execute_batch("drop table Refs").unwrap();
    });
}

#[test]
fn a_lost_database_is_not_replaced_over_a_full_store() {
    for lost in [&["db.sqlite"][..], &["db.sqlite", "schema"]] {
        expect_refusal("is missing though the store", |store| {
            fs::write(store.real_path(&path('a', "precious")), "x").unwrap();
            for name in lost {
                fs::remove_file(db_file(store, name)).unwrap();
            }
        });
    }
}

#[test]
fn working_files_do_not_make_a_store_full() {
    let store = TestStore::new();
    let objects = store.layout().real_store_dir;
    fs::create_dir_all(&objects).unwrap();
    for name in [".lock", ".drv.chroot"] {
        let mut file = path('a', "x").to_string();
        file.push_str(name);
        fs::write(objects.join(file), "").unwrap();
    }
    drop(open(&store).unwrap());
}

#[test]
fn a_stale_index_and_a_missing_log_are_survived() {
    let store = TestStore::new();
    drop(open(&store).unwrap());
    fs::write(db_file(&store, "db.sqlite-shm"), vec![0xff; 32_768]).unwrap();
    drop(open(&store).unwrap());
    // What was in the log is lost, the rest is whole.
    let _gone = fs::remove_file(db_file(&store, "db.sqlite-wal"));
    drop(open(&store).unwrap());
}

#[test]
fn a_state_directory_that_cannot_be_written_to_is_named() {
    let store = TestStore::new();
    let layout = StoreLayout {
        state_dir: PathBuf::from("/proc/no-such-state"),
        ..store.layout()
    };
    let error = Layout::open(layout, &Settings::default()).unwrap_err();
    let Error::File {
        operation, path, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(operation, "making directory");
    assert!(path.starts_with("/proc"), "{path:?}");
}

#[test]
fn nothing_in_the_state_is_writable_for_all_even_where_an_old_program_made_it_so() {
    use std::os::unix::fs::MetadataExt as _;
    let store = TestStore::new();
    let per_user = store.layout().state_dir.join("gcroots/per-user");
    fs::create_dir_all(&per_user).unwrap();
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(&per_user, open_to_all).unwrap();
    drop(open(&store).unwrap());
    let state = store.layout().state_dir;
    let found = Command::new("find")
        .arg(&state)
        .args(["-perm", "-0002", "!", "-type", "l"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
    let objects = fs::metadata(store.layout().real_store_dir).unwrap();
    assert_eq!(objects.mode() & 0o777, 0o755);
}

#[test]
fn a_group_of_builders_may_add_to_the_store_but_not_remove() {
    use std::os::unix::fs::MetadataExt as _;
    if !crate::testing::is_root("a_group_of_builders_may_add_to_the_store_but_not_remove") {
        return;
    }
    let store = TestStore::new();
    let settings = Settings {
        build_users_group: "daemon".to_owned(),
        ..Settings::default()
    };
    drop(Layout::open(store.layout(), &settings).unwrap());
    let metadata = fs::metadata(store.layout().real_store_dir).unwrap();
    assert_eq!(metadata.mode(), 0o41_775);
    assert_ne!(metadata.gid(), 0);
}

#[actix::test]
async fn a_foreign_writer_is_waited_for_and_named_when_it_never_ends() {
    let store = TestStore::new();
    drop(open(&store).unwrap());
    let impatient = DatabaseOptions {
        busy_limit: Duration::from_millis(50),
        ..options()
    };
    let layout = Layout::open(store.layout(), &Settings::default()).unwrap();
    let database = Database::open(&layout, impatient).unwrap();
    let other = Connection::open(store.database()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let refused = database.begin().err();
    assert!(
        matches!(refused, Some(Error::DatabaseBusy { .. })),
        "{refused:?}"
    );
    // With more patience it is waited for.
    let patient = Database::open(&layout, options()).unwrap();
    let waiting = std::thread::spawn(move || patient.begin().map(drop));
    other.execute_batch("rollback").unwrap();
    waiting.join().unwrap().unwrap();
}

#[actix::test]
async fn two_registries_of_one_process_share_a_store() {
    let store = TestStore::new();
    let first = start(store.layout(), &Settings::default()).unwrap();
    let second = start_with(store.layout(), &Settings::default(), options()).unwrap();
    first.stop().await;
    second
        .store
        .send(QueryAllValidPaths)
        .await
        .unwrap()
        .unwrap();
    second.stop().await;
}
