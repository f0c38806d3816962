//! Which path a floating output turned out to have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::json_text::{JsonText, Layout};
use crate::{Error, Hash, OutputName, StorePath};

/// An output of a derivation, told by what is built and not by which file says so: derivations
/// that differ only in how their fixed inputs are fetched have the same outputs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvOutput {
    /// The derivation's hash modulo, see [`HashModulo`](crate::derivation::HashModulo).
    pub drv_hash: Hash,
    /// The output's name.
    pub output_name: OutputName,
}

impl DrvOutput {
    /// Returns the hash as the database's column `drvPath` holds it, such as `sha256:<base16>`.
    #[must_use]
    pub fn hash_text(&self) -> String {
        format!(
            "{}:{}",
            self.drv_hash.algorithm(),
            self.drv_hash.to_base16()
        )
    }
}

/// Prints `sha256:<base16>!out`.
impl fmt::Display for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}!{}", self.hash_text(), self.output_name)
    }
}

/// Reads what [`Display`](fmt::Display) prints, the hash in any base.
impl FromStr for DrvOutput {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (hash, name) = text.split_once('!').ok_or_else(|| {
            malformed(format!(
                "'{text}' has no '!' between a hash and an output's name"
            ))
        })?;
        Ok(Self {
            drv_hash: hash.parse()?,
            output_name: name.parse()?,
        })
    }
}

/// An output with the path that a build gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    /// The output.
    pub id: DrvOutput,
    /// Its path.
    pub out_path: StorePath,
    /// Signatures of [`Realisation::fingerprint`], `key-name:base64`.
    pub signatures: BTreeSet<String>,
    /// The realisations that this one was built with and refers to.
    pub dependent_realisations: BTreeMap<DrvOutput, StorePath>,
}

impl Realisation {
    /// Returns the compact JSON that Nix prints and keeps in caches.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.print(Signatures::Included)
    }

    /// Reads what [`Realisation::to_json`] prints.
    ///
    /// # Errors
    /// [`Error::Realisation`] or what is wrong with a hash, a name or a path.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let json: Json =
            serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        let dependent: Result<BTreeMap<DrvOutput, StorePath>, Error> = json
            .dependent_realisations
            .into_iter()
            .map(|(id, path)| Ok((id.parse()?, path.parse()?)))
            .collect();
        Ok(Self {
            id: json.id.parse()?,
            out_path: json.out_path.parse()?,
            signatures: json.signatures,
            dependent_realisations: dependent?,
        })
    }

    /// Returns what is signed: the JSON without signatures.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.print(Signatures::LeftOut)
    }

    fn print(&self, signatures: Signatures) -> String {
        let mut json = JsonText::new(Layout::Compact);
        json.object(|json| {
            json.key("dependentRealisations");
            json.object(|json| {
                for (id, path) in &self.dependent_realisations {
                    json.key(id.to_string());
                    json.string(path.base_name());
                }
            });
            json.key("id");
            json.string(self.id.to_string());
            json.key("outPath");
            json.string(self.out_path.base_name());
            if signatures == Signatures::Included {
                json.key("signatures");
                json.list(&self.signatures, JsonText::string);
            }
        });
        // Only strings of ours went in.
        String::from_utf8_lossy(&json.into_bytes()).into_owned()
    }
}

/// Whether signatures are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signatures {
    Included,
    LeftOut,
}

/// A realisation as it stands in the text; caches of other versions may say more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    id: String,
    out_path: String,
    #[serde(default)]
    signatures: BTreeSet<String>,
    #[serde(default)]
    dependent_realisations: BTreeMap<String, String>,
}

fn malformed(reason: impl Into<String>) -> Error {
    Error::Realisation {
        reason: reason.into(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::SecretKey;

    #[test]
    fn what_is_signed_is_the_json_without_signatures() {
        // A realisation that Nix 2.8.0 signed with this key.
        let json = br#"{
            "id": "sha256:292349c7fa07bad15e5a9d8878f8658a1a92d0ce25eea0a028c66199a9cedac5!out",
            "outPath": "c2s0mhs2fc9ahxf06g0mf23hvdicab22-caself",
            "signatures": ["test-1:b9QKNy+FslricNGAh0I2KlJ1sr90Ndf+axp01mXVl9tTsJAVKSPnLpAc4ACgFGKgB2F2SUIRx5Y8RJPsH8AXDg=="],
            "dependentRealisations": {}
        }"#;
        let secret = "test-1:HLrbbGmUL6bYFf1jU+fz2bV/XT98CX8MOmOsY6kwCfsoXP0KGE6pJ24M92qonf97TRY5l2fKAVYdO3hpVF8WDA==";
        let realisation = Realisation::from_json(json).unwrap();
        let secret: SecretKey = secret.parse().unwrap();
        let signature = secret.sign(&realisation.fingerprint());
        assert_eq!(realisation.signatures, [signature].into());
    }

    #[test]
    fn what_is_no_realisation_is_refused() {
        let id = format!("sha256:{}!out", "0".repeat(64));
        let path = "823dg3629cjavj85wdm17qsm2wnq6mjr-ca-deferred";
        let with = |id: &str, path: &str| {
            Realisation::from_json(format!(r#"{{"id":"{id}","outPath":"{path}"}}"#).as_bytes())
        };
        assert!(with(&id, path).is_ok());
        for (id, path) in [
            ("sha256:00!out", path),
            (id.trim_end_matches("!out"), path),
            (id.trim_end_matches("out"), path),
            (
                &id,
                "/nix/store/823dg3629cjavj85wdm17qsm2wnq6mjr-ca-deferred",
            ),
        ] {
            assert!(with(id, path).is_err(), "{id} {path}");
        }
        assert!(Realisation::from_json(b"[]").is_err());
        assert!(Realisation::from_json(b"{}").is_err());
    }
}
