//! Archives of every kind, whole, in pieces, cut off and made by nobody's friend.

use std::io::{Cursor, Write as _};

use proptest::prelude::*;

use super::*;

/// Compresses with the library that takes it off again.
fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => data.to_vec(),
        Compression::Xz => {
            let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 6);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(data, 3).unwrap(),
        Compression::Brotli => {
            let mut compressed = Vec::new();
            let mut encoder = ::brotli::CompressorWriter::new(&mut compressed, 4096, 5, 22);
            encoder.write_all(data).unwrap();
            drop(encoder);
            compressed
        }
    }
}

/// Gives out few bytes at a time, as a slow server does.
struct Dribble(Cursor<Vec<u8>>);

impl Read for Dribble {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_most = buffer.len().min(7);
        self.0.read(&mut buffer[..n_most])
    }
}

fn read_all(compression: Compression, compressed: &[u8]) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    decompress(compression, Dribble(Cursor::new(compressed.to_vec())))?.read_to_end(&mut data)?;
    Ok(data)
}

fn sample() -> Vec<u8> {
    // Repetitive and not, so that every kind both copies and invents.
    (0..200_000_u32)
        .map(|idx| (idx.wrapping_mul(2_654_435_761) >> (idx % 29)).to_le_bytes()[0])
        .chain(std::iter::repeat_n(7, 100_000))
        .collect()
}

const COMPRESSED: [Compression; 5] = [
    Compression::Xz,
    Compression::Bzip2,
    Compression::Gzip,
    Compression::Zstd,
    Compression::Brotli,
];

#[test]
fn what_was_compressed_comes_back() {
    for compression in Compression::ALL {
        for data in [Vec::new(), vec![1], sample()] {
            let compressed = compress(compression, &data);
            assert_eq!(
                read_all(compression, &compressed).unwrap(),
                data,
                "{compression}"
            );
        }
    }
}

/// Must not be read.
struct Untouchable;

impl Read for Untouchable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("it was read");
    }
}

#[test]
fn nothing_is_read_before_somebody_reads() {
    for compression in Compression::ALL {
        drop(decompress(compression, Untouchable).unwrap());
    }
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_an_error() {
    let data = &sample()[199_000..202_000];
    for compression in COMPRESSED {
        let compressed = compress(compression, data);
        for n_bytes in 1..compressed.len() {
            assert!(
                read_all(compression, &compressed[..n_bytes]).is_err(),
                "{compression} after {n_bytes} bytes of {}",
                compressed.len()
            );
        }
    }
}

#[test]
fn what_follows_a_stream_is_an_error_unless_it_is_a_stream() {
    let data = &sample()[..5000];
    for compression in COMPRESSED {
        let compressed = compress(compression, data);
        for garbage in [b"garbage".as_slice(), b"\0\0\0\0\0", b"<html></html>"] {
            let followed = [compressed.as_slice(), garbage].concat();
            assert!(
                read_all(compression, &followed).is_err(),
                "{compression} {garbage:?}"
            );
        }
        let twice = read_all(compression, &compressed.repeat(2));
        if compression == Compression::Brotli {
            // Brotli has no frame to say where a second one would begin.
            assert!(twice.is_err());
        } else {
            assert_eq!(twice.unwrap(), data.repeat(2), "{compression}");
        }
    }
}

#[test]
fn a_dictionary_of_four_gibibytes_is_refused_before_it_is_allocated() {
    // The header of a raw block is what names the dictionary: 40 means 4 GiB less a byte.
    let mut compressed = compress(Compression::Xz, b"x");
    let header = 12;
    let dictionary = header + 4;
    assert_eq!(compressed[header + 2..dictionary], [0x21, 0x01]);
    compressed[dictionary] = 40;
    let header_len = (usize::from(compressed[header]) + 1) * 4;
    let checksum = crc32(&compressed[header..header + header_len - 4]);
    compressed[header + header_len - 4..header + header_len]
        .copy_from_slice(&checksum.to_le_bytes());
    let error = read_all(Compression::Xz, &compressed).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
}

/// The check of xz's own headers.
fn crc32(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

#[test]
fn a_window_of_two_gibibytes_is_refused_before_it_is_allocated() {
    // Magic, a descriptor without checksum, size or single segment, a window of 2^31, an empty last
    // block.
    let window_log = 31_u8;
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3, 1, 0, 0];
    let error = read_all(Compression::Zstd, &frame).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    let mut allowed = frame;
    allowed[5] = (27 - 10) << 3;
    assert_eq!(read_all(Compression::Zstd, &allowed).unwrap(), b"");
}

#[test]
fn a_large_window_of_brotli_is_refused() {
    // The first bits 0b010001 begin a large window, 0b11110 is its size.
    let error = read_all(Compression::Brotli, &[0x11, 0x1e, 0x03]).unwrap_err();
    assert!(error.to_string().contains("corrupt"), "{error}");
}

#[test]
fn a_bomb_is_read_no_further_than_its_reader_wants() {
    let zeros = vec![0; 2 << 20];
    for compression in COMPRESSED {
        let compressed = compress(compression, &zeros);
        let source = Cursor::new(compressed);
        let mut some = Vec::new();
        decompress(compression, source)
            .unwrap()
            .take(121)
            .read_to_end(&mut some)
            .unwrap();
        assert_eq!(some, [0; 121]);
    }
}

#[test]
fn what_is_compressed_twice_is_taken_apart_once() {
    let once = compress(Compression::Gzip, b"data");
    let twice = compress(Compression::Gzip, &once);
    assert_eq!(read_all(Compression::Gzip, &twice).unwrap(), once);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(
        kind in 0..6_usize, position in 0..2000_usize, bytes: [u8; 3]
    ) {
        let compression = Compression::ALL[kind];
        let mut compressed = compress(compression, &sample()[..4000]);
        let start = position % compressed.len();
        let end = (start + bytes.len()).min(compressed.len());
        compressed.splice(start..end, bytes);
        let mut data = Vec::new();
        let _outcome = decompress(compression, Cursor::new(compressed))
            .and_then(|decoder| decoder.take(1 << 20).read_to_end(&mut data));
    }
}
