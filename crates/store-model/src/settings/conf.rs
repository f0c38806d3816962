//! The lines of a `nix.conf`, or of `NIX_CONFIG`, which has the same syntax.
//!
//! A line is `name = value`, `include FILE` or `!include FILE`; `#` begins a comment anywhere.
//! Words are separated by blanks, and a value is its words with one blank between them. Reading an
//! included file is the caller's work, since nothing here does I/O.

use std::path::{Path, PathBuf};

use super::{Assignment, Error, Origin};

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// `name = value`.
    Assign(Assignment),
    /// `include FILE` or `!include FILE`: the lines of that file stand here.
    Include {
        /// The file, already relative to the one that includes it.
        path: PathBuf,
        /// Whether it may be missing (`!include`).
        presence: Presence,
        /// Where the line stands.
        origin: Origin,
    },
}

/// Whether an included file must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A missing file is an error.
    Required,
    /// A missing file says nothing.
    Optional,
}

/// What the text of a configuration was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file; includes are relative to its directory.
    File(&'a Path),
    /// The environment variable `NIX_CONFIG`; includes are relative to the current directory.
    Environment,
}

impl Source<'_> {
    fn origin(self, line: usize) -> Origin {
        match self {
            Self::File(path) => Origin::File {
                path: path.to_owned(),
                line,
            },
            Self::Environment => Origin::Environment { line },
        }
    }

    fn resolve(self, included: &str) -> PathBuf {
        let directory = match self {
            Self::File(path) => path.parent(),
            Self::Environment => None,
        };
        directory.map_or_else(|| included.into(), |directory| directory.join(included))
    }
}

/// Reads all lines of a configuration, in order.
///
/// # Errors
/// The first line that is none of the three kinds.
pub fn parse(text: &str, source: Source<'_>) -> Result<Vec<Line>, Error> {
    text.lines()
        .enumerate()
        .filter_map(|(idx, line)| parse_line(line, source, idx + 1).transpose())
        .collect()
}

fn parse_line(line: &str, source: Source<'_>, number: usize) -> Result<Option<Line>, Error> {
    let origin = source.origin(number);
    let refuse = |reason| {
        Err(Error::Syntax {
            origin: source.origin(number),
            line: line.trim().escape_debug().take(200).collect(),
            reason,
        })
    };
    let without_comment = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = without_comment.split_ascii_whitespace().collect();
    match words.as_slice() {
        [] => Ok(None),
        [keyword @ ("include" | "!include"), file] if *file != "=" => Ok(Some(Line::Include {
            path: source.resolve(file),
            presence: if *keyword == "include" {
                Presence::Required
            } else {
                Presence::Optional
            },
            origin,
        })),
        ["include" | "!include", ..] => refuse("an include names exactly one file"),
        [name, "=", value @ ..] => Ok(Some(Line::Assign(Assignment {
            name: (*name).to_owned(),
            value: value.join(" "),
            origin,
        }))),
        _ => refuse("expected 'name = value', with blanks around the equals sign"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> Source<'static> {
        Source::File(Path::new("/etc/nix/nix.conf"))
    }

    fn at(line: usize) -> Origin {
        file().origin(line)
    }

    #[test]
    fn comments_blanks_and_empty_lines_say_nothing() {
        let text = "# a comment\n\n   \t\nmax-jobs =  4  # four\r\ncores=3 = 1\nsandbox-paths =\n";
        let lines = parse(text, file()).unwrap();
        assert_eq!(
            lines,
            [
                ("max-jobs", "4", 4),
                ("cores=3", "1", 5),
                ("sandbox-paths", "", 6)
            ]
            .map(|(name, value, line)| Line::Assign(Assignment {
                name: name.to_owned(),
                value: value.to_owned(),
                origin: at(line),
            }))
        );
    }

    #[test]
    fn an_include_is_relative_to_the_file_that_includes_it() {
        let lines = parse("include a/b.conf\n!include /c.conf", file()).unwrap();
        assert_eq!(
            lines,
            [
                Line::Include {
                    path: "/etc/nix/a/b.conf".into(),
                    presence: Presence::Required,
                    origin: at(1),
                },
                Line::Include {
                    path: "/c.conf".into(),
                    presence: Presence::Optional,
                    origin: at(2),
                },
            ]
        );
    }

    #[test]
    fn a_malformed_line_is_named_with_file_and_number() {
        for text in [
            "\nmax-jobs 4",
            "\nmax-jobs",
            "\nmax-jobs=4",
            "\ninclude",
            "\ninclude a b",
        ] {
            let error = parse(text, file()).unwrap_err().to_string();
            assert!(
                error.starts_with("/etc/nix/nix.conf:2: syntax error"),
                "{error}"
            );
            assert!(error.contains(text.trim()), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "[a-z!=# \t\n\r\u{0}é-]{0,80}") {
            if let Ok(lines) = parse(&text, file()) {
                prop_assert!(lines.len() <= text.lines().count());
            }
        }

        #[test]
        fn an_assignment_reads_back(name in "[a-z-]{1,20}", value in "[a-z0-9/:=]{1,9}( [a-z]{1,9}){0,3}") {
            prop_assume!(!matches!(name.as_str(), "include"));
            let lines = parse(&format!("{name} = {value}"), Source::Environment).unwrap();
            let expected = Assignment { name, value, origin: Origin::Environment { line: 1 } };
            prop_assert_eq!(lines, vec![Line::Assign(expected)]);
        }
    }
}
