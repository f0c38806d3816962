//! `builtin:buildenv`: a user environment, a tree of links to the files of packages.
//!
//! A directory that only one package has becomes a link to it; one that several have becomes a
//! directory of links. Of files in one place the one with the smaller priority is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bstr::ByteSlice as _;

use crate::attributes::Attributes;
use crate::{Error, say};

/// What no environment shows: useless there, or in everybody's way.
const HIDDEN: [&str; 7] = [
    "/propagated-build-inputs",
    "/nix-support",
    "/perllocal.pod",
    "/info/dir",
    "/log",
    "/manifest.nix",
    "/manifest.json",
];

/// The priority of the first package that another package asks for; those of the user's own come
/// before it.
const FIRST_PROPAGATED_PRIORITY: i64 = 1000;

/// A package that the user has chosen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    priority: i64,
    path: PathBuf,
}

/// Makes the environment that the attributes describe.
///
/// # Errors
/// An attribute is missing or malformed, packages are in each other's way, or the disk is.
pub(crate) fn run(attributes: Attributes<'_>, log: &mut dyn Write) -> Result<(), Error> {
    let out = attributes.path("out")?;
    fs::create_dir_all(&out).map_err(Error::file("creating the directory", &out))?;
    let mut packages = packages(attributes)?;
    packages.sort();
    let manifest = attributes.path("manifest")?;
    let mut environment = Environment {
        out: &out,
        log,
        priorities: BTreeMap::new(),
        done: BTreeSet::new(),
        propagated: BTreeSet::new(),
    };
    for package in packages {
        environment.add(&package.path, package.priority)?;
    }
    let mut priority = FIRST_PROPAGATED_PRIORITY;
    while !environment.propagated.is_empty() {
        for path in std::mem::take(&mut environment.propagated) {
            environment.add(&path, priority)?;
            priority += 1;
        }
    }
    link(&manifest, &out.join("manifest.nix"))
}

/// Reads `derivations`: for each "true" or "false", a priority, the number of outputs, and these.
fn packages(attributes: Attributes<'_>) -> Result<Vec<Package>, Error> {
    let malformed = || Error::Attribute {
        name: "derivations".to_owned(),
        why: "is malformed",
    };
    let mut words = attributes.get("derivations")?.fields();
    let mut packages = Vec::new();
    while let Some(active) = words.next() {
        let mut number = || {
            let word = words.next()?;
            word.to_str().ok()?.parse::<i64>().ok()
        };
        let priority = number().ok_or_else(malformed)?;
        let n_outputs = number().ok_or_else(malformed)?;
        for _ in 0..n_outputs {
            let path = words.next().ok_or_else(malformed)?;
            if active != b"false" {
                let path = PathBuf::from(OsStr::from_bytes(path));
                packages.push(Package { priority, path });
            }
        }
    }
    Ok(packages)
}

struct Environment<'a> {
    out: &'a Path,
    log: &'a mut dyn Write,
    /// Of each link, the priority of the package that it is for.
    priorities: BTreeMap<PathBuf, i64>,
    done: BTreeSet<PathBuf>,
    /// What packages want beside them.
    propagated: BTreeSet<PathBuf>,
}

impl Environment<'_> {
    fn add(&mut self, package: &Path, priority: i64) -> Result<(), Error> {
        if !self.done.insert(package.to_owned()) {
            return Ok(());
        }
        self.merge(package, self.out, priority)?;
        let file = package.join("nix-support/propagated-user-env-packages");
        match fs::read(&file) {
            Ok(text) => {
                let paths = text
                    .split(|byte| matches!(byte, b' ' | b'\n'))
                    .filter(|path| !path.is_empty())
                    .map(|path| PathBuf::from(OsStr::from_bytes(path)));
                let wanted = paths.filter(|path| !self.done.contains(path));
                self.propagated.extend(wanted);
                Ok(())
            }
            Err(error) if is_absence(&error) => Ok(()),
            Err(source) => Err(Error::file("reading", file)(source)),
        }
    }

    /// Links everything in `source` into `target`.
    fn merge(&mut self, source: &Path, target: &Path, priority: i64) -> Result<(), Error> {
        let entries = match fs::read_dir(source) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                let path = source.display();
                say(
                    self.log,
                    format_args!(
                        "warning: not including '{path}' in the user environment because it's not \
                         a directory"
                    ),
                );
                return Ok(());
            }
            Err(error) => return Err(Error::file("reading the directory", source)(error)),
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::file("reading the directory", source))?;
        names.sort();
        for name in names {
            if !name.as_bytes().starts_with(b".") {
                self.merge_entry(&source.join(&name), &target.join(&name), priority)?;
            }
        }
        Ok(())
    }

    fn merge_entry(&mut self, source: &Path, target: &Path, priority: i64) -> Result<(), Error> {
        let facts = match fs::metadata(source) {
            Ok(facts) => facts,
            Err(error) if is_absence(&error) => {
                let path = target.display();
                say(
                    self.log,
                    format_args!("warning: skipping dangling symlink '{path}'"),
                );
                return Ok(());
            }
            Err(error) => return Err(Error::file("getting status of", source)(error)),
        };
        let source_bytes = source.as_os_str().as_bytes();
        if HIDDEN
            .iter()
            .any(|end| source_bytes.ends_with(end.as_bytes()))
        {
            return Ok(());
        }
        let present = kind_of(target)?;
        if facts.is_dir() {
            match present {
                Some(kind) if kind.is_dir() => return self.merge(source, target, priority),
                Some(kind) if kind.is_symlink() => {
                    return self.split(source, target, priority);
                }
                Some(_) | None => {}
            }
        } else if present.is_some_and(|kind| kind.is_dir()) {
            return Err(Error::CollisionWithDirectory {
                path: source.to_owned(),
                existing: target.to_owned(),
            });
        } else if present.is_some() {
            let present_priority = self.priority_of(target);
            if present_priority == priority {
                return Err(Error::SamePriority {
                    path: source.to_owned(),
                    existing: fs::read_link(target).map_err(Error::file("reading", target))?,
                    priority,
                });
            }
            if present_priority < priority {
                return Ok(());
            }
            fs::remove_file(target).map_err(Error::file("unlinking", target))?;
        }
        link(source, target)?;
        self.priorities.insert(target.to_owned(), priority);
        Ok(())
    }

    /// Makes a directory of a link to one, for another has it too.
    fn split(&mut self, source: &Path, target: &Path, priority: i64) -> Result<(), Error> {
        let present = fs::canonicalize(target).map_err(Error::file("resolving", target))?;
        if !kind_of(&present)?.is_some_and(|kind| kind.is_dir()) {
            return Err(Error::CollisionWithFile {
                path: source.to_owned(),
                existing: present,
            });
        }
        fs::remove_file(target).map_err(Error::file("unlinking", target))?;
        fs::create_dir(target).map_err(Error::file("creating the directory", target))?;
        self.merge(&present, target, self.priority_of(target))?;
        self.merge(source, target, priority)
    }

    fn priority_of(&self, target: &Path) -> i64 {
        self.priorities.get(target).copied().unwrap_or(0)
    }
}

fn link(source: &Path, target: &Path) -> Result<(), Error> {
    symlink(source, target).map_err(Error::file("creating the link", target))
}

/// Returns what is there, links not followed.
fn kind_of(path: &Path) -> Result<Option<FileType>, Error> {
    match fs::symlink_metadata(path) {
        Ok(facts) => Ok(Some(facts.file_type())),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(Error::file("getting status of", path)(error)),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests;
