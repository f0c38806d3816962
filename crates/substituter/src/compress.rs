//! Compresses an archive while it is written.
//!
//! The libraries and levels are those of Nix 2.8 wherever these can be had from Rust, so that most
//! compressed archives are the same bytes. Gzip has its time stamp set to 0, which Nix sets to now.

use std::io::{self, Write};
use std::num::NonZero;
use std::thread::available_parallelism;

use flate2::write::GzEncoder;
use store_model::narinfo::Compression;
use xz2::stream::{Check, MtStreamBuilder, Stream};
use xz2::write::XzEncoder;

/// How archives are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) compression: Compression,
    /// The library's own level; what Nix takes if `None`.
    pub(crate) level: Option<u32>,
    pub(crate) workers: Workers,
}

/// How many threads compress one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workers {
    /// The one that writes it.
    One,
    /// As many as there are cores.
    OneForEachCore,
}

/// Default levels of Nix 2.8, which are those of its libraries.
const XZ_LEVEL: u32 = 6;
const BZIP2_LEVEL: u32 = 9;
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: u32 = 3;
const BROTLI_LEVEL: u32 = 11;

/// The window of brotli, as a power of two; the most that every reader has to know.
const BROTLI_WINDOW_LOG: u32 = 22;

/// How much brotli gathers before it is written.
const BROTLI_BUFFER_BYTES: usize = 64 << 10;

/// A sink that compresses what is written to it, for another one.
pub(crate) enum Compressor<W: Write> {
    None(W),
    Xz(XzEncoder<W>),
    Bzip2(bzip2::write::BzEncoder<W>),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
    Brotli(Box<brotli::CompressorWriter<W>>),
}

impl<W: Write> Compressor<W> {
    /// Begins.
    ///
    /// # Errors
    /// There is no memory for an encoder, or no thread.
    pub(crate) fn new(method: Method, sink: W) -> io::Result<Self> {
        let level = |default| method.level.unwrap_or(default);
        Ok(match method.compression {
            Compression::None => Self::None(sink),
            Compression::Xz => {
                let stream = xz_stream(level(XZ_LEVEL), method.workers)?;
                Self::Xz(XzEncoder::new_stream(sink, stream))
            }
            Compression::Bzip2 => {
                let level = bzip2::Compression::new(level(BZIP2_LEVEL));
                Self::Bzip2(bzip2::write::BzEncoder::new(sink, level))
            }
            Compression::Gzip => {
                let level = flate2::Compression::new(level(GZIP_LEVEL));
                Self::Gzip(GzEncoder::new(sink, level))
            }
            Compression::Zstd => {
                let level = i32::try_from(level(ZSTD_LEVEL)).unwrap_or(i32::MAX);
                let mut encoder = zstd::stream::write::Encoder::new(sink, level)?;
                if method.workers == Workers::OneForEachCore {
                    encoder.multithread(n_cores())?;
                }
                Self::Zstd(encoder)
            }
            Compression::Brotli => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                sink,
                BROTLI_BUFFER_BYTES,
                level(BROTLI_LEVEL),
                BROTLI_WINDOW_LOG,
            ))),
        })
    }

    /// Writes what is left, and returns the sink, which has not been flushed.
    ///
    /// # Errors
    /// The sink failed. With brotli it may have failed even if there is no error here.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(sink) => Ok(sink),
            Self::Xz(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
        }
    }
}

fn xz_stream(level: u32, workers: Workers) -> io::Result<Stream> {
    let stream = match workers {
        Workers::One => Stream::new_easy_encoder(level, Check::Crc64),
        Workers::OneForEachCore => MtStreamBuilder::new()
            .preset(level)
            .check(Check::Crc64)
            .threads(n_cores())
            .encoder(),
    };
    Ok(stream?)
}

fn n_cores() -> u32 {
    let n_cores = available_parallelism().map_or(1, NonZero::get);
    u32::try_from(n_cores).unwrap_or(u32::MAX)
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(sink) => sink.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Bzip2(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Brotli(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Flushing an encoder would cut its stream; only the end of it does.
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::{Cursor, Read as _};

    use super::*;
    use crate::decompress::decompress;

    fn sample() -> Vec<u8> {
        let noise = (0..300_000_u32).map(|idx| idx.wrapping_mul(2_654_435_761).to_be_bytes()[1]);
        noise.chain(std::iter::repeat_n(7, 100_000)).collect()
    }

    fn compress(method: Method, data: &[u8], chunk_len: usize) -> Vec<u8> {
        let mut compressor = Compressor::new(method, Vec::new()).unwrap();
        for chunk in data.chunks(chunk_len) {
            compressor.write_all(chunk).unwrap();
        }
        compressor.finish().unwrap()
    }

    #[test]
    fn what_is_compressed_is_read_again_at_every_level_and_in_parallel() {
        let methods = Compression::ALL.iter().flat_map(|compression| {
            [None, Some(1)].into_iter().flat_map(move |level| {
                [Workers::One, Workers::OneForEachCore].map(|workers| Method {
                    compression: *compression,
                    level,
                    workers,
                })
            })
        });
        for method in methods {
            for data in [Vec::new(), sample()] {
                let compressed = compress(method, &data, 50_000);
                let reader = decompress(method.compression, Cursor::new(compressed));
                let mut again = Vec::new();
                reader.unwrap().read_to_end(&mut again).unwrap();
                assert!(again == data, "{method:?}");
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_how_they_were_cut() {
        for compression in Compression::ALL {
            let method = Method {
                compression,
                level: None,
                workers: Workers::One,
            };
            let whole = compress(method, &sample(), usize::MAX);
            assert!(whole == compress(method, &sample(), 999), "{compression}");
        }
    }
}
