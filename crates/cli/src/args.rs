//! The command line: what can be asked, and the help for it.

mod interchange;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::exit_status;

pub(crate) use self::interchange::{
    InterchangeCommand, KeyAction, RegisterValidityArguments, SignArguments,
};

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
#[derive(Debug, Args)]
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
            Command::Build(arguments) => Some(&arguments.options),
            Command::Repair(arguments) => Some(&arguments.options),
            Command::Add(arguments) => Some(&arguments.options),
            Command::Instantiate(arguments) => Some(&arguments.options),
            Command::Show(arguments) => Some(&arguments.options),
            Command::PathInfo(arguments) => Some(&arguments.options),
            Command::Query(arguments) => Some(&arguments.options),
            Command::Log(arguments) => Some(&arguments.options),
            Command::Config(arguments) => {
                let ConfigAction::Show { options, .. } = &arguments.action;
                Some(options)
            }
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
    /// Print the log of a build
    Log(LogArguments),
    /// Write, read and hash archives of files (NAR)
    Nar(NarArguments),
    /// Hand paths, what is known of them, or trust in them to another store
    #[command(flatten)]
    Interchange(InterchangeCommand),
    /// Show the configuration
    Config(ConfigArguments),
    /// Run the scheduler's decisions in a pretended world, and check every invariant
    Simulate(SimulateArguments),
}

/// `build`.
#[derive(Debug, Args)]
#[command(after_help = exit_status::HELP)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent switch of the command line"
)]
pub(crate) struct BuildArguments {
    /// DRV, DRV^out,dev, DRV!out, a store path, goals.toml, or goals.toml#NAME
    #[arg(required = true, value_name = "X")]
    pub(crate) wanted: Vec<String>,
    /// Local builds at once; 'auto' for one each core
    #[arg(short = 'j', long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_jobs: Option<String>,
    /// Cores for each builder; 0 for all
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cores: Option<String>,
    /// Go on with other goals after a failure
    #[arg(short, long)]
    pub(crate) keep_going: bool,
    /// Keep the build directory of a failed build
    #[arg(short = 'K', long)]
    pub(crate) keep_failed: bool,
    /// Build what could not be downloaded
    #[arg(long)]
    pub(crate) fallback: bool,
    /// Build what is valid again, and compare
    #[arg(long, group = "mode")]
    pub(crate) check: bool,
    /// Build again what is corrupt or missing, also below the outputs
    #[arg(long, group = "mode", conflicts_with = "rounds")]
    pub(crate) repair: bool,
    /// Build a fixed output whose hash is not known yet: keep it where its contents say, and print
    /// its hash
    #[arg(long, group = "mode", conflicts_with = "rounds")]
    pub(crate) hash: bool,
    /// Build N times, and compare
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,
    /// Kill a builder after this many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) timeout: Option<String>,
    /// Kill a builder that has been silent for this many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) max_silent_time: Option<String>,
    /// Make a link to the first output; further ones get a suffix
    #[arg(short, long, value_name = "LINK")]
    pub(crate) out_link: Option<PathBuf>,
    /// Host paths that builders see, such as '/usr /bin/sh=/opt/busybox'
    #[arg(long, value_name = "PATHS", conflicts_with = "extra_sandbox_paths")]
    pub(crate) sandbox_paths: Option<String>,
    /// Host paths that builders see besides those of the configuration
    #[arg(long, value_name = "PATHS")]
    pub(crate) extra_sandbox_paths: Option<String>,
    /// Print what would be built, and build nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what builders write also on a terminal
    #[arg(short = 'L', long)]
    pub(crate) print_build_logs: bool,
    /// Print events and the report as JSON lines on standard output, and no paths
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
    /// What the words are about.
    #[arg(skip)]
    pub(crate) subject: Subject,
}

/// What the words of a build are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Subject {
    /// They are to be realised.
    #[default]
    Realised,
    /// They are paths, to be repaired by whatever made them.
    Repaired,
}

/// `repair`.
#[derive(Debug, Args)]
#[command(after_help = exit_status::HELP)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent switch of the command line"
)]
pub(crate) struct RepairArguments {
    /// Paths
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Local builds at once; 'auto' for one each core
    #[arg(short = 'j', long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_jobs: Option<String>,
    /// Cores for each builder; 0 for all
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cores: Option<String>,
    /// Go on with other goals after a failure
    #[arg(short, long)]
    pub(crate) keep_going: bool,
    /// Keep the build directory of a failed build
    #[arg(short = 'K', long)]
    pub(crate) keep_failed: bool,
    /// Print what builders write also on a terminal
    #[arg(short = 'L', long)]
    pub(crate) print_build_logs: bool,
    /// Print events and the report as JSON lines on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

impl From<RepairArguments> for BuildArguments {
    fn from(arguments: RepairArguments) -> Self {
        Self {
            wanted: arguments.paths,
            max_jobs: arguments.max_jobs,
            cores: arguments.cores,
            keep_going: arguments.keep_going,
            keep_failed: arguments.keep_failed,
            fallback: false,
            check: false,
            repair: true,
            hash: false,
            rounds: None,
            timeout: None,
            max_silent_time: None,
            out_link: None,
            sandbox_paths: None,
            extra_sandbox_paths: None,
            dry_run: false,
            print_build_logs: arguments.print_build_logs,
            json: arguments.json,
            options: arguments.options,
            subject: Subject::Repaired,
        }
    }
}

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
            Command::Build(BuildArguments { max_jobs: Some(jobs), .. }) if jobs == "0"
        ));
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
