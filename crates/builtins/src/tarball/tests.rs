//! What tarballs may hold, and what they may not.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use tar::{Builder, Header};

use super::*;

/// A member whose name nobody checks.
fn member(kind: EntryType, name: &str, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    member(EntryType::Regular, name, "", b"content")
}

struct Room {
    dir: tempfile::TempDir,
    out: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir, out }
    }

    fn extract(&self, bytes: &[u8]) -> Result<(), String> {
        let tarball = self.dir.path().join("tarball");
        fs::write(&tarball, bytes).unwrap();
        extract(&tarball, &self.out).map_err(|error| format!("{error}: {error:?}"))
    }

    fn extract_members(&self, members: &[Vec<u8>]) -> Result<(), String> {
        let mut bytes = members.concat();
        bytes.extend_from_slice(&[0; 1024]);
        self.extract(&bytes)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.out.join(name)).unwrap()
    }
}

fn ordinary() -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |name: &str, mode, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("top/text", 0o600, b"text");
    add("top/run", 0o4711, b"#!/bin/sh\n");
    add(&format!("top/{}/deep", "n".repeat(200)), 0o644, b"deep");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "top/link", "text")
        .unwrap();
    header.set_entry_type(EntryType::Link);
    builder
        .append_link(&mut header, "top/twin", "top/text")
        .unwrap();
    let mut tarball = member(EntryType::XGlobalHeader, "pax_global_header", "", b"");
    tarball.extend(builder.into_inner().unwrap());
    tarball
}

#[test]
fn a_tarball_becomes_its_files_in_whichever_compression() {
    let plain = ordinary();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let lzma = xz2::stream::LzmaOptions::new_preset(1).unwrap();
    let lzma = xz2::stream::Stream::new_lzma_encoder(&lzma).unwrap();
    let mut lzma = xz2::write::XzEncoder::new_stream(Vec::new(), lzma);
    lzma.write_all(&plain).unwrap();
    for compressed in [
        plain.clone(),
        gzip.finish().unwrap(),
        bzip2.finish().unwrap(),
        xz.finish().unwrap(),
        lzma.finish().unwrap(),
        zstd::encode_all(plain.as_slice(), 1).unwrap(),
    ] {
        let room = Room::new();
        room.extract(&compressed).unwrap();
        assert_eq!(room.read("top/text"), "text");
        assert_eq!(room.read(&format!("top/{}/deep", "n".repeat(200))), "deep");
        assert_eq!(
            fs::read_link(room.out.join("top/link")).unwrap(),
            PathBuf::from("text")
        );
        let facts = |name: &str| fs::symlink_metadata(room.out.join(name)).unwrap();
        // No set-user-id, and nobody else may write.
        assert_eq!(facts("top/run").permissions().mode() & 0o7022, 0);
        assert_ne!(facts("top/run").permissions().mode() & 0o100, 0);
        assert_eq!(facts("top/text").ino(), facts("top/twin").ino());
        assert_eq!(
            fs::read_dir(&room.out).unwrap().count(),
            1,
            "no header became a file"
        );
        if compressed.len() < plain.len() {
            let room = Room::new();
            assert!(room.extract(&compressed[..compressed.len() / 2]).is_err());
        }
    }
}

#[test]
fn absolute_names_begin_at_the_output_and_a_later_member_replaces_an_earlier_one() {
    let room = Room::new();
    let link = member(EntryType::Symlink, "link", "outside", b"");
    let later = member(EntryType::Regular, "top/x", "", b"later");
    room.extract_members(&[
        member(EntryType::Directory, "./", "", b""),
        file("/top/x"),
        link,
        file("link"),
        later,
    ])
    .unwrap();
    assert_eq!(room.read("top/x"), "later");
    assert_eq!(room.read("link"), "content");
    assert!(
        fs::symlink_metadata(room.out.join("link"))
            .unwrap()
            .is_file()
    );
}

type Attempt<'a> = &'a dyn Fn(&Room) -> Vec<Vec<u8>>;

#[test]
fn no_member_gets_out_of_the_output() {
    let absolute = |room: &Room| room.dir.path().to_str().unwrap().to_owned();
    let attempts: [Attempt<'_>; 7] = [
        &|_| vec![file("../outside")],
        &|_| vec![file("top/../../outside")],
        &|_| {
            vec![
                member(EntryType::Symlink, "up", "..", b""),
                file("up/outside"),
            ]
        },
        &|room| {
            vec![
                member(EntryType::Symlink, "up", &absolute(room), b""),
                file("up/outside"),
            ]
        },
        &|_| {
            vec![
                member(EntryType::Symlink, "up", "..", b""),
                member(EntryType::Directory, "up", "", b""),
                file("up/outside"),
            ]
        },
        &|_| {
            vec![
                member(EntryType::Link, "twin", "../outside", b""),
                file("twin"),
            ]
        },
        &|_| {
            vec![
                member(EntryType::Symlink, "up", "..", b""),
                member(EntryType::Link, "twin", "up/outside", b""),
            ]
        },
    ];
    for (idx, attempt) in attempts.iter().enumerate() {
        let room = Room::new();
        let refused = room.extract_members(&attempt(&room)).unwrap_err();
        assert!(refused.contains("which leads"), "{idx}: {refused}");
        let outside = fs::read_to_string(room.dir.path().join("outside")).unwrap();
        assert_eq!(outside, "untouched", "{idx}");
    }
}

#[test]
fn what_no_store_object_can_be_is_refused_by_its_name() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let refused = Room::new().extract_members(&[member(kind, "top/odd", "", b"")]);
        assert!(refused.unwrap_err().contains("'top/odd'"));
    }
    let room = Room::new();
    let over_directory = room.extract_members(&[file("top/x"), file("top")]);
    assert!(over_directory.unwrap_err().contains("'top'"));
    let below_file = Room::new().extract_members(&[file("top"), file("top/x")]);
    assert!(below_file.unwrap_err().contains("'top/x'"));
    let link_to_link = [
        member(EntryType::Symlink, "link", "x", b""),
        member(EntryType::Link, "twin", "link", b""),
    ];
    assert!(Room::new().extract_members(&link_to_link).is_err());
}

#[test]
fn what_is_damaged_or_no_tarball_is_an_error() {
    let whole = ordinary();
    assert!(
        Room::new()
            .extract(b"this is a page that says sorry, and no tarball")
            .is_err()
    );
    let content_cut = whole.len() - 1024 - 512 - 100;
    assert!(Room::new().extract(&whole[..content_cut]).is_err());
    let mut damaged = whole;
    damaged[600] ^= 1;
    assert!(Room::new().extract(&damaged).is_err());
}
