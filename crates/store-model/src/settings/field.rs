//! How an option's text becomes a field of [`Settings`], and the way back.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::value::{
    parse_absolute_path, parse_count, parse_limit_seconds, parse_switch, print_limit_seconds,
};
use super::{MetadataSync, SandboxMode, SandboxPath, Settings};

/// Selects one field.
type Lens<T> = fn(&mut Settings) -> &mut T;

/// The field that an option sets, and the spelling of its values.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field {
    Switch(Lens<bool>),
    Count(Lens<usize>),
    /// A count, or `auto` for the machine's default.
    AutoCount(Lens<usize>),
    Id(Lens<u32>),
    /// Seconds; 0 for no limit.
    Seconds(Lens<Option<Duration>>),
    /// Seconds that something is remembered; 0 for not at all.
    Lifetime(Lens<Duration>),
    /// Bytes; 0 for no limit.
    Bytes(Lens<Option<u64>>),
    Text(Lens<String>),
    Words(Lens<BTreeSet<String>>),
    /// Words whose order counts.
    Sequence(Lens<Vec<String>>),
    Path(Lens<PathBuf>),
    /// An absolute path, or nothing.
    OptionalPath(Lens<Option<PathBuf>>),
    Paths(Lens<BTreeSet<PathBuf>>),
    Sandbox(Lens<SandboxMode>),
    SandboxPaths(Lens<Vec<SandboxPath>>),
    Durability(Lens<MetadataSync>),
}

/// Whether an assignment replaces the value or adds to it (`extra-`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Replace,
    Append,
}

impl Field {
    /// Returns whether `extra-` may stand before the option's name.
    pub(super) fn is_list(self) -> bool {
        matches!(
            self,
            Self::Words(_) | Self::Sequence(_) | Self::Paths(_) | Self::SandboxPaths(_)
        )
    }

    /// Reads `text` into the field; `defaults` is what `auto` stands for.
    pub(super) fn assign(
        self,
        settings: &mut Settings,
        defaults: &Settings,
        text: &str,
        mode: Mode,
    ) -> Result<(), String> {
        match self {
            Self::Switch(lens) => *lens(settings) = parse_switch(text)?,
            Self::Count(lens) => *lens(settings) = parse_usize(text)?,
            Self::AutoCount(lens) => {
                *lens(settings) = if text == "auto" {
                    *lens(&mut defaults.clone())
                } else {
                    parse_usize(text).map_err(|reason| format!("{reason}, or 'auto'"))?
                }
            }
            Self::Id(lens) => {
                *lens(settings) = u32::try_from(parse_count(text)?)
                    .map_err(|_| "the number is too large".to_owned())?;
            }
            Self::Seconds(lens) => *lens(settings) = parse_limit_seconds(text)?,
            Self::Lifetime(lens) => {
                *lens(settings) = parse_limit_seconds(text)?.unwrap_or_default();
            }
            Self::Bytes(lens) => *lens(settings) = Some(parse_count(text)?).filter(|n| *n > 0),
            Self::Text(lens) => text.clone_into(lens(settings)),
            Self::Path(lens) => *lens(settings) = parse_absolute_path(text)?,
            Self::OptionalPath(lens) => {
                *lens(settings) = match text {
                    "" => None,
                    path => Some(parse_absolute_path(path)?),
                }
            }
            Self::Sandbox(lens) => *lens(settings) = parse_sandbox(text)?,
            Self::Durability(lens) => {
                *lens(settings) = if parse_switch(text)? {
                    MetadataSync::Durable
                } else {
                    MetadataSync::Relaxed
                }
            }
            Self::Words(lens) => {
                let words = text.split_ascii_whitespace().map(str::to_owned).collect();
                put_set(lens(settings), words, mode);
            }
            Self::Sequence(lens) => {
                if mode == Mode::Replace {
                    lens(settings).clear();
                }
                let words = text.split_ascii_whitespace().map(str::to_owned);
                lens(settings).extend(words);
            }
            Self::Paths(lens) => {
                let paths = text.split_ascii_whitespace().map(parse_absolute_path);
                put_set(lens(settings), paths.collect::<Result<_, _>>()?, mode);
            }
            Self::SandboxPaths(lens) => put_sandbox_paths(lens(settings), text, mode)?,
        }
        Ok(())
    }

    /// Prints the value in the spelling that [`assign`](Self::assign) reads.
    pub(super) fn print(self, settings: &Settings) -> String {
        let settings = &mut settings.clone();
        match self {
            Self::Switch(lens) => lens(settings).to_string(),
            Self::Count(lens) | Self::AutoCount(lens) => lens(settings).to_string(),
            Self::Id(lens) => lens(settings).to_string(),
            Self::Seconds(lens) => print_limit_seconds(*lens(settings)),
            Self::Lifetime(lens) => lens(settings).as_secs().to_string(),
            Self::Bytes(lens) => lens(settings).unwrap_or(0).to_string(),
            Self::Text(lens) => lens(settings).clone(),
            Self::Path(lens) => lens(settings).display().to_string(),
            Self::OptionalPath(lens) => lens(settings)
                .as_ref()
                .map_or_else(String::new, |path| path.display().to_string()),
            Self::Sandbox(lens) => print_sandbox(*lens(settings)).to_owned(),
            Self::Durability(lens) => (*lens(settings) == MetadataSync::Durable).to_string(),
            Self::Words(_) | Self::Sequence(_) | Self::Paths(_) | Self::SandboxPaths(_) => {
                self.print_words(settings).join(" ")
            }
        }
    }

    /// Returns the value as `config show --json` prints it: a boolean, a number, a list or a text.
    pub(super) fn to_json(self, settings: &Settings) -> Value {
        let printed = self.print(settings);
        match self {
            Self::Switch(_) | Self::Durability(_) => json!(printed == "true"),
            Self::Count(_)
            | Self::AutoCount(_)
            | Self::Id(_)
            | Self::Seconds(_)
            | Self::Lifetime(_)
            | Self::Bytes(_) => json!(printed.parse::<u64>().unwrap_or(u64::MAX)),
            Self::Words(_) | Self::Sequence(_) | Self::Paths(_) | Self::SandboxPaths(_) => {
                json!(self.print_words(settings))
            }
            Self::Text(_) | Self::Path(_) | Self::OptionalPath(_) | Self::Sandbox(_) => {
                json!(printed)
            }
        }
    }

    fn print_words(self, settings: &Settings) -> Vec<String> {
        let settings = &mut settings.clone();
        match self {
            Self::Words(lens) => lens(settings).iter().cloned().collect(),
            Self::Sequence(lens) => lens(settings).clone(),
            Self::Paths(lens) => lens(settings)
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            Self::SandboxPaths(lens) => lens(settings).iter().map(SandboxPath::to_string).collect(),
            Self::Switch(_)
            | Self::Count(_)
            | Self::AutoCount(_)
            | Self::Id(_)
            | Self::Seconds(_)
            | Self::Lifetime(_)
            | Self::Bytes(_)
            | Self::Text(_)
            | Self::Path(_)
            | Self::OptionalPath(_)
            | Self::Sandbox(_)
            | Self::Durability(_) => vec![self.print(settings)],
        }
    }
}

fn parse_usize(text: &str) -> Result<usize, String> {
    usize::try_from(parse_count(text)?).map_err(|_| "the number is too large".to_owned())
}

fn parse_sandbox(text: &str) -> Result<SandboxMode, String> {
    if text == "relaxed" {
        return Ok(SandboxMode::Relaxed);
    }
    match parse_switch(text) {
        Ok(true) => Ok(SandboxMode::Always),
        Ok(false) => Ok(SandboxMode::Never),
        Err(_) => Err("it is one of 'true', 'false' and 'relaxed'".to_owned()),
    }
}

fn print_sandbox(mode: SandboxMode) -> &'static str {
    match mode {
        SandboxMode::Always => "true",
        SandboxMode::Relaxed => "relaxed",
        SandboxMode::Never => "false",
    }
}

fn put_set<T: Ord>(set: &mut BTreeSet<T>, members: BTreeSet<T>, mode: Mode) {
    if mode == Mode::Replace {
        set.clear();
    }
    set.extend(members);
}

/// A target that is named again shows the later source.
fn put_sandbox_paths(paths: &mut Vec<SandboxPath>, text: &str, mode: Mode) -> Result<(), String> {
    let added = text
        .split_ascii_whitespace()
        .map(|word| {
            word.parse::<SandboxPath>()
                .map_err(|error| error.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    if mode == Mode::Replace {
        paths.clear();
    }
    for path in added {
        paths.retain(|earlier| earlier.target != path.target);
        paths.push(path);
    }
    Ok(())
}
