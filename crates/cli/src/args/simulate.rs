//! `simulate`: a pretended world.

use clap::Args;

/// `simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// Goals of a layered graph
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) goals: u32,
    /// How many goals each layer has
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) width: u32,
    /// Inputs of each goal, in the layer below
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) inputs: u32,
    /// Run this many random worlds instead, in which anything may fail
    #[arg(long, value_name = "N", conflicts_with_all = ["goals", "width", "inputs"])]
    pub(crate) worlds: Option<u64>,
    /// The first seed; the same one gives the same run
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
