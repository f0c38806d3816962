//! The table of every option that Nix 2.8, Nix 2.35 or the Nix of 2017 has, and of ours.
//!
//! None is silently unknown: an option sets a field of [`Settings`](super::Settings), or is
//! accepted without effect for a stated reason, or is refused with one.

use std::collections::BTreeMap;

use super::field::{Field, Mode};

mod building;
mod caches;
mod elsewhere;

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct SettingOption {
    /// Today's name.
    pub name: &'static str,
    /// Earlier names.
    pub aliases: &'static [&'static str],
    /// What assigning it does.
    pub effect: Effect,
}

/// What assigning an option does.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// It sets a field.
    Implemented(Binding),
    /// It is accepted and does nothing, because of this.
    WithoutEffect(&'static str),
    /// It is refused, because of this, unless its value asks for nothing.
    Refused {
        /// Values that ask for nothing.
        harmless: &'static [&'static str],
        /// What would be missing, and what can be set instead.
        reason: &'static str,
    },
}

/// Ties an option to a field of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Binding(pub(super) Field);

/// Two options are the same if their names are; the table has each name once.
impl PartialEq for SettingOption {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Names of 2017 that add to an option, though they do not begin with `extra-`.
const APPENDING_ALIASES: [(&str, &str); 4] = [
    ("build-extra-chroot-dirs", "sandbox-paths"),
    ("build-extra-sandbox-paths", "sandbox-paths"),
    ("build-extra-platforms", "extra-platforms"),
    ("extra-binary-caches", "substituters"),
];

/// Returns every option, in order of name.
pub fn all() -> impl Iterator<Item = &'static SettingOption> {
    let by_name: BTreeMap<_, _> = table().map(|option| (option.name, option)).collect();
    by_name.into_values()
}

fn table() -> impl Iterator<Item = &'static SettingOption> {
    building::OPTIONS
        .iter()
        .chain(caches::OPTIONS)
        .chain(elsewhere::OPTIONS)
}

/// Finds an option by any of its names, and whether that name adds to its value.
pub(super) fn find(name: &str) -> Option<(&'static SettingOption, Mode)> {
    let named =
        |name: &str| table().find(|option| option.name == name || option.aliases.contains(&name));
    if let Some((_, target)) = APPENDING_ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some((named(target)?, Mode::Append));
    }
    // `extra-platforms` is an option of its own, so the whole name is looked up first.
    named(name)
        .map(|option| (option, Mode::Replace))
        .or_else(|| {
            let option = named(name.strip_prefix("extra-")?)?;
            let appendable = match option.effect {
                Effect::Implemented(binding) => binding.0.is_list(),
                Effect::WithoutEffect(_) | Effect::Refused { .. } => true,
            };
            appendable.then_some((option, Mode::Append))
        })
}

const fn implemented(
    name: &'static str,
    aliases: &'static [&'static str],
    field: Field,
) -> SettingOption {
    SettingOption {
        name,
        aliases,
        effect: Effect::Implemented(Binding(field)),
    }
}

const fn without_effect(
    name: &'static str,
    aliases: &'static [&'static str],
    reason: &'static str,
) -> SettingOption {
    SettingOption {
        name,
        aliases,
        effect: Effect::WithoutEffect(reason),
    }
}

const fn refused(
    name: &'static str,
    aliases: &'static [&'static str],
    harmless: &'static [&'static str],
    reason: &'static str,
) -> SettingOption {
    SettingOption {
        name,
        aliases,
        effect: Effect::Refused { harmless, reason },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_once() {
        let mut names = std::collections::BTreeSet::new();
        for option in table() {
            for name in std::iter::once(&option.name).chain(option.aliases) {
                assert!(names.insert(*name), "{name}");
            }
        }
        for (alias, target) in APPENDING_ALIASES {
            assert!(names.insert(alias), "{alias}");
            assert_eq!(find(target).unwrap().1, Mode::Replace);
        }
    }

    #[test]
    fn no_option_of_three_generations_is_unknown() {
        for list in [
            include_str!("../../../tests/data/options-2017.txt"),
            include_str!("../../../tests/data/options-nix-2.8.txt"),
            include_str!("../../../tests/data/options-nix-2.35.txt"),
        ] {
            assert!(list.lines().count() > 30);
            for name in list.lines() {
                assert!(find(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn extra_adds_to_lists_only() {
        assert_eq!(find("extra-sandbox-paths").unwrap().1, Mode::Append);
        assert_eq!(find("extra-platforms").unwrap().1, Mode::Replace);
        assert_eq!(find("extra-extra-platforms").unwrap().1, Mode::Append);
        assert!(find("extra-max-jobs").is_none());
        assert!(find("extra-").is_none());
    }
}
