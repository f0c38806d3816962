//! Cryptographic hashes and the spellings that Nix gives them.

use std::fmt;
use std::io;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::Digest as _;

use crate::{Error, base32};

/// A hash function that a derivation or a path may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// MD5, 16 bytes; broken, but old fixed outputs name it.
    Md5,
    /// SHA-1, 20 bytes; broken, but old fixed outputs name it.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// Every algorithm, in the order in which Nix lists them.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// Returns how many bytes a digest has.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Returns the name that Nix uses, such as `sha256`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| Error::Hash {
                text: text.to_owned(),
                reason: "unknown hash algorithm",
            })
    }
}

/// A digest and the algorithm that made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algorithm: HashAlgorithm,
    bytes: [u8; 64],
}

impl Hash {
    /// Wraps the bytes of a digest.
    ///
    /// # Errors
    /// The length is not the algorithm's.
    pub fn from_bytes(algorithm: HashAlgorithm, digest: &[u8]) -> Result<Self, Error> {
        if digest.len() != algorithm.digest_len() {
            return Err(Error::Hash {
                text: base32::encode(digest),
                reason: "the digest has the wrong length",
            });
        }
        let mut bytes = [0; 64];
        bytes[..digest.len()].copy_from_slice(digest);
        Ok(Self { algorithm, bytes })
    }

    /// Hashes `data` in one go.
    #[must_use]
    pub fn digest(algorithm: HashAlgorithm, data: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Returns the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_len()]
    }

    /// Returns the digest in lower-case hexadecimal, without the algorithm.
    #[must_use]
    pub fn to_base16(&self) -> String {
        use fmt::Write as _;
        self.as_bytes()
            .iter()
            .fold(String::with_capacity(128), |mut text, byte| {
                // Writing to a string cannot fail.
                let _infallible = write!(text, "{byte:02x}");
                text
            })
    }

    /// Returns the digest in Nix's base-32, without the algorithm.
    #[must_use]
    pub fn to_base32(&self) -> String {
        base32::encode(self.as_bytes())
    }

    /// Returns the digest in base-64, without the algorithm.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// Returns the SRI form, such as `sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=`.
    #[must_use]
    pub fn to_sri(&self) -> String {
        format!("{}-{}", self.algorithm, self.to_base64())
    }

    /// Reads a digest in base-16, base-32 or base-64, told apart by its length.
    ///
    /// # Errors
    /// The length fits no base, or a character is not of that base.
    pub fn parse_digest(algorithm: HashAlgorithm, text: &str) -> Result<Self, Error> {
        let n_bytes = algorithm.digest_len();
        let decoded = if text.len() == n_bytes * 2 {
            decode_base16(text.as_bytes())
        } else if text.len() == base32::encoded_len(n_bytes) {
            base32::decode(text.as_bytes(), n_bytes)
        } else if text.len() == n_bytes.div_ceil(3) * 4 {
            BASE64.decode(text).ok()
        } else {
            None
        };
        let digest = decoded.ok_or_else(|| Error::Hash {
            text: text.to_owned(),
            reason: "not a digest of that algorithm in base-16, base-32 or base-64",
        })?;
        Self::from_bytes(algorithm, &digest)
    }

    /// Returns the first bytes folded by exclusive or to `n_bytes`, as store path digests are.
    #[must_use]
    pub fn compress(&self, n_bytes: usize) -> Vec<u8> {
        let mut folded = vec![0u8; n_bytes];
        for (byte_idx, byte) in self.as_bytes().iter().enumerate() {
            folded[byte_idx % n_bytes] ^= byte;
        }
        folded
    }
}

/// Prints the canonical form, `sha256:<base32>`.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.to_base32())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `algorithm:digest` in any base, or the SRI form.
impl FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::Hash {
            text: text.chars().take(300).collect(),
            reason,
        };
        let separator = text
            .find([':', '-'])
            .ok_or_else(|| refuse("no algorithm before the digest"))?;
        let (algorithm, digest) = (text[..separator].parse()?, &text[separator + 1..]);
        let hash = Self::parse_digest(algorithm, digest)?;
        if text.as_bytes()[separator] == b'-' && hash.to_base64() != digest {
            return Err(refuse("after a dash, the digest is in base-64"));
        }
        Ok(hash)
    }
}

fn decode_base16(digits: &[u8]) -> Option<Vec<u8>> {
    digits
        .chunks(2)
        .map(|pair| {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(*pair.get(1)?).to_digit(16)?;
            u8::try_from(high << 4 | low).ok()
        })
        .collect()
}

/// The SHA-256 of a path's NAR serialisation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash([u8; 32]);

impl NarHash {
    /// Wraps a SHA-256 digest.
    #[must_use]
    pub const fn from_sha256(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Returns the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the value of the database's `hash` column, `sha256:<base16>`.
    #[must_use]
    pub fn to_database(&self) -> String {
        format!("sha256:{}", self.to_hash().to_base16())
    }

    /// Returns the same digest as a general hash.
    #[must_use]
    pub fn to_hash(&self) -> Hash {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        Hash {
            algorithm: HashAlgorithm::Sha256,
            bytes,
        }
    }
}

/// Prints `sha256:<base32>`.
impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_hash(), f)
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<Hash> for NarHash {
    type Error = Error;

    fn try_from(hash: Hash) -> Result<Self, Error> {
        if hash.algorithm != HashAlgorithm::Sha256 {
            return Err(Error::Hash {
                text: hash.to_string(),
                reason: "a NAR hash is a SHA-256",
            });
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.as_bytes());
        Ok(Self(digest))
    }
}

impl FromStr for NarHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse::<Hash>()?.try_into()
    }
}

/// A hash in the making.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts hashing nothing.
    #[must_use]
    pub fn new(algorithm: HashAlgorithm) -> Self {
        Self(match algorithm {
            HashAlgorithm::Md5 => State::Md5(md5::Md5::new()),
            HashAlgorithm::Sha1 => State::Sha1(sha1::Sha1::new()),
            HashAlgorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            HashAlgorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            State::Md5(state) => state.update(data),
            State::Sha1(state) => state.update(data),
            State::Sha256(state) => state.update(data),
            State::Sha512(state) => state.update(data),
        }
    }

    /// Returns the hash of all bytes added.
    #[must_use]
    pub fn finish(self) -> Hash {
        let mut bytes = [0; 64];
        let mut put = |digest: &[u8]| bytes[..digest.len()].copy_from_slice(digest);
        let algorithm = match self.0 {
            State::Md5(state) => {
                put(&state.finalize());
                HashAlgorithm::Md5
            }
            State::Sha1(state) => {
                put(&state.finalize());
                HashAlgorithm::Sha1
            }
            State::Sha256(state) => {
                put(&state.finalize());
                HashAlgorithm::Sha256
            }
            State::Sha512(state) => {
                put(&state.finalize());
                HashAlgorithm::Sha512
            }
        };
        Hash { algorithm, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE_16: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_hash_is_read_in_every_spelling() {
        let expected = Hash::digest(HashAlgorithm::Sha256, b"");
        for text in [
            format!("sha256:{BASE_16}"),
            format!("sha256:{}", BASE_16.to_uppercase()),
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73".to_owned(),
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned(),
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned(),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for text in [
            String::new(),
            BASE_16.to_owned(),
            format!("sha256-{BASE_16}"),
            format!("sha1:{BASE_16}"),
            format!("sha3:{BASE_16}"),
            format!("SHA256:{BASE_16}"),
            format!("sha256:{BASE_16} "),
            format!("sha256:{}", BASE_16.replace('e', "g")),
            format!("sha256:{}\u{e9}", &BASE_16[2..]),
            // One bit more than 256, and the same in base-64.
            "sha256:2mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73".to_owned(),
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=".to_owned(),
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU".to_owned(),
        ] {
            assert!(text.parse::<Hash>().is_err(), "{text}");
        }
        let sha1 = Hash::digest(HashAlgorithm::Sha1, b"");
        assert!(NarHash::try_from(sha1).is_err());
        assert!(Hash::from_bytes(HashAlgorithm::Md5, &[0; 15]).is_err());
    }

    proptest! {
        #[test]
        fn every_spelling_of_every_algorithm_is_read_back(
            algorithm in proptest::sample::select(HashAlgorithm::ALL.to_vec()),
            data in any::<[u8; 8]>(),
        ) {
            let hash = Hash::digest(algorithm, &data);
            prop_assert_eq!(hash.to_string().parse(), Ok(hash));
            prop_assert_eq!(hash.to_sri().parse(), Ok(hash));
            for digest in [hash.to_base16(), hash.to_base32(), hash.to_base64()] {
                prop_assert_eq!(Hash::parse_digest(algorithm, &digest), Ok(hash));
            }
        }
    }
}
