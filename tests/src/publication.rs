//! What a cache says of a path, written and signed by a test itself, so that it can say anything.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};

use crate::binary_cache::hash_part;

/// A key that signs paths.
#[derive(Debug, Clone)]
pub struct SigningKey {
    name: String,
    key: ed25519_dalek::SigningKey,
}

/// A path with its archive and what is true of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The full path.
    pub path: String,
    /// Its archive.
    pub archive: Vec<u8>,
    /// Full paths that it refers to.
    pub references: Vec<String>,
    /// The full path of the derivation that made it.
    pub deriver: Option<String>,
}

/// The text that describes a path, field by field, in the order in which it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    fields: Vec<(String, String)>,
}

impl SigningKey {
    /// Makes a key, the same from the same seed.
    pub fn new(name: &str, seed: u8) -> Self {
        Self {
            name: name.to_owned(),
            key: ed25519_dalek::SigningKey::from_bytes(&[seed; 32]),
        }
    }

    /// Returns the key for `trusted-public-keys`, `name:base64`.
    #[must_use]
    pub fn public(&self) -> String {
        let public = self.key.verifying_key();
        format!("{}:{}", self.name, STANDARD.encode(public.as_bytes()))
    }

    /// Returns the key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signs a text.
    #[must_use]
    pub fn signature(&self, text: &str) -> [u8; 64] {
        self.key.sign(text.as_bytes()).to_bytes()
    }

    /// Signs a text, `name:base64`.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        let signature = self.signature(text);
        format!("{}:{}", self.name, STANDARD.encode(signature))
    }
}

impl Publication {
    /// Describes the path as it is, without a signature. Its archive is not compressed.
    #[must_use]
    pub fn narinfo(&self) -> Narinfo {
        let hash = sha256(&self.archive);
        let size = self.archive.len().to_string();
        let names: Vec<&str> = self.references.iter().map(|path| base_name(path)).collect();
        let narinfo = Narinfo { fields: Vec::new() }
            .with("StorePath", &self.path)
            .with("URL", &self.url())
            .with("Compression", "none")
            .with("FileHash", &hash)
            .with("FileSize", &size)
            .with("NarHash", &hash)
            .with("NarSize", &size)
            .with("References", &names.join(" "));
        match &self.deriver {
            Some(deriver) => narinfo.with("Deriver", base_name(deriver)),
            None => narinfo,
        }
    }

    /// Returns where its archive is, below the cache.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nar/{}.nar", hash_part(&self.path))
    }

    /// Returns the file that describes it, below the cache.
    #[must_use]
    pub fn narinfo_file(&self) -> String {
        format!("{}.narinfo", hash_part(&self.path))
    }

    /// Returns the same path with another archive.
    #[must_use]
    pub fn containing(&self, archive: impl Into<Vec<u8>>) -> Self {
        Self {
            archive: archive.into(),
            ..self.clone()
        }
    }
}

impl Narinfo {
    /// Returns the value of a field, empty if it is not there.
    #[must_use]
    pub fn value(&self, field: &str) -> &str {
        let mut fields = self.fields.iter();
        fields
            .find(|(name, _)| name == field)
            .map_or("", |(_, value)| value)
    }

    /// Gives a field a value, and the place that it has, or the last one.
    #[must_use]
    pub fn with(mut self, field: &str, value: &str) -> Self {
        let mut fields = self.fields.iter_mut();
        match fields.find(|(name, _)| name == field) {
            Some((_, old)) => value.clone_into(old),
            None => return self.and(field, value),
        }
        self
    }

    /// Adds a field at the end, also one that is there.
    #[must_use]
    pub fn and(mut self, field: &str, value: &str) -> Self {
        self.fields.push((field.to_owned(), value.to_owned()));
        self
    }

    /// Takes a field out, wherever it stands.
    #[must_use]
    pub fn without(mut self, field: &str) -> Self {
        self.fields.retain(|(name, _)| name != field);
        self
    }

    /// Signs what the fields say, true or not.
    #[must_use]
    pub fn signed_by(self, key: &SigningKey) -> Self {
        let signature = key.sign(&self.fingerprint());
        self.and("Sig", &signature)
    }

    /// Returns the text that is signed.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let names = self.value("References").split(' ');
        let references: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(|name| format!("/nix/store/{name}"))
            .collect();
        format!(
            "1;{};{};{};{}",
            self.value("StorePath"),
            self.value("NarHash"),
            self.value("NarSize"),
            references.join(",")
        )
    }
}

impl fmt::Display for Narinfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = self.fields.iter();
        fields.try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))
    }
}

/// Returns the last part of a full path.
#[must_use]
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the hash of some bytes as narinfos have it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", base32(&Sha256::digest(bytes)))
}

/// Writes bytes in Nix's base 32, which begins with the last bits.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let n_digits = (bytes.len() * 8).div_ceil(5);
    let digit = |digit_idx: usize| {
        let bit = digit_idx * 5;
        let byte = |byte_idx: usize| u16::from(bytes.get(byte_idx).copied().unwrap_or(0));
        let pair = byte(bit / 8) | (byte(bit / 8 + 1) << 8);
        char::from(DIGITS[usize::from((pair >> (bit % 8)) & 31)])
    };
    (0..n_digits).rev().map(digit).collect()
}
