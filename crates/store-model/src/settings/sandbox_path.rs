//! One entry of `sandbox-paths`: `target`, `target=source`, a trailing `?`, a trailing `:rw`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use super::error::SandboxPathError;

/// One entry of `sandbox-paths`: `target=source?:rw`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SandboxPath {
    /// Absolute path inside the sandbox.
    pub target: PathBuf,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Whether an absent source is passed over.
    pub optional: bool,
    /// Whether the builder may write through it.
    pub writable: bool,
}

impl FromStr for SandboxPath {
    type Err = SandboxPathError;

    /// Reads one word. The marks `?` and `:rw` may stand in either order at its end.
    ///
    /// # Errors
    /// A path is not absolute, or the target is the root directory or goes through `.` or `..`.
    fn from_str(word: &str) -> Result<Self, SandboxPathError> {
        let refuse = |reason| SandboxPathError {
            word: word.to_owned(),
            reason,
        };
        let mut rest = word;
        let (mut optional, mut writable) = (false, false);
        loop {
            if let Some(shorter) = rest.strip_suffix('?').filter(|_| !optional) {
                (rest, optional) = (shorter, true);
            } else if let Some(shorter) = rest.strip_suffix(":rw").filter(|_| !writable) {
                (rest, writable) = (shorter, true);
            } else {
                break;
            }
        }
        let (target, source) = rest.split_once('=').unwrap_or((rest, rest));
        if !target.starts_with('/') || !source.starts_with('/') {
            return Err(refuse("does not name absolute paths"));
        }
        // A target is made component by component inside the new root, so it must not climb out.
        if target.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(refuse("has '.' or '..' in the path inside the sandbox"));
        }
        let target = without_repeated_slashes(target);
        if target == Path::new("/") {
            return Err(refuse("would replace the sandbox's root directory"));
        }
        Ok(Self {
            target,
            source: without_repeated_slashes(source),
            optional,
            writable,
        })
    }
}

fn without_repeated_slashes(path: &str) -> PathBuf {
    Path::new(path)
        .components()
        .filter(|component| !matches!(component, Component::CurDir))
        .collect()
}

/// Prints the word that reads back as this value.
impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.target.display())?;
        if self.source != self.target {
            write!(f, "={}", self.source.display())?;
        }
        if self.optional {
            f.write_str("?")?;
        }
        if self.writable {
            f.write_str(":rw")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(target: &str, source: &str) -> SandboxPath {
        SandboxPath {
            target: target.into(),
            source: source.into(),
            optional: false,
            writable: false,
        }
    }

    #[test]
    fn a_word_names_target_and_source_and_marks_in_either_order() {
        let both = SandboxPath {
            optional: true,
            writable: true,
            ..path("/bin/sh", "/opt/busybox")
        };
        for (word, expected) in [
            ("/usr", path("/usr", "/usr")),
            ("/bin/sh=/opt/busybox", path("/bin/sh", "/opt/busybox")),
            ("//usr///lib/", path("/usr/lib", "/usr/lib")),
            ("/bin/sh=/opt/busybox?:rw", both.clone()),
            ("/bin/sh=/opt/busybox:rw?", both),
        ] {
            assert_eq!(word.parse::<SandboxPath>().unwrap(), expected, "{word}");
        }
    }

    #[test]
    fn a_target_never_climbs_out_of_the_sandbox() {
        for word in [
            "",
            "usr",
            "/usr=lib",
            "=/usr",
            "/usr=",
            "/foo/..",
            "/.",
            "/../escape",
            "//a///.//../../x",
            "/=/usr",
            "//",
        ] {
            assert!(word.parse::<SandboxPath>().is_err(), "{word}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            target in "(/[a-z:.]{1,3}x){1,3}",
            source in "(/[a-z=.]{1,3}x){1,3}",
            optional: bool,
            writable: bool,
        ) {
            let path = SandboxPath {
                target: target.into(),
                source: source.into(),
                optional,
                writable,
            };
            prop_assert_eq!(path.to_string().parse::<SandboxPath>().unwrap(), path);
        }
    }
}
