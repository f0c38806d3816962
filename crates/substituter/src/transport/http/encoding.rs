//! Small files that a server sends encoded, though it was asked not to: Nix uploads logs and listings
//! that way, and a server that only serves files has nothing else to give.

use std::io::Read as _;

use bytes::{Buf as _, Bytes};
use store_model::narinfo::Compression;

use super::HttpError;
use crate::decompress::decompress;

/// Undoes an encoding. Takes as long as it takes: it is for a thread that may be busy.
///
/// # Errors
/// Nobody encodes so, `body` is not encoded so, or it is longer than `max_bytes`.
pub(super) fn undo(encoding: &str, body: Bytes, max_bytes: usize) -> Result<Bytes, HttpError> {
    let compression = match encoding {
        "gzip" | "x-gzip" => Compression::Gzip,
        "br" => Compression::Brotli,
        "xz" => Compression::Xz,
        "zstd" => Compression::Zstd,
        "bzip2" => Compression::Bzip2,
        encoding => {
            return Err(HttpError::Encoded {
                encoding: encoding.to_owned(),
            });
        }
    };
    let decoder = decompress(compression, body.reader()).map_err(HttpError::Undecodable)?;
    // One byte more tells that there are too many.
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let mut contents = Vec::new();
    decoder
        .take(limit.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(HttpError::Undecodable)?;
    if contents.len() > max_bytes {
        return Err(HttpError::TooLong { max_bytes });
    }
    Ok(contents.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn encode(encoding: &str, text: &[u8]) -> Bytes {
        let mut bytes = Vec::new();
        match encoding {
            "gzip" => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(&mut bytes, level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            "br" => {
                let mut encoder = brotli::CompressorWriter::new(&mut bytes, 4096, 5, 20);
                encoder.write_all(text).unwrap();
                encoder.flush().unwrap();
                drop(encoder);
            }
            "xz" => {
                let mut encoder = xz2::write::XzEncoder::new(&mut bytes, 1);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            "zstd" => bytes = zstd::encode_all(text, 1).unwrap(),
            "bzip2" => {
                let level = bzip2::Compression::fast();
                let mut encoder = bzip2::write::BzEncoder::new(&mut bytes, level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap();
            }
            _ => panic!("{encoding}"),
        }
        bytes.into()
    }

    #[test]
    fn whatever_nix_encodes_is_decoded_and_no_more_of_it_than_wanted() {
        for encoding in ["gzip", "br", "xz", "zstd", "bzip2"] {
            let encoded = encode(encoding, b"a log\n");
            let decoded = undo(encoding, encoded.clone(), 6).unwrap();
            assert_eq!(&*decoded, b"a log\n", "{encoding}");
            let refused = undo(encoding, encoded, 5);
            assert!(matches!(refused, Err(HttpError::TooLong { max_bytes: 5 })));
            let bomb = encode(encoding, &vec![0; 1 << 24]);
            let refused = undo(encoding, bomb, 1000);
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
            let html = Bytes::from_static(b"<html>sorry</html>");
            for damaged in [encoded.slice(..encoded.len() / 2), html] {
                let refused = undo(encoding, damaged, 1000);
                assert!(
                    matches!(refused, Err(HttpError::Undecodable(_))),
                    "{encoding}"
                );
            }
        }
        for other in ["compress", "gzip, br", "rot13"] {
            assert!(matches!(
                undo(other, Bytes::new(), 1),
                Err(HttpError::Encoded { .. })
            ));
        }
    }
}
