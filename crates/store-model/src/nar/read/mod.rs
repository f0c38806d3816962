//! Takes an archive apart.
//!
//! The bytes come from anywhere, so nothing is believed: a length is compared with a limit before
//! anything is allocated, contents are passed on in the pieces in which they arrive, order and
//! spelling have no freedom, and open directories lie on a stack of our own.

use std::io::{self, BufRead};

use bstr::{BStr, BString, ByteSlice as _};

use super::{
    FileHeader, MAGIC, MAX_DEPTH, MAX_NAME_LEN, MAX_TARGET_LEN, NarSummary, NarVisitor,
    check_entry_name, check_symlink_target, padding_len,
};
use crate::Error;

#[cfg(test)]
mod tests;

/// The longest of the format's own words, generously.
const MAX_TAG_LEN: usize = 32;

/// Why an archive was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The source failed; the archive may be fine.
    #[error("cannot read the archive")]
    Source(#[source] io::Error),
    /// The bytes are not an archive, or one that breaks a rule.
    #[error(transparent)]
    Malformed(#[from] Error),
    /// The visitor could not go on.
    #[error(transparent)]
    Visitor(E),
}

/// Reads one archive and stops right behind it; whatever follows stays in `source`.
///
/// Chunks of contents are as large as the buffer of `source`: give it 64 KiB or more.
///
/// # Errors
/// See [`ReadError`]. The visitor may have been told a part of the archive by then.
pub fn read<R, V>(source: &mut R, visitor: &mut V) -> Result<NarSummary, ReadError<V::Error>>
where
    R: BufRead + ?Sized,
    V: NarVisitor + ?Sized,
{
    let mut reader = Reader {
        source,
        visitor,
        position: 0,
        directories: Vec::new(),
        max_depth: 0,
    };
    reader.archive()?;
    Ok(NarSummary {
        size_bytes: reader.position,
        max_depth: reader.max_depth,
    })
}

/// Reads one archive, which must end where `source` ends.
///
/// # Errors
/// As [`read()`], or bytes follow the archive.
pub fn read_whole<R, V>(source: &mut R, visitor: &mut V) -> Result<NarSummary, ReadError<V::Error>>
where
    R: BufRead + ?Sized,
    V: NarVisitor + ?Sized,
{
    let summary = read(source, visitor)?;
    let mut beyond = [0];
    match read_full(source, &mut beyond).map_err(ReadError::Source)? {
        0 => Ok(summary),
        _ => Err(malformed(summary.size_bytes, "bytes follow the archive").into()),
    }
}

struct Reader<'a, R: ?Sized, V: ?Sized> {
    source: &'a mut R,
    visitor: &'a mut V,
    /// How many bytes have been read.
    position: u64,
    /// For each open directory the name of its last entry, which the next one must exceed; empty
    /// before the first.
    directories: Vec<BString>,
    max_depth: usize,
}

type Outcome<T, V> = Result<T, ReadError<<V as NarVisitor>::Error>>;

impl<R: BufRead + ?Sized, V: NarVisitor + ?Sized> Reader<'_, R, V> {
    fn archive(&mut self) -> Outcome<(), V> {
        self.expect(MAGIC)?;
        self.node(None)?;
        while !self.directories.is_empty() {
            let start = self.position;
            let mut tag = [0; MAX_TAG_LEN];
            match self.string(&mut tag)? {
                b"entry" => self.entry()?,
                b")" => {
                    self.directories.pop();
                    self.visitor.leave_directory().map_err(ReadError::Visitor)?;
                    if !self.directories.is_empty() {
                        self.expect(b")")?;
                    }
                }
                other => return Err(unexpected(start, "'entry' or ')'", other).into()),
            }
        }
        Ok(())
    }

    /// Reads `( name NAME node NODE )`, but of a directory only the beginning.
    fn entry(&mut self) -> Outcome<(), V> {
        self.expect(b"(")?;
        self.expect(b"name")?;
        let start = self.position;
        let mut buffer = [0; MAX_NAME_LEN];
        let name = self.string(&mut buffer)?.as_bstr();
        check_entry_name(name).map_err(|reason| malformed(start, reason))?;
        if let Some(last_name) = self.directories.last_mut() {
            if name <= last_name.as_bstr() {
                return Err(
                    malformed(start, "a directory is not sorted, or has a name twice").into(),
                );
            }
            last_name.clear();
            last_name.extend_from_slice(name);
        }
        let depth = self.directories.len();
        self.expect(b"node")?;
        self.node(Some(name))?;
        if self.directories.len() == depth {
            self.expect(b")")?;
        }
        Ok(())
    }

    /// Reads a whole file or symlink; opens a directory and leaves it on the stack.
    fn node(&mut self, name: Option<&BStr>) -> Outcome<(), V> {
        self.expect(b"(")?;
        self.expect(b"type")?;
        let start = self.position;
        let mut tag = [0; MAX_TAG_LEN];
        match self.string(&mut tag)? {
            b"directory" => {
                if self.directories.len() == MAX_DEPTH {
                    return Err(malformed(start, "directories are nested too deeply").into());
                }
                self.directories.push(BString::default());
                self.max_depth = self.max_depth.max(self.directories.len());
                self.visitor
                    .enter_directory(name)
                    .map_err(ReadError::Visitor)
            }
            b"regular" => {
                self.regular(name)?;
                self.expect(b")")
            }
            b"symlink" => {
                self.expect(b"target")?;
                let start = self.position;
                let mut buffer = [0; MAX_TARGET_LEN];
                let target = self.string(&mut buffer)?;
                check_symlink_target(target).map_err(|reason| malformed(start, reason))?;
                self.visitor
                    .symlink(name, target.as_bstr())
                    .map_err(ReadError::Visitor)?;
                self.expect(b")")
            }
            other => Err(unexpected(start, "'regular', 'symlink' or 'directory'", other).into()),
        }
    }

    fn regular(&mut self, name: Option<&BStr>) -> Outcome<(), V> {
        let start = self.position;
        let mut tag = [0; MAX_TAG_LEN];
        let is_executable = match self.string(&mut tag)? {
            b"contents" => false,
            b"executable" => {
                self.expect(b"")?;
                self.expect(b"contents")?;
                true
            }
            other => return Err(unexpected(start, "'executable' or 'contents'", other).into()),
        };
        let size_bytes = self.length()?;
        let header = FileHeader {
            is_executable,
            size_bytes,
        };
        self.visitor
            .begin_file(name, header)
            .map_err(ReadError::Visitor)?;
        self.contents(size_bytes)?;
        self.padding(size_bytes)?;
        self.visitor.end_file().map_err(ReadError::Visitor)
    }

    fn contents(&mut self, size_bytes: u64) -> Outcome<(), V> {
        let mut n_left = size_bytes;
        while n_left > 0 {
            let available = match self.source.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadError::Source(error)),
            };
            if available.is_empty() {
                return Err(ends_early(self.position).into());
            }
            let n_taken = usize::try_from(n_left)
                .map_or(available.len(), |n_left| n_left.min(available.len()));
            self.visitor
                .file_contents(&available[..n_taken])
                .map_err(ReadError::Visitor)?;
            self.source.consume(n_taken);
            // A usize is never wider than 64 bits.
            n_left -= n_taken as u64;
            self.position = self.position.saturating_add(n_taken as u64);
        }
        Ok(())
    }

    /// Reads a string that must be exactly `expected`.
    fn expect(&mut self, expected: &'static [u8]) -> Outcome<(), V> {
        let start = self.position;
        let mut buffer = [0; MAX_TAG_LEN];
        let found = self.string(&mut buffer)?;
        if found != expected {
            let expected = format!("'{}'", expected.as_bstr());
            return Err(unexpected(start, &expected, found).into());
        }
        Ok(())
    }

    /// Reads a string into `buffer`, whose length is the limit.
    fn string<'b>(&mut self, buffer: &'b mut [u8]) -> Outcome<&'b [u8], V> {
        let start = self.position;
        let length = self.length()?;
        let limit = buffer.len();
        let string = usize::try_from(length)
            .ok()
            .and_then(|length| buffer.get_mut(..length))
            .ok_or_else(|| {
                let reason = format!("a string of {length} bytes where {limit} are allowed");
                malformed(start, reason)
            })?;
        self.exactly(string)?;
        self.padding(length)?;
        Ok(string)
    }

    fn length(&mut self) -> Outcome<u64, V> {
        let mut length = [0; 8];
        self.exactly(&mut length)?;
        Ok(u64::from_le_bytes(length))
    }

    fn padding(&mut self, length: u64) -> Outcome<(), V> {
        let start = self.position;
        let mut buffer = [0; 8];
        let padding = &mut buffer[..padding_len(length)];
        self.exactly(padding)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed(start, "padding is not zero").into());
        }
        Ok(())
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Outcome<(), V> {
        let n_read = read_full(self.source, buffer).map_err(ReadError::Source)?;
        self.position = self.position.saturating_add(n_read as u64);
        if n_read < buffer.len() {
            return Err(ends_early(self.position).into());
        }
        Ok(())
    }
}

/// Fills `buffer` as far as `source` reaches.
fn read_full<R: BufRead + ?Sized>(source: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n_read = 0;
    while n_read < buffer.len() {
        match source.read(&mut buffer[n_read..]) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n_read)
}

fn malformed(position: u64, reason: impl Into<String>) -> Error {
    Error::Nar {
        position,
        reason: reason.into(),
    }
}

fn ends_early(position: u64) -> Error {
    malformed(position, "the archive ends too early")
}

fn unexpected(position: u64, expected: &str, found: &[u8]) -> Error {
    malformed(
        position,
        format!("expected {expected}, found '{}'", found.escape_ascii()),
    )
}
