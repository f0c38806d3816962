//! Reads gzip, and nothing before it is read.
//!
//! The library's own reader waits for the header when it is made, which happens where nobody may wait.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Decodes gzip streams that follow one another.
pub(super) struct Decoder<R> {
    /// What was not read yet.
    compressed: Option<R>,
    /// Made with the first read.
    decoder: Option<MultiGzDecoder<R>>,
}

impl<R: BufRead> Decoder<R> {
    /// Prepares to decode.
    pub(super) fn new(compressed: R) -> Self {
        Self {
            compressed: Some(compressed),
            decoder: None,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(compressed) = self.compressed.take() {
            self.decoder = Some(MultiGzDecoder::new(compressed));
        }
        self.decoder
            .as_mut()
            .map_or(Ok(0), |decoder| decoder.read(buffer))
    }
}
