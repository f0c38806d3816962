//! Small files that a server sends encoded, though it was asked not to: Nix uploads logs and listings
//! that way, and a server that only serves files has nothing else to give.

use std::io::{self, Read};

use bytes::Bytes;
use xz2::stream::{CONCATENATED, Stream};

use super::HttpError;

/// How much memory a decoder may take, in bytes; the strongest setting of `xz` takes 65 MiB.
const MEMORY_LIMIT: u64 = 80 << 20;

/// The same for zstd, as the number of bits of its window: 64 MiB.
const WINDOW_LOG: u32 = 26;

/// Piece in which brotli reads, in bytes.
const BUFFER_LEN: usize = 4 << 10;

/// Undoes an encoding. Takes as long as it takes: it is for a thread that may be busy.
///
/// # Errors
/// Nobody encodes so, `body` is not encoded so, or it is longer than `max_bytes`.
pub(super) fn undo(encoding: &str, body: &[u8], max_bytes: usize) -> Result<Bytes, HttpError> {
    let undecodable = HttpError::Undecodable;
    match encoding {
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(body), max_bytes),
        "br" => read(brotli::Decompressor::new(body, BUFFER_LEN), max_bytes),
        "xz" => {
            let stream = Stream::new_stream_decoder(MEMORY_LIMIT, CONCATENATED);
            let stream = stream.map_err(|error| undecodable(error.into()))?;
            let decoder = xz2::read::XzDecoder::new_stream(body, stream);
            read(decoder, max_bytes)
        }
        "zstd" => {
            let mut decoder = zstd::Decoder::with_buffer(body).map_err(undecodable)?;
            decoder.window_log_max(WINDOW_LOG).map_err(undecodable)?;
            read(decoder, max_bytes)
        }
        "bzip2" => read(bzip2::read::MultiBzDecoder::new(body), max_bytes),
        encoding => Err(HttpError::Encoded {
            encoding: encoding.to_owned(),
        }),
    }
}

fn read(decoder: impl Read, max_bytes: usize) -> Result<Bytes, HttpError> {
    let mut decoded = Vec::new();
    let limit = u64::try_from(max_bytes)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut decoder = decoder.take(limit);
    decoder
        .read_to_end(&mut decoded)
        .map_err(|error: io::Error| HttpError::Undecodable(error))?;
    if decoded.len() > max_bytes {
        return Err(HttpError::TooLong { max_bytes });
    }
    Ok(decoded.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn encode(encoding: &str, text: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        match encoding {
            "gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(&mut encoded, flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            "br" => {
                let mut encoder = brotli::CompressorWriter::new(&mut encoded, 4096, 5, 20);
                encoder.write_all(text).unwrap();
                encoder.flush().unwrap();
                drop(encoder);
            }
            "xz" => {
                let mut encoder = xz2::write::XzEncoder::new(&mut encoded, 1);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            "zstd" => encoded = zstd::encode_all(text, 1).unwrap(),
            "bzip2" => {
                let level = bzip2::Compression::fast();
                let mut encoder = bzip2::write::BzEncoder::new(&mut encoded, level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            _ => panic!("{encoding}"),
        }
        encoded
    }

    #[test]
    fn whatever_nix_encodes_is_decoded_and_no_more_of_it_than_wanted() {
        for encoding in ["gzip", "br", "xz", "zstd", "bzip2"] {
            let encoded = encode(encoding, b"a log\n");
            let decoded = undo(encoding, &encoded, 6).unwrap();
            assert_eq!(&*decoded, b"a log\n", "{encoding}");
            let refused = undo(encoding, &encoded, 5);
            assert!(matches!(refused, Err(HttpError::TooLong { max_bytes: 5 })));
            let bomb = encode(encoding, &vec![0; 1 << 24]);
            let refused = undo(encoding, &bomb, 1000);
            assert!(
                matches!(refused, Err(HttpError::TooLong { .. })),
                "{encoding}"
            );
        }
    }

    #[test]
    fn what_is_not_encoded_as_it_says_is_refused() {
        for encoding in ["gzip", "br", "xz", "zstd", "bzip2"] {
            let encoded = encode(encoding, &b"a log ".repeat(100));
            for damaged in [&encoded[..encoded.len() / 2], b"<html>sorry</html>"] {
                let refused = undo(encoding, damaged, 1000);
                assert!(
                    matches!(refused, Err(HttpError::Undecodable(_))),
                    "{encoding}"
                );
            }
        }
        for other in ["compress", "gzip, br", "rot13"] {
            assert!(matches!(
                undo(other, b"", 1),
                Err(HttpError::Encoded { .. })
            ));
        }
    }
}
