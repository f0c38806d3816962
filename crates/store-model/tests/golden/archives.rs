//! Archives of every kind of tree, with the hashes and references that Nix found in them.

use std::collections::{BTreeMap, BTreeSet};

use store_model::nar::{Discard, ListingWriter, NarHasher, NarWriter, Tee, Tree, read_whole};
use store_model::{NarHash, StoreDir, StorePath};

use crate::fixtures;

/// Reads `name, sha256 in base-16, in base-32, size` for each archive.
fn index() -> BTreeMap<String, (NarHash, u64)> {
    let index = std::fs::read_to_string(fixtures::fixture("nix-2.8/nar/index.tsv"))
        .expect("the index can be read");
    index
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, base16, base32, size] = fields[..] else {
                panic!("not an index line: {line}");
            };
            let parse = |digits| {
                format!("sha256:{digits}")
                    .parse::<NarHash>()
                    .expect("a hash of the index")
            };
            assert_eq!(parse(base16), parse(base32));
            let size = size.parse().expect("a size of the index");
            (name.to_owned(), (parse(base16), size))
        })
        .collect()
}

#[test]
fn every_archive_is_written_as_it_was_read() {
    let index = index();
    let mut n_checked = 0;
    for (file_name, archive) in fixtures::files("nix-2.8/nar", ".nar") {
        let name = file_name.strip_suffix(".nar").expect("the suffix");
        let (nar_hash, nar_size_bytes) = index[name];
        let mut tee = Tee::new(&archive[..], NarHasher::new([]));
        let mut writer = NarWriter::new(Vec::new());
        let read = read_whole(&mut tee, &mut writer).expect("an archive of Nix is well-formed");
        let (copy, written) = writer.finish().expect("the archive was read to its end");
        assert!(copy == archive, "{name} is written differently");
        assert_eq!((read, read.size_bytes), (written, nar_size_bytes));
        let digest = tee.into_parts().expect("hashing cannot fail").1.finish();
        assert_eq!(
            (digest.nar_hash, digest.nar_size_bytes),
            (nar_hash, nar_size_bytes),
            "{name}"
        );
        n_checked += 1;
    }
    assert_eq!(n_checked, index.len());
}

#[test]
fn every_archive_goes_through_a_tree_in_memory() {
    for directory in ["nix-2.8/nar", "nix-2.8/ca/nar"] {
        for (name, archive) in fixtures::files(directory, ".nar") {
            let tree = Tree::parse(&archive).expect("an archive of Nix is well-formed");
            assert!(tree.to_nar().as_ref() == Ok(&archive), "{name}");
        }
    }
}

#[test]
fn the_references_found_in_archives_are_those_that_nix_registered() {
    let store_dir = StoreDir::default();
    let text = std::fs::read(fixtures::fixture("nix-2.8/path-info.json")).expect("a fixture");
    let infos: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("a fixture");
    let parse = |value: &serde_json::Value| -> StorePath {
        let text = value.as_str().expect("a path is a string");
        store_dir.parse(text).expect("a path of Nix")
    };
    let all: BTreeSet<StorePath> = infos.iter().map(|info| parse(&info["path"])).collect();
    let mut n_checked = 0;
    for info in &infos {
        let path = parse(&info["path"]);
        let Ok(archive) =
            std::fs::read(fixtures::fixture("nix-2.8/nar").join(format!("{path}.nar")))
        else {
            continue;
        };
        let expected: BTreeSet<StorePath> = info["references"]
            .as_array()
            .expect("references are a list")
            .iter()
            .map(parse)
            .collect();
        for piece_len in [1, 31, 33, 4096] {
            let mut hasher = NarHasher::new(all.iter().cloned());
            for piece in archive.chunks(piece_len) {
                hasher.update(piece);
            }
            let found = hasher.finish().references;
            if path.name() == "context-discarded" {
                // It mentions a path that was not among its inputs, so Nix did not look for it.
                let names: Vec<&str> = found.iter().map(StorePath::name).collect();
                assert_eq!(names, ["simple"]);
            } else {
                assert_eq!(found, expected, "{path}");
            }
        }
        n_checked += 1;
    }
    assert!(n_checked > 50, "only {n_checked} archives were scanned");
}

#[test]
fn an_archive_that_is_cut_short_anywhere_is_refused() {
    for (name, archive) in fixtures::files("nix-2.8/nar", ".nar") {
        if archive.len() > 4096 {
            continue;
        }
        for len in 0..archive.len() {
            let read = read_whole(&mut &archive[..len], &mut Discard);
            assert!(read.is_err(), "{name} cut to {len} bytes");
        }
    }
}

#[test]
fn listings_are_those_that_nix_put_into_a_cache() {
    let listings = fixtures::files("nix-2.8/cache-listing", ".ls");
    let archives = fixtures::files("nix-2.8/nar", ".nar");
    for (file_name, listing) in &listings {
        let hash_part = file_name.strip_suffix(".ls").expect("the suffix");
        let of_path = |(name, _): &&(String, Vec<u8>)| name.starts_with(hash_part);
        let (name, archive) = archives.iter().find(of_path).expect("the path's archive");
        let mut lister = ListingWriter::new(NarWriter::new(Vec::new()));
        read_whole(&mut &archive[..], &mut lister).expect("an archive of Nix is well-formed");
        let (copy, _, text) = lister.finish().expect("the archive was read to its end");
        assert!(copy == *archive, "{name} is written differently");
        assert!(text == *listing, "{name} is listed differently");
    }
    assert_eq!(listings.len(), 2);
}
