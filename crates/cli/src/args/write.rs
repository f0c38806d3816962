//! Commands that put something into the store: `add`, `instantiate`.

use std::path::PathBuf;

use clap::Args;

use super::OptionArguments;

/// `add`.
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Files or directories; a FILE.drv is added as the derivation that it holds
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The name in the store, instead of the file's own
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Address a single file by its plain bytes
    #[arg(long)]
    pub(crate) flat: bool,
    /// The hash function: md5, sha1, sha256 or sha512
    #[arg(long, value_name = "ALGORITHM", default_value = "sha256")]
    pub(crate) hash: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `instantiate`.
#[derive(Debug, Args)]
pub(crate) struct InstantiateArguments {
    /// goals.toml, or goals.toml#NAME for a single goal
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}
