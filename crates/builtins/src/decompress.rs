//! Takes the compression off a file.

use std::io::{self, BufRead, Read};

use xz2::stream::{CONCATENATED, Stream};

/// How much memory a compressed file may ask for, as with Nix.
const MAX_XZ_MEMORY_BYTES: u64 = 1 << 30;

/// Returns what a compressed file holds, by what it begins with; any other file as it is.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn by_content<'a>(mut file: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // Files come in pieces of several kilobytes, the first ones included.
    let start = file.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(xz(file)?),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(file)?),
        [0x5d, 0, 0, ..] => {
            let stream = Stream::new_lzma_decoder(MAX_XZ_MEMORY_BYTES)?;
            Box::new(xz2::bufread::XzDecoder::new_stream(file, stream))
        }
        _ => Box::new(file),
    })
}

/// Returns what an xz file holds, of several streams too.
///
/// # Errors
/// There is no memory.
pub(crate) fn xz<R: BufRead>(file: R) -> io::Result<xz2::bufread::XzDecoder<R>> {
    let stream = Stream::new_stream_decoder(MAX_XZ_MEMORY_BYTES, CONCATENATED)?;
    Ok(xz2::bufread::XzDecoder::new_stream(file, stream))
}
