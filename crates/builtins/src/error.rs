//! Why a built-in builder failed.

use std::io;
use std::path::PathBuf;

use crate::fetchurl::TransferError;
use crate::restore::RestoreError;

/// A failure of a built-in builder: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to run.
    #[error("unsupported builtin builder '{name}'")]
    Unsupported {
        /// The name after `builtin:`.
        name: String,
    },
    /// Going on would build something else than what was asked for.
    #[error("attribute '{name}' missing")]
    MissingAttribute {
        /// Its name.
        name: String,
    },
    /// Going on would build something else than what was asked for.
    #[error("attribute '{name}' {why}")]
    Attribute {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Going on would leave the output without a part.
    #[error("{operation} '{}'", path.display())]
    File {
        /// What was being done, such as "creating".
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would leave the output empty.
    #[error("unable to download '{url}'")]
    Download {
        /// What was to be downloaded, without a password.
        url: String,
        /// Why not.
        source: TransferError,
    },
    /// Going on would leave a part of an archive out.
    #[error("unpacking what '{url}' is")]
    Unpack {
        /// What was downloaded, without a password.
        url: String,
        /// What is wrong with it.
        source: RestoreError,
    },
    /// Going on would hide one package's files behind another's.
    #[error("collision between '{}' and non-directory '{}'", path.display(), existing.display())]
    CollisionWithFile {
        /// A directory.
        path: PathBuf,
        /// What is in its place.
        existing: PathBuf,
    },
    /// Going on would hide one package's files behind another's.
    #[error("collision between non-directory '{}' and directory '{}'", path.display(), existing.display())]
    CollisionWithDirectory {
        /// A file.
        path: PathBuf,
        /// What is in its place.
        existing: PathBuf,
    },
    /// Going on would let chance decide which package's file is seen.
    #[error(
        "packages '{}' and '{}' have the same priority {priority}; use 'nix-env --set-flag \
         priority NUMBER INSTALLED_PKGNAME' to change the priority of one of the conflicting \
         packages (0 being the highest priority)",
        path.display(),
        existing.display()
    )]
    SamePriority {
        /// A file.
        path: PathBuf,
        /// The other one.
        existing: PathBuf,
        /// The priority of both.
        priority: i64,
    },
    /// Going on would leave a part of the channel out.
    #[error("unpacking the channel tarball '{}'", path.display())]
    Tarball {
        /// The tarball.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Going on would write outside the channel, or something that no store object can be.
    #[error("the channel tarball '{}' has '{member}', which {why}", path.display())]
    TarballMember {
        /// The tarball.
        path: PathBuf,
        /// The name of a member.
        member: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Going on would leave all files but one out.
    #[error("channel tarball '{}' contains more than one file", path.display())]
    ManyFiles {
        /// The tarball.
        path: PathBuf,
    },
    /// Going on would make a channel of nothing.
    #[error("channel tarball '{}' contains no file", path.display())]
    NoFile {
        /// The tarball.
        path: PathBuf,
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
