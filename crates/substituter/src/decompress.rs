//! Takes the compression off an archive while it is read.
//!
//! What is compressed comes from whoever answers for a cache, so every kind is limited in memory
//! whatever its header asks for, and a stream that is cut off or followed by something else is an
//! error and never the end of the archive (SECURITY P14). How much comes out is for the reader to
//! limit: it knows the size that was signed.

use std::io::{self, BufReader, Read};

use store_model::narinfo::Compression;
use xz2::stream::{CONCATENATED, Stream};

mod brotli;
mod gzip;

/// Most memory of one xz stream. `xz -9` needs 65 MiB; a dictionary of 4 GiB can be asked for.
const MAX_XZ_MEMORY_BYTES: u64 = 128 << 20;

/// Largest window of a zstd stream, as a power of two: 128 MiB, beyond which `zstd` itself wants to
/// be told. Headers can ask for 2 TiB.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// How much compressed data is read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Returns what `compressed` holds. Nothing is read from it yet: reading blocks, and this may be
/// called where nobody may block.
///
/// # Errors
/// There is no memory for a decoder.
pub(crate) fn decompress(
    compression: Compression,
    compressed: impl Read + Send + 'static,
) -> io::Result<Box<dyn Read + Send>> {
    let compressed = BufReader::with_capacity(BUFFER_BYTES, compressed);
    Ok(match compression {
        Compression::None => Box::new(compressed),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(MAX_XZ_MEMORY_BYTES, CONCATENATED)?;
            Box::new(xz2::bufread::XzDecoder::new_stream(compressed, stream))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(compressed)),
        Compression::Gzip => Box::new(gzip::Decoder::new(compressed)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Brotli => Box::new(brotli::Decoder::new(compressed)),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
