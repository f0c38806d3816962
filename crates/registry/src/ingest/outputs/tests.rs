//! What a builder may leave, what it may not, and what becomes of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use store_model::derivation::IngestionMethod;
use store_model::{Hash, HashAlgorithm};

use super::*;
use crate::messages::{QueryPathInfo, QueryValidPaths, TryLockOutputs};
use crate::testing::{Canary, Scratch, TestStore, has_nix, is_root, path};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Registers what `build` leaves at `$out`; returns the store and the answer.
async fn register(build: impl FnOnce(&Path)) -> (TestStore, Result<Vec<PathInfo>, RegisterError>) {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    build(&out);
    let answer = registry.register(scratch.finish()).await;
    registry.stop().await;
    (store, answer)
}

/// Expects a refusal with these words, and a store without a trace.
async fn expect_rejection(words: &str, build: impl FnOnce(&Path)) {
    let (store, answer) = register(build).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert!(message.contains(words), "{message}");
    assert_eq!(store.objects(), BTreeSet::new());
}

#[actix::test]
async fn an_output_gets_the_metadata_that_every_object_has() {
    let (store, answer) = register(|out| {
        fs::create_dir(out).unwrap();
        fs::create_dir(out.join("closed")).unwrap();
        fs::write(out.join("closed/plain"), "x").unwrap();
        fs::write(out.join("suid"), "x").unwrap();
        symlink("nowhere", out.join("link")).unwrap();
        set_mode(&out.join("suid"), 0o6755);
        set_mode(&out.join("closed/plain"), 0o000);
        set_mode(&out.join("closed"), 0o000);
    })
    .await;
    answer.unwrap();
    let out = store.real_path(&path('a', "out"));
    let euid = rustix::process::geteuid().as_raw();
    for (name, mode) in [
        ("", 0o40_555),
        ("closed", 0o40_555),
        ("closed/plain", 0o100_444),
        ("suid", 0o100_555),
        ("link", 0o120_777),
    ] {
        let metadata = fs::symlink_metadata(out.join(name)).unwrap();
        assert_eq!(metadata.mode(), mode, "{name}");
        assert_eq!(metadata.mtime(), 1, "{name}");
        assert_eq!(metadata.uid(), euid, "{name}");
    }
}

#[actix::test]
async fn attributes_and_access_lists_do_not_reach_the_store() {
    let (store, answer) = register(|out| {
        fs::create_dir(out).unwrap();
        fs::write(out.join("file"), "x").unwrap();
        for name in [out.to_owned(), out.join("file")] {
            let flags = rustix::fs::XattrFlags::empty();
            let set = rustix::fs::setxattr(&name, "user.secret", b"x", flags);
            assert!(matches!(set, Ok(()) | Err(Errno::OPNOTSUPP)));
        }
    })
    .await;
    answer.unwrap();
    let out = store.real_path(&path('a', "out"));
    for name in [out.clone(), out.join("file")] {
        let mut names = [0u8; 256];
        let n_bytes = rustix::fs::listxattr(&name, &mut names[..]).unwrap_or(0);
        assert!(!names[..n_bytes].starts_with(b"user."));
    }
}

#[actix::test]
async fn a_missing_output_is_named_with_its_derivation() {
    expect_rejection(
        "builder for '/nix/store/dddddddddddddddddddddddddddddddd-test.drv' failed to produce \
         output path for output 'out' at '/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-out'",
        |_| {},
    )
    .await;
}

#[actix::test]
async fn one_missing_output_leaves_the_others_unregistered() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("out", &path('a', "out")), "x").unwrap();
    scratch.output("dev", &path('b', "out-dev"));
    let answer = registry.register(scratch.finish()).await;
    assert!(matches!(answer, Err(RegisterError::Rejected(_))));
    assert_eq!(store.objects(), BTreeSet::new());
    let question = QueryPathInfo {
        path: path('a', "out"),
    };
    assert_eq!(registry.store.send(question).await.unwrap().unwrap(), None);
    registry.stop().await;
}

#[actix::test]
async fn a_writable_output_is_suspicious() {
    for mode in [0o775, 0o757] {
        expect_rejection("suspicious ownership or permission", |out| {
            fs::create_dir(out).unwrap();
            set_mode(out, mode);
        })
        .await;
    }
}

#[actix::test]
async fn an_output_of_another_user_is_suspicious() {
    if !is_root("an_output_of_another_user_is_suspicious") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("out", &path('a', "out")), "x").unwrap();
    let answer = registry.register(scratch.request()).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert!(message.contains("suspicious ownership"), "{message}");
    registry.stop().await;
}

#[actix::test]
async fn a_hard_link_to_a_secret_is_refused_and_the_secret_not_touched() {
    if !is_root("a_hard_link_to_a_secret_is_refused_and_the_secret_not_touched") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    let canary = Canary::new(store.root.join("canary"));
    fs::create_dir(&out).unwrap();
    scratch.hand_over();
    fs::hard_link(canary.path(), out.join("foo")).unwrap();
    let answer = registry.register(scratch.request()).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert_eq!(
        message,
        "invalid ownership on file '/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-out/foo'"
    );
    canary.check();
    registry.stop().await;
}

#[actix::test]
async fn a_hard_link_to_a_secret_is_not_copied_into_a_fixed_output() {
    if !is_root("a_hard_link_to_a_secret_is_not_copied_into_a_fixed_output") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let hash = Hash::digest(HashAlgorithm::Sha256, b"");
    let out = scratch.fixed(&path('a', "out"), IngestionMethod::Recursive, hash);
    let canary = Canary::new(store.root.join("canary"));
    fs::create_dir(&out).unwrap();
    scratch.hand_over();
    fs::hard_link(canary.path(), out.join("foo")).unwrap();
    let answer = registry.register(scratch.request()).await;
    assert!(
        matches!(answer, Err(RegisterError::Rejected(_))),
        "{answer:?}"
    );
    registry.stop().await;
    canary.check();
    // Nothing of it is left anywhere in the store, whatever its name.
    assert_eq!(store.objects(), BTreeSet::new());
    let left = fs::read_dir(store.layout().real_store_dir).unwrap().count();
    assert_eq!(left, 1, "only .links");
}

#[actix::test]
async fn a_hard_link_that_leaves_the_outputs_is_refused() {
    expect_rejection("has a hard link outside the outputs of its build", |out| {
        fs::create_dir(out).unwrap();
        fs::write(out.join("file"), "x").unwrap();
        fs::hard_link(out.join("file"), out.parent().unwrap().join("kept")).unwrap();
    })
    .await;
}

#[actix::test]
async fn hard_links_among_the_outputs_of_one_build_are_fine() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    let dev = scratch.output("dev", &path('b', "out-dev"));
    for dir in [&out, &dev] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(out.join("one"), "x").unwrap();
    fs::hard_link(out.join("one"), out.join("two")).unwrap();
    fs::hard_link(out.join("one"), dev.join("three")).unwrap();
    registry.register(scratch.finish()).await.unwrap();
    let metadata = fs::metadata(store.real_path(&path('b', "out-dev")).join("three")).unwrap();
    assert_eq!(metadata.mode(), 0o100_444);
    assert_eq!(metadata.nlink(), 3);
    registry.stop().await;
}

#[actix::test]
async fn a_link_out_of_the_output_stays_a_link() {
    let store = TestStore::new();
    let registry = store.start();
    let canary = Canary::new(store.root.join("canary"));
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    fs::create_dir(&out).unwrap();
    symlink(canary.path(), out.join("l")).unwrap();
    // The same as an output of its own.
    let link = scratch.output("link", &path('b', "out-link"));
    symlink(canary.path(), link).unwrap();
    registry.register(scratch.finish()).await.unwrap();
    canary.check();
    let link = store.real_path(&path('b', "out-link"));
    assert_eq!(fs::read_link(link).unwrap(), canary.path());
    registry.stop().await;
}

#[actix::test]
async fn sockets_and_pipes_are_refused_by_their_inner_path() {
    expect_rejection("-out/dir/sock' is a socket", |out| {
        fs::create_dir_all(out.join("dir")).unwrap();
        drop(UnixListener::bind(out.join("dir/sock")).unwrap());
    })
    .await;
    expect_rejection("-out/pipe' is a named pipe", |out| {
        fs::create_dir(out).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, out.join("pipe"), FileType::Fifo, mode, 0).unwrap();
    })
    .await;
}

#[actix::test]
async fn a_tree_too_deep_for_any_reader_is_refused() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    fs::create_dir(&out).unwrap();
    scratch.hand_over();
    let open = |dir: &fs::File, name| -> fs::File {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty());
        opened.unwrap().into()
    };
    let mut dir = fs::File::open(&out).unwrap();
    let owner = rustix::fs::fstat(&dir).unwrap().st_uid;
    for _ in 0..4_100 {
        rustix::fs::mkdirat(&dir, c"d", rustix::fs::Mode::RWXU).unwrap();
        dir = open(&dir, c"d");
        std::os::unix::fs::fchown(&dir, Some(owner), None).unwrap();
    }
    let answer = registry.register(scratch.request()).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert!(message.contains("nested"), "{message}");
    registry.stop().await;
    let parent = fs::File::open(&scratch.dir).unwrap();
    let name = c_name(path('a', "out").base_name());
    crate::deletion::remove_tree(parent.as_fd(), &name, &out).unwrap();
}

#[actix::test]
async fn outputs_that_refer_to_each_other_in_a_circle_are_refused() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let paths = [path('b', "x-a"), path('a', "x-b")];
    let a = scratch.output("a", &paths[0]);
    let b = scratch.output("b", &paths[1]);
    fs::write(a, format!("/nix/store/{}", paths[1])).unwrap();
    fs::write(b, format!("/nix/store/{}", paths[0])).unwrap();
    let answer = registry.register(scratch.finish()).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert_eq!(
        message,
        "cycle detected in build of '/nix/store/dddddddddddddddddddddddddddddddd-test.drv' in \
         the references of output 'a' from output 'b'"
    );
    registry.stop().await;
}

#[actix::test]
async fn references_among_outputs_and_to_oneself_are_recorded() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let (out, dev) = (path('a', "out"), path('b', "out-dev"));
    fs::write(
        scratch.output("out", &out),
        format!("x{}x", out.hash_part()),
    )
    .unwrap();
    fs::write(scratch.output("dev", &dev), format!("{out}{dev}")).unwrap();
    scratch.may_mention(&path('c', "unmentioned"));
    registry.register(scratch.finish()).await.unwrap();
    let info = |path| registry.store.send(QueryPathInfo { path });
    let out_info = info(out.clone()).await.unwrap().unwrap().unwrap();
    let dev_info = info(dev.clone()).await.unwrap().unwrap().unwrap();
    assert_eq!(out_info.references, BTreeSet::from([out.clone()]));
    assert_eq!(dev_info.references, BTreeSet::from([out, dev]));
    assert!(out_info.ultimate);
    assert_eq!(out_info.deriver, Some(path('d', "test.drv")));
    registry.stop().await;
}

#[actix::test]
async fn a_reference_that_is_not_valid_leaves_nothing_behind() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let stranger = path('c', "stranger");
    scratch.may_mention(&stranger);
    fs::write(
        scratch.output("out", &path('a', "out")),
        stranger.hash_part(),
    )
    .unwrap();
    let answer = registry.register(scratch.finish()).await;
    assert!(
        matches!(
            answer,
            Err(RegisterError::Store(Error::InvalidReference { .. }))
        ),
        "{answer:?}"
    );
    registry.stop().await;
    assert_eq!(store.objects(), BTreeSet::new());
}

#[actix::test]
async fn an_output_is_never_moved_over_another() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    fs::write(scratch.output("aa", &path('a', "out")), "new").unwrap();
    fs::write(scratch.output("out", &path('b', "out")), "new").unwrap();
    fs::write(store.real_path(&path('b', "out")), "old").unwrap();
    let answer = registry.register(scratch.finish()).await;
    assert!(
        matches!(answer, Err(RegisterError::Store(Error::PathExists { .. }))),
        "{answer:?}"
    );
    assert_eq!(
        fs::read(store.real_path(&path('b', "out"))).unwrap(),
        b"old"
    );
    // The one that had been moved already is taken away.
    assert!(!store.objects().contains(path('a', "out").base_name()));
    let paths = vec![path('a', "out"), path('b', "out")];
    let valid = registry.store.send(QueryValidPaths { paths }).await;
    assert_eq!(valid.unwrap().unwrap(), BTreeSet::new());
    registry.stop().await;
}

/// Returns the path of a plain file with this hash.
fn flat_path(hash: Hash) -> StorePath {
    store_model::StoreDir::default()
        .make_fixed_output_path(IngestionMethod::Flat, &hash, "out", &References::default())
        .unwrap()
}

#[actix::test]
async fn a_fixed_output_is_another_file_than_the_one_its_builder_had_open() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let hash = Hash::digest(HashAlgorithm::Md5, b"hello");
    let promised = flat_path(hash);
    let out = scratch.fixed(&promised, IngestionMethod::Flat, hash);
    fs::write(&out, "hello").unwrap();
    let mut open = fs::File::options().write(true).open(&out).unwrap();
    let infos = registry.register(scratch.finish()).await.unwrap();
    std::io::Write::write_all(&mut open, b"Pwned").unwrap();
    assert_eq!(fs::read(store.real_path(&promised)).unwrap(), b"hello");
    assert_eq!(
        infos[0].content_address.as_deref(),
        Some(format!("fixed:{hash}").as_str())
    );
    registry.stop().await;
}

#[actix::test]
async fn a_fixed_output_with_other_contents_names_both_hashes_and_is_kept_as_what_it_is() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let wanted = Hash::digest(HashAlgorithm::Sha512, b"hello");
    let out = scratch.fixed(&path('a', "out"), IngestionMethod::Flat, wanted);
    fs::write(&out, "world").unwrap();
    let answer = registry.register(scratch.finish()).await;
    let got = Hash::digest(HashAlgorithm::Sha512, b"world");
    let message = answer.unwrap_err().to_string();
    assert!(message.contains(&wanted.to_sri()), "{message}");
    assert!(message.contains(&got.to_sri()), "{message}");
    let path = flat_path(got);
    let question = QueryPathInfo { path: path.clone() };
    let info = registry.store.send(question).await.unwrap().unwrap();
    let info = info.unwrap();
    assert_eq!(info.deriver, Some(scratch.request().drv_path));
    assert_eq!(info.content_address, Some(format!("fixed:{got}")));
    registry.stop().await;
    assert_eq!(
        store.objects(),
        BTreeSet::from([path.base_name().to_owned()])
    );
}

#[actix::test]
async fn what_a_fixed_output_really_is_does_not_wait_for_a_lock_or_replace_what_is_valid() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let wanted = Hash::digest(HashAlgorithm::Sha256, b"hello");
    let out = scratch.fixed(&flat_path(wanted), IngestionMethod::Flat, wanted);
    let path = flat_path(Hash::digest(HashAlgorithm::Sha256, b"world"));
    let lock = TryLockOutputs {
        paths: BTreeSet::from([path.clone()]),
    };
    let held = registry.locks.send(lock).await.unwrap().unwrap();
    fs::write(&out, "world").unwrap();
    let answer = registry.register(scratch.finish()).await;
    assert!(matches!(answer, Err(RegisterError::HashMismatch { .. })));
    assert!(!store.real_path(&path).exists());
    drop(held);
    registry.locks_are_free().await;
    let mut inode = None;
    for _ in 0..2 {
        let answer = registry.register(scratch.finish()).await;
        assert!(matches!(answer, Err(RegisterError::HashMismatch { .. })));
        let kept = fs::metadata(store.real_path(&path)).unwrap().ino();
        assert_eq!(*inode.get_or_insert(kept), kept);
    }
    registry.stop().await;
}

#[actix::test]
async fn a_flat_output_must_be_a_plain_file() {
    let shapes: [fn(&Path); 3] = [
        |out| fs::create_dir(out).unwrap(),
        |out| symlink("x", out).unwrap(),
        |out| {
            fs::write(out, "x").unwrap();
            set_mode(out, 0o755);
        },
    ];
    for make in shapes {
        let store = TestStore::new();
        let registry = store.start();
        let mut scratch = Scratch::new(&store);
        let hash = Hash::digest(HashAlgorithm::Sha256, b"x");
        make(&scratch.fixed(&path('a', "out"), IngestionMethod::Flat, hash));
        let answer = registry.register(scratch.finish()).await;
        let Err(RegisterError::Rejected(message)) = answer else {
            panic!("not rejected: {answer:?}");
        };
        assert!(
            message.ends_with(
                "should be a non-executable regular file since recursive hashing is not enabled \
                 (outputHashMode=flat)"
            ),
            "{message}"
        );
        registry.stop().await;
    }
}

#[actix::test]
async fn an_output_on_another_file_system_is_copied() {
    if !is_root("an_output_on_another_file_system_is_copied") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    scratch.dir = elsewhere.path().to_owned();
    let out = scratch.output("out", &path('a', "out"));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("file"), "x").unwrap();
    registry.register(scratch.finish()).await.unwrap();
    let file = store.real_path(&path('a', "out")).join("file");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.mode(), metadata.mtime()), (0o100_444, 1));
    registry.stop().await;
}

#[actix::test]
async fn nix_finds_what_we_registered_to_be_as_it_should() {
    if !has_nix("nix_finds_what_we_registered_to_be_as_it_should") {
        return;
    }
    let (store, answer) = register(|out| {
        fs::create_dir_all(out.join("bin")).unwrap();
        fs::write(
            out.join("bin/tool"),
            out.file_name().unwrap().as_encoded_bytes(),
        )
        .unwrap();
        set_mode(&out.join("bin/tool"), 0o755);
        symlink("bin/tool", out.join("link")).unwrap();
        fs::write(out.join("empty"), "").unwrap();
    })
    .await;
    let infos = answer.unwrap();
    store.nix_store(&["--verify", "--check-contents"]);
    let out = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-out";
    let hash = store.nix_store(&["-q", "--hash", out]);
    assert_eq!(hash.trim(), infos[0].nar_hash.to_string());
    let size = store.nix_store(&["-q", "--size", out]);
    assert_eq!(size.trim(), infos[0].nar_size_bytes.to_string());
    let references = store.nix_store(&["-q", "--references", out]);
    assert_eq!(references.trim(), out);
    let deriver = store.nix_store(&["-q", "--deriver", out]);
    assert!(deriver.trim().ends_with("-test.drv"), "{deriver}");
}
