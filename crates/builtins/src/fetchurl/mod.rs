//! `builtin:fetchurl`: a file, or what an archive holds, from the net.
//!
//! ```text
//! mod        which places are asked, and what is made of the answer
//! download   one stream of bytes, however often the server has to be asked for it
//! exchange   one request with its redirects
//! url        pure
//! ```
//!
//! Certificates are always verified, though the output's hash is checked too: a server that is not
//! who it should be would be told passwords, and what somebody downloads.

mod download;
mod exchange;
mod transfer_error;
mod url;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bstr::ByteSlice as _;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use store_model::{Hash, HashAlgorithm, ProxyVariables};

pub use self::transfer_error::TransferError;

use self::download::Download;
use self::exchange::Client;
use self::url::Url;
use crate::attributes::Attributes;
use crate::restore::restore;
use crate::{Error, decompress, say};

/// The largest pieces in which a download is read and written.
const PIECE_LEN: usize = 64 << 10;

/// What a download needs of the host, where it is not seen.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Provisions {
    /// Certificates of those who vouch for servers, in PEM.
    pub certificates: Vec<u8>,
    /// Passwords for hosts, as in `~/.netrc`.
    pub netrc: Vec<u8>,
    /// Servers that have files by their hashes.
    pub hashed_mirrors: Vec<String>,
    /// How often a server is asked at most.
    pub n_attempts: usize,
    /// How long making a connection may take.
    pub connect_limit: Option<Duration>,
    /// How long a server may be silent.
    pub stall_limit: Option<Duration>,
    /// How often the log tells how far it is; less than a builder may be silent.
    pub progress_interval: Duration,
    /// The variables that name proxies, as far as the derivation asks for them.
    pub proxies: ProxyVariables,
}

/// Without passwords.
impl std::fmt::Debug for Provisions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provisions")
            .field("hashed_mirrors", &self.hashed_mirrors)
            .field("n_attempts", &self.n_attempts)
            .field("connect_limit", &self.connect_limit)
            .field("stall_limit", &self.stall_limit)
            .field("progress_interval", &self.progress_interval)
            .finish_non_exhaustive()
    }
}

/// What is made of what is downloaded.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    content: Content,
    is_executable: bool,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    /// The file is the output.
    File,
    /// The file is an archive of the output.
    Archive,
    /// The file is a compressed archive of the output.
    XzArchive,
}

/// Downloads `url`, or the same file from a mirror, to the output.
///
/// # Errors
/// An attribute is missing, nobody has the file, or it is no archive.
pub(crate) fn run(
    attributes: Attributes<'_>,
    provisions: &Provisions,
    log: &mut dyn Write,
) -> Result<(), Error> {
    let path = attributes.path("out")?;
    let url = attributes.text("url")?;
    let target = Target {
        path,
        // Byte for byte, as with Nix.
        content: match (
            attributes.is_set("unpack"),
            url.as_bytes().ends_with(b".xz"),
        ) {
            (false, _) => Content::File,
            (true, false) => Content::Archive,
            (true, true) => Content::XzArchive,
        },
        is_executable: attributes.is_set("executable"),
    };
    let client = Client::new(provisions);
    if attributes.get("outputHashMode")? == "flat" {
        let algorithm = attributes.optional("outputHashAlgo");
        let hash = attributes.get("outputHash")?;
        let hash = read_hash(algorithm.unwrap_or_default(), hash);
        for mirror in &provisions.hashed_mirrors {
            let Some(hash) = &hash else { break };
            let mirror = mirror.trim_end_matches('/');
            let url = format!("{mirror}/{}/{}", hash.algorithm(), hash.to_base16());
            match fetch(&client, &url, &target, log) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    say(log, format_args!("{}", chain(&error)));
                    discard(&target.path)?;
                }
            }
        }
    }
    fetch(&client, url, &target, log)
}

fn fetch(client: &Client, url: &str, target: &Target, log: &mut dyn Write) -> Result<(), Error> {
    let failed = |url: String| |source| Error::Download { url, source };
    let url: Url = url.parse().map_err(failed(url.to_owned()))?;
    let shown = url.to_string();
    say(log, format_args!("downloading '{shown}'..."));
    let mut download = Download::open(client, url, log).map_err(failed(shown.clone()))?;
    match target.content {
        Content::File => write_file(&mut download, target).map_err(|problem| match problem {
            Problem::Download(error) => Error::Download {
                url: shown,
                source: TransferError::from_io(error),
            },
            Problem::File(source) => Error::file("writing", &target.path)(source),
        })?,
        Content::Archive => unpack(BufReader::with_capacity(PIECE_LEN, download), target, shown)?,
        Content::XzArchive => {
            let compressed = BufReader::with_capacity(PIECE_LEN, download);
            let decoder = decompress::xz(compressed).map_err(|source| Error::Download {
                url: shown.clone(),
                source: TransferError::from_io(source),
            })?;
            unpack(BufReader::with_capacity(PIECE_LEN, decoder), target, shown)?;
        }
    }
    if target.is_executable {
        make_executable(&target.path).map_err(Error::file("making executable", &target.path))?;
    }
    Ok(())
}

/// Makes a file or directory executable. An archive may be a link, which is not followed: without a
/// sandbox it leads to whatever belongs to the builder's user.
fn make_executable(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o755))?;
    Ok(())
}

fn unpack(mut archive: impl BufRead, target: &Target, url: String) -> Result<(), Error> {
    restore(&mut archive, &target.path).map_err(|source| Error::Unpack { url, source })
}

/// Which side of a copy failed.
enum Problem {
    Download(io::Error),
    File(io::Error),
}

fn write_file(download: &mut Download<'_>, target: &Target) -> Result<(), Problem> {
    let mut file = File::create_new(&target.path).map_err(Problem::File)?;
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let n_read = download.read(&mut piece).map_err(Problem::Download)?;
        if n_read == 0 {
            return Ok(());
        }
        file.write_all(&piece[..n_read]).map_err(Problem::File)?;
    }
}

/// Removes what a mirror that failed has left of the output.
fn discard(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(Error::file("removing", path))
}

/// Reads the promised hash, in whichever spelling; `None` if nobody can have a file by it.
fn read_hash(algorithm: &bstr::BStr, hash: &bstr::BStr) -> Option<Hash> {
    let hash = hash.to_str().ok()?;
    match algorithm.to_str().ok()?.parse::<HashAlgorithm>() {
        Ok(algorithm) => {
            let digest = hash.strip_prefix(algorithm.name());
            let digest = digest.and_then(|digest| digest.strip_prefix([':', '-']));
            Hash::parse_digest(algorithm, digest.unwrap_or(hash)).ok()
        }
        Err(_) => hash.parse().ok(),
    }
}

/// Returns an error and its causes as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_promised_hash_is_read_in_every_spelling() {
        let hash = Hash::digest(HashAlgorithm::Sha256, b"promised");
        for text in [
            hash.to_base16(),
            hash.to_base32(),
            hash.to_base64(),
            hash.to_sri(),
        ] {
            let read = read_hash("sha256".into(), text.as_str().into());
            assert_eq!(read.as_ref(), Some(&hash), "{text}");
        }
        let sri = hash.to_sri();
        assert_eq!(read_hash("".into(), sri.as_str().into()), Some(hash));
        assert_eq!(read_hash("sha256".into(), "".into()), None);
        assert_eq!(read_hash("sha256".into(), "sha512-AAAA".into()), None);
    }

    #[test]
    fn a_link_is_not_followed_to_be_made_executable() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (secret, link) = (dir.path().join("secret"), dir.path().join("link"));
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&secret, &link).unwrap();
        let mode = || fs::metadata(&secret).unwrap().permissions().mode() & 0o777;
        assert!(make_executable(&link).is_err());
        assert_eq!(mode(), 0o600);
        make_executable(&secret).unwrap();
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn provisions_are_shown_without_their_secrets() {
        let provisions = Provisions {
            netrc: "machine host login me password secret".into(),
            ..Provisions::default()
        };
        assert!(!format!("{provisions:?}").contains("secret"));
    }
}
