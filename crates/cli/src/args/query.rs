//! Commands that ask what the store knows: `show`, `path-info`, `query`, `realisation`, `log`.

use clap::{Args, Subcommand};

use super::OptionArguments;

/// `show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// Derivations, outputs of valid derivations, or goals.toml
    #[arg(required = true, value_name = "DRV")]
    pub(crate) paths: Vec<String>,
    /// Also print every derivation that these need
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Accepted for symmetry; the output is always JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `path-info`.
#[derive(Debug, Args)]
pub(crate) struct PathInfoArguments {
    /// Paths
    #[arg(required_unless_present = "all", value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Also print everything that these refer to
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Print every valid path
    #[arg(long, conflicts_with = "paths")]
    pub(crate) all: bool,
    /// Print JSON, as 'nix path-info' does
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `query`.
#[derive(Debug, Args)]
pub(crate) struct QueryArguments {
    /// The question.
    #[command(flatten)]
    pub(crate) question: Question,
    /// Paths
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// What `query` can answer.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "exactly one of them is given; clap makes sure of it"
)]
pub(crate) struct Question {
    /// What the path refers to
    #[arg(long)]
    pub(crate) references: bool,
    /// What refers to the path
    #[arg(long)]
    pub(crate) referrers: bool,
    /// The path and everything that it needs
    #[arg(short = 'R', long)]
    pub(crate) requisites: bool,
    /// The derivation that the path was made by
    #[arg(short, long)]
    pub(crate) deriver: bool,
    /// The outputs of a derivation
    #[arg(long)]
    pub(crate) outputs: bool,
    /// The path and everything that it needs, as a tree
    #[arg(long)]
    pub(crate) tree: bool,
    /// The hash of the path's contents
    #[arg(long)]
    pub(crate) hash: bool,
    /// The size of the path's contents in bytes
    #[arg(long)]
    pub(crate) size: bool,
}

/// `realisation`.
#[derive(Debug, Args)]
pub(crate) struct RealisationArguments {
    /// What to ask.
    #[command(subcommand)]
    pub(crate) action: RealisationAction,
}

/// What can be asked about realisations.
#[derive(Debug, Subcommand)]
pub(crate) enum RealisationAction {
    /// Print what is known about the realisations of outputs, as 'nix realisation info' does
    Info(RealisationInfoArguments),
}

/// `realisation info`.
#[derive(Debug, Args)]
pub(crate) struct RealisationInfoArguments {
    /// DRV, DRV^out,dev, DRV!out, goals.toml, or store paths
    #[arg(required = true, value_name = "X")]
    pub(crate) wanted: Vec<String>,
    /// Print JSON, as 'nix realisation info' does
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `log`.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// Derivations, or outputs of valid derivations
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// `store`.
#[derive(Debug, Args)]
pub(crate) struct StoreArguments {
    /// What to ask.
    #[command(subcommand)]
    pub(crate) action: StoreAction,
}

/// What can be asked of stores and caches as such.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreAction {
    /// Find out whether a cache or a store can be used, and what it says of itself
    Ping(PingArguments),
}

/// `store ping`.
#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// An address as in 'substituters'; the store that goalctl works on, if none is given
    #[arg(value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}
