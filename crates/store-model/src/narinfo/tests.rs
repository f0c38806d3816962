//! Narinfos that Nix 2.8 wrote, and narinfos that nobody should believe.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::StoreDir;

fn fixtures() -> PathBuf {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    shared.join("fixtures/nix-2.8")
}

/// The narinfos of a fixture cache.
fn narinfos(cache: &str) -> Vec<Vec<u8>> {
    std::fs::read_dir(fixtures().join(cache))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "narinfo"))
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn parse(text: &str) -> Result<NarInfo, String> {
    NarInfo::parse(text.as_bytes(), &StoreDir::default()).map_err(|error| error.to_string())
}

const GOOD: &str = "\
StorePath: /nix/store/hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple
URL: nar/0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn.nar
Compression: none
FileHash: sha256:0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn
FileSize: 120
NarHash: sha256:0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn
NarSize: 120
References: 0g7pm67cby4k99df400s45nvhdd06wac-a hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple
Deriver: kxfhmynp3yqb3qzdymks3f3gg7348flw-simple.drv
Sig: a:xyz
Sig: b:xyz
CA: fixed:r:sha256:0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn
";

#[test]
fn what_nix_wrote_is_printed_byte_for_byte() {
    let caches = [
        ("cache-none", 27),
        ("cache-xz", 31),
        ("cache-bzip2", 27),
        ("cache-gzip", 27),
        ("cache-zstd", 27),
        ("cache-br", 27),
        ("cache-listing", 1),
        ("cache-log", 1),
        ("ca/cache", 1),
    ];
    for (cache, n_least) in caches {
        let narinfos = narinfos(cache);
        assert!(narinfos.len() >= n_least, "{cache}: {}", narinfos.len());
        for text in narinfos {
            let narinfo = NarInfo::parse(&text, &StoreDir::default()).unwrap();
            let printed = narinfo.print(&StoreDir::default());
            assert_eq!(printed, String::from_utf8(text).unwrap());
            narinfo.archive_url().unwrap();
        }
    }
    let info = std::fs::read(fixtures().join("cache-xz/nix-cache-info")).unwrap();
    let parsed = CacheInfo::parse(&info).unwrap();
    assert_eq!(parsed.to_string().as_bytes(), info);
}

#[test]
fn every_field_has_its_place() {
    let narinfo = parse(GOOD).unwrap();
    assert_eq!(narinfo.print(&StoreDir::default()), GOOD);
    assert_eq!(narinfo.info.references.len(), 2);
    assert_eq!(narinfo.info.signatures.len(), 2);
    assert_eq!(narinfo.file_size_bytes, Some(120));
    assert_eq!(narinfo.info.nar_hash.to_hash(), narinfo.file_hash.unwrap());
}

#[test]
fn what_need_not_be_there_has_a_meaning_when_it_is_not() {
    let needed: Vec<&str> = GOOD
        .split_inclusive('\n')
        .filter(|line| {
            ["StorePath", "URL", "NarHash", "NarSize"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .collect();
    let needed = needed.concat();
    let narinfo = parse(&format!(
        "Later: 1\n{needed}Deriver: unknown-deriver\nSystem: x\n"
    ))
    .unwrap();
    assert_eq!(narinfo.compression, Compression::Bzip2);
    assert_eq!(narinfo.info.deriver, None);
    assert_eq!(narinfo.file_hash, None);
    assert!(narinfo.info.references.is_empty());
    for line in needed.lines() {
        let without = needed.replace(&format!("{line}\n"), "");
        assert!(parse(&without).unwrap_err().contains("it has no"), "{line}");
    }
}

#[test]
fn a_field_that_stands_there_twice_is_refused() {
    for line in GOOD.lines().filter(|line| !line.starts_with("Sig")) {
        let reason = parse(&format!("{GOOD}{line}\n")).unwrap_err();
        assert!(reason.contains("stands there twice (line 13)"), "{reason}");
    }
    let reason = parse(&format!("{GOOD}System: a\nSystem: b\n")).unwrap_err();
    assert!(reason.contains("'System' stands there twice"), "{reason}");
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let reference = "hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple";
    for (old, new) in [
        ("\n", "\r\n"),
        ("NarSize: 120\n", "NarSize: 120 \n"),
        ("NarSize: 120\n", "NarSize:  120\n"),
        ("NarSize: 120\n", "NarSize:120\n"),
        ("NarSize: 120\n", "NarSize: +120\n"),
        ("NarSize: 120\n", "NarSize: -1\n"),
        ("NarSize: 120\n", "NarSize: 0\n"),
        ("NarSize: 120\n", "NarSize: 0x78\n"),
        ("NarSize: 120\n", "NarSize: \n"),
        ("NarSize: 120\n", "NarSize: 18446744073709551616\n"),
        ("NarSize: 120\n", "NarSize: 120\n\n"),
        ("NarSize: 120\n", "NarSize: 120\0\n"),
        ("Sig: a:xyz", "Sig: a:x\u{b}yz"),
        ("Sig: a:xyz", "Sig: a:xyz b:xyz"),
        (reference, &format!("{reference}  {reference}")),
        (reference, &format!("{reference} {reference}")),
        (reference, "../x"),
        ("StorePath: /nix/store/", "StorePath: /nix/other/"),
        ("StorePath: /nix/store/", "StorePath: "),
        ("NarHash: sha256:", "NarHash: "),
        ("NarHash: sha256:0l7", "NarHash: sha256:0e7"),
        ("Deriver: ", "Deriver: /nix/store/"),
        ("Compression: none", "Compression: rot13"),
        ("URL: ", "URL:"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        assert!(parse(&GOOD.replace(old, new)).is_err(), "{new:?}");
    }
    assert!(parse(GOOD.trim_end()).is_err());
    assert!(parse("").is_err());
    assert!(parse(&format!("<!DOCTYPE html>\n{GOOD}")).is_err());
    assert!(NarInfo::parse(b"A: \xff\n", &StoreDir::default()).is_err());
    let unknown = parse(&GOOD.replace("none", "rot13")).unwrap_err();
    assert!(unknown.contains("'rot13' is unknown"), "{unknown}");
}

#[test]
fn what_is_too_large_is_refused() {
    let long_line = format!("{GOOD}X: {}\n", "x".repeat(MAX_FILE_BYTES));
    assert!(parse(&long_line).unwrap_err().contains("a megabyte"));
    let references: Vec<String> = (0..10_001)
        .map(|idx| format!("hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-{idx}"))
        .collect();
    let many = GOOD.replace("0g7pm67cby4k99df400s45nvhdd06wac-a", &references.join(" "));
    assert!(parse(&many).unwrap_err().contains("more than 10000"));
    let signatures: Vec<String> = (0..101).map(|idx| format!("Sig: k:{idx}\n")).collect();
    let many = format!("{GOOD}{}", signatures.concat());
    assert!(parse(&many).unwrap_err().contains("100 signatures"));
}

proptest! {
    #[test]
    fn no_change_of_bytes_makes_the_reader_panic_or_the_text_change(
        position in 0..GOOD.len(), byte: u8, length in 0..4_usize
    ) {
        let mut text = GOOD.as_bytes().to_vec();
        let end = (position + length).min(text.len());
        text.splice(position..end, [byte]);
        if let Ok(narinfo) = NarInfo::parse(&text, &StoreDir::default()) {
            let printed = narinfo.print(&StoreDir::default());
            let again = NarInfo::parse(printed.as_bytes(), &StoreDir::default());
            prop_assert_eq!(again, Ok(narinfo));
        }
    }
}
