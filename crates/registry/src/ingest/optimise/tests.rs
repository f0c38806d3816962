//! Equal files that are made at the same moment.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use store_model::Settings;

use crate::messages::RegisterOutputs;
use crate::testing::{Scratch, TestStore, path};

/// How often every file says the same: reading it takes so long that others do it as well.
const N_LINES: usize = 20_000;

fn text() -> String {
    "the same in all of them\n".repeat(N_LINES)
}

/// What a builder leaves whose output is a directory with one file.
fn made(store: &TestStore, digit: char) -> RegisterOutputs {
    let mut scratch = Scratch::new(store);
    let dir = scratch.output("out", &path(digit, "x"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), text()).unwrap();
    scratch.finish()
}

fn file(store: &TestStore, digit: char) -> PathBuf {
    store.real_path(&path(digit, "x")).join("file")
}

/// Changes the contents of a file, and nothing that can be seen without reading it.
fn damage(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    let opened = fs::File::options().write(true).open(file).unwrap();
    opened.write_all_at(b"X", 0).unwrap();
    opened
        .set_modified(UNIX_EPOCH + Duration::from_secs(1))
        .unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o444)).unwrap();
}

#[actix::test]
async fn files_that_are_made_at_once_are_one_file_though_the_first_of_their_kind_is_corrupt() {
    let settings = Settings {
        auto_optimise_store: true,
        ..Settings::default()
    };
    for _ in 0..8 {
        let store = TestStore::new();
        // Two processes share no memory.
        let registries = [store.start_with(&settings), store.start_with(&settings)];
        registries[0].register(made(&store, 'a')).await.unwrap();
        damage(&file(&store, 'a'));
        let others = ['b', 'c', 'd', 'f', 'g', 'h'];
        let requests = others.map(|digit| made(&store, digit));
        let sent = requests.into_iter().zip(registries.iter().cycle());
        let answers: Vec<_> = sent
            .map(|(request, registry)| registry.store.send(request))
            .collect();
        for answer in answers {
            answer.await.unwrap().unwrap();
        }
        let inode = |digit| fs::metadata(file(&store, digit)).unwrap().ino();
        for digit in others {
            assert_eq!(fs::read_to_string(file(&store, digit)).unwrap(), text());
            assert_eq!(inode(digit), inode('b'), "{digit}");
            assert_ne!(inode(digit), inode('a'));
        }
        for registry in &registries {
            registry.stop().await;
        }
    }
}
