//! Settings that decide how a store is used and how paths are realised.
//!
//! [`Settings`] is the value that every other crate reads. The rest of this module is how one comes
//! about: [`conf`] reads the lines of a `nix.conf`, [`options`] is the table of every option that
//! Nix has or had, `field` and `value` read and print what stands right of the equals sign, and
//! [`configuration`] puts assignments into force and remembers where each came from. Files and
//! environment variables are read by the command line.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::StoreDir;

pub mod conf;
pub mod configuration;
pub mod error;
mod field;
pub mod options;
pub mod sandbox_path;
mod value;

pub use configuration::{Assignment, Configuration, Origin, ShownOption};
pub use error::Error;
pub use sandbox_path::SandboxPath;

/// Where a store and its state are on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLayout {
    /// The directory that paths are named by and hashed with.
    pub store_dir: StoreDir,
    /// Where the objects really are; differs from `store_dir` under `--store ROOT`.
    pub real_store_dir: PathBuf,
    /// Database, locks, roots, build directories: `/nix/var/nix`.
    pub state_dir: PathBuf,
    /// Build logs below `drvs/`: `/nix/var/log/nix`.
    pub log_dir: PathBuf,
}

impl StoreLayout {
    /// Returns the layout of a store whose `/nix` lies at `root/nix`.
    #[must_use]
    pub fn under_root(root: &std::path::Path) -> Self {
        Self {
            store_dir: StoreDir::default(),
            real_store_dir: root.join("nix/store"),
            state_dir: root.join("nix/var/nix"),
            log_dir: root.join("nix/var/log/nix"),
        }
    }

    /// Returns whether objects lie somewhere else than where their paths say.
    #[must_use]
    pub fn is_relocated(&self) -> bool {
        self.real_store_dir.as_os_str() != self.store_dir.as_str()
    }
}

/// Whether builders run in the sandbox (`sandbox`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxMode {
    /// Every builder.
    Always,
    /// Every builder whose derivation does not say `__noChroot`.
    Relaxed,
    /// None.
    Never,
}

/// How durable a commit of the database is (`fsync-metadata`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataSync {
    /// A committed row survives a power cut.
    Durable,
    /// It survives a crash of the program.
    Relaxed,
}

/// Every setting that the services and the scheduler read, with its value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one of the user's independent switches, and named like it"
)]
pub struct Settings {
    /// The platform of this machine (`system`).
    pub system: String,
    /// Further platforms that this machine runs (`extra-platforms`).
    pub extra_platforms: BTreeSet<String>,
    /// What this machine offers to `requiredSystemFeatures` (`system-features`).
    pub system_features: BTreeSet<String>,
    /// Experimental features that are on (`experimental-features`); see
    /// [`Settings::has_ca_derivations`].
    pub experimental_features: BTreeSet<String>,
    /// Local builds at once (`max-jobs`); 0 means none.
    pub max_jobs: usize,
    /// Cores for each builder (`cores`); 0 means all.
    pub cores: usize,
    /// Substitutions at once (`max-substitution-jobs`). More than the 16 of Nix: small archives of a
    /// server that is far away spend their time on the way.
    pub max_substitution_jobs: usize,
    /// Whether to go on after a failure (`keep-going`).
    pub keep_going: bool,
    /// Whether to keep the build directory of a failed build (`keep-failed`).
    pub keep_failed: bool,
    /// Whether to build what could not be downloaded (`fallback`).
    pub fallback: bool,
    /// Longest run of one builder (`timeout`).
    pub timeout: Option<Duration>,
    /// Longest silence of one builder (`max-silent-time`).
    pub max_silent_time: Option<Duration>,
    /// Most bytes of log of one builder (`max-build-log-size`).
    pub max_build_log_size_bytes: Option<u64>,
    /// Lines of log that a failure quotes (`log-lines`).
    pub log_lines: usize,
    /// Whether logs are kept (`keep-build-log`).
    pub keep_log: bool,
    /// Whether kept logs are compressed (`compress-build-log`).
    pub compress_log: bool,
    /// Whether builders are sandboxed (`sandbox`).
    pub sandbox: SandboxMode,
    /// Host paths that builders see (`sandbox-paths` and `extra-sandbox-paths`).
    pub sandbox_paths: Vec<SandboxPath>,
    /// The build directory as the sandbox shows it (`sandbox-build-dir`).
    pub sandbox_build_dir: PathBuf,
    /// Size of `/dev/shm`, in the words of mount(8) (`sandbox-dev-shm-size`).
    pub sandbox_dev_shm_size: String,
    /// Where build directories are made (`build-dir`); the state directory's `builds` if `None`.
    pub build_dir: Option<PathBuf>,
    /// The group whose members run builders (`build-users-group`); empty means none.
    pub build_users_group: String,
    /// Whether builders get users of a range even if there is such a group (`auto-allocate-uids`).
    pub auto_allocate_uids: bool,
    /// First uid that is given out where no group is usable (`start-id`).
    pub start_id: u32,
    /// How many uids from there (`id-count`).
    pub id_count: u32,
    /// Whether builders may make user namespaces (`allow-nested-userns`).
    pub allow_nested_userns: bool,
    /// Whether builders see kernel 2.6 (`impersonate-linux-26`).
    pub impersonate_linux_26: bool,
    /// Prefixes that `__impureHostDeps` may name (`allowed-impure-host-deps`).
    pub allowed_impure_host_deps: BTreeSet<PathBuf>,
    /// A program that may show further host paths to each builder (`pre-build-hook`).
    pub pre_build_hook: Option<PathBuf>,
    /// The launcher, if it is not beside the running program (`sandbox-init`).
    pub sandbox_init: Option<PathBuf>,
    /// Whether contents are on disk before a path is valid (`fsync-store-paths`).
    pub fsync_store_paths: bool,
    /// How durable the database's commits are (`fsync-metadata`).
    pub metadata_sync: MetadataSync,
    /// Whether equal files of the store are one file with many names (`auto-optimise-store`).
    pub auto_optimise_store: bool,
    /// Files with the keys that sign what is built (`secret-key-files`).
    pub secret_key_files: BTreeSet<PathBuf>,
    /// Program that runs after each build (`post-build-hook`).
    pub post_build_hook: Option<PathBuf>,
    /// How often a download is tried at most (`download-attempts`).
    pub download_attempts: usize,
    /// How long connecting to a server may take (`connect-timeout`).
    pub connect_timeout: Option<Duration>,
    /// How long a server may be silent (`stalled-download-timeout`).
    pub stalled_download_timeout: Option<Duration>,
    /// Servers that have files by their hashes, in the order in which they are asked
    /// (`hashed-mirrors`).
    pub hashed_mirrors: Vec<String>,
    /// Passwords for servers (`netrc-file`).
    pub netrc_file: PathBuf,
    /// Certificates that servers are verified with, if not the system's (`ssl-cert-file`).
    pub ssl_cert_file: Option<PathBuf>,
    /// Whether caches may be asked (`substitute`).
    pub substitute: bool,
    /// Whether derivations that forbid it are taken from caches too (`always-allow-substitutes`).
    pub always_allow_substitutes: bool,
    /// The caches, as addresses or absolute paths (`substituters`).
    pub substituters: Vec<String>,
    /// Further caches that clients who are not trusted may choose (`trusted-substituters`).
    pub trusted_substituters: BTreeSet<String>,
    /// Keys whose signatures make a cache's word good, `name:base64` (`trusted-public-keys`).
    pub trusted_public_keys: Vec<String>,
    /// Whether only signed paths are taken from caches, or paths whose names follow from their
    /// contents (`require-sigs`).
    pub require_sigs: bool,
    /// Questions to one cache at once, and as many downloads besides (`http-connections`); 0 means
    /// any number.
    pub http_connections: usize,
    /// Whether HTTP/2 may be spoken (`http2`).
    pub http2: bool,
    /// What is said of goalctl to a server, after its name (`user-agent-suffix`).
    pub user_agent_suffix: String,
    /// How long a cache may take for an answer while others wait for it (`cache-answer-timeout`).
    pub cache_answer_timeout: Option<Duration>,
    /// How long it is remembered that a cache has a path (`narinfo-cache-positive-ttl`).
    pub narinfo_cache_positive_ttl: Duration,
    /// How long it is remembered that a cache does not have one (`narinfo-cache-negative-ttl`).
    pub narinfo_cache_negative_ttl: Duration,
    /// How long it is remembered what a cache says of itself (`narinfo-cache-meta-ttl`).
    pub narinfo_cache_meta_ttl: Duration,
    /// How many times more each derivation is built, to be compared (`repeat`).
    pub repeat: usize,
    /// Whether outputs that then differ are a failure (`enforce-determinism`).
    pub enforce_determinism: bool,
    /// Whether the log of every round is shown (`print-repeated-builds`).
    pub print_repeated_builds: bool,
    /// The program that shows how outputs differ (`diff-hook`).
    pub diff_hook: Option<PathBuf>,
    /// Whether it runs (`run-diff-hook`).
    pub run_diff_hook: bool,
}

/// The experimental feature of outputs whose paths follow from their contents.
pub const CA_DERIVATIONS: &str = "ca-derivations";

impl Settings {
    /// Returns whether derivations may have floating outputs, which are resolved and remembered as
    /// realisations (`ca-derivations` among `experimental-features`).
    #[must_use]
    pub fn has_ca_derivations(&self) -> bool {
        self.experimental_features.contains(CA_DERIVATIONS)
    }
}

impl Default for Settings {
    /// Returns the defaults of SPEC F7, for a machine with one core; the command line fills in the
    /// machine's own platform, cores and features.
    fn default() -> Self {
        Self {
            system: format!("{}-linux", std::env::consts::ARCH),
            extra_platforms: BTreeSet::new(),
            experimental_features: BTreeSet::new(),
            system_features: ["nixos-test", "benchmark", "big-parallel"]
                .into_iter()
                .map(str::to_owned)
                .collect(),
            max_jobs: 1,
            cores: 0,
            max_substitution_jobs: 32,
            keep_going: false,
            keep_failed: false,
            fallback: false,
            timeout: None,
            max_silent_time: None,
            max_build_log_size_bytes: None,
            log_lines: 25,
            keep_log: true,
            compress_log: true,
            sandbox: SandboxMode::Always,
            sandbox_paths: Vec::new(),
            sandbox_build_dir: PathBuf::from("/build"),
            sandbox_dev_shm_size: "50%".to_owned(),
            build_dir: None,
            build_users_group: String::new(),
            auto_allocate_uids: false,
            start_id: 872_415_232,
            id_count: 8_388_608,
            allow_nested_userns: true,
            impersonate_linux_26: false,
            allowed_impure_host_deps: BTreeSet::new(),
            pre_build_hook: None,
            sandbox_init: None,
            fsync_store_paths: true,
            metadata_sync: MetadataSync::Durable,
            auto_optimise_store: false,
            secret_key_files: BTreeSet::new(),
            post_build_hook: None,
            download_attempts: 5,
            connect_timeout: None,
            stalled_download_timeout: Some(Duration::from_mins(5)),
            hashed_mirrors: Vec::new(),
            netrc_file: PathBuf::from("/etc/nix/netrc"),
            ssl_cert_file: None,
            substitute: true,
            always_allow_substitutes: false,
            substituters: vec!["https://cache.nixos.org/".to_owned()],
            trusted_substituters: BTreeSet::new(),
            trusted_public_keys: vec![
                "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".to_owned(),
            ],
            require_sigs: true,
            http_connections: 25,
            http2: true,
            user_agent_suffix: String::new(),
            cache_answer_timeout: Some(Duration::from_secs(5)),
            narinfo_cache_positive_ttl: Duration::from_hours(30 * 24),
            narinfo_cache_negative_ttl: Duration::from_hours(1),
            narinfo_cache_meta_ttl: Duration::from_hours(7 * 24),
            repeat: 0,
            enforce_determinism: true,
            print_repeated_builds: true,
            diff_hook: None,
            run_diff_hook: false,
        }
    }
}
