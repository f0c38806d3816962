//! How fast references are found, alone and together with hashing (SPEC D3).
//!
//! `cargo bench -p store-model`, on a quiet machine; compare within one run.

#![expect(clippy::print_stdout, reason = "the numbers are what it is for")]

use std::time::Instant;

use store_model::nar::NarHasher;
use store_model::ref_scan::RefScanner;
use store_model::{Hash, HashAlgorithm, StorePath};

/// Length of each kind of data: far more than fits the caches.
const LEN: usize = 128 << 20;

/// How much is given at once: what a file is read by.
const PIECE_LEN: usize = 64 * 1024;

/// A small generator of numbers (xorshift64), so that every run sees the same bytes.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()
    }

    fn path(&mut self) -> Option<StorePath> {
        let mut digest = [0; 20];
        for part in digest.chunks_mut(4) {
            part.copy_from_slice(&self.next()[..4]);
        }
        StorePath::from_digest(&digest, "x").ok()
    }
}

fn repeated(sample: &[u8]) -> Vec<u8> {
    sample.iter().cycle().take(LEN).copied().collect()
}

#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn report(what: &str, data: &[u8], work: impl FnOnce(&[u8])) {
    let start = Instant::now();
    work(data);
    let nanoseconds = start.elapsed().as_nanos().max(1);
    let megabytes_per_second = data.len() as u128 * 1000 / nanoseconds;
    println!("{what:40} {megabytes_per_second:6} MB/s");
}

fn main() {
    let mut numbers = Numbers(1);
    let program = std::env::current_exe().and_then(std::fs::read);
    let text = include_bytes!("../src/derivation/modulo.rs");
    let random: Vec<u8> = (0..LEN / 8).flat_map(|_| numbers.next()).collect();
    let hexadecimal = random[..LEN / 2]
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect();
    let kinds = [
        ("text", repeated(text)),
        ("a program", repeated(&program.unwrap_or_default())),
        ("random bytes", random),
        ("hexadecimal digits", hexadecimal),
    ];
    for n_candidates in [100, 50_000] {
        let candidates: Vec<StorePath> = (0..n_candidates).filter_map(|_| numbers.path()).collect();
        for (kind, data) in &kinds {
            let mut scanner = RefScanner::new(candidates.iter().cloned());
            report(
                &format!("scan {kind}, {n_candidates} candidates"),
                data,
                |data| {
                    data.chunks(PIECE_LEN).for_each(|piece| scanner.scan(piece));
                },
            );
            let mut hasher = NarHasher::new(candidates.iter().cloned());
            report(&format!("hash and scan {kind}"), data, |data| {
                data.chunks(PIECE_LEN)
                    .for_each(|piece| hasher.update(piece));
            });
        }
    }
    for (kind, data) in &kinds {
        report(&format!("hash {kind}"), data, |data| {
            println!("{}", Hash::digest(HashAlgorithm::Sha256, data));
        });
    }
}
