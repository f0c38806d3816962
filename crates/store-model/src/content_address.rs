//! Content addresses, and how every kind of store path follows from what it holds.
//!
//! A path's hash part is the SHA-256, folded to 160 bits, of a fingerprint
//! `<type>:sha256:<base16>:<store directory>:<name>`.
//! The type says how the path came to be, and for text and sources lists what the contents
//! refer to, so that equal contents with other references get another path (SECURITY V02).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::derivation::IngestionMethod;
use crate::{Error, Hash, HashAlgorithm, NarHash, OutputName, StoreDir, StorePath};

/// How the contents of a path were hashed, and the hash: what the database's `ca` column holds.
///
/// Such a path needs no signature: whoever has the contents can check the claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    /// What is hashed.
    pub method: IngestionMethod,
    /// The hash; of [`IngestionMethod::Text`] always a SHA-256.
    pub hash: Hash,
}

/// Prints `text:sha256:<base32>`, `fixed:<algorithm>:<base32>` or `fixed:r:<algorithm>:<base32>`.
impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.method {
            IngestionMethod::Text => "text:",
            IngestionMethod::Flat => "fixed:",
            IngestionMethod::Recursive => "fixed:r:",
        };
        write!(f, "{prefix}{}", self.hash)
    }
}

impl fmt::Debug for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads what [`Display`](fmt::Display) prints, the digest in any base.
impl FromStr for ContentAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::ContentAddress {
            text: text.chars().take(300).collect(),
            reason,
        };
        let (method, rest) = if let Some(rest) = text.strip_prefix("text:") {
            (IngestionMethod::Text, rest)
        } else if let Some(rest) = text.strip_prefix("fixed:r:") {
            (IngestionMethod::Recursive, rest)
        } else if let Some(rest) = text.strip_prefix("fixed:") {
            (IngestionMethod::Flat, rest)
        } else {
            return Err(refuse("it begins neither with 'text:' nor with 'fixed:'"));
        };
        let (algorithm, digest) = rest
            .split_once(':')
            .ok_or_else(|| refuse("no algorithm before the digest"))?;
        let hash = Hash::parse_digest(algorithm.parse()?, digest)?;
        if method == IngestionMethod::Text && hash.algorithm() != HashAlgorithm::Sha256 {
            return Err(refuse("a text is hashed with SHA-256"));
        }
        Ok(Self { method, hash })
    }
}

/// What the contents of a path refer to, told apart because a path cannot name itself before it
/// has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Other paths.
    pub others: BTreeSet<StorePath>,
    /// Whether the contents also mention their own path.
    pub to_self: bool,
}

impl StoreDir {
    /// Returns the path of a text whose SHA-256 is `contents_hash`, such as a `.drv` file or what
    /// `builtins.toFile` makes.
    ///
    /// # Errors
    /// The name is not allowed, or the hash is not a SHA-256.
    pub fn make_text_path(
        &self,
        name: &str,
        contents_hash: &Hash,
        references: &BTreeSet<StorePath>,
    ) -> Result<StorePath, Error> {
        if contents_hash.algorithm() != HashAlgorithm::Sha256 {
            return Err(Error::ContentAddress {
                text: contents_hash.to_string(),
                reason: "a text is hashed with SHA-256",
            });
        }
        let kind = self.kind_with_references("text", references);
        self.make_path(&kind, contents_hash, name)
    }

    /// Returns the path of a source tree whose NAR has the hash `nar_hash`, as `add` makes it.
    ///
    /// # Errors
    /// The name is not allowed.
    pub fn make_source_path(&self, name: &str, nar_hash: NarHash) -> Result<StorePath, Error> {
        self.make_path("source", &nar_hash.to_hash(), name)
    }

    /// Returns the path of an object that is known by its content alone.
    ///
    /// A reference to itself that the address cannot record is let pass, as Nix 2.8 does: the hash
    /// covers where it stands, see [`SelfModuloHasher`](crate::hash_rewrite::SelfModuloHasher).
    ///
    /// # Errors
    /// The name is not allowed, or there are references to other paths though that kind of address
    /// cannot record them: only texts and SHA-256 of a NAR can.
    pub fn make_fixed_output_path(
        &self,
        method: IngestionMethod,
        hash: &Hash,
        name: &str,
        references: &References,
    ) -> Result<StorePath, Error> {
        let unrecordable = |reason| Error::ContentAddress {
            text: ContentAddress {
                method,
                hash: *hash,
            }
            .to_string(),
            reason,
        };
        let prefix = match method {
            IngestionMethod::Text if references.to_self => {
                return Err(unrecordable("a text cannot refer to itself"));
            }
            IngestionMethod::Text => return self.make_text_path(name, hash, &references.others),
            IngestionMethod::Recursive if hash.algorithm() == HashAlgorithm::Sha256 => {
                let mut kind = self.kind_with_references("source", &references.others);
                if references.to_self {
                    kind.push_str(":self");
                }
                return self.make_path(&kind, hash, name);
            }
            IngestionMethod::Recursive => "r:",
            IngestionMethod::Flat => "",
        };
        if !references.others.is_empty() {
            return Err(unrecordable(
                "this kind of address cannot record references",
            ));
        }
        let fingerprint = format!(
            "fixed:out:{prefix}{}:{}:",
            hash.algorithm(),
            hash.to_base16()
        );
        let inner = Hash::digest(HashAlgorithm::Sha256, fingerprint.as_bytes());
        self.make_path("output:out", &inner, name)
    }

    /// Returns the path that a [`ContentAddress`] stands for.
    ///
    /// # Errors
    /// As [`StoreDir::make_fixed_output_path`].
    pub fn make_content_addressed_path(
        &self,
        address: &ContentAddress,
        name: &str,
        references: &References,
    ) -> Result<StorePath, Error> {
        self.make_fixed_output_path(address.method, &address.hash, name, references)
    }

    /// Returns the path of an input-addressed output, `hash` being the derivation's hash modulo
    /// with its own outputs masked.
    ///
    /// # Errors
    /// The resulting name, see [`OutputName::path_name`], is not allowed.
    pub fn make_output_path(
        &self,
        output_name: &OutputName,
        hash: &Hash,
        drv_name: &str,
    ) -> Result<StorePath, Error> {
        self.make_path(
            &format!("output:{output_name}"),
            hash,
            &output_name.path_name(drv_name),
        )
    }

    fn make_path(&self, kind: &str, hash: &Hash, name: &str) -> Result<StorePath, Error> {
        let fingerprint = format!(
            "{kind}:{}:{}:{self}:{name}",
            hash.algorithm(),
            hash.to_base16()
        );
        let digest = Hash::digest(HashAlgorithm::Sha256, fingerprint.as_bytes());
        let mut folded = [0; 20];
        folded.copy_from_slice(&digest.compress(20));
        StorePath::from_digest(&folded, name)
    }

    fn kind_with_references(&self, kind: &str, references: &BTreeSet<StorePath>) -> String {
        references.iter().fold(kind.to_owned(), |mut kind, path| {
            kind.push(':');
            kind.push_str(&self.print(path));
            kind
        })
    }
}

impl OutputName {
    /// Returns the name part of this output's store path: the derivation's name, and for every
    /// output but `out` a dash and the output's name.
    #[must_use]
    pub fn path_name(&self, drv_name: &str) -> String {
        if self.as_str() == "out" {
            drv_name.to_owned()
        } else {
            format!("{drv_name}-{self}")
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use HashAlgorithm::{Sha1, Sha256};
    use IngestionMethod::{Flat, Recursive, Text};

    fn store_dir() -> StoreDir {
        StoreDir::default()
    }

    fn paths<const N: usize>(base_names: [&str; N]) -> BTreeSet<StorePath> {
        base_names
            .map(|base_name| base_name.parse().unwrap())
            .into()
    }

    #[test]
    fn equal_texts_with_other_references_get_other_paths() {
        let hash = Hash::digest(HashAlgorithm::Sha256, b"text");
        let one = paths(["2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a"]);
        let two = paths(["d3p8sj88z8slb7xkhqzpbq0p33kzca41-b"]);
        let both = one.union(&two).cloned().collect();
        let made: BTreeSet<StorePath> = [BTreeSet::new(), one, two, both]
            .iter()
            .map(|references| store_dir().make_text_path("t", &hash, references).unwrap())
            .collect();
        assert_eq!(made.len(), 4);
    }

    #[test]
    fn addresses_print_as_the_database_spells_them() {
        for text in [
            "text:sha256:1i818fiymbjkhwg4fap9psnzijjzypy1c0dpy8fkybiqb1p7hipv",
            "fixed:sha1:kpcd173cq987hw957sx6m0868wv3x6d9",
            "fixed:r:sha256:1h3wqj74vifv9zyf9b7fjhbxdm9i6y7innlm8chk98csw4i6y4v1",
        ] {
            let address: ContentAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "sha256:1i818fiymbjkhwg4fap9psnzijjzypy1c0dpy8fkybiqb1p7hipv",
            "text:r:sha256:1i818fiymbjkhwg4fap9psnzijjzypy1c0dpy8fkybiqb1p7hipv",
            "text:sha1:kpcd173cq987hw957sx6m0868wv3x6d9",
            "fixed:sha256",
            "fixed:sha256:kpcd173cq987hw957sx6m0868wv3x6d9",
            "fixed:r:r:sha1:kpcd173cq987hw957sx6m0868wv3x6d9",
            "fixed:sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "text:sha256:1i818fiymbjkhwg4fap9psnzijjzypy1c0dpy8fkybiqb1p7hipv ",
        ] {
            assert!(text.parse::<ContentAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn references_are_refused_where_the_address_cannot_record_them() {
        let others = paths(["2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a"]);
        let to_other = References {
            others,
            to_self: false,
        };
        let to_self = References {
            to_self: true,
            ..References::default()
        };
        let make = |method, algorithm, references: &References| {
            let hash = Hash::digest(algorithm, b"");
            store_dir().make_fixed_output_path(method, &hash, "x", references)
        };
        let none = References::default();
        for (method, algorithm) in [(Flat, Sha1), (Flat, Sha256), (Recursive, Sha1)] {
            assert!(make(method, algorithm, &none).is_ok());
            assert!(make(method, algorithm, &to_other).is_err());
            assert_eq!(
                make(method, algorithm, &to_self),
                make(method, algorithm, &none)
            );
        }
        assert!(make(Text, Sha256, &to_other).is_ok());
        assert!(make(Text, Sha256, &to_self).is_err());
        assert!(make(Text, Sha1, &none).is_err());
        let sources: BTreeSet<StorePath> = [&none, &to_other, &to_self]
            .map(|references| make(Recursive, Sha256, references).unwrap())
            .into();
        assert_eq!(sources.len(), 3);
    }

    #[test]
    fn a_source_and_a_fixed_output_of_the_same_contents_have_the_same_path() {
        let nar_hash: NarHash = "sha256:1h3wqj74vifv9zyf9b7fjhbxdm9i6y7innlm8chk98csw4i6y4v1"
            .parse()
            .unwrap();
        let path = store_dir().make_source_path("tinybuild", nar_hash).unwrap();
        assert_eq!(
            path.base_name(),
            "00m136c3cljch0g7amj4q8yqgn0bpw60-tinybuild"
        );
        let fixed = store_dir().make_fixed_output_path(
            IngestionMethod::Recursive,
            &nar_hash.to_hash(),
            "tinybuild",
            &References::default(),
        );
        assert_eq!(fixed, Ok(path));
    }

    #[test]
    fn floating_outputs_that_mention_themselves_are_where_nix_put_them() {
        let elsewhere = StoreDir::new("/gnu/store").unwrap();
        let to_self = References {
            to_self: true,
            ..References::default()
        };
        for (address, path) in [
            (
                "fixed:r:sha1:hh85rk2ifcwd6nrv0cdgy9wpcymi6505",
                "giww60330jnmrbndvqxlkxhi2024l489-self1",
            ),
            (
                "fixed:sha256:0csnivm2yaz34m699vbq7lamclpdqdl101plnhc27fxywqzcv0jl",
                "mrvxnfq7zn0rgn6kwyrv84drdw5rrazs-selfflat",
            ),
            (
                "fixed:r:sha256:0rigc6ans2ls5x0s4250m7xyfkfndfzxcp1xn5g4lrgaq8xn2mgv",
                "c2s0mhs2fc9ahxf06g0mf23hvdicab22-caself",
            ),
        ] {
            let path: StorePath = path.parse().unwrap();
            let made = elsewhere.make_content_addressed_path(
                &address.parse().unwrap(),
                path.name(),
                &to_self,
            );
            assert_eq!(made, Ok(path));
        }
    }

    #[test]
    fn the_store_directory_is_part_of_every_path() {
        let nar_hash = NarHash::from_sha256([0; 32]);
        let elsewhere = StoreDir::new("/gnu/store").unwrap();
        assert_ne!(
            elsewhere.make_source_path("x", nar_hash).unwrap(),
            store_dir().make_source_path("x", nar_hash).unwrap()
        );
    }

    #[test]
    fn a_name_that_cannot_be_in_the_store_makes_no_path() {
        let nar_hash = NarHash::from_sha256([0; 32]);
        for name in ["", "..", "a/b", "a b", &"n".repeat(212)] {
            assert!(
                store_dir().make_source_path(name, nar_hash).is_err(),
                "{name}"
            );
        }
    }
}
