//! Reads brotli, strictly.
//!
//! The library's own reader takes what follows the stream for its end, and windows of a gigabyte.

use std::io::{self, BufRead, Read};

use brotli::{BrotliDecompressStream, BrotliResult, HeapAlloc, HuffmanCode};

type State = brotli::BrotliState<HeapAlloc<u8>, HeapAlloc<u32>, HeapAlloc<HuffmanCode>>;

/// Decodes one brotli stream that is all there is; its window has 16 MiB at most.
pub(super) struct Decoder<R> {
    compressed: R,
    state: Box<State>,
    is_finished: bool,
}

impl<R: BufRead> Decoder<R> {
    /// Begins to decode.
    pub(super) fn new(compressed: R) -> Self {
        Self {
            compressed,
            state: Box::new(State::new_strict(
                HeapAlloc::new(0),
                HeapAlloc::new(0),
                HeapAlloc::new(HuffmanCode::default()),
            )),
            is_finished: false,
        }
    }

    /// Decodes one step; returns how many bytes came out, or `None` if it must be called again.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let input = self.compressed.fill_buf()?;
        let is_at_end = input.is_empty();
        let (mut available_in, mut n_taken) = (input.len(), 0);
        let (mut available_out, mut n_given, mut n_total) = (buffer.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut available_in,
            &mut n_taken,
            input,
            &mut available_out,
            &mut n_given,
            buffer,
            &mut n_total,
            &mut self.state,
        );
        self.compressed.consume(n_taken);
        match result {
            BrotliResult::ResultFailure => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the brotli stream is corrupt",
            )),
            BrotliResult::NeedsMoreInput if is_at_end => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the brotli stream is cut off",
            )),
            BrotliResult::ResultSuccess => {
                self.is_finished = true;
                Ok(Some(n_given).filter(|n| *n > 0))
            }
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {
                Ok(Some(n_given).filter(|n| *n > 0))
            }
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while !self.is_finished {
            if let Some(n_given) = self.step(buffer)? {
                return Ok(n_given);
            }
        }
        if self.compressed.fill_buf()?.is_empty() {
            Ok(0)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "something follows the brotli stream",
            ))
        }
    }
}
