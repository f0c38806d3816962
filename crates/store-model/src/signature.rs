//! Keys, and the signatures by which a store trusts what another one built.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};

use crate::{Error, PathInfo, StoreDir};

/// A key that signs, and its name.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

impl SecretKey {
    /// Returns the name by which signatures refer to the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the key that others need to check signatures.
    #[must_use]
    pub fn to_public_key(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }

    /// Makes a key from 32 bytes that nobody else knows or could guess.
    ///
    /// # Errors
    /// The name is empty, or signatures by that name could not be told apart from what is around
    /// them.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, Error> {
        let is_plain = |character: char| {
            !character.is_whitespace() && !character.is_control() && character != ':'
        };
        if name.is_empty() || !name.chars().all(is_plain) {
            return Err(Error::Key {
                name: name.escape_debug().to_string(),
                reason: "a name is not empty and has neither a colon nor space",
            });
        }
        Ok(Self {
            name: name.to_owned(),
            key: SigningKey::from_bytes(seed),
        })
    }

    /// Returns the text that [`FromStr`] reads: for the file of the key and nothing else.
    #[must_use]
    pub fn expose(&self) -> String {
        format!(
            "{}:{}",
            self.name,
            BASE64.encode(self.key.to_keypair_bytes())
        )
    }

    /// Returns a signature `name:base64` of a fingerprint; the same one every time.
    #[must_use]
    pub fn sign(&self, fingerprint: &str) -> String {
        let signature = self.key.sign(fingerprint.as_bytes());
        format!("{}:{}", self.name, BASE64.encode(signature.to_bytes()))
    }
}

/// Reads what `nix key generate-secret` writes: `name:base64`, space around it left out.
///
/// The 64 bytes are the seed and the public key, which must belong to it.
impl FromStr for SecretKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, bytes) = split(text).map_err(nameless)?;
        let refuse = |reason| Error::Key {
            name: name.to_owned(),
            reason,
        };
        let pair = bytes
            .as_slice()
            .try_into()
            .map_err(|_| refuse("a secret key has 64 bytes"))?;
        let key = SigningKey::from_keypair_bytes(pair)
            .map_err(|_| refuse("the public half does not belong to the secret one"))?;
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }
}

/// Prints the name only: what must stay secret must not get into a log.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

/// A key that checks signatures, and its name.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// Returns the name by which signatures refer to the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Reads `name:base64`, space around it left out.
impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, bytes) = split(text).map_err(nameless)?;
        let refuse = |reason| Error::Key {
            name: name.to_owned(),
            reason,
        };
        let point = bytes
            .as_slice()
            .try_into()
            .map_err(|_| refuse("a public key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(point).map_err(|_| refuse("it is no point"))?;
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }
}

/// Prints `name:base64`.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn nameless(reason: &'static str) -> Error {
    Error::Key {
        name: String::new(),
        reason,
    }
}

/// Splits a key or a signature; the text itself is not for messages, as it may be secret.
fn split(text: &str) -> Result<(&str, Vec<u8>), &'static str> {
    let (name, encoded) = text
        .trim()
        .split_once(':')
        .ok_or("there is no ':' between a name and base-64")?;
    if name.is_empty() {
        return Err("there is no name before the ':'");
    }
    let bytes = BASE64
        .decode(encoded)
        .map_err(|_| "what follows the name is not base-64")?;
    Ok((name, bytes))
}

/// Public keys by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicKeys(BTreeMap<String, PublicKey>);

impl PublicKeys {
    /// Returns whether `signature` is one of `fingerprint` by a key that is here.
    ///
    /// A signature that is malformed or by another key says nothing.
    #[must_use]
    pub fn verify(&self, fingerprint: &str, signature: &str) -> bool {
        let Ok((name, bytes)) = split(signature) else {
            return false;
        };
        let Ok(bytes) = <[u8; SIGNATURE_LENGTH]>::try_from(bytes) else {
            return false;
        };
        // Strict, as libsodium is, which Nix uses: no key of small order, one encoding only.
        self.0.get(name).is_some_and(|key| {
            key.key
                .verify_strict(fingerprint.as_bytes(), &Signature::from_bytes(&bytes))
                .is_ok()
        })
    }
}

/// Of several keys of one name, the first is kept, as Nix does.
impl FromIterator<PublicKey> for PublicKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        let mut by_name = BTreeMap::new();
        for key in keys {
            by_name.entry(key.name.clone()).or_insert(key);
        }
        Self(by_name)
    }
}

impl PathInfo {
    /// Returns what is signed: `1;<path>;<hash>;<size>;<references>`, all paths in full.
    ///
    /// Nothing else is covered, in particular not the deriver.
    #[must_use]
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        let references: Vec<String> = self
            .references
            .iter()
            .map(|path| store_dir.print(path))
            .collect();
        format!(
            "1;{};{};{};{}",
            store_dir.print(&self.path),
            self.nar_hash,
            self.nar_size_bytes,
            references.join(",")
        )
    }

    /// Adds a signature by `key`.
    pub fn sign(&mut self, store_dir: &StoreDir, key: &SecretKey) {
        self.signatures
            .insert(key.sign(&self.fingerprint(store_dir)));
    }
}

/// Says what is wrong with the mode of a secret key's file, if others than its owner may be able to use
/// the key.
#[must_use]
pub fn key_file_warning(file: &Path, mode: u32) -> Option<String> {
    (mode & 0o077 != 0).then(|| {
        format!(
            "secret key file '{}' has mode {:04o}, so others than its owner may be able to use it; \
             0600 is enough",
            file.display(),
            mode & 0o7777
        )
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A pair that `nix key generate-secret` of Nix 2.8.0 made for this test.
    const SECRET: &str = "test-1:HLrbbGmUL6bYFf1jU+fz2bV/XT98CX8MOmOsY6kwCfsoXP0KGE6pJ24M92qonf97TRY5l2fKAVYdO3hpVF8WDA==";
    const PUBLIC: &str = "test-1:KFz9ChhOqSduDPdqqJ3/e00WOZdnygFWHTt4aVRfFgw=";

    fn secret() -> SecretKey {
        SECRET.parse().unwrap()
    }

    #[test]
    fn a_key_is_exposed_as_nix_writes_it_and_made_from_its_seed() {
        assert_eq!(secret().expose(), SECRET);
        let seed = secret().key.to_bytes();
        let made = SecretKey::from_seed("test-1", &seed).unwrap();
        assert_eq!(made.expose(), SECRET);
        for name in ["", "a:b", "a b", "a\n"] {
            assert!(SecretKey::from_seed(name, &seed).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_public_key_is_the_one_that_nix_derives() {
        assert_eq!(secret().to_public_key().to_string(), PUBLIC);
        assert_eq!(PUBLIC.parse(), Ok(secret().to_public_key()));
        assert_eq!(format!("{PUBLIC}\n").parse(), Ok(secret().to_public_key()));
    }

    #[test]
    fn only_a_signature_of_the_same_text_by_a_known_key_counts() {
        let signature = secret().sign("text");
        let keys: PublicKeys = [secret().to_public_key()].into_iter().collect();
        assert!(keys.verify("text", &signature));
        assert!(!keys.verify("texts", &signature));
        assert!(!keys.verify("text", &signature.replace("test-1", "test-2")));
        assert!(!keys.verify("text", signature.trim_start_matches("test-1:")));
        assert!(!keys.verify("text", "test-1:AAAA"));
        assert!(!keys.verify("text", ""));
        assert!(!PublicKeys::default().verify("text", &signature));
        let (name, encoded) = signature.split_once(':').unwrap();
        let mut bytes = BASE64.decode(encoded).unwrap();
        for byte_idx in 0..bytes.len() {
            bytes[byte_idx] ^= 1;
            assert!(!keys.verify("text", &format!("{name}:{}", BASE64.encode(&bytes))));
            bytes[byte_idx] ^= 1;
        }
    }

    /// The order of the group that signatures count in, the least significant byte first.
    const GROUP_ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];

    #[test]
    fn a_signature_that_was_rewritten_to_an_equivalent_one_is_none() {
        let signature = secret().sign("text");
        let keys: PublicKeys = [secret().to_public_key()].into_iter().collect();
        let encoded = signature.trim_start_matches("test-1:");
        let mut bytes = BASE64.decode(encoded).unwrap();
        let mut carry = 0;
        for (byte, addend) in bytes[32..].iter_mut().zip(GROUP_ORDER) {
            let sum = u16::from(*byte) + u16::from(addend) + carry;
            [*byte, _] = sum.to_le_bytes();
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(!keys.verify("text", &format!("test-1:{}", BASE64.encode(&bytes))));
        // The last digit before the padding has bits that mean nothing, which must be zero.
        let (head, last) = encoded.trim_end_matches('=').split_at(85);
        let other = char::from(last.as_bytes()[0] + 1);
        for other in [
            format!("test-1:{head}{other}=="),
            format!("test-1:{head}{last}"),
            format!("test-1: {head}{last}=="),
        ] {
            assert!(!keys.verify("text", &other), "{other}");
        }
        assert!(keys.verify("text", &format!("test-1:{head}{last}==")));
    }

    #[test]
    fn a_key_of_small_order_signs_nothing() {
        // Of the neutral point and its signature of nothing, every text is signed for whoever does
        // not look.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        let lenient = VerifyingKey::from_bytes(&neutral).unwrap();
        let forged = Signature::from_bytes(&signature);
        assert!(ed25519_dalek::Verifier::verify(&lenient, b"text", &forged).is_ok());
        let key: PublicKey = format!("k:{}", BASE64.encode(neutral)).parse().unwrap();
        let keys: PublicKeys = [key].into_iter().collect();
        assert!(!keys.verify("text", &format!("k:{}", BASE64.encode(signature))));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let other_half = format!("{}AAAA", &SECRET[..SECRET.len() - 4]);
        for text in [
            "",
            "x",
            ":",
            "name:",
            "name:AAAA",
            "name:*",
            PUBLIC,
            &other_half,
        ] {
            let error = text.parse::<SecretKey>().unwrap_err().to_string();
            assert!(!error.contains("HLrb"), "{error}");
        }
        for text in ["", ":AAAA", SECRET, "name:AAAA"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
        assert_eq!(format!("{:?}", secret()), "SecretKey(test-1)");
    }
}
