//! Streams of paths, and the lines of a database, that genuine Nix wrote.

use std::collections::{BTreeMap, BTreeSet};

use store_model::export::{self, Reader, references_first};
use store_model::validity_text::{self, HashAndSize, SaidValid};
use store_model::{PathInfo, StoreDir, StorePath};

use crate::fixtures;

#[test]
fn streams_of_nix_are_read_and_written_again_in_the_same_order() {
    let store_dir = StoreDir::default();
    for (name, stream) in fixtures::files("nix-2.8/export", ".export") {
        let mut archives: BTreeMap<StorePath, Vec<u8>> = BTreeMap::new();
        let mut infos = BTreeMap::new();
        let mut reader = Reader::new(&stream[..], store_dir.clone());
        let mut archive = Vec::new();
        while let Some(info) = reader.next(&mut archive).expect("a stream of Nix") {
            archives.insert(info.path.clone(), std::mem::take(&mut archive));
            infos.insert(info.path.clone(), info);
        }
        let mut written = Vec::new();
        let to_memory = "memory takes everything";
        for info in references_first(&infos) {
            export::write_begin(&mut written).expect(to_memory);
            written.extend(&archives[&info.path]);
            export::write_info(&mut written, info, &store_dir).expect(to_memory);
        }
        export::write_end(&mut written).expect(to_memory);
        assert!(written == stream, "{name}");
    }
}

#[test]
fn the_lines_of_a_database_of_nix_are_read_and_written_again() {
    let store_dir = StoreDir::default();
    let read = |text: &str, said| {
        let read = validity_text::read(&mut text.as_bytes(), said, &store_dir);
        read.expect("lines of Nix")
    };
    let text = |name: &str| {
        let text = std::fs::read_to_string(fixtures::fixture("nix-2.8/db").join(name));
        text.expect("a fixture can be read")
    };
    for name in ["dump-db.txt", "dump-db-multi-output.txt"] {
        let original = text(name);
        let said = read(&original, HashAndSize::Said);
        assert!(said.len() > 4);
        let print = |said: SaidValid| {
            let (nar_hash, nar_size_bytes) = said.nar.expect("hash and size are said");
            let info = PathInfo {
                path: said.path,
                nar_hash,
                nar_size_bytes,
                references: said.references,
                deriver: said.deriver,
                registration_time: 0,
                ultimate: false,
                signatures: BTreeSet::new(),
                content_address: None,
            };
            validity_text::print(&info, &store_dir)
        };
        let printed: String = said.into_iter().map(print).collect();
        assert!(printed == original, "{name}");
    }
    let without = text("register-validity-multi-output.txt");
    let with = read(&text("dump-db-multi-output.txt"), HashAndSize::Said);
    let strip = |said: SaidValid| SaidValid { nar: None, ..said };
    let stripped: Vec<SaidValid> = with.into_iter().map(strip).collect();
    assert_eq!(read(&without, HashAndSize::NotSaid), stripped);
}
