//! What a derivation runs.

use bstr::{BStr, ByteSlice as _};

use crate::{Derivation, Error};

/// The builder of a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program<'a> {
    /// A builder of our own, by the name after `builtin:`.
    Builtin(&'a str),
    /// An absolute path, to be resolved inside the sandbox.
    Path(&'a BStr),
}

impl Derivation {
    /// Returns what to run.
    ///
    /// Only the spelling is looked at: what a symlink inside the sandbox leads to is for whoever
    /// resolves it there to check by the same rule.
    ///
    /// # Errors
    /// The builder is neither `builtin:NAME` nor an absolute path, has a NUL, or leads below
    /// `/proc` or `/dev`, where the supervisor's own program and descriptors can be found
    /// (SECURITY V35).
    pub fn program(&self) -> Result<Program<'_>, Error> {
        let refuse = |reason: &str| Error::InvalidDerivation {
            drv_name: self.name.clone(),
            reason: format!("its builder '{}' {reason}", self.builder),
        };
        let builder = self.builder.as_bstr();
        if let Some(name) = builder.strip_prefix(b"builtin:") {
            return match std::str::from_utf8(name) {
                Ok(name) if !name.is_empty() => Ok(Program::Builtin(name)),
                Ok(_) | Err(_) => Err(refuse("names no built-in builder")),
            };
        }
        if memchr::memchr(0, builder).is_some() {
            return Err(refuse("has a NUL"));
        }
        if !builder.starts_with(b"/") {
            return Err(refuse("is not an absolute path"));
        }
        match components(builder).first() {
            None => Err(refuse("is the root directory")),
            Some(&b"proc" | &b"dev") => Err(refuse("must not lie in /proc or /dev")),
            Some(_) => Ok(Program::Path(builder)),
        }
    }
}

/// Returns the names that a path goes through, as far as its spelling tells.
fn components(path: &BStr) -> Vec<&[u8]> {
    let mut components = Vec::new();
    for component in path.split_str("/") {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    components
}

#[cfg(test)]
mod tests {
    use crate::derivation::tests::derivation;

    #[test]
    fn a_builder_is_built_in_or_an_absolute_path_that_leads_to_no_process_or_device() {
        let mut derivation = derivation();
        let mut program = |builder: &str| {
            derivation.builder = builder.into();
            derivation.program().map(|program| format!("{program:?}"))
        };
        assert_eq!(
            program("builtin:fetchurl"),
            Ok(r#"Builtin("fetchurl")"#.to_owned())
        );
        assert_eq!(program("/bin/sh"), Ok(r#"Path("/bin/sh")"#.to_owned()));
        assert!(program("/processing/dev").is_ok());
        for builder in [
            "",
            "sh",
            "./sh",
            "builtin:",
            "/",
            "/..",
            "/proc/self/exe",
            "/proc/1/exe",
            "//proc/self/exe",
            "/./proc/self/exe",
            "/bin/../proc/self/exe",
            "/../proc/self/exe",
            "/dev/fd/3",
            "/dev",
            "/bin/sh\0",
        ] {
            assert!(program(builder).is_err(), "{builder}");
        }
    }
}
