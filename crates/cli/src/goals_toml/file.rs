//! The file as it is written, key by key. `docs/goals-toml.md` says what each key means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;

/// A whole `goals.toml`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GoalsFile {
    /// What the file asks of the configuration.
    #[serde(default)]
    pub(crate) settings: SettingsTable,
    /// What goals say where they do not say it themselves.
    #[serde(default)]
    pub(crate) defaults: DefaultsTable,
    /// The goals, by the names that they call each other.
    #[serde(default, rename = "goal")]
    pub(crate) goals: BTreeMap<String, GoalTable>,
}

/// `[settings]`.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SettingsTable {
    /// Host paths that the builders of this file see, instead of the configured ones.
    pub(crate) sandbox_paths: Option<Vec<String>>,
}

/// `[defaults]`.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DefaultsTable {
    /// The platform.
    pub(crate) system: Option<String>,
    /// The program to run.
    pub(crate) builder: Option<String>,
    /// Its arguments.
    pub(crate) args: Option<Vec<String>>,
    /// Variables; those of the goal are added and win.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
}

/// `[goal.NAME]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GoalTable {
    /// The name in the store; the goal's own if absent.
    pub(crate) name: Option<String>,
    /// The platform.
    pub(crate) system: Option<String>,
    /// The program to run.
    pub(crate) builder: Option<String>,
    /// Its arguments.
    pub(crate) args: Option<Vec<String>>,
    /// Variables.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Names of the outputs; the first is what a plain reference to the goal means.
    #[serde(default = "only_out")]
    pub(crate) outputs: Vec<String>,
    /// Goals to build first though no string mentions them: `goal` or `goal.output`.
    #[serde(default)]
    pub(crate) inputs: Vec<String>,
    /// Files and directories to copy into the store, by the names that strings call them.
    #[serde(default)]
    pub(crate) sources: BTreeMap<String, String>,
    /// What the single output must contain.
    pub(crate) fixed: Option<FixedTable>,
    /// How the outputs' paths follow from what they contain.
    pub(crate) floating: Option<FloatingTable>,
}

/// `[goal.NAME.fixed]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FixedTable {
    /// `sha256-…` or `sha256:…`.
    pub(crate) hash: String,
    /// What is hashed.
    #[serde(default)]
    pub(crate) mode: HashMode,
}

/// `[goal.NAME.floating]`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FloatingTable {
    /// What is hashed.
    #[serde(default = "recursive")]
    pub(crate) mode: HashMode,
    /// The hash function.
    #[serde(default = "sha256")]
    pub(crate) algorithm: String,
}

/// What the hash of an output is the hash of.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HashMode {
    /// The bytes of a single file.
    #[default]
    Flat,
    /// The archive (NAR) of a file or directory.
    Recursive,
}

fn only_out() -> Vec<String> {
    vec!["out".to_owned()]
}

fn recursive() -> HashMode {
    HashMode::Recursive
}

fn sha256() -> String {
    "sha256".to_owned()
}

impl GoalsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, or has keys or values that are not those of this format.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&bytes, path)
    }

    /// Reads the contents of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`GoalsFile::read`].
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let refuse = |line, column, reason| Error::Syntax {
            path: PathBuf::from(path),
            line,
            column,
            reason,
        };
        let text = str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = before.split(|byte| *byte == b'\n').count();
            refuse(line, 1, "the file is not UTF-8".to_owned())
        })?;
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            let column = before.rsplit('\n').next().unwrap_or_default();
            refuse(
                before.split('\n').count(),
                column.chars().count() + 1,
                error.message().lines().collect::<Vec<_>>().join(", "),
            )
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        GoalsFile::parse(text.as_bytes(), Path::new("goals.toml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_column() {
        let message = refusal("[goal.a]\nbuilder = \"/bin/sh\"\nbulider = \"x\"\n");
        assert!(
            message.starts_with("goals.toml:3:1: unknown field `bulider`"),
            "{message}"
        );
        for text in [
            "[goals.a]",
            "[settings]\nsandbox = false",
            "[goal.a.fixed]\nhash = ''\nalgo = ''",
            "[goal.a.floating]\nhash = ''",
        ] {
            assert!(refusal(text).contains("unknown field"), "{text}");
        }
    }

    #[test]
    fn what_is_not_toml_is_one_line_with_its_position() {
        for (text, position) in [("[goal.a", "1:"), ("a = \n", "1:"), ("\n\nx", "3:")] {
            let message = refusal(text);
            assert!(
                message.starts_with(&format!("goals.toml:{position}")),
                "{message}"
            );
            assert_eq!(message.lines().count(), 1);
        }
        let error = GoalsFile::parse(b"a = 1\n\xff", Path::new("goals.toml")).unwrap_err();
        assert_eq!(error.to_string(), "goals.toml:2:1: the file is not UTF-8");
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            "[goal.a]\nargs = 'x'",
            "[goal.a.env]\nX = 1",
            "[goal.a]\noutputs = [1]",
            "[goal.a.fixed]\nmode = 'flat'",
            "[goal.a.fixed]\nhash = 'x'\nmode = 'nar'",
            "[goal.a]\nfloating = true",
        ] {
            assert!(refusal(text).starts_with("goals.toml:"), "{text}");
        }
    }
}
