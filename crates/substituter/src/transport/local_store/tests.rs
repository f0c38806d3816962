//! Stores that are made by hand, and what somebody may do to one while it is read.

use std::fs::{self, DirEntry};
use std::os::unix::fs::symlink;

use rusqlite::Connection;
use rustix::fs::CWD;
use store_model::nar::Tree;
use store_model::narinfo::NarInfo;
use store_model::{Hash, HashAlgorithm};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

const SIMPLE: &str = "hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple";
const OTHER: &str = "qhjih1x4zg0rh6sxr8znl5y7mnww6qfa-other";

/// A store in a directory of its own.
struct Store {
    dir: TempDir,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["store", "var/nix/db", "var/log/nix/drvs/hw"] {
            fs::create_dir_all(dir.path().join("nix").join(name)).unwrap();
        }
        let store = Self { dir };
        let database = store.database();
        database
            .execute_batch(
                "pragma journal_mode = wal;
                 create table ValidPaths (
                     id integer primary key autoincrement not null, path text unique not null,
                     hash text not null, registrationTime integer not null, deriver text,
                     narSize integer, ultimate integer, sigs text, ca text);
                 create table Refs (referrer integer not null, reference integer not null,
                     primary key (referrer, reference));",
            )
            .unwrap();
        store
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("nix").join(name)
    }

    fn database(&self) -> Connection {
        Connection::open(self.at("var/nix/db/db.sqlite")).unwrap()
    }

    fn transport(&self) -> LocalStore {
        let place = StorePlace {
            root: Some(self.dir.path().to_owned()),
            ..StorePlace::default()
        };
        LocalStore::new("local?root=/x".into(), &place, &StoreDir::default())
    }

    /// What lies beside the database, and when each was changed.
    fn beside_the_database(&self) -> Vec<(String, i64, u64)> {
        let facts = |entry: DirEntry| {
            use std::os::unix::fs::MetadataExt as _;
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, metadata.ctime_nsec(), metadata.len())
        };
        let listed = fs::read_dir(self.at("var/nix/db")).unwrap();
        let mut facts: Vec<_> = listed.map(|entry| facts(entry.unwrap())).collect();
        facts.sort();
        facts
    }
}

fn add(database: &Connection, base_name: &str, size: i64) {
    let digest = Hash::digest(HashAlgorithm::Sha256, base_name.as_bytes());
    let hash = format!("sha256:{}", digest.to_base16());
    database
        .execute(
            "insert into ValidPaths (path, hash, registrationTime, narSize, sigs, deriver) \
             values (?1, ?2, 7, ?3, 'k-1:AA k-2:BB', ?4)",
            (
                format!("/nix/store/{base_name}"),
                hash,
                size,
                format!("/nix/store/{OTHER}.drv"),
            ),
        )
        .unwrap();
}

async fn ask(transport: &LocalStore, base_name: &str) -> Result<Option<NarInfo>, TransportError> {
    let file = format!("{}.narinfo", &base_name[..32]).parse().unwrap();
    let text = transport.read_small(&file, 4000).await?;
    Ok(text.map(|text| NarInfo::parse(&text, &StoreDir::default()).unwrap()))
}

async fn open(
    transport: &LocalStore,
) -> Result<(oneshot::Sender<()>, Box<dyn Read + Send>), TransportError> {
    let (alive, ended) = oneshot::channel();
    let file = format!("nar/{SIMPLE}.nar").parse().unwrap();
    let reader = transport.open(&file, OpenRequest { ended }).await?;
    Ok((alive, reader))
}

fn cause(error: &TransportError) -> String {
    crate::error::chain(error)
}

#[tokio::test]
async fn what_the_database_says_is_said_as_a_cache_would_say_it() {
    let store = Store::new();
    let database = store.database();
    add(&database, SIMPLE, 120);
    add(&database, OTHER, 80);
    database
        .execute_batch("insert into Refs values (1, 1), (1, 2)")
        .unwrap();
    drop(database);
    let before = store.beside_the_database();
    assert_eq!(before.len(), 1);
    let transport = store.transport();
    let file = "nix-cache-info".parse().unwrap();
    let info = transport.read_small(&file, 100).await.unwrap().unwrap();
    assert_eq!(
        info,
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 0\n"
    );
    let narinfo = ask(&transport, SIMPLE).await.unwrap().unwrap();
    let names: Vec<_> = narinfo
        .info
        .references
        .iter()
        .map(StorePath::base_name)
        .collect();
    assert_eq!(names, [SIMPLE, OTHER]);
    assert_eq!(narinfo.info.signatures.len(), 2);
    assert_eq!(narinfo.info.nar_size_bytes, 120);
    assert_eq!(
        narinfo.info.deriver.unwrap().base_name(),
        format!("{OTHER}.drv")
    );
    assert!(ask(&transport, &"z".repeat(32)).await.unwrap().is_none());
    let nothing = transport.read_small(&"nar/x".parse().unwrap(), 100).await;
    assert!(nothing.unwrap().is_none());
    assert_eq!(store.beside_the_database(), before);
}

#[tokio::test]
async fn a_store_that_is_being_written_is_read_with_its_latest_commits_and_left_alone() {
    let store = Store::new();
    let transport = store.transport();
    assert!(ask(&transport, SIMPLE).await.unwrap().is_none());
    let writer = store.database();
    add(&writer, SIMPLE, 120);
    let before = store.beside_the_database();
    let names: Vec<_> = before.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["db.sqlite", "db.sqlite-shm", "db.sqlite-wal"]);
    assert!(ask(&transport, SIMPLE).await.unwrap().is_some());
    // What is not committed is not there, and no lock of ours is in the way.
    writer.execute_batch("begin immediate").unwrap();
    add(&writer, OTHER, 80);
    let fresh = store.transport();
    assert!(ask(&fresh, SIMPLE).await.unwrap().is_some());
    assert!(ask(&fresh, OTHER).await.unwrap().is_none());
    writer.execute_batch("rollback").unwrap();
    assert_eq!(store.beside_the_database(), before);
    add(&writer, OTHER, 80);
    drop(writer);
    // The last of the writers has folded the log into the database.
    assert_eq!(store.beside_the_database().len(), 1);
    assert!(ask(&store.transport(), OTHER).await.unwrap().is_some());
}

#[tokio::test]
async fn commits_that_come_in_the_midst_of_questions_are_seen_whole_or_not_at_all() {
    let store = Store::new();
    add(&store.database(), SIMPLE, 120);
    let transport = store.transport();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let path = store.at("var/nix/db/db.sqlite");
    let writing = std::thread::spawn(move || {
        let mut n_commits = 0_u32;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // Opened anew each time, so that there is now a log and now none.
            let database = Connection::open(&path).unwrap();
            for _ in 0..5 {
                let name = format!("{n_commits:032}-{}", "x".repeat(150));
                add(&database, &name, 1);
                n_commits += 1;
            }
        }
        n_commits
    });
    for _ in 0..300 {
        match ask(&transport, SIMPLE).await {
            Ok(found) => assert_eq!(found.unwrap().info.nar_size_bytes, 120),
            // A writer that does nothing else may be too quick, which is said.
            Err(error) => assert!(cause(&error).contains("too quickly"), "{}", cause(&error)),
        }
    }
    stop.send(()).unwrap();
    assert!(writing.join().unwrap() > 0);
    assert!(ask(&transport, SIMPLE).await.unwrap().is_some());
}

#[tokio::test]
async fn a_store_without_a_database_gives_no_answer_and_none_is_made() {
    let store = Store::new();
    let database = store.at("var/nix/db/db.sqlite");
    fs::remove_file(&database).unwrap();
    let error = ask(&store.transport(), SIMPLE).await.unwrap_err();
    assert!(matches!(error, TransportError::NoAnswer { .. }));
    assert!(!database.exists());
    fs::write(&database, "this is no database at all").unwrap();
    let error = ask(&store.transport(), SIMPLE).await.unwrap_err();
    assert!(
        cause(&error).contains("not a database"),
        "{}",
        cause(&error)
    );
}

#[tokio::test]
async fn a_cache_that_was_taken_for_a_store_is_told_with_its_address() {
    let store = Store::new();
    fs::remove_dir_all(store.at("")).unwrap();
    fs::write(store.dir.path().join("nix-cache-info"), "").unwrap();
    let file = "nix-cache-info".parse().unwrap();
    let error = store.transport().read_small(&file, 100).await.unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }));
    let address = format!("'file://{}'", store.dir.path().display());
    assert!(cause(&error).contains(&address), "{}", cause(&error));
}

#[tokio::test]
async fn no_link_leads_out_of_the_other_store() {
    let (store, elsewhere) = (Store::new(), Store::new());
    add(&elsewhere.database(), SIMPLE, 120);
    fs::write(elsewhere.at("store").join(SIMPLE), "secret").unwrap();
    let database = store.at("var/nix/db/db.sqlite");
    fs::remove_file(&database).unwrap();
    symlink(elsewhere.at("var/nix/db/db.sqlite"), &database).unwrap();
    let error = ask(&store.transport(), SIMPLE).await.unwrap_err();
    assert!(cause(&error).contains("symbolic link"), "{}", cause(&error));
    fs::remove_dir_all(store.at("var/nix/db")).unwrap();
    symlink(elsewhere.at("var/nix/db"), store.at("var/nix/db")).unwrap();
    assert!(ask(&store.transport(), SIMPLE).await.is_err());
    fs::remove_dir(store.at("store")).unwrap();
    symlink(elsewhere.at("store"), store.at("store")).unwrap();
    assert!(open(&store.transport()).await.is_err());
    // What the user has named may be a link.
    let link = store.dir.path().join("link");
    symlink(elsewhere.dir.path(), &link).unwrap();
    let place = StorePlace {
        root: Some(link),
        ..StorePlace::default()
    };
    let transport = LocalStore::new("local".into(), &place, &StoreDir::default());
    assert!(ask(&transport, SIMPLE).await.unwrap().is_some());
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_is_refused_without_waiting() {
    let store = Store::new();
    let pipe = |path: PathBuf| {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    };
    let database = store.at("var/nix/db/db.sqlite");
    fs::remove_file(&database).unwrap();
    pipe(database);
    assert!(ask(&store.transport(), SIMPLE).await.is_err());
    pipe(store.at("store").join(SIMPLE));
    let (_alive, mut reader) = open(&store.transport()).await.unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("neither a file nor"), "{error}");
    pipe(store.at("var/log/nix/drvs/hw").join(&SIMPLE[2..]));
    let log = format!("log/{SIMPLE}").parse().unwrap();
    assert!(store.transport().read_small(&log, 100).await.is_err());
}

/// A tree with files of every size that is read in a way of its own.
fn tree() -> Tree {
    let large = vec![7; 100_001];
    Tree::directory([
        ("a", Tree::file("")),
        ("b", Tree::executable("12345678")),
        (
            "c",
            Tree::directory([
                ("d", Tree::symlink("../a")),
                ("e", Tree::executable(large.clone())),
                ("f", Tree::file(vec![1; 32 << 10])),
            ]),
        ),
        ("c.x", Tree::file(large)),
        ("empty", Tree::directory::<&str>([])),
    ])
}

fn write_tree(tree: &Tree, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    match tree {
        Tree::File {
            contents,
            is_executable,
        } => {
            fs::write(path, contents).unwrap();
            let mode = if *is_executable { 0o555 } else { 0o444 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        Tree::Symlink(target) => symlink(target.to_string(), path).unwrap(),
        Tree::Directory(entries) => {
            fs::create_dir(path).unwrap();
            for (name, tree) in entries {
                write_tree(tree, &path.join(name.to_string()));
            }
        }
    }
}

#[tokio::test]
async fn an_archive_is_that_of_the_tree_however_it_is_read() {
    for tree in [
        tree(),
        Tree::file(vec![3; 40_000]),
        Tree::executable("x"),
        Tree::symlink("nowhere"),
    ] {
        let store = Store::new();
        write_tree(&tree, &store.at("store").join(SIMPLE));
        for n_at_once in [1, 13, 4096, 1 << 20] {
            let (_alive, mut reader) = open(&store.transport()).await.unwrap();
            let (mut archive, mut buffer) = (Vec::new(), vec![0; n_at_once]);
            loop {
                let n_read = reader.read(&mut buffer).unwrap();
                if n_read == 0 {
                    break;
                }
                archive.extend_from_slice(&buffer[..n_read]);
            }
            assert!(archive == tree.to_nar().unwrap(), "{n_at_once}");
        }
    }
    let store = Store::new();
    assert!(matches!(
        open(&store.transport()).await,
        Err(TransportError::Missing { .. })
    ));
}

#[tokio::test]
async fn a_directory_that_is_moved_away_leads_nowhere_else() {
    let store = Store::new();
    let object = store.at("store").join(SIMPLE);
    write_tree(&tree(), &object);
    let (_alive, mut reader) = open(&store.transport()).await.unwrap();
    // The contents of `c/e` are many reads away from the end of `c`.
    let mut start = [0; 2000];
    reader.read_exact(&mut start).unwrap();
    assert!(start.windows(5).any(|window| window == [7; 5]));
    fs::create_dir(store.at("elsewhere")).unwrap();
    fs::rename(object.join("c"), store.at("elsewhere/c")).unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("was replaced"), "{error}");
}

#[tokio::test]
async fn a_file_that_becomes_shorter_is_an_error_and_one_that_nobody_wants_ends() {
    let store = Store::new();
    let object = store.at("store").join(SIMPLE);
    fs::write(&object, vec![1; 200_000]).unwrap();
    let (_alive, mut reader) = open(&store.transport()).await.unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    fs::write(&object, "short").unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let (alive, mut reader) = open(&store.transport()).await.unwrap();
    drop(alive);
    assert!(reader.read(&mut [0]).is_err());
}

#[tokio::test]
async fn logs_are_read_packed_or_plain_and_no_further_than_wanted() {
    use std::io::Write as _;
    let store = Store::new();
    let logs = store.at("var/log/nix/drvs/hw");
    let file: RelativeUrl = format!("log/{SIMPLE}.drv").parse().unwrap();
    let transport = store.transport();
    assert!(transport.read_small(&file, 100).await.unwrap().is_none());
    fs::write(logs.join(format!("{}.drv", &SIMPLE[2..])), "plain\n").unwrap();
    let log = transport.read_small(&file, 100).await.unwrap().unwrap();
    assert_eq!(log, "plain\n");
    let level = bzip2::Compression::default();
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
    encoder.write_all(&vec![b'x'; 100_000]).unwrap();
    let packed = encoder.finish().unwrap();
    fs::write(logs.join(format!("{}.drv.bz2", &SIMPLE[2..])), packed).unwrap();
    let log = transport.read_small(&file, 100_000).await.unwrap().unwrap();
    assert_eq!(log.len(), 100_000);
    let error = transport.read_small(&file, 99_999).await.unwrap_err();
    assert!(
        cause(&error).contains("more than 99999 bytes"),
        "{}",
        cause(&error)
    );
}
