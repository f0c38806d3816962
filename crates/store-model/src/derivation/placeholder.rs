//! Stand-ins for paths that are not known while a derivation is written.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use bstr::{BStr, BString, ByteSlice as _};

use crate::{Hash, HashAlgorithm, OutputName, StorePath};

/// How long every placeholder is: a slash and a SHA-256 in base-32.
pub const PLACEHOLDER_LEN: usize = 53;

/// Returns what stands for the derivation's own output `name` (`builtins.placeholder`).
#[must_use]
pub fn output_placeholder(name: &OutputName) -> String {
    of_clear_text(&format!("nix-output:{name}"))
}

/// Returns what stands for output `name` of the derivation at `drv_path` in another derivation,
/// while the output's path is not known.
#[must_use]
pub fn downstream_placeholder(drv_path: &StorePath, name: &OutputName) -> String {
    let drv_name = drv_path.name();
    let drv_name = drv_name.strip_suffix(".drv").unwrap_or(drv_name);
    of_clear_text(&format!(
        "nix-upstream-output:{}:{}",
        drv_path.hash_part(),
        name.path_name(drv_name)
    ))
}

fn of_clear_text(clear_text: &str) -> String {
    let digest = Hash::digest(HashAlgorithm::Sha256, clear_text.as_bytes());
    format!("/{}", digest.to_base32())
}

/// Texts to be replaced by others, such as placeholders by the paths they stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replacements {
    replacements: HashMap<BString, BString>,
    /// Lengths that keys have, the longest first.
    key_lens: BTreeSet<Reverse<usize>>,
}

impl Replacements {
    /// Adds a text to be replaced; an empty one is never found.
    pub fn insert(&mut self, key: impl Into<BString>, replacement: impl Into<BString>) {
        let key = key.into();
        if !key.is_empty() {
            self.key_lens.insert(Reverse(key.len()));
            self.replacements.insert(key, replacement.into());
        }
    }

    /// Returns whether there is nothing to replace.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replacements.is_empty()
    }

    /// Returns `text` with every key replaced, in one pass from its start: of several keys at one
    /// place the longest wins, and what was put in is not looked at again.
    #[must_use]
    pub fn apply<'t>(&self, text: &'t BStr) -> Cow<'t, BStr> {
        let mut replaced = BString::default();
        let mut n_copied = 0;
        let mut position = 0;
        while position < text.len() {
            if let Some((key_len, replacement)) = self.find_at(&text[position..]) {
                replaced.extend_from_slice(&text[n_copied..position]);
                replaced.extend_from_slice(replacement);
                position += key_len;
                n_copied = position;
            } else {
                position += 1;
            }
        }
        if n_copied == 0 {
            return Cow::Borrowed(text);
        }
        replaced.extend_from_slice(&text[n_copied..]);
        Cow::Owned(replaced)
    }

    fn find_at(&self, text: &[u8]) -> Option<(usize, &BString)> {
        self.key_lens.iter().find_map(|Reverse(key_len)| {
            let candidate = text.get(..*key_len)?;
            Some((*key_len, self.replacements.get(candidate.as_bstr())?))
        })
    }
}

impl<K: Into<BString>, R: Into<BString>> FromIterator<(K, R)> for Replacements {
    fn from_iter<I: IntoIterator<Item = (K, R)>>(pairs: I) -> Self {
        let mut replacements = Self::default();
        for (key, replacement) in pairs {
            replacements.insert(key, replacement);
        }
        replacements
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_those_of_nix() {
        let name: OutputName = "out".parse().unwrap();
        let own = output_placeholder(&name);
        assert_eq!(own, "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9");
        let drv_path = "8f1rghk9rknh3yzzqnjsz8h5ml9l18a7-ca-deferred.drv"
            .parse()
            .unwrap();
        let downstream = downstream_placeholder(&drv_path, &name);
        assert_eq!(
            downstream,
            "/0kvyw2my6mjdjj59a7v94f6vc3gxcab9jxnmxab7pzw4vf95rw0s"
        );
        assert_eq!(
            (own.len(), downstream.len()),
            (PLACEHOLDER_LEN, PLACEHOLDER_LEN)
        );
    }

    #[test]
    fn keys_are_replaced_in_one_pass_the_longest_first() {
        let replacements: Replacements =
            [("ab", "b"), ("abc", "[long]"), ("b", "ab"), ("", "never")]
                .into_iter()
                .collect();
        let apply = |text: &str| replacements.apply(text.into()).to_string();
        assert_eq!(apply("abcab-b"), "[long]b-ab");
        assert_eq!(apply("a"), "a");
        assert_eq!(apply(""), "");
        assert!(matches!(replacements.apply("xyz".into()), Cow::Borrowed(_)));
        assert_eq!(Replacements::default().apply("ab".into()).as_ref(), "ab");
    }

    #[test]
    fn bytes_around_a_key_need_not_be_text() {
        let replacements: Replacements = [("key", "\u{e9}")].into_iter().collect();
        let replaced = replacements.apply(b"\xffkey\xe9key"[..].as_bstr());
        assert_eq!(replaced.as_ref(), b"\xff\xc3\xa9\xe9\xc3\xa9");
    }
}
