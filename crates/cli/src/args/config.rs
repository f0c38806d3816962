//! `config`: the configuration.

use clap::{Args, Subcommand};

use super::OptionArguments;

/// `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    /// What to do with the configuration.
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

/// What can be done with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every option with its value, its default, and where the value comes from
    Show {
        /// Only these options, by any of their names
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Options of the configuration.
        #[command(flatten)]
        options: OptionArguments,
    },
}
