//! What is known of valid paths as lines, as `nix-store --dump-db` writes them and `--load-db` and
//! `--register-validity` read them.
//!
//! ```text
//! path
//! hash in base 16            ┐ only where they are said
//! size in bytes              ┘
//! deriver, or an empty line
//! how many references
//! reference…
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::BufRead;

use crate::{Error, Hash, HashAlgorithm, NarHash, PathInfo, StoreDir, StorePath};

/// The longest line that is read, in bytes.
const MAX_LINE_LEN: u64 = 4096;

/// Whether hash and size are among the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAndSize {
    /// They are.
    Said,
    /// They have to be found out.
    NotSaid,
}

/// What is said of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaidValid {
    /// The path.
    pub path: StorePath,
    /// Hash and size in bytes of its archive, where they are said.
    pub nar: Option<(NarHash, u64)>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
}

/// Why lines were not read to their end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed; the lines may be fine.
    #[error("cannot read the paths that are to be registered")]
    Source(#[source] std::io::Error),
    /// The lines say something else.
    #[error(transparent)]
    Malformed(#[from] Error),
}

/// Returns the lines of one path, with its hash and size.
#[must_use]
pub fn print(info: &PathInfo, store_dir: &StoreDir) -> String {
    let deriver = info.deriver.as_ref();
    let deriver = deriver.map_or_else(String::new, |deriver| store_dir.print(deriver));
    let mut text = format!(
        "{}\n{}\n{}\n{deriver}\n{}\n",
        store_dir.print(&info.path),
        info.nar_hash.to_hash().to_base16(),
        info.nar_size_bytes,
        info.references.len()
    );
    for reference in &info.references {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "{}", store_dir.print(reference));
    }
    text
}

/// Reads all paths to the end of `source`, which must end after a path.
///
/// # Errors
/// The source failed, or a line is not what must stand there; the error says which.
pub fn read(
    source: &mut impl BufRead,
    hash_and_size: HashAndSize,
    store_dir: &StoreDir,
) -> Result<Vec<SaidValid>, ReadError> {
    let mut lines = Lines {
        source,
        n_read: 0,
        line: Vec::new(),
    };
    let mut said = Vec::new();
    while lines.advance()? {
        said.push(lines.path_and_rest(hash_and_size, store_dir)?);
    }
    Ok(said)
}

struct Lines<'a, R> {
    source: &'a mut R,
    n_read: u64,
    /// The last line, without its end.
    line: Vec<u8>,
}

impl<R: BufRead> Lines<'_, R> {
    /// Reads the rest of a path whose first line has been read.
    fn path_and_rest(
        &mut self,
        hash_and_size: HashAndSize,
        store_dir: &StoreDir,
    ) -> Result<SaidValid, ReadError> {
        let path = self.parse(|text| store_dir.parse(text))?;
        let nar = match hash_and_size {
            HashAndSize::NotSaid => None,
            HashAndSize::Said => {
                self.require()?;
                let hash = self.parse(|text| match text.parse::<NarHash>() {
                    Ok(hash) => Ok(hash),
                    Err(_) => Hash::parse_digest(HashAlgorithm::Sha256, text)?.try_into(),
                })?;
                Some((hash, self.number()?))
            }
        };
        self.require()?;
        let deriver = if self.line.is_empty() {
            None
        } else {
            Some(self.parse(|text| store_dir.parse(text))?)
        };
        let mut references = BTreeSet::new();
        for _ in 0..self.number()? {
            self.require()?;
            references.insert(self.parse(|text| store_dir.parse(text))?);
        }
        Ok(SaidValid {
            path,
            nar,
            deriver,
            references,
        })
    }

    /// Reads a line; returns whether there was one.
    fn advance(&mut self) -> Result<bool, ReadError> {
        self.line.clear();
        let mut limited = std::io::Read::take(&mut *self.source, MAX_LINE_LEN);
        let n_bytes = limited.read_until(b'\n', &mut self.line);
        if n_bytes.map_err(ReadError::Source)? == 0 {
            return Ok(false);
        }
        self.n_read += 1;
        if self.line.pop() == Some(b'\n') {
            return Ok(true);
        }
        Err(self
            .malformed(format!("it has no end, or more than {MAX_LINE_LEN} bytes"))
            .into())
    }

    /// Reads a line that must be there.
    fn require(&mut self) -> Result<(), ReadError> {
        if self.advance()? {
            return Ok(());
        }
        self.n_read += 1;
        Err(self.malformed("it is missing").into())
    }

    fn number(&mut self) -> Result<u64, ReadError> {
        self.require()?;
        let is_plain = self.line.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(&self.line).ok();
        let number = number.and_then(|text| text.parse().ok());
        number
            .filter(|_| is_plain)
            .ok_or_else(|| self.malformed("a number is expected").into())
    }

    fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, Error>) -> Result<T, ReadError> {
        let text =
            std::str::from_utf8(&self.line).map_err(|_| self.malformed("it is not UTF-8"))?;
        Ok(parse(text).map_err(|error| self.malformed(error.to_string()))?)
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::ValidityText {
            line: self.n_read,
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const PATH: &str = "/nix/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a";
    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read_said(text: &str) -> Result<Vec<SaidValid>, ReadError> {
        read(
            &mut text.as_bytes(),
            HashAndSize::Said,
            &StoreDir::default(),
        )
    }

    #[test]
    fn what_is_printed_is_read() {
        let said = format!("{PATH}\n{DIGEST}\n120\n{PATH}.drv\n1\n{PATH}\n");
        let read = read_said(&format!("{said}{said}")).unwrap();
        assert_eq!(read.len(), 2);
        let SaidValid {
            path,
            nar,
            deriver,
            references,
        } = read[0].clone();
        let (nar_hash, nar_size_bytes) = nar.unwrap();
        let info = PathInfo {
            path,
            nar_hash,
            nar_size_bytes,
            references,
            deriver,
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        };
        assert_eq!(print(&info, &StoreDir::default()), said);
        assert_eq!(read_said("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line() {
        let good = [PATH, DIGEST, "120", "", "1", PATH];
        for (idx, bad) in [
            (0, "/gnu/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a"),
            (0, ""),
            (1, "sha256:xyz"),
            (1, ""),
            (2, "-1"),
            (2, "+1"),
            (2, "99999999999999999999"),
            (3, "a.drv"),
            (4, ""),
            (4, "one"),
            (5, ""),
        ] {
            let mut lines = good;
            lines[idx] = bad;
            let text = lines.map(|line| format!("{line}\n")).concat();
            match read_said(&text) {
                Err(ReadError::Malformed(Error::ValidityText { line, .. })) => {
                    assert_eq!(line, idx as u64 + 1, "{bad}");
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
        let text = good.map(|line| format!("{line}\n")).concat();
        for len in 1..text.len() {
            assert!(read_said(&text[..len]).is_err(), "{len}");
        }
        let long = format!("{PATH}\n{DIGEST}\n{:0>5000}\n\n0\n", 1);
        assert!(read_said(&long).is_err());
    }
}
