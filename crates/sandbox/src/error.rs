//! What can go wrong around a builder, as opposed to inside it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::SetupFault;
use crate::init::is_shortage;

/// A failure of the sandbox: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would run a builder without a place of its own.
    #[error("{operation} '{}'", path.display())]
    File {
        /// What was being done, such as "creating the build directory".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would let other users prepare what the builder, or root, then touches
    /// (CVE-2025-52991).
    #[error(
        "the build directory '{}' or a directory above it can be written by everybody; choose \
         another 'build-dir'",
        path.display()
    )]
    WorldWritable {
        /// The directory that everybody may write.
        path: PathBuf,
    },
    /// Going on would run a builder whose log nobody can read.
    #[error("opening a pseudo-terminal for the log")]
    Terminal {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would run builders as users that were not meant for it.
    #[error("the group '{group}' of 'build-users-group' {why}")]
    BuildUsersGroup {
        /// The group.
        group: String,
        /// What is wrong with it.
        why: String,
    },
    /// Going on would build what nobody wants any more.
    #[error("the build was given up before its builder was started")]
    GivenUp,
    /// Going on would tell the launcher to build something else than what was asked.
    #[error("asking the launcher to run the builder")]
    Launcher {
        /// Why it does not listen.
        source: io::Error,
    },
    /// Going on would build nothing: without the launcher no builder runs.
    #[error(
        "no launcher 'sandbox-init' beside '{}'; set 'sandbox-init' to where it is",
        program.display()
    )]
    NoLauncher {
        /// The running program.
        program: PathBuf,
    },
    /// Going on would hand the builder something else than what its derivation says.
    #[error("{what} holds a NUL byte, which no process can be given")]
    NulByte {
        /// The variable or argument.
        what: String,
    },
    /// Going on would build without something that the derivation asks for.
    #[error("reading the derivation's attributes")]
    Attributes {
        /// What is wrong with them.
        source: Box<store_model::Error>,
    },
    /// Going on would run a builder in surroundings that the user's hook was to complete.
    #[error("the pre-build hook '{}' {why}", program.display())]
    PreBuildHook {
        /// The hook.
        program: PathBuf,
        /// What it did.
        why: String,
    },
    /// Going on would run a builder in surroundings that the user's hook was to complete.
    #[error("running the pre-build hook '{}'", program.display())]
    RunPreBuildHook {
        /// The hook.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would run a built-in builder that nobody has told what to build.
    #[error("handing the built-in builder what it is told")]
    Builtin {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would leave the builder to guess where its output goes.
    #[error("the path of the output '{output}' is not known before its inputs are")]
    UnknownOutputPath {
        /// The output's name.
        output: String,
    },
    /// Going on would let a builder find what must not be there.
    #[error(
        "home directory '{}' exists; please remove it to assure purity of builds without sandboxing",
        path.display()
    )]
    HomeExists {
        /// The directory.
        path: PathBuf,
    },
    /// Going on would run outside the sandbox what the user wants inside.
    #[error("'__noChroot' is set, but that is not allowed when 'sandbox' is 'true'")]
    SandboxRequired,
    /// Going on would show the builder a part of the host that the user did not release.
    #[error(
        "'__impureHostDeps' asks for '{path}', which 'allowed-impure-host-deps' does not allow"
    )]
    ImpureHostPath {
        /// The path asked for.
        path: String,
    },
    /// Going on would name an output's path that cannot exist.
    #[error("naming an output")]
    OutputPath {
        /// The rule that it breaks.
        source: store_model::Error,
    },
}

impl Error {
    /// Makes the usual adapter for `map_err`.
    pub(crate) fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source: source.into(),
        }
    }
}

impl Error {
    /// Returns whether another try may succeed.
    pub(crate) fn fault(&self) -> SetupFault {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            let number = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            let is_full = |errno| matches!(errno, Errno::ENOSPC | Errno::EDQUOT);
            let errno = number.map(Errno::from_raw);
            if errno.is_some_and(|errno| is_shortage(errno) || is_full(errno)) {
                return SetupFault::Passing;
            }
            cause = error.source();
        }
        match self {
            Self::Attributes { .. }
            | Self::PreBuildHook { .. }
            | Self::RunPreBuildHook { .. }
            | Self::SandboxRequired
            | Self::HomeExists { .. }
            | Self::ImpureHostPath { .. } => SetupFault::Refused,
            Self::File { .. }
            | Self::WorldWritable { .. }
            | Self::Terminal { .. }
            | Self::BuildUsersGroup { .. }
            | Self::GivenUp
            | Self::Launcher { .. }
            | Self::NoLauncher { .. }
            | Self::NulByte { .. }
            | Self::Builtin { .. }
            | Self::UnknownOutputPath { .. }
            | Self::OutputPath { .. } => SetupFault::Lasting,
        }
    }

    /// Says that a derivation's attributes are not what they should be.
    pub(crate) fn attributes(source: store_model::Error) -> Self {
        Self::Attributes {
            source: Box::new(source),
        }
    }
}

/// Returns an error and its causes as one line, as a message carries them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
