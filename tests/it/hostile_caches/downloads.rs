//! Archives that are not what was promised, or far more than that (SECURITY N02, P14, F56, F59).

use std::io::Write as _;

use it::archive::Archive;
use it::publication::sha256;
use it::web::Answer;

use super::lie::{Asked, File, Lie, Truth};
use super::scene::{Found, Row};

/// In how many bytes a bomb repeats itself.
const LOAD_BYTES: usize = 64 << 20;

/// Compresses in one of the ways that a narinfo can name.
fn compress(compression: &str, data: &[u8]) -> Vec<u8> {
    let done = "memory can be written to";
    let fast = flate2::Compression::fast();
    let mut packed = Vec::new();
    match compression {
        "xz" => {
            let mut encoder = xz2::write::XzEncoder::new(&mut packed, 0);
            encoder.write_all(data).expect(done);
            encoder.finish().expect(done);
        }
        "bzip2" => {
            let fast = bzip2::Compression::fast();
            let mut encoder = bzip2::write::BzEncoder::new(&mut packed, fast);
            encoder.write_all(data).expect(done);
            encoder.finish().expect(done);
        }
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(&mut packed, fast);
            encoder.write_all(data).expect(done);
            encoder.finish().expect(done);
        }
        "zstd" => packed = zstd::encode_all(data, 1).expect(done),
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(&mut packed, 1 << 16, 1, 22);
            encoder.write_all(data).expect(done);
            drop(encoder);
        }
        other => panic!("nobody compresses by {other}"),
    }
    packed
}

/// Sends the archive compressed, of which `spoil` makes something else.
fn compressed(
    name: &str,
    compression: &'static str,
    spoil: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
) -> Lie {
    let sent = move |truth: &Truth| spoil(compress(compression, &truth.path.archive));
    Lie::new(name, move |asked| match asked.file {
        File::Narinfo => {
            let bytes = sent(asked.truth);
            let narinfo = asked.truth.narinfo().with("Compression", compression);
            let narinfo = narinfo.with("FileHash", &sha256(&bytes));
            Answer::file(
                narinfo
                    .with("FileSize", &bytes.len().to_string())
                    .to_string(),
            )
        }
        File::Archive => Answer::file(sent(asked.truth)),
        File::Info | File::Unknown => asked.honest(),
    })
}

#[test]
fn archives_are_taken_however_they_are_compressed() {
    let lies = ["xz", "bzip2", "gzip", "zstd", "br"]
        .map(|compression| compressed(compression, compression, |packed| packed));
    Row::of(lies).assert_harmless();
}

#[test]
fn what_somebody_in_the_middle_says_of_the_file_only_makes_the_download_fail() {
    let lies = [
        Lie::new("another file", |asked| match asked.file {
            File::Narinfo => {
                let narinfo = asked.truth.narinfo().with("URL", &asked.truth.other.url());
                Answer::file(narinfo.to_string())
            }
            File::Info | File::Archive | File::Unknown => asked.honest(),
        }),
        Lie::in_the_middle("no such file", |narinfo| narinfo.with("URL", "nar/nothing")),
        Lie::in_the_middle("compressed", |narinfo| narinfo.with("Compression", "xz")),
        // What a narinfo without the field means.
        Lie::in_the_middle("a missing field", |narinfo| narinfo.without("Compression")),
        Lie::in_the_middle("smaller", |narinfo| narinfo.with("FileSize", "1")),
        Lie::in_the_middle("larger", |narinfo| {
            narinfo.with("FileSize", "18446744073709551615")
        }),
        Lie::in_the_middle("another hash", |narinfo| {
            narinfo.with("FileHash", &sha256(b"another"))
        }),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

#[test]
fn an_archive_other_than_the_one_that_was_signed_is_never_valid() {
    let true_text = |truth: &Truth| truth.path.archive.clone();
    let lies = [
        Lie::archive("another path's", |truth| truth.other.archive.clone()),
        Lie::archive("one bit", move |truth| {
            let mut archive = true_text(truth);
            // Within the contents, so that only the hash can tell.
            let last = archive.len() - 32;
            archive[last] ^= 1;
            archive
        }),
        Lie::archive("nothing", |_| Vec::new()),
        Lie::archive("longer", move |truth| {
            [true_text(truth), vec![0; 8]].concat()
        }),
        Lie::archive("shorter", move |truth| {
            let mut archive = true_text(truth);
            archive.truncate(archive.len() - 8);
            archive
        }),
        // The key is trusted, and what it has signed is not so.
        lying("a hash", |narinfo| {
            narinfo.with("NarHash", &sha256(b"another"))
        }),
        lying("a size less", |narinfo| {
            let size = narinfo.value("NarSize").parse().unwrap_or(0_u64);
            narinfo.with("NarSize", &(size - 8).to_string())
        }),
        lying("a size more", |narinfo| {
            let size = narinfo.value("NarSize").parse().unwrap_or(0_u64);
            narinfo.with("NarSize", &(size + 8).to_string())
        }),
        lying("all there is", |narinfo| {
            narinfo.with("NarSize", "18446744073709551615")
        }),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

/// Signs what is not so, and promises nothing about the file, which would tell first.
fn lying(
    name: &str,
    change: impl Fn(it::publication::Narinfo) -> it::publication::Narinfo + Send + Sync + 'static,
) -> Lie {
    Lie::signed(name, move |narinfo| {
        change(narinfo.without("FileHash").without("FileSize"))
    })
}

#[test]
fn an_archive_whose_compression_is_damaged_is_never_valid() {
    let cut = |mut packed: Vec<u8>| {
        packed.truncate(packed.len() - 4);
        packed
    };
    let bent = |mut packed: Vec<u8>| {
        let middle = packed.len() / 2;
        packed[middle] ^= 0x55;
        packed
    };
    let lies = [
        compressed("cut xz", "xz", cut),
        compressed("cut bzip2", "bzip2", cut),
        compressed("cut gzip", "gzip", cut),
        compressed("cut zstd", "zstd", cut),
        compressed("cut br", "br", cut),
        compressed("bent xz", "xz", bent),
        compressed("bent zstd", "zstd", bent),
        compressed("followed by a page", "xz", |packed| {
            [packed, b"<html>".to_vec()].concat()
        }),
        compressed("two files", "zstd", |packed| packed.repeat(2)),
        compressed("twice", "gzip", |packed| compress("gzip", &packed)),
        compressed("a page", "xz", |_| b"<html>Please log in</html>".to_vec()),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}

/// Sends zeros without end, compressed, and promises nothing about the file.
fn bomb(compression: &'static str) -> Lie {
    // Streams follow one another, but for brotli's: its one is as long as all others together.
    let n_bytes = if compression == "br" { 8 } else { 1 } * LOAD_BYTES;
    let load = compress(compression, &vec![0; n_bytes]);
    let is_one = compression == "br";
    armed(compression, compression, move |_: &Asked<'_>| {
        let answer = Answer::file(load.clone());
        if is_one { answer } else { answer.endless() }
    })
}

/// Sends something as the archive and promises nothing about the file.
fn armed(
    name: &str,
    compression: &'static str,
    archive: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static,
) -> Lie {
    Lie::new(name, move |asked| match asked.file {
        File::Narinfo => {
            let narinfo = asked.truth.narinfo().with("Compression", compression);
            let narinfo = narinfo.without("FileHash").without("FileSize");
            Answer::file(narinfo.to_string())
        }
        File::Archive => archive(asked),
        File::Info | File::Unknown => asked.honest(),
    })
}

#[test]
fn archives_that_grow_without_end_are_cut_off_at_the_size_that_was_promised() {
    let plain = armed("plain", "none", |_| {
        Answer::file(vec![0; 1 << 20]).endless()
    });
    let lies = ["xz", "bzip2", "gzip", "zstd", "br"].map(bomb);
    Row::of(lies.into_iter().chain([plain])).assert_found(Found::InArchive);
}

#[test]
fn archives_that_begin_well_and_never_end_are_cut_off_at_the_size_that_was_promised() {
    // Good up to the contents, which are a gigabyte by the archive's own word.
    let begun = Archive::default()
        .word("nix-archive-1")
        .words(["(", "type", "regular", "contents"]);
    let length = 1_u64 << 30;
    let load = [
        &begun.into_bytes(),
        &length.to_le_bytes()[..],
        &vec![b'x'; 1 << 20],
    ]
    .concat();
    let lie = armed("a gigabyte", "none", move |_| {
        Answer::file(load.clone()).endless()
    });
    Row::of([lie]).assert_found(Found::InArchive);
}

#[test]
fn streams_that_ask_for_much_memory_are_refused() {
    let dictionary = |asked: &Asked<'_>| {
        // The header of a raw block names the dictionary: 40 means 4 GiB less a byte.
        let mut packed = compress("xz", &asked.truth.path.archive);
        let header = 12;
        assert_eq!(packed[header + 2..header + 4], [0x21, 0x01]);
        packed[header + 4] = 40;
        let header_len = (usize::from(packed[header]) + 1) * 4;
        let (covered, checksum) = (header..header + header_len - 4, header + header_len - 4);
        let mut crc = flate2::Crc::new();
        crc.update(&packed[covered]);
        packed[checksum..checksum + 4].copy_from_slice(&crc.sum().to_le_bytes());
        Answer::file(packed)
    };
    let window = |asked: &Asked<'_>| {
        // Magic, a descriptor without checksum, size or single segment, a window of 2^31; then a last
        // block that is not compressed.
        let archive = &asked.truth.path.archive;
        let size = u32::try_from(archive.len()).expect("it is small") << 3 | 1;
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3];
        Answer::file([&head[..], &size.to_le_bytes()[..3], archive].concat())
    };
    let lies = [
        armed("a dictionary of 4 GiB", "xz", dictionary),
        armed("a window of 2 GiB", "zstd", window),
        // The first bits 0b010001 begin a large window, 0b11110 is its size.
        armed("a large window", "br", |_| Answer::file([0x11, 0x1e, 0x03])),
    ];
    Row::of(lies).assert_found(Found::InArchive);
}
