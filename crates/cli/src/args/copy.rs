//! `copy`.

use clap::{ArgGroup, Args};

use super::{BuildArguments, BuilderArguments, OptionArguments, Subject};

/// `copy`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("direction").required(true).args(["to", "from"]))]
pub(crate) struct CopyArguments {
    /// Put paths of the store into this cache, in a directory (`file:`) or on a server, with the
    /// parameters of Nix, such as '?compression=zstd&secret-key=FILE'
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
    /// Fetch paths from this cache, and from no other
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// Paths; of a derivation, the file itself
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Only these paths, and not what they refer to, which the cache must have
    #[arg(long, conflicts_with = "from")]
    pub(crate) no_recursive: bool,
    /// Fetch also what no trusted key has signed
    #[arg(long)]
    pub(crate) no_check_sigs: bool,
    /// Print what happens as JSON lines on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Options of the configuration.
    #[command(flatten)]
    pub(crate) options: OptionArguments,
}

/// Where paths are fetched from, where that is not left to the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The one cache.
    pub(crate) url: String,
    /// Whether it is believed what nobody has signed.
    pub(crate) no_check_sigs: bool,
}

impl CopyArguments {
    /// Returns what it is to fetch paths from a cache.
    #[must_use]
    pub(crate) fn fetching(self, url: String) -> BuildArguments {
        BuildArguments {
            wanted: self.paths,
            check: false,
            repair: false,
            hash: false,
            rounds: None,
            out_link: None,
            dry_run: false,
            building: BuilderArguments {
                // What one path lacks need not keep the others from coming.
                keep_going: true,
                json: self.json,
                options: self.options,
                ..BuilderArguments::default()
            },
            subject: Subject::Copied,
            source: Some(Source {
                url,
                no_check_sigs: self.no_check_sigs,
            }),
        }
    }
}
