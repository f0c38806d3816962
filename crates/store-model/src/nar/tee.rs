//! Copies what is read, so that an archive is hashed in the pass that unpacks it.

use std::io::{self, BufRead, Read, Write};

/// A reader that gives a copy of every byte that is *taken* to a second place.
///
/// What lies in the buffer untaken, such as bytes behind the archive, is not copied.
#[derive(Debug)]
pub struct Tee<R, W> {
    source: R,
    copy: W,
    /// A failed copy, until there is a call that can report it.
    failure: Option<io::Error>,
}

impl<R: BufRead, W: Write> Tee<R, W> {
    /// Reads `source` with a copy to `copy`.
    pub fn new(source: R, copy: W) -> Self {
        Self {
            source,
            copy,
            failure: None,
        }
    }

    /// Returns both parts.
    ///
    /// # Errors
    /// The last bytes could not be copied.
    pub fn into_parts(self) -> io::Result<(R, W)> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok((self.source, self.copy)),
        }
    }
}

impl<R: BufRead, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let n_read = self.source.read(buffer)?;
        self.copy.write_all(&buffer[..n_read])?;
        Ok(n_read)
    }
}

impl<R: BufRead, W: Write> BufRead for Tee<R, W> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => self.source.fill_buf(),
        }
    }

    fn consume(&mut self, n_taken: usize) {
        if n_taken == 0 {
            return;
        }
        // The buffer is not empty, as it was looked at before, so this reads nothing.
        let copied = self
            .source
            .fill_buf()
            .and_then(|buffer| self.copy.write_all(&buffer[..n_taken]));
        self.failure = copied.err();
        self.source.consume(n_taken);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_taken_is_copied() {
        let mut tee = Tee::new(&b"taken, left"[..], Vec::new());
        let mut head = [0; 2];
        tee.read_exact(&mut head).unwrap();
        assert!(tee.fill_buf().unwrap().starts_with(b"ken"));
        tee.consume(3);
        let (left, copy) = tee.into_parts().unwrap();
        assert_eq!((left, copy), (&b", left"[..], b"taken".to_vec()));
    }

    #[test]
    fn a_failed_copy_is_reported_by_the_next_read() {
        let mut too_small = [0; 2];
        let mut tee = Tee::new(&b"12345678"[..], &mut too_small[..]);
        assert_eq!(tee.fill_buf().unwrap().len(), 8);
        tee.consume(3);
        assert_eq!(tee.fill_buf().unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
