//! Archives that no honest program makes.

use super::*;

#[actix::test]
async fn evil_archives_leave_nothing_anywhere() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let canary = Canary::new(store.root.join("canary"));
    let target = canary.path().to_str().unwrap().as_bytes();
    let parent = store.root.to_str().unwrap().as_bytes();
    let to_canary: &[&[u8]] = &[b"(", b"type", b"symlink", b"target", target, b")"];
    let to_parent: &[&[u8]] = &[b"(", b"type", b"symlink", b"target", parent, b")"];
    let inner = [b"(", &b"type"[..], b"directory"];
    let inner: Vec<&[u8]> = inner
        .into_iter()
        .chain([&b"entry"[..], b"(", b"name", b"canary", b"node"])
        .chain(FILE.iter().copied())
        .chain([&b")"[..], b")"])
        .collect();
    let mut archives = vec![
        directory_nar(&[(b"a", to_canary), (b"a", FILE)]),
        directory_nar(&[(b"a", to_parent), (b"a", &inner)]),
        directory_nar(&[(b"a", FILE), (b"a", FILE)]),
        directory_nar(&[(b"a", EMPTY_DIR), (b"a", EMPTY_DIR)]),
        directory_nar(&[(b"b", FILE), (b"a", FILE)]),
    ];
    let names: [&[u8]; 9] = [
        b"",
        b".",
        b"..",
        b"../canary",
        b"meow/nya",
        b"/etc/goalctl-canary",
        b"meow\0nya",
        b"x~nix~case~hack~1",
        &[b'n'; 256],
    ];
    archives.extend(names.map(|name| directory_nar(&[(b"0", to_parent), (name, FILE)])));
    for target in [&b""[..], b"foo\0junk", &[b't'; 4096]] {
        let link: &[&[u8]] = &[b"(", b"type", b"symlink", b"target", target, b")"];
        archives.push(directory_nar(&[(b"a", FILE), (b"l", link)]));
    }
    // A length that wraps around, or promises more than there is memory.
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32] {
        let mut archive = directory_nar(&[(b"a", FILE)]);
        let end = archive.len() - 64;
        archive.truncate(end);
        archive.extend(length.to_le_bytes());
        archive.extend([0; 32]);
        archives.push(archive);
    }
    for archive in archives {
        refusal(&registry, promise(&archive), &archive).await;
    }
    canary.check();
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}
