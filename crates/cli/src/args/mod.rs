//! The command line: what can be asked, and the help for it.
//!
//! Each kind of command has a file; here is what holds for all of them.

mod build;
mod config;
mod copy;
mod interchange;
mod nar;
mod query;
mod simulate;
mod write;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::exit_status;

pub(crate) use self::build::{
    BuildArguments, BuilderArguments, EnsureArguments, RepairArguments, Subject,
};
pub(crate) use self::config::{ConfigAction, ConfigArguments};
pub(crate) use self::copy::{CopyArguments, Source};
pub(crate) use self::interchange::{
    InterchangeCommand, KeyAction, RegisterValidityArguments, SignArguments,
};
pub(crate) use self::nar::{NarAction, NarArguments};
pub(crate) use self::query::{
    LogArguments, PathInfoArguments, PingArguments, QueryArguments, Question, RealisationAction,
    RealisationArguments, RealisationInfoArguments, ShowArguments, StoreAction, StoreArguments,
};
pub(crate) use self::simulate::SimulateArguments;
pub(crate) use self::write::{AddArguments, InstantiateArguments};

/// Realises store paths: takes derivations, and builds what they say.
#[derive(Debug, Parser)]
#[command(
    name = "goalctl",
    version,
    about,
    after_help = exit_status::HELP,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: GlobalArguments,
    /// Options before the command.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of the configuration.
///
/// They stand at the top and in every command that has settings, and are no global flag: of those
/// clap forgets what stood before the command if anything stands after it.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct OptionArguments {
    /// Set an option of nix.conf, over every file
    #[arg(
        long,
        num_args = 2,
        value_names = ["NAME", "VALUE"],
        action = ArgAction::Append,
        allow_hyphen_values = true
    )]
    pub(crate) option: Vec<String>,
}

impl Arguments {
    /// Returns the words after every `--option`, two for each, in the order of the command line.
    #[must_use]
    pub(crate) fn typed_options(&self) -> Vec<String> {
        let after = match &self.command {
            Command::Build(arguments) => Some(&arguments.building.options),
            Command::Ensure(arguments) => Some(&arguments.options),
            Command::Repair(arguments) => Some(&arguments.building.options),
            Command::Add(arguments) => Some(&arguments.options),
            Command::Instantiate(arguments) => Some(&arguments.options),
            Command::Show(arguments) => Some(&arguments.options),
            Command::PathInfo(arguments) => Some(&arguments.options),
            Command::Query(arguments) => Some(&arguments.options),
            Command::Realisation(arguments) => {
                let RealisationAction::Info(arguments) = &arguments.action;
                Some(&arguments.options)
            }
            Command::Log(arguments) => Some(&arguments.options),
            Command::Store(arguments) => {
                let StoreAction::Ping(arguments) = &arguments.action;
                Some(&arguments.options)
            }
            Command::Config(arguments) => {
                let ConfigAction::Show { options, .. } = &arguments.action;
                Some(options)
            }
            Command::Copy(arguments) => Some(&arguments.options),
            Command::Interchange(command) => command.options(),
            Command::Nar(_) | Command::Simulate(_) => None,
        };
        let before = self.options.option.iter();
        let after = after.into_iter().flat_map(|options| &options.option);
        before.chain(after).cloned().collect()
    }
}

/// What holds for every command.
#[derive(Debug, Args)]
pub(crate) struct GlobalArguments {
    /// Work on the store at ROOT/nix/store, with its state at ROOT/nix/var/nix
    #[arg(long, global = true, value_name = "ROOT")]
    pub(crate) store: Option<PathBuf>,
    /// Say more on standard error; may be given three times
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build derivations, and print the paths of their outputs
    Build(BuildArguments),
    /// Make paths valid by fetching them from caches, and print them
    Ensure(EnsureArguments),
    /// Build again what is corrupt or missing of paths, and of everything below them
    Repair(RepairArguments),
    /// Copy files or directories into the store, and print their paths
    Add(AddArguments),
    /// Write the derivations of a goals.toml into the store, and print their paths
    Instantiate(InstantiateArguments),
    /// Print derivations as JSON, as 'nix show-derivation' does
    Show(ShowArguments),
    /// Print what the store knows about paths
    PathInfo(PathInfoArguments),
    /// Ask about the graph of paths
    Query(QueryArguments),
    /// Ask which paths outputs were realised by
    Realisation(RealisationArguments),
    /// Print the log of a build
    Log(LogArguments),
    /// Ask about a cache or a store as such
    Store(StoreArguments),
    /// Write, read and hash archives of files (NAR)
    Nar(NarArguments),
    /// Put paths into a binary cache, or fetch them from one
    Copy(CopyArguments),
    /// Hand paths, what is known of them, or trust in them to another store
    #[command(flatten)]
    Interchange(InterchangeCommand),
    /// Show the configuration
    Config(ConfigArguments),
    /// Run the scheduler's decisions in a pretended world, and check every invariant
    Simulate(SimulateArguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_before_and_after_the_command() {
        let arguments = Arguments::parse_from([
            "goalctl", "--option", "cores", "1", "build", "x.drv", "--store", "/r", "--option",
            "timeout", "-1", "-vv", "-j", "0",
        ]);
        assert_eq!(arguments.typed_options(), ["cores", "1", "timeout", "-1"]);
        assert_eq!(arguments.global.store, Some(PathBuf::from("/r")));
        assert_eq!(arguments.global.verbose, 2);
        assert!(matches!(
            arguments.command,
            Command::Build(arguments) if arguments.building.max_jobs.as_deref() == Some("0")
        ));
    }

    #[test]
    fn a_repair_has_every_flag_that_is_about_builders() {
        let flags = [
            "-j",
            "1",
            "--cores",
            "2",
            "-k",
            "-K",
            "--timeout",
            "3",
            "--max-silent-time",
            "4",
            "--extra-sandbox-paths",
            "/usr",
            "-L",
            "--json",
        ];
        let parse = |command| {
            let words = ["goalctl", command, "x"].into_iter().chain(flags);
            Arguments::parse_from(words).command
        };
        let (Command::Build(build), Command::Repair(repair)) = (parse("build"), parse("repair"))
        else {
            panic!("these are the commands that were asked for");
        };
        assert_eq!(build.building, repair.building);
        assert_eq!(repair.building.timeout.as_deref(), Some("3"));
    }

    #[test]
    fn a_query_asks_exactly_one_question() {
        for words in [
            &["goalctl", "query", "x"][..],
            &["goalctl", "query", "--tree", "--size", "x"],
            &["goalctl", "query", "--tree"],
            &["goalctl", "build"],
            &["goalctl", "build", "x", "--option", "cores"],
        ] {
            assert!(Arguments::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
