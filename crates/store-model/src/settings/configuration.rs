//! Puts assignments into force, one after the other, and remembers where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::field::Mode;
use super::options::{self, Effect, SettingOption};
use super::{Error, Settings};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The program or the machine.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// A line of the environment variable `NIX_CONFIG`.
    Environment {
        /// Its line, from 1.
        line: usize,
    },
    /// The `[settings]` table of a `goals.toml`.
    GoalsFile {
        /// The file.
        path: PathBuf,
    },
    /// `--option`, or an option's own flag.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { line } => write!(f, "NIX_CONFIG:{line}"),
            Self::GoalsFile { path } => write!(f, "{} [settings]", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// One `name = value`, from wherever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The option as it was spelt: today's name, a 2017 name, or either after `extra-`.
    pub name: String,
    /// Its words, with one blank between them.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

/// Settings on their way into force.
#[derive(Debug, Clone)]
pub struct Configuration {
    defaults: Settings,
    settings: Settings,
    /// By today's name, for every option that was assigned.
    origins: BTreeMap<&'static str, Origin>,
    /// Values of options without a field, as they were assigned.
    texts: BTreeMap<&'static str, String>,
    warnings: Vec<String>,
}

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownOption {
    /// The option.
    pub option: &'static SettingOption,
    /// The value in force, as `nix.conf` spells it; empty if nobody set one and the option has no
    /// effect here.
    pub value: String,
    /// The value if nobody had set one, in the same spelling.
    pub default: String,
    /// Where the value comes from.
    pub origin: Origin,
    /// The value with its type.
    pub json: Value,
}

impl Configuration {
    /// Begins with what holds where nobody says otherwise, on this machine.
    #[must_use]
    pub fn new(defaults: Settings) -> Self {
        Self {
            settings: defaults.clone(),
            defaults,
            origins: BTreeMap::new(),
            texts: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Puts one assignment into force over all earlier ones. An unknown option in a file or in
    /// `NIX_CONFIG` is a warning, as in Nix.
    ///
    /// # Errors
    /// The value is not one of the option's, or an unknown option stands on the command line or in
    /// a `goals.toml`.
    pub fn assign(&mut self, assignment: &Assignment) -> Result<(), Error> {
        let Assignment {
            name,
            value,
            origin,
        } = assignment;
        if name.chars().chain(value.chars()).any(char::is_control) {
            return Err(Error::ControlCharacter {
                origin: origin.clone(),
                name: shorten(&name.escape_debug().to_string()),
            });
        }
        let Some((option, mode)) = options::find(name) else {
            return self.meet_unknown(name, origin);
        };
        match option.effect {
            Effect::Implemented(field) => {
                field
                    .0
                    .assign(&mut self.settings, &self.defaults, value, mode)
                    .map_err(|reason| Error::Value {
                        origin: origin.clone(),
                        name: name.clone(),
                        value: shorten(value),
                        reason,
                    })?;
            }
            Effect::WithoutEffect(_) | Effect::Refused { .. } => {
                let text = self.texts.entry(option.name).or_default();
                match mode {
                    Mode::Append if !text.is_empty() => *text = format!("{text} {value}"),
                    Mode::Append | Mode::Replace => text.clone_from(value),
                }
            }
        }
        self.origins.insert(option.name, origin.clone());
        Ok(())
    }

    fn meet_unknown(&mut self, name: &str, origin: &Origin) -> Result<(), Error> {
        match origin {
            Origin::CommandLine | Origin::GoalsFile { .. } => Err(Error::UnknownOption {
                origin: origin.clone(),
                name: shorten(name),
            }),
            Origin::Default | Origin::File { .. } | Origin::Environment { .. } => {
                self.warnings
                    .push(format!("{origin}: unknown setting '{}'", shorten(name)));
                Ok(())
            }
        }
    }

    /// Returns the settings in force.
    ///
    /// # Errors
    /// The value in force of an option that is not supported asks for something. Only the last
    /// value counts, so that a later assignment can take an earlier one back.
    pub fn finish(&self) -> Result<Settings, Error> {
        for (name, text) in &self.texts {
            let Some((option, _)) = options::find(name) else {
                continue;
            };
            if let Effect::Refused { harmless, reason } = option.effect
                && !harmless.contains(&text.as_str())
            {
                return Err(Error::Unsupported {
                    origin: self.origin(option),
                    name: option.name,
                    reason,
                });
            }
        }
        Ok(self.settings.clone())
    }

    /// Returns what was noticed and is no error, in order.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns every option, in order of name, with its value and where that comes from.
    pub fn show(&self) -> impl Iterator<Item = ShownOption> {
        options::all().map(|option| match option.effect {
            Effect::Implemented(field) => ShownOption {
                option,
                value: field.0.print(&self.settings),
                default: field.0.print(&self.defaults),
                origin: self.origin(option),
                json: field.0.to_json(&self.settings),
            },
            Effect::WithoutEffect(_) | Effect::Refused { .. } => {
                let text = self.texts.get(option.name).cloned().unwrap_or_default();
                ShownOption {
                    option,
                    json: json!(text),
                    value: text,
                    default: String::new(),
                    origin: self.origin(option),
                }
            }
        })
    }

    /// Returns every option that was assigned, as the lines of a `nix.conf`, for programs that are
    /// to have the same settings.
    #[must_use]
    pub fn to_nix_config(&self) -> String {
        self.show()
            .filter(|shown| shown.origin != Origin::Default)
            .fold(String::new(), |text, shown| {
                text + shown.option.name + " = " + &shown.value + "\n"
            })
    }

    fn origin(&self, option: &SettingOption) -> Origin {
        self.origins
            .get(option.name)
            .cloned()
            .unwrap_or(Origin::Default)
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::{SandboxMode, options::all};
    use super::*;

    fn at_line(name: &str, value: &str, line: usize) -> Assignment {
        Assignment {
            name: name.to_owned(),
            value: value.to_owned(),
            origin: Origin::File {
                path: "/etc/nix/nix.conf".into(),
                line,
            },
        }
    }

    fn typed(name: &str, value: &str) -> Assignment {
        Assignment {
            origin: Origin::CommandLine,
            ..at_line(name, value, 0)
        }
    }

    fn configured(assignments: &[Assignment]) -> Result<Settings, Error> {
        let mut configuration = Configuration::new(Settings::default());
        for assignment in assignments {
            configuration.assign(assignment)?;
        }
        configuration.finish()
    }

    #[test]
    fn names_of_2017_set_what_todays_names_set() {
        let settings = configured(&[
            at_line("build-use-sandbox", "relaxed", 1),
            at_line("build-max-jobs", "7", 2),
            at_line("build-cores", "3", 3),
            at_line("build-timeout", "60", 4),
            at_line("build-extra-sandbox-paths", "/a", 5),
            at_line("build-extra-chroot-dirs", "/b", 6),
            at_line("build-use-substitutes", "false", 7),
        ])
        .unwrap();
        assert_eq!(settings.sandbox, SandboxMode::Relaxed);
        assert_eq!((settings.max_jobs, settings.cores), (7, 3));
        assert_eq!(settings.timeout, Some(Duration::from_mins(1)));
        assert_eq!(settings.sandbox_paths.len(), 2);
        assert!(!settings.substitute);
    }

    #[test]
    fn a_wrong_value_is_named_with_option_file_and_line() {
        let error = configured(&[at_line("build-max-jobs", "many", 12)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/nix/nix.conf:12: option 'build-max-jobs' cannot be 'many': \
             it is a whole number, such as 4 or 16M, or 'auto'"
        );
        for (name, value) in [
            ("sandbox", "maybe"),
            ("cores", "-1"),
            ("timeout", "18446744073709551615"),
            ("sandbox-build-dir", "build"),
            ("sandbox-paths", "/ok /bad/../escape"),
            ("start-id", "4294967296"),
            ("keep-going", ""),
        ] {
            let error = configured(&[typed(name, value)]).unwrap_err();
            assert!(matches!(error, Error::Value { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn an_unknown_option_is_a_warning_in_a_file_and_an_error_when_typed() {
        let mut configuration = Configuration::new(Settings::default());
        configuration
            .assign(&at_line("no-such-thing", "1", 3))
            .unwrap();
        assert_eq!(
            configuration.warnings(),
            ["/etc/nix/nix.conf:3: unknown setting 'no-such-thing'"]
        );
        assert!(matches!(
            configuration.assign(&typed("no-such-thing", "1")),
            Err(Error::UnknownOption { .. })
        ));
    }

    #[test]
    fn an_unsupported_option_is_refused_unless_it_is_taken_back() {
        let hook = at_line("impure-env", "A=b", 1);
        let refusal = configured(std::slice::from_ref(&hook)).unwrap_err();
        assert!(matches!(
            refusal,
            Error::Unsupported {
                name: "impure-env",
                ..
            }
        ));
        assert!(configured(&[hook, typed("impure-env", "")]).is_ok());
        assert!(configured(&[at_line("external-builders", "[]", 1)]).is_ok());
    }

    #[test]
    fn extra_adds_and_a_plain_name_replaces() {
        let settings = configured(&[
            at_line("system-features", "kvm", 1),
            at_line("extra-system-features", "big-parallel kvm", 2),
            at_line("sandbox-paths", "/bin/sh=/a /usr", 3),
            at_line("extra-sandbox-paths", "/bin/sh=/b", 4),
        ])
        .unwrap();
        let features: Vec<_> = settings
            .system_features
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(features, ["big-parallel", "kvm"]);
        let paths: Vec<_> = settings
            .sandbox_paths
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(paths, ["/usr", "/bin/sh=/b"]);
    }

    #[test]
    fn auto_means_the_machines_own_number() {
        let machine = Settings {
            max_jobs: 24,
            ..Settings::default()
        };
        let mut configuration = Configuration::new(machine);
        configuration.assign(&typed("max-jobs", "2")).unwrap();
        configuration.assign(&typed("max-jobs", "auto")).unwrap();
        assert_eq!(configuration.finish().unwrap().max_jobs, 24);
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_option() {
        for (name, value) in [
            ("cores", "1\nsandbox = false"),
            ("co\0res", "1"),
            ("cores", "\u{1b}[2J"),
        ] {
            let error = configured(&[typed(name, value)]).unwrap_err();
            assert!(matches!(error, Error::ControlCharacter { .. }));
            assert!(!error.to_string().chars().any(char::is_control));
        }
    }

    #[test]
    fn every_option_is_shown_with_value_default_and_origin() {
        let mut configuration = Configuration::new(Settings::default());
        configuration
            .assign(&at_line("build-cores", "5", 9))
            .unwrap();
        configuration
            .assign(&at_line("substituters", "https://a", 10))
            .unwrap();
        let shown: Vec<_> = configuration.show().collect();
        assert_eq!(shown.len(), all().count());
        assert!(shown.is_sorted_by_key(|shown| shown.option.name));
        let of = |name: &str| {
            shown
                .iter()
                .find(|shown| shown.option.name == name)
                .unwrap()
        };
        assert_eq!(
            (of("cores").value.as_str(), of("cores").default.as_str()),
            ("5", "0")
        );
        assert_eq!(of("cores").origin.to_string(), "/etc/nix/nix.conf:9");
        assert_eq!(of("cores").json, json!(5));
        assert_eq!(of("substituters").value, "https://a");
        assert_eq!(of("sandbox").origin, Origin::Default);
    }

    #[test]
    fn a_printed_value_reads_back_for_every_option() {
        let mut configuration = Configuration::new(Settings::default());
        let texts: Vec<_> = configuration
            .show()
            .map(|shown| (shown.option, shown.value))
            .collect();
        for (option, text) in texts {
            configuration.assign(&typed(option.name, &text)).unwrap();
        }
        assert_eq!(configuration.finish().unwrap(), Settings::default());
    }

    proptest! {
        #[test]
        fn no_assignment_panics_and_no_refused_one_changes_anything(
            idx in 0..all().count(),
            value in ".{0,40}",
            prefix in prop::sample::select(vec!["", "extra-"]),
        ) {
            let Some(option) = all().nth(idx) else { return Ok(()) };
            let mut configuration = Configuration::new(Settings::default());
            let before = configuration.settings.clone();
            if configuration.assign(&typed(&format!("{prefix}{}", option.name), &value)).is_err() {
                prop_assert_eq!(configuration.settings, before);
            }
        }
    }
}
