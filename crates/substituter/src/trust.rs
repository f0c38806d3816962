//! Whether a cache's word is to be believed: pure.
//!
//! A narinfo that was asked for may be another path's (SECURITY N01), and all of it but the signed
//! part may have been changed on the way (N02). What is decided here is decided before a byte of the
//! archive is asked for; that the archive is what was promised is checked when it is unpacked.

use std::collections::BTreeSet;

use store_model::content_address::References;
use store_model::derivation::IngestionMethod;
use store_model::narinfo::NarInfo;
use store_model::{ContentAddress, HashAlgorithm, PathInfo, PublicKeys, StoreDir, StorePath};

/// What makes a cache's word good.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// The store that paths are for.
    pub(crate) store_dir: StoreDir,
    /// Whose signatures count (`trusted-public-keys`).
    pub(crate) keys: PublicKeys,
    /// Whether one is needed (`require-sigs`).
    pub(crate) signatures: Signatures,
}

/// Whether paths need a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signatures {
    /// They do, unless their names follow from their contents.
    Needed,
    /// They do not.
    Optional,
}

/// Why a cache's word is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Going on would put one path's contents at another's place.
    #[error("it was asked for '{asked}' but speaks of '{answered}'")]
    OtherPath {
        /// Full path.
        asked: String,
        /// Full path.
        answered: String,
    },
    /// Going on would ask a server that the cache has nothing to do with.
    #[error(transparent)]
    Address(store_model::Error),
    /// Going on would record an address that the contents do not have.
    #[error("its content address '{address}' {reason}")]
    ContentAddress {
        /// As the cache spells it.
        address: String,
        /// The end of the sentence.
        reason: String,
    },
    /// Going on would believe anybody.
    #[error("it is not signed by any of the 'trusted-public-keys'{signers}")]
    Unsigned {
        /// Whose signatures there are, in brackets; empty if there are none.
        signers: String,
    },
}

impl Trust {
    /// Decides whether `narinfo` is a good answer to the question for `asked`, by a cache whose word
    /// is good if `signatures` says so.
    ///
    /// # Errors
    /// It is not; the error says why.
    pub(crate) fn judge(
        &self,
        asked: &StorePath,
        narinfo: &NarInfo,
        signatures: Signatures,
    ) -> Result<(), Refusal> {
        let info = &narinfo.info;
        if info.path != *asked {
            return Err(Refusal::OtherPath {
                asked: self.store_dir.print(asked),
                answered: self.store_dir.print(&info.path),
            });
        }
        narinfo.archive_url().map_err(Refusal::Address)?;
        if let Some(address) = &info.content_address {
            // Even of a signed path, as an address is not signed.
            self.check_content_address(info, address)
                .map_err(|reason| Refusal::ContentAddress {
                    address: address.chars().take(200).collect(),
                    reason,
                })?;
            return Ok(());
        }
        if signatures == Signatures::Optional || self.signatures == Signatures::Optional {
            return Ok(());
        }
        let fingerprint = info.fingerprint(&self.store_dir);
        if info
            .signatures
            .iter()
            .any(|signature| self.keys.verify(&fingerprint, signature))
        {
            return Ok(());
        }
        Err(Refusal::Unsigned {
            signers: signers(&info.signatures),
        })
    }

    /// Checks that the path is the one that follows from the address and the references, and the
    /// archive's hash the one that follows from the address, where one does.
    fn check_content_address(&self, info: &PathInfo, address: &str) -> Result<(), String> {
        let address: ContentAddress = address
            .parse()
            .map_err(|_| "is of a kind that goalctl does not know".to_owned())?;
        let mut others = info.references.clone();
        let to_self = others.remove(&info.path);
        let is_recursive_sha256 = address.method == IngestionMethod::Recursive
            && address.hash.algorithm() == HashAlgorithm::Sha256;
        if to_self && !is_recursive_sha256 {
            return Err("cannot be that of a path which refers to itself".to_owned());
        }
        let references = References { others, to_self };
        let expected = self
            .store_dir
            .make_content_addressed_path(&address, info.path.name(), &references)
            .map_err(|error| format!("is not possible: {error}"))?;
        if expected != info.path {
            return Err(format!("is that of '{}'", self.store_dir.print(&expected)));
        }
        // With a reference to itself the address is a hash of something else than the archive.
        let is_archive_hash = is_recursive_sha256 && !to_self;
        if is_archive_hash && address.hash != info.nar_hash.to_hash() {
            return Err(format!("is not its hash '{}'", info.nar_hash));
        }
        Ok(())
    }
}

/// Returns the names of keys, to be told to somebody who wonders why a path is not signed.
fn signers(signatures: &BTreeSet<String>) -> String {
    let names: BTreeSet<String> = signatures
        .iter()
        .map(|signature| signature.split(':').next().unwrap_or_default())
        .map(|name| name.chars().take(60).flat_map(char::escape_debug).collect())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let names: Vec<String> = names.into_iter().take(3).collect();
    format!(" (it is by {})", names.join(", "))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::testing::fixtures;

    /// A fixture's narinfo in the cache without compression.
    fn narinfo(name: &str) -> NarInfo {
        narinfos()
            .into_iter()
            .find(|narinfo| narinfo.info.path.name() == name)
            .unwrap()
    }

    fn narinfos() -> Vec<NarInfo> {
        let read = |path: &Path| {
            NarInfo::parse(&std::fs::read(path).unwrap(), &StoreDir::default()).unwrap()
        };
        std::fs::read_dir(fixtures().join("cache-none"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "narinfo"))
            .map(|path| read(&path))
            .collect()
    }

    fn trust() -> Trust {
        let key = std::fs::read_to_string(fixtures().join("keys/TEST-ONLY.pub")).unwrap();
        Trust {
            store_dir: StoreDir::default(),
            keys: [key.parse().unwrap()].into_iter().collect(),
            signatures: Signatures::Needed,
        }
    }

    /// Judges what `change` makes of a narinfo.
    fn judge(name: &str, change: impl FnOnce(&mut NarInfo)) -> Result<(), Refusal> {
        let mut narinfo = narinfo(name);
        let asked = narinfo.info.path.clone();
        change(&mut narinfo);
        trust().judge(&asked, &narinfo, Signatures::Needed)
    }

    #[test]
    fn what_the_trusted_key_signed_is_believed() {
        for narinfo in narinfos() {
            trust()
                .judge(&narinfo.info.path, &narinfo, Signatures::Needed)
                .unwrap();
        }
    }

    #[test]
    fn an_answer_about_another_path_is_refused_though_it_is_signed() {
        let other = narinfo("simple");
        let asked = narinfo("name-order").info.path;
        let refusal = trust()
            .judge(&asked, &other, Signatures::Optional)
            .unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "it was asked for '/nix/store/qhjih1x4zg0rh6sxr8znl5y7mnww6qfa-name-order' but speaks of \
             '/nix/store/hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple'"
        );
    }

    #[test]
    fn whatever_is_signed_cannot_be_changed() {
        let refused = |change: fn(&mut NarInfo)| {
            let refusal = judge("name-order", change).unwrap_err();
            assert_eq!(
                refusal.to_string(),
                "it is not signed by any of the 'trusted-public-keys' (it is by \
                 nix28-fixture-test-key-1)"
            );
        };
        refused(|narinfo| narinfo.info.nar_size_bytes += 1);
        refused(|narinfo| narinfo.info.nar_hash = store_model::NarHash::from_sha256([7; 32]));
        refused(|narinfo| {
            let path = narinfo.info.path.clone();
            narinfo.info.references.insert(path);
        });
        assert_eq!(
            judge("name-order", |narinfo| narinfo.info.signatures.clear())
                .unwrap_err()
                .to_string(),
            "it is not signed by any of the 'trusted-public-keys'"
        );
    }

    #[test]
    fn what_is_not_signed_may_say_anything_but_where_else_to_look() {
        judge("name-order", |narinfo| {
            narinfo.info.deriver = None;
            narinfo.file_hash = None;
            narinfo.file_size_bytes = Some(u64::MAX);
            narinfo.url = "elsewhere".to_owned();
            narinfo.info.signatures.insert("other-1:AAAA".to_owned());
        })
        .unwrap();
        let refusal = judge("name-order", |narinfo| {
            narinfo.url = "file:///etc/passwd".to_owned();
        });
        assert!(matches!(refusal, Err(Refusal::Address(_))));
    }

    #[test]
    fn signatures_are_not_needed_where_the_settings_or_the_cache_say_so() {
        let mut unsigned = narinfo("name-order");
        unsigned.info.signatures.clear();
        let path = unsigned.info.path.clone();
        let mut trust = trust();
        trust.judge(&path, &unsigned, Signatures::Optional).unwrap();
        trust.signatures = Signatures::Optional;
        trust.judge(&path, &unsigned, Signatures::Needed).unwrap();
    }

    #[test]
    fn a_content_address_needs_no_signature_but_must_be_the_paths() {
        let addressed: Vec<NarInfo> = narinfos()
            .into_iter()
            .filter(|narinfo| narinfo.info.content_address.is_some())
            .collect();
        assert!(addressed.len() > 3, "{}", addressed.len());
        for mut narinfo in addressed {
            let path = narinfo.info.path.clone();
            narinfo.info.signatures.clear();
            trust().judge(&path, &narinfo, Signatures::Needed).unwrap();
            narinfo.info.references.insert(path.clone());
            assert!(
                trust()
                    .judge(&path, &narinfo, Signatures::Optional)
                    .is_err(),
                "{path}"
            );
        }
        let false_claim = |address: &'static str| {
            judge("name-order", |narinfo| {
                narinfo.info.content_address = Some(address.to_owned());
            })
            .unwrap_err()
            .to_string()
        };
        let hash = "sha256:1h3wqj74vifv9zyf9b7fjhbxdm9i6y7innlm8chk98csw4i6y4v1";
        let of_another = format!("fixed:r:{hash}");
        assert!(
            judge("name-order", |narinfo| {
                narinfo.info.content_address = Some(of_another);
            })
            .unwrap_err()
            .to_string()
            .contains("is that of '/nix/store/")
        );
        assert!(false_claim("fixed:git:sha1:x").contains("does not know"));
    }

    #[test]
    fn contents_that_are_not_those_of_the_address_are_refused() {
        let refusal = judge("tinybuild", |narinfo| {
            narinfo.info.nar_hash = store_model::NarHash::from_sha256([7; 32]);
        });
        assert!(refusal.unwrap_err().to_string().contains("is not its hash"),);
    }
}
