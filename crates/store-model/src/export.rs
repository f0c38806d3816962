//! Streams of paths with their archives, as `nix-store --export` writes them and `--import` reads
//! them.
//!
//! Numbers are 8 bytes, little-endian; a string is its length, its bytes, and zeros up to a multiple
//! of 8.
//!
//! ```text
//! stream = { 1 archive magic path references deriver signature } 0
//! references = count { path }      deriver = path or an empty string      signature = 0 | 1 string
//! ```
//!
//! What a path refers to comes before it. Neither the archive's hash nor its size is said, nor are
//! signatures: who gives such a stream to a store vouches for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};

use bstr::ByteSlice as _;

use crate::nar::{self, Discard, NarHasher, Tee};
use crate::{Error, PathInfo, StoreDir, StorePath};

/// Stands between an archive and what is known of its path: "NIXE".
const MAGIC: u64 = 0x4558_494e;

/// Before each path.
const MORE: u64 = 1;
/// After the last path.
const END: u64 = 0;

/// The longest string: a store directory of any sane length, a slash and a path.
const MAX_STRING_LEN: u64 = 4096;

/// Why a stream was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed; the stream may be fine.
    #[error("cannot read the stream")]
    Source(#[source] io::Error),
    /// The bytes are no such stream.
    #[error(transparent)]
    Malformed(#[from] Error),
    /// An archive could not be put aside.
    #[error("cannot put an archive aside")]
    Copy(#[source] io::Error),
}

/// Writes the beginning of one path; its archive follows.
///
/// # Errors
/// The sink failed.
pub fn write_begin(sink: &mut impl Write) -> io::Result<()> {
    write_number(sink, MORE)
}

/// Writes what is known of a path, after its archive.
///
/// # Errors
/// The sink failed.
pub fn write_info(sink: &mut impl Write, info: &PathInfo, store_dir: &StoreDir) -> io::Result<()> {
    write_number(sink, MAGIC)?;
    write_string(sink, &store_dir.print(&info.path))?;
    write_number(sink, info.references.len() as u64)?;
    for reference in &info.references {
        write_string(sink, &store_dir.print(reference))?;
    }
    let deriver = info.deriver.as_ref();
    write_string(
        sink,
        &deriver.map_or_else(String::new, |deriver| store_dir.print(deriver)),
    )?;
    // There is no signature.
    write_number(sink, 0)
}

/// Writes the end of the stream.
///
/// # Errors
/// The sink failed.
pub fn write_end(sink: &mut impl Write) -> io::Result<()> {
    write_number(sink, END)
}

fn write_number(sink: &mut impl Write, number: u64) -> io::Result<()> {
    sink.write_all(&number.to_le_bytes())
}

fn write_string(sink: &mut impl Write, string: &str) -> io::Result<()> {
    write_number(sink, string.len() as u64)?;
    sink.write_all(string.as_bytes())?;
    let n_zeros = string.len().next_multiple_of(8) - string.len();
    sink.write_all(&[0; 8][..n_zeros])
}

/// Returns paths so that each comes after those that it refers to, in the order of Nix: the same
/// paths always give the same stream. References to paths that are not there do not count.
///
/// Of paths that refer to each other in a circle, which no store has, some come too early.
#[must_use]
pub fn references_first(infos: &BTreeMap<StorePath, PathInfo>) -> Vec<&PathInfo> {
    let mut ordered = Vec::with_capacity(infos.len());
    let mut seen = BTreeSet::new();
    for root in infos.values() {
        let mut above = Vec::new();
        if seen.insert(&root.path) {
            above.push((root, root.references.iter()));
        }
        while let Some((info, references)) = above.last_mut() {
            match references.next() {
                None => {
                    ordered.push(*info);
                    above.pop();
                }
                Some(reference) => {
                    if let Some(below) = infos.get(reference)
                        && seen.insert(&below.path)
                    {
                        above.push((below, below.references.iter()));
                    }
                }
            }
        }
    }
    ordered
}

/// Reads a stream.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    store_dir: StoreDir,
    /// How many bytes have been read.
    position: u64,
}

impl<R: BufRead> Reader<R> {
    /// Starts at the beginning of a stream whose paths are in `store_dir`.
    pub fn new(source: R, store_dir: StoreDir) -> Self {
        Self {
            source,
            store_dir,
            position: 0,
        }
    }

    /// Reads the next path: puts its archive aside, which has been checked for its form, and returns
    /// what is known of it, with the hash and the size that it turned out to have. `None` at the
    /// end; what comes behind that is not looked at.
    ///
    /// # Errors
    /// See [`ReadError`]; part of the archive may have been put aside.
    pub fn next(&mut self, aside: &mut impl Write) -> Result<Option<PathInfo>, ReadError> {
        let start = self.position;
        match self.number()? {
            END => return Ok(None),
            MORE => {}
            _ => {
                let reason = "this is not what 'nix-store --export' or 'goalctl export' writes";
                return Err(malformed(start, reason).into());
            }
        }
        let digest = self.archive(aside)?;
        let start = self.position;
        if self.number()? != MAGIC {
            return Err(malformed(start, "an archive is not followed by its path").into());
        }
        let path = self.path()?;
        let n_references = self.number()?;
        let mut references = BTreeSet::new();
        for _ in 0..n_references {
            let start = self.position;
            if !references.insert(self.path()?) {
                return Err(malformed(start, "a reference stands there twice").into());
            }
        }
        let start = self.position;
        let deriver = self.string()?;
        let deriver = if deriver.is_empty() {
            None
        } else {
            Some(self.parse(start, &deriver)?)
        };
        self.old_signature()?;
        Ok(Some(PathInfo {
            path,
            nar_hash: digest.nar_hash,
            nar_size_bytes: digest.nar_size_bytes,
            references,
            deriver,
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        }))
    }

    fn archive(&mut self, aside: &mut impl Write) -> Result<nar::NarDigest, ReadError> {
        let copy = Aside {
            hasher: NarHasher::new([]),
            sink: aside,
            failure: None,
        };
        let mut tee = Tee::new(&mut self.source, copy);
        let read = nar::read(&mut tee, &mut Discard);
        let (_, copy) = tee.into_parts().map_err(ReadError::Source)?;
        if let Some(failure) = copy.failure {
            return Err(ReadError::Copy(failure));
        }
        let start = self.position;
        match read {
            Ok(summary) => self.position = start.saturating_add(summary.size_bytes),
            Err(nar::ReadError::Source(error)) => return Err(ReadError::Source(error)),
            Err(nar::ReadError::Malformed(Error::Nar { position, reason })) => {
                return Err(malformed(start.saturating_add(position), reason).into());
            }
            Err(nar::ReadError::Malformed(error)) => return Err(error.into()),
            Err(nar::ReadError::Visitor(never)) => match never {},
        }
        Ok(copy.hasher.finish())
    }

    /// Passes over the signature that old programs wrote, and that nobody checks.
    fn old_signature(&mut self) -> Result<(), ReadError> {
        let start = self.position;
        match self.number()? {
            0 => Ok(()),
            1 => self.string().map(drop),
            _ => Err(malformed(start, "there is neither a signature nor none").into()),
        }
    }

    fn path(&mut self) -> Result<StorePath, ReadError> {
        let start = self.position;
        let text = self.string()?;
        self.parse(start, &text)
    }

    fn parse(&self, start: u64, text: &[u8]) -> Result<StorePath, ReadError> {
        let parsed = text
            .to_str()
            .map_err(|_| malformed(start, "a path is not UTF-8"))
            .and_then(|text| {
                let parsed = self.store_dir.parse(text);
                parsed.map_err(|error| malformed(start, error.to_string()))
            });
        Ok(parsed?)
    }

    fn string(&mut self) -> Result<Vec<u8>, ReadError> {
        let start = self.position;
        let len = self.number()?;
        if len > MAX_STRING_LEN {
            let reason = format!("a string of {len} bytes where {MAX_STRING_LEN} are allowed");
            return Err(malformed(start, reason).into());
        }
        // At most the limit, so it fits.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.exactly(&mut bytes)?;
        let start = self.position;
        let mut zeros = [0; 8];
        let n_zeros = bytes.len().next_multiple_of(8) - bytes.len();
        self.exactly(&mut zeros[..n_zeros])?;
        if zeros != [0; 8] {
            return Err(malformed(start, "padding is not zero").into());
        }
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        self.exactly(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        match self.source.read_exact(buffer) {
            Ok(()) => {
                self.position = self.position.saturating_add(buffer.len() as u64);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(malformed(self.position, "the stream ends too early").into())
            }
            Err(error) => Err(ReadError::Source(error)),
        }
    }
}

/// Hashes an archive, and puts it aside as long as that goes well.
struct Aside<'a, W> {
    hasher: NarHasher,
    sink: &'a mut W,
    failure: Option<io::Error>,
}

impl<W: Write> Write for Aside<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        if let Err(error) = self.sink.write_all(bytes) {
            self.failure = Some(error);
            return Err(io::Error::other("an archive could not be put aside"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn malformed(position: u64, reason: impl Into<String>) -> Error {
    Error::Export {
        position,
        reason: reason.into(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::closure::tests::{any_graph, store};
    use crate::nar::Tree;

    fn archive(text: &str) -> Vec<u8> {
        Tree::file(text).to_nar().unwrap()
    }

    fn info(references: &[&str], deriver: Option<&str>) -> PathInfo {
        let archive = archive("text");
        PathInfo {
            path: "2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a".parse().unwrap(),
            nar_hash: crate::Hash::digest(crate::HashAlgorithm::Sha256, &archive)
                .try_into()
                .unwrap(),
            nar_size_bytes: archive.len() as u64,
            references: references.iter().map(|it| it.parse().unwrap()).collect(),
            deriver: deriver.map(|it| it.parse().unwrap()),
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        }
    }

    fn stream(infos: &[PathInfo]) -> Vec<u8> {
        let mut stream = Vec::new();
        for info in infos {
            write_begin(&mut stream).unwrap();
            stream.extend(archive("text"));
            write_info(&mut stream, info, &StoreDir::default()).unwrap();
        }
        write_end(&mut stream).unwrap();
        stream
    }

    fn read_all(stream: &[u8]) -> Result<Vec<PathInfo>, ReadError> {
        let mut reader = Reader::new(stream, StoreDir::default());
        let mut infos = Vec::new();
        while let Some(info) = reader.next(&mut Vec::new())? {
            infos.push(info);
        }
        Ok(infos)
    }

    fn infos() -> Vec<PathInfo> {
        let b = "d3p8sj88z8slb7xkhqzpbq0p33kzca41-b";
        let drv = "d3p8sj88z8slb7xkhqzpbq0p33kzca41-a.drv";
        let a = "2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a";
        vec![info(&[], None), info(&[a, b], Some(drv))]
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read_all(&stream(&infos())).unwrap(), infos());
        assert_eq!(read_all(&stream(&[])).unwrap(), []);
    }

    #[test]
    fn archives_are_put_aside_as_they_are() {
        let stream = stream(&infos());
        let mut reader = Reader::new(&stream[..], StoreDir::default());
        let mut aside = Vec::new();
        reader.next(&mut aside).unwrap().unwrap();
        assert_eq!(aside, archive("text"));
        let mut small = [0; 10];
        let failed = reader.next(&mut &mut small[..]);
        assert!(matches!(failed, Err(ReadError::Copy(_))), "{failed:?}");
    }

    #[test]
    fn no_beginning_of_a_stream_is_a_stream_and_each_says_where_it_ends() {
        let stream = stream(&infos());
        for len in 0..stream.len() {
            match read_all(&stream[..len]) {
                Err(ReadError::Malformed(Error::Export { position, .. })) => {
                    assert!(position <= len as u64);
                }
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_old_programs_signed_is_read_and_what_no_program_writes_is_not() {
        let good = stream(&[info(&[], None)]);
        let signature = good.len() - 16;
        let with = |tail: &[u8]| read_all(&[&good[..signature], tail].concat());
        let mut old = Vec::new();
        write_number(&mut old, 1).unwrap();
        write_string(&mut old, "a signature").unwrap();
        write_end(&mut old).unwrap();
        assert_eq!(with(&old).unwrap(), [info(&[], None)]);
        let numbers = |numbers: &[u64]| -> Vec<u8> {
            numbers.iter().flat_map(|it| it.to_le_bytes()).collect()
        };
        for bad in [
            &[2, 0][..],
            &[1, u64::MAX],
            &[1, 4097],
            &[1, 1, 0x01_00, 0],
            &[0, 2],
        ] {
            assert!(with(&numbers(bad)).is_err(), "{bad:?}");
        }
        let mut elsewhere = Vec::new();
        let other = StoreDir::new("/gnu/store").unwrap();
        write_begin(&mut elsewhere).unwrap();
        elsewhere.extend(archive("text"));
        write_info(&mut elsewhere, &info(&[], None), &other).unwrap();
        assert!(read_all(&elsewhere).is_err());
    }

    proptest! {
        #[test]
        fn references_come_first_and_nothing_is_lost(graph in any_graph()) {
            // What has the smaller number never refers to what has the larger.
            let below = |(number, references): (usize, &Vec<usize>)| {
                references.iter().copied().filter(|it| *it <= number).collect()
            };
            let graph: Vec<Vec<usize>> = graph.iter().enumerate().map(below).collect();
            let infos = store(&graph);
            let ordered = references_first(&infos);
            prop_assert_eq!(ordered.len(), infos.len());
            let mut before = BTreeSet::new();
            for info in ordered {
                for reference in &info.references {
                    let is_there = infos.contains_key(reference) && *reference != info.path;
                    prop_assert!(!is_there || before.contains(reference));
                }
                prop_assert!(before.insert(info.path.clone()));
            }
        }
    }
}
