//! Commands that run builders: `build`, `repair`.

use std::path::PathBuf;

use clap::Args;

use super::{OptionArguments, Source};
use crate::exit_status;

/// How builders are run, whatever they are run for.
#[derive(Debug, Default, PartialEq, Eq, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent switch of the command line"
)]
pub(crate) struct BuilderArguments {
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
    /// Kill a builder after this many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) timeout: Option<String>,
    /// Kill a builder that has been silent for this many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) max_silent_time: Option<String>,
    /// Host paths that builders see, such as '/usr /bin/sh=/opt/busybox'
    #[arg(long, value_name = "PATHS", conflicts_with = "extra_sandbox_paths")]
    pub(crate) sandbox_paths: Option<String>,
    /// Host paths that builders see besides those of the configuration
    #[arg(long, value_name = "PATHS")]
    pub(crate) extra_sandbox_paths: Option<String>,
    /// Print what builders write also on a terminal
    #[arg(short = 'L', long)]
    pub(crate) print_build_logs: bool,
    /// Print events and the report as JSON lines on standard output, and no paths
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
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
    /// Make a link to the first output; further ones get a suffix
    #[arg(short, long, value_name = "LINK")]
    pub(crate) out_link: Option<PathBuf>,
    /// Print what would be built, and build nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How builders are run.
    #[command(flatten)]
    pub(crate) building: BuilderArguments,
    /// What the words are about.
    #[arg(skip)]
    pub(crate) subject: Subject,
    /// The one cache that is asked, if not those of the settings.
    #[arg(skip)]
    pub(crate) source: Option<Source>,
}

/// What the words of a build are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Subject {
    /// They are to be realised.
    #[default]
    Realised,
    /// They are paths, to be valid by whatever means but building.
    Ensured,
    /// The same, and nobody is waiting to be told what they are.
    Copied,
    /// They are paths, to be repaired by whatever made them.
    Repaired,
}

/// `ensure`.
#[derive(Debug, Args)]
pub(crate) struct EnsureArguments {
    /// Paths; of a derivation, the file itself
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Go on with other paths after a failure
    #[arg(short, long)]
    pub(crate) keep_going: bool,
    /// Print what would be fetched, and fetch nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print events and the report as JSON lines on standard output, and no paths
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

impl From<EnsureArguments> for BuildArguments {
    fn from(arguments: EnsureArguments) -> Self {
        Self {
            wanted: arguments.paths,
            check: false,
            repair: false,
            hash: false,
            rounds: None,
            out_link: None,
            dry_run: arguments.dry_run,
            building: BuilderArguments {
                keep_going: arguments.keep_going,
                json: arguments.json,
                options: arguments.options,
                ..BuilderArguments::default()
            },
            subject: Subject::Ensured,
            source: None,
        }
    }
}

/// `repair`.
#[derive(Debug, Args)]
#[command(after_help = exit_status::HELP)]
pub(crate) struct RepairArguments {
    /// Paths
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// How builders are run.
    #[command(flatten)]
    pub(crate) building: BuilderArguments,
}

impl From<RepairArguments> for BuildArguments {
    fn from(arguments: RepairArguments) -> Self {
        Self {
            wanted: arguments.paths,
            check: false,
            repair: true,
            hash: false,
            rounds: None,
            out_link: None,
            dry_run: false,
            building: arguments.building,
            subject: Subject::Repaired,
            source: None,
        }
    }
}
