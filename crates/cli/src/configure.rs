//! Gathers the configuration in Nix's order: the system's file, the user's files, `NIX_CONFIG`, a
//! `goals.toml`, the command line. Later ones win.

use std::io;
use std::path::{Path, PathBuf};

use store_model::Settings;
use store_model::settings::conf::{self, Line, Presence, Source};
use store_model::settings::{Assignment, Configuration, Origin};

use crate::environment::Environment;
use crate::failure::{Failure, Result};

/// How deep includes may nest; a file that includes itself ends here.
const MAX_INCLUDE_DEPTH: usize = 32;

/// Reads what files and `NIX_CONFIG` say, over the machine's defaults.
///
/// # Errors
/// A file cannot be read, or says something that is wrong.
pub(crate) fn read_files(environment: &Environment, defaults: Settings) -> Result<Configuration> {
    let mut configuration = Configuration::new(Settings {
        netrc_file: system_dir(environment).join("netrc"),
        ..defaults
    });
    for file in configuration_files(environment) {
        include(&mut configuration, &file, Presence::Optional, 0)?;
    }
    if let Some(text) = environment.get("NIX_CONFIG") {
        let text = text
            .to_str()
            .ok_or_else(|| Failure::message("NIX_CONFIG is not UTF-8"))?;
        let lines = conf::parse(text, Source::Environment)?;
        put_into_force(&mut configuration, lines, environment, 0)?;
    }
    Ok(configuration)
}

/// Turns the words after `--option`, two for each, into assignments.
#[must_use]
pub(crate) fn typed_options(words: &[String]) -> Vec<Assignment> {
    words
        .chunks_exact(2)
        .map(|pair| typed(&pair[0], &pair[1]))
        .collect()
}

/// Makes an assignment of a flag.
#[must_use]
pub(crate) fn typed(name: &str, value: &str) -> Assignment {
    Assignment {
        name: name.to_owned(),
        value: value.to_owned(),
        origin: Origin::CommandLine,
    }
}

/// The files that are read, in that order. None needs to exist.
fn configuration_files(environment: &Environment) -> Vec<PathBuf> {
    let mut user_files: Vec<PathBuf> = if let Some(files) = environment.get("NIX_USER_CONF_FILES") {
        std::env::split_paths(files)
            .filter(|file| !file.as_os_str().is_empty())
            .collect()
    } else {
        let dirs = environment
            .path("XDG_CONFIG_DIRS")
            .unwrap_or_else(|| PathBuf::from("/etc/xdg"));
        environment
            .xdg_dir("XDG_CONFIG_HOME", ".config")
            .into_iter()
            .chain(std::env::split_paths(&dirs))
            .map(|dir| dir.join("nix/nix.conf"))
            .collect()
    };
    // The first one named has the last word.
    user_files.reverse();
    let mut files = vec![system_dir(environment).join("nix.conf")];
    files.append(&mut user_files);
    files
        .iter()
        .map(|file| environment.absolute(file))
        .collect()
}

/// Where the system's files are.
fn system_dir(environment: &Environment) -> PathBuf {
    let dir = environment.path("NIX_CONF_DIR");
    environment.absolute(&dir.unwrap_or_else(|| PathBuf::from("/etc/nix")))
}

fn include(
    configuration: &mut Configuration,
    path: &Path,
    presence: Presence,
    depth: usize,
) -> Result<()> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            Failure::message(format!(
                "the configuration '{}' is not UTF-8",
                path.display()
            ))
        })?,
        Err(error) if presence == Presence::Optional && is_absence(&error) => return Ok(()),
        Err(error) => return Err(Failure::file("reading the configuration", path, error)),
    };
    let lines = conf::parse(&text, Source::File(path))?;
    // Includes of a file are relative to it, so no directory of the start is needed.
    put_into_force(configuration, lines, &Environment::default(), depth)
}

fn put_into_force(
    configuration: &mut Configuration,
    lines: Vec<Line>,
    environment: &Environment,
    depth: usize,
) -> Result<()> {
    for line in lines {
        match line {
            Line::Assign(assignment) => configuration.assign(&assignment)?,
            Line::Include { origin, .. } if depth == MAX_INCLUDE_DEPTH => {
                return Err(Failure::message(format!(
                    "{origin}: includes nest more than {MAX_INCLUDE_DEPTH} deep; \
                     does a file include itself?"
                )));
            }
            Line::Include { path, presence, .. } => {
                let path = environment.absolute(&path);
                include(configuration, &path, presence, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::render::Style;

    struct Home {
        dir: tempfile::TempDir,
    }

    impl Home {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self { dir }
        }

        fn read(&self, variables: &[(&str, &str)]) -> Result<Configuration> {
            let root = self.dir.path().to_str().unwrap();
            let variables: Vec<_> = variables
                .iter()
                .map(|(name, value)| (*name, value.replace('~', root)))
                .collect();
            let variables: Vec<_> = variables
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            read_files(&Environment::of(&variables), Settings::default())
        }
    }

    #[test]
    fn later_sources_win_and_every_value_knows_its_own() {
        let home = Home::new(&[
            (
                "etc/nix.conf",
                "cores = 1\nmax-jobs = 1\nlog-lines = 1\ntimeout = 1\n",
            ),
            (
                "xdg/nix/nix.conf",
                "cores = 2\nmax-jobs = 2\nlog-lines = 2\n",
            ),
            ("home/.config/nix/nix.conf", "max-jobs = 3\ncores = 3\n"),
        ]);
        let configuration = home
            .read(&[
                ("NIX_CONF_DIR", "~/etc"),
                ("HOME", "~/home"),
                ("XDG_CONFIG_DIRS", "~/xdg:~/none"),
                ("NIX_CONFIG", "\ncores = 4"),
            ])
            .unwrap();
        let settings = configuration.finish().unwrap();
        assert_eq!(
            (settings.cores, settings.max_jobs, settings.log_lines),
            (4, 3, 2)
        );
        assert_eq!(settings.timeout.map(|limit| limit.as_secs()), Some(1));
        let origin = |name: &str| {
            let shown = configuration.show().find(|shown| shown.option.name == name);
            shown.unwrap().origin.to_string()
        };
        assert_eq!(origin("cores"), "NIX_CONFIG:2");
        assert!(origin("max-jobs").ends_with("home/.config/nix/nix.conf:1"));
        assert_eq!(origin("keep-going"), "default");
    }

    #[test]
    fn named_user_files_stand_in_for_the_usual_ones_and_the_first_wins() {
        let home = Home::new(&[
            ("home/.config/nix/nix.conf", "timeout = 9\n"),
            ("a.conf", "cores = 1\n"),
            ("b.conf", "cores = 2\nlog-lines = 2\n"),
        ]);
        let settings = home
            .read(&[
                ("NIX_CONF_DIR", "~/none"),
                ("HOME", "~/home"),
                ("NIX_USER_CONF_FILES", "~/a.conf:~/b.conf"),
            ])
            .unwrap()
            .finish()
            .unwrap();
        assert_eq!((settings.cores, settings.log_lines), (1, 2));
        assert_eq!(settings.timeout, None);
    }

    #[test]
    fn includes_are_read_in_place_and_end_where_they_go_in_circles() {
        let home = Home::new(&[
            (
                "etc/nix.conf",
                "cores = 1\ninclude more/more.conf\n!include none.conf\n",
            ),
            ("etc/more/more.conf", "include beside.conf\ncores = 2\n"),
            ("etc/more/beside.conf", "log-lines = 7\n"),
            ("circle/nix.conf", "include nix.conf\n"),
            ("missing/nix.conf", "# a line\ninclude none.conf\n"),
        ]);
        let read = |dir: &str| {
            home.read(&[("NIX_CONF_DIR", dir)])
                .and_then(|configuration| Ok(configuration.finish()?))
        };
        let settings = read("~/etc").unwrap();
        assert_eq!((settings.cores, settings.log_lines), (2, 7));
        let circle = read("~/circle").unwrap_err().render(Style::Plain);
        assert!(circle.contains("nest more than"), "{circle}");
        let missing = read("~/missing").unwrap_err().render(Style::Plain);
        assert!(missing.contains("none.conf"), "{missing}");
    }

    #[test]
    fn a_wrong_value_names_the_file_that_it_stands_in() {
        let home = Home::new(&[("etc/nix.conf", "\ncores = many\n")]);
        let failure = home.read(&[("NIX_CONF_DIR", "~/etc")]).unwrap_err();
        let text = failure.render(Style::Plain);
        assert!(
            text.contains("etc/nix.conf:2: option 'cores' cannot be 'many'"),
            "{text}"
        );
    }
}
