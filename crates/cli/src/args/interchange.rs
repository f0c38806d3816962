//! Commands that hand paths, what is known of them, and trust in them from one store to another.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OptionArguments;

/// What goes from one store to another.
#[derive(Debug, Subcommand)]
pub(crate) enum InterchangeCommand {
    /// Write paths with their contents to standard output, as 'nix-store --export' does
    Export(ExportArguments),
    /// Read what 'export' wrote from standard input, and print the paths that are in the store then
    Import(ImportArguments),
    /// Print what is known of paths, or of every valid path, as 'nix-store --dump-db' does
    DumpDb(DumpDbArguments),
    /// Read what 'dump-db' wrote from standard input, of paths that lie in the store as they should
    LoadDb(LoadDbArguments),
    /// Read from standard input what paths that lie in the store refer to, and make them valid
    RegisterValidity(RegisterValidityArguments),
    /// Sign paths with a secret key
    Sign(SignArguments),
    /// Make keys that sign paths
    Key(KeyArguments),
}

impl InterchangeCommand {
    /// Returns the options that stand after the command.
    #[must_use]
    pub(crate) fn options(&self) -> Option<&OptionArguments> {
        match self {
            Self::Export(arguments) => Some(&arguments.options),
            Self::Import(arguments) => Some(&arguments.options),
            Self::DumpDb(arguments) => Some(&arguments.options),
            Self::LoadDb(arguments) => Some(&arguments.options),
            Self::RegisterValidity(arguments) => Some(&arguments.options),
            Self::Sign(arguments) => Some(&arguments.options),
            Self::Key(_) => None,
        }
    }
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Paths; what they refer to is not exported unless it is named
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `dump-db`.
#[derive(Debug, Args)]
pub(crate) struct DumpDbArguments {
    /// Paths; all valid ones if none is named
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `load-db`.
#[derive(Debug, Args)]
pub(crate) struct LoadDbArguments {
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `register-validity`.
#[derive(Debug, Args)]
pub(crate) struct RegisterValidityArguments {
    /// After each path there are its hash and size, with which its contents are compared
    #[arg(long)]
    pub(crate) hash_given: bool,
    /// Replace what is known of paths that are valid already
    #[arg(long)]
    pub(crate) reregister: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `sign`.
#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// The file with the secret key
    #[arg(short, long, value_name = "FILE")]
    pub(crate) key_file: PathBuf,
    /// Paths
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Also sign everything that these refer to
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `key`.
#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    /// What to do about keys.
    #[command(subcommand)]
    pub(crate) action: KeyAction,
}

/// What can be done about keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Print a new secret key, as 'nix key generate-secret' does
    Generate {
        /// What signatures call it, such as cache.example.org-1
        name: String,
    },
    /// Read a secret key from standard input, and print the public key that belongs to it
    ConvertSecretToPublic,
}
