//! Derivations as JSON: what `nix show-derivation` of Nix 2.8 prints, byte for byte, and reading
//! it back.
//!
//! Strings of a derivation are bytes, so the text is not always UTF-8: Nix passes other bytes as
//! they are, and so do we, in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use bstr::BString;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::IngestionMethod;
use crate::json_text::{JsonText, Layout};
use crate::{Derivation, DerivationOutput, Error, Hash, OutputName, StoreDir, StorePath};

/// Returns derivations by path as `nix show-derivation` prints them, with a final line feed.
#[must_use]
pub fn derivations_to_json<'a>(
    derivations: impl IntoIterator<Item = (&'a StorePath, &'a Derivation)>,
    store_dir: &StoreDir,
) -> Vec<u8> {
    let mut json = JsonText::new(Layout::Indented);
    json.object(|json| {
        for (path, derivation) in derivations {
            json.key(store_dir.print(path));
            print(derivation, store_dir, json);
        }
    });
    let mut text = json.into_bytes();
    text.push(b'\n');
    text
}

/// Reads what [`derivations_to_json`] prints.
///
/// That a derivation belongs at its path is not checked: see [`Derivation::derivation_path`].
///
/// # Errors
/// The text is not JSON, has unknown, missing or repeated members, or holds what is no derivation.
pub fn derivations_from_json(
    text: &[u8],
    store_dir: &StoreDir,
) -> Result<BTreeMap<StorePath, Derivation>, Error> {
    let members: Members<String, Json> = from_slice(text)?;
    let mut derivations = BTreeMap::new();
    for (path, json) in members.0 {
        let path = store_dir.parse(&path)?;
        let name = path
            .name()
            .strip_suffix(".drv")
            .ok_or_else(|| malformed(format!("'{path}' does not end in '.drv'")))?;
        let derivation = json.into_derivation(name, store_dir)?;
        derivations.insert(path, derivation);
    }
    Ok(derivations)
}

impl Derivation {
    /// Returns this derivation alone, without its path, as JSON of several lines.
    #[must_use]
    pub fn to_json(&self, store_dir: &StoreDir) -> Vec<u8> {
        let mut json = JsonText::new(Layout::Indented);
        print(self, store_dir, &mut json);
        json.into_bytes()
    }

    /// Reads what [`Derivation::to_json`] prints; `name` is the derivation's, without `.drv`.
    ///
    /// # Errors
    /// As [`derivations_from_json`].
    pub fn from_json(text: &[u8], name: &str, store_dir: &StoreDir) -> Result<Self, Error> {
        from_slice::<Json>(text)?.into_derivation(name, store_dir)
    }
}

fn print(derivation: &Derivation, store_dir: &StoreDir, json: &mut JsonText) {
    json.object(|json| {
        json.key("outputs");
        json.object(|json| {
            for (name, output) in &derivation.outputs {
                json.key(name.as_str());
                json.object(|json| print_output(output, store_dir, json));
            }
        });
        json.key("inputSrcs");
        json.list(&derivation.input_sources, |json, path| {
            json.string(store_dir.print(path));
        });
        json.key("inputDrvs");
        json.object(|json| {
            for (path, outputs) in &derivation.input_derivations {
                json.key(store_dir.print(path));
                json.list(outputs, |json, name| json.string(name.as_str()));
            }
        });
        json.key("system");
        json.string(&derivation.system);
        json.key("builder");
        json.string(&derivation.builder);
        json.key("args");
        json.list(&derivation.args, JsonText::string);
        json.key("env");
        json.object(|json| {
            for (name, value) in &derivation.env {
                json.key(name);
                json.string(value);
            }
        });
    });
}

fn print_output(output: &DerivationOutput, store_dir: &StoreDir, json: &mut JsonText) {
    if let Some(path) = output.path() {
        json.key("path");
        json.string(store_dir.print(path));
    }
    match output {
        DerivationOutput::InputAddressed(_) | DerivationOutput::Deferred => {}
        DerivationOutput::Fixed { method, hash, .. } => {
            json.key("hashAlgo");
            json.string(method.prefixed(hash.algorithm()));
            json.key("hash");
            json.string(hash.to_base16());
        }
        DerivationOutput::Floating { method, algorithm } => {
            json.key("hashAlgo");
            json.string(method.prefixed(*algorithm));
        }
    }
}

/// A derivation as it stands in the text, its paths not looked at yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Json {
    outputs: Members<String, JsonOutput>,
    input_srcs: Vec<String>,
    input_drvs: Members<String, Vec<String>>,
    system: Bytes,
    builder: Bytes,
    args: Vec<Bytes>,
    env: Members<Bytes, Bytes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct JsonOutput {
    path: Option<String>,
    hash_algo: Option<String>,
    hash: Option<String>,
}

impl Json {
    fn into_derivation(self, name: &str, store_dir: &StoreDir) -> Result<Derivation, Error> {
        let mut outputs = BTreeMap::new();
        for (name, output) in self.outputs.0 {
            outputs.insert(name.parse()?, output.into_output(store_dir)?);
        }
        let mut input_derivations = BTreeMap::new();
        for (path, names) in self.input_drvs.0 {
            let names: Result<BTreeSet<OutputName>, Error> =
                names.iter().map(|name| name.parse()).collect();
            input_derivations.insert(store_dir.parse(&path)?, names?);
        }
        let input_sources: Result<BTreeSet<StorePath>, Error> = self
            .input_srcs
            .iter()
            .map(|path| store_dir.parse(path))
            .collect();
        let derivation = Derivation {
            name: name.to_owned(),
            outputs,
            input_derivations,
            input_sources: input_sources?,
            system: self.system.0,
            builder: self.builder.0,
            args: self.args.into_iter().map(|arg| arg.0).collect(),
            env: self
                .env
                .0
                .into_iter()
                .map(|(name, value)| (name.0, value.0))
                .collect(),
        };
        derivation.kind()?;
        Ok(derivation)
    }
}

impl JsonOutput {
    fn into_output(self, store_dir: &StoreDir) -> Result<DerivationOutput, Error> {
        let path = self.path.map(|path| store_dir.parse(&path)).transpose()?;
        let hash_algo = self
            .hash_algo
            .as_deref()
            .map(|text| {
                let (method, algorithm) = IngestionMethod::split_prefix(text);
                Ok::<_, Error>((method, algorithm.parse()?))
            })
            .transpose()?;
        match (path, hash_algo, self.hash) {
            (None, None, None) => Ok(DerivationOutput::Deferred),
            (Some(path), None, None) => Ok(DerivationOutput::InputAddressed(path)),
            (None, Some((method, algorithm)), None) => {
                Ok(DerivationOutput::Floating { method, algorithm })
            }
            (Some(path), Some((method, algorithm)), Some(digest)) => Ok(DerivationOutput::Fixed {
                method,
                hash: Hash::parse_digest(algorithm, &digest)?,
                path,
            }),
            (None, _, Some(_)) | (Some(_), None, Some(_)) | (Some(_), Some(_), None) => {
                Err(malformed(
                    "an output has other members than 'path', or 'hashAlgo', or those and 'hash'",
                ))
            }
        }
    }
}

fn from_slice<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))
}

fn malformed(reason: impl Into<String>) -> Error {
    Error::DerivationJson {
        reason: reason.into(),
    }
}

/// A JSON string that need not be UTF-8.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Bytes(BString);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
                Ok(Bytes(text.into()))
            }
        }

        deserializer.deserialize_bytes(BytesVisitor)
    }
}

/// A JSON object in which no key may occur twice.
///
/// A parser that takes the last of two and a reviewer who sees the first would read different
/// derivations.
struct Members<K, V>(BTreeMap<K, V>);

impl<'de, K, V> Deserialize<'de> for Members<K, V>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<K, V>(PhantomData<(K, V)>);

        impl<'de, K, V> Visitor<'de> for MembersVisitor<K, V>
        where
            K: Deserialize<'de> + Ord,
            V: Deserialize<'de>,
        {
            type Value = Members<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if members.insert(key, value).is_some() {
                        return Err(A::Error::custom("a member occurs twice"));
                    }
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What Nix 2.8.0 printed for a derivation with bytes of every awkward kind.
    const AWKWARD: &[u8] = b"{
  \"/nix/store/jmvbkmf9hk1hfsz13rhxv8q8lz3c4vqn-x.drv\": {
    \"outputs\": {
      \"out\": {
        \"path\": \"/nix/store/nyyy2m88y4qr1xsf16w92kmn0swh9c2p-x\"
      }
    },
    \"inputSrcs\": [],
    \"inputDrvs\": {},
    \"system\": \"a\xe9\\u0001\x7f\\t\",
    \"builder\": \"/b\\u000b\\u001f\",
    \"args\": [],
    \"env\": {
      \"builder\": \"/b\\u000b\\u001f\",
      \"name\": \"x\",
      \"out\": \"/nix/store/nyyy2m88y4qr1xsf16w92kmn0swh9c2p-x\",
      \"system\": \"a\xe9\\u0001\x7f\\t\"
    }
  }
}
";

    fn parse(text: &str) -> Result<Derivation, Error> {
        Derivation::from_json(text.as_bytes(), "x", &StoreDir::default())
    }

    fn with_outputs_and_env(outputs: &str, env: &str) -> String {
        format!(
            r#"{{"outputs":{{{outputs}}},"inputSrcs":[],"inputDrvs":{{}},"system":"s",
            "builder":"b","args":[],"env":{{{env}}}}}"#
        )
    }

    #[test]
    fn bytes_that_are_not_utf_8_come_out_as_nix_printed_them() {
        let store_dir = StoreDir::default();
        let derivations = derivations_from_json(AWKWARD, &store_dir).unwrap();
        let (path, derivation) = derivations.first_key_value().unwrap();
        assert_eq!(derivation.system, b"a\xe9\x01\x7f\t");
        assert_eq!(derivation.derivation_path(&store_dir).as_ref(), Ok(path));
        let printed = derivations_to_json(&derivations, &store_dir);
        assert_eq!(BString::from(printed), BString::from(AWKWARD));
    }

    #[test]
    fn a_variable_name_may_be_any_bytes() {
        let mut derivation = parse(&with_outputs_and_env(r#""out":{}"#, "")).unwrap();
        derivation.env.insert(b"\xe9\"\n".into(), b"\xff".into());
        let store_dir = StoreDir::default();
        let text = derivation.to_json(&store_dir);
        assert_eq!(
            Derivation::from_json(&text, "x", &store_dir),
            Ok(derivation)
        );
    }

    #[test]
    fn every_single_byte_mutation_is_refused_or_read_and_never_panics() {
        let store_dir = StoreDir::default();
        let mut mutated = AWKWARD.to_vec();
        let mut n_read = 0;
        for position in 0..AWKWARD.len() {
            for byte in 0..=u8::MAX {
                mutated[position] = byte;
                if let Ok(derivations) = derivations_from_json(&mutated, &store_dir) {
                    let printed = derivations_to_json(&derivations, &store_dir);
                    let read_again = derivations_from_json(&printed, &store_dir);
                    assert_eq!(read_again, Ok(derivations));
                    n_read += 1;
                }
            }
            mutated[position] = AWKWARD[position];
        }
        assert!(n_read > AWKWARD.len());
    }

    #[test]
    fn repeated_unknown_and_missing_members_are_refused() {
        assert!(parse(&with_outputs_and_env(r#""out":{}"#, r#""a":"1""#)).is_ok());
        for (outputs, env) in [
            (r#""out":{}"#, r#""a":"1","a":"2""#),
            (r#""out":{},"out":{}"#, ""),
            (r#""out":{"paht":"x"}"#, ""),
            (r#""out":{"hash":"00"}"#, ""),
            (r#""out":{"hashAlgo":"sha3"}"#, ""),
            (r#""out":{"hashAlgo":null,"hash":"00"}"#, ""),
            (r#""out":{}"#, r#""a":1"#),
            ("", ""),
        ] {
            assert!(
                parse(&with_outputs_and_env(outputs, env)).is_err(),
                "{outputs} {env}"
            );
        }
        assert!(parse("{}").is_err());
        assert!(parse(r#"{"outputs":{"out":{}}}"#).is_err());
    }
}
