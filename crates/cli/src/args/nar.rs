//! `nar`: archives, which need no store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `nar`.
#[derive(Debug, Args)]
pub(crate) struct NarArguments {
    /// What to do with the archive.
    #[command(subcommand)]
    pub(crate) action: NarAction,
}

/// What can be done with an archive.
#[derive(Debug, Subcommand)]
pub(crate) enum NarAction {
    /// Write the archive of a file or directory to standard output
    Dump {
        /// The file or directory
        path: PathBuf,
    },
    /// Read an archive from standard input, and make what it holds
    Restore {
        /// Where; nothing may be there yet
        path: PathBuf,
    },
    /// Print the SHA-256 hash and the size of the archive of a file or directory
    Hash {
        /// The file or directory
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}
