//! Options that concern building: those that set something, and those that are refused.

use super::super::field::Field;
use super::{SettingOption, implemented, refused};

pub(super) const OPTIONS: &[SettingOption] = &[
    implemented(
        "allow-nested-userns",
        &[],
        Field::Switch(|s| &mut s.allow_nested_userns),
    ),
    implemented(
        "allowed-impure-host-deps",
        &[],
        Field::Paths(|s| &mut s.allowed_impure_host_deps),
    ),
    implemented(
        "auto-allocate-uids",
        &[],
        Field::Switch(|s| &mut s.auto_allocate_uids),
    ),
    implemented(
        "auto-optimise-store",
        &[],
        Field::Switch(|s| &mut s.auto_optimise_store),
    ),
    implemented("build-dir", &[], Field::OptionalPath(|s| &mut s.build_dir)),
    implemented(
        "build-users-group",
        &[],
        Field::Text(|s| &mut s.build_users_group),
    ),
    implemented(
        "compress-build-log",
        &["build-compress-log"],
        Field::Switch(|s| &mut s.compress_log),
    ),
    implemented(
        "connect-timeout",
        &[],
        Field::Seconds(|s| &mut s.connect_timeout),
    ),
    implemented("cores", &["build-cores"], Field::Count(|s| &mut s.cores)),
    implemented("diff-hook", &[], Field::OptionalPath(|s| &mut s.diff_hook)),
    implemented(
        "enforce-determinism",
        &[],
        Field::Switch(|s| &mut s.enforce_determinism),
    ),
    implemented(
        "experimental-features",
        &[],
        Field::Words(|s| &mut s.experimental_features),
    ),
    implemented(
        "extra-platforms",
        &[],
        Field::Words(|s| &mut s.extra_platforms),
    ),
    implemented(
        "fallback",
        &["build-fallback"],
        Field::Switch(|s| &mut s.fallback),
    ),
    implemented(
        "filetransfer-retry-attempts",
        &["download-attempts"],
        Field::Count(|s| &mut s.download_attempts),
    ),
    implemented(
        "fsync-metadata",
        &[],
        Field::Durability(|s| &mut s.metadata_sync),
    ),
    implemented(
        "fsync-store-paths",
        &[],
        Field::Switch(|s| &mut s.fsync_store_paths),
    ),
    implemented(
        "hashed-mirrors",
        &[],
        Field::Sequence(|s| &mut s.hashed_mirrors),
    ),
    implemented("id-count", &[], Field::Id(|s| &mut s.id_count)),
    implemented(
        "impersonate-linux-26",
        &["build-impersonate-linux-26"],
        Field::Switch(|s| &mut s.impersonate_linux_26),
    ),
    implemented(
        "keep-build-log",
        &["build-keep-log"],
        Field::Switch(|s| &mut s.keep_log),
    ),
    implemented("keep-failed", &[], Field::Switch(|s| &mut s.keep_failed)),
    implemented("keep-going", &[], Field::Switch(|s| &mut s.keep_going)),
    implemented("log-lines", &[], Field::Count(|s| &mut s.log_lines)),
    implemented(
        "max-build-log-size",
        &["build-max-log-size"],
        Field::Bytes(|s| &mut s.max_build_log_size_bytes),
    ),
    implemented(
        "max-jobs",
        &["build-max-jobs"],
        Field::AutoCount(|s| &mut s.max_jobs),
    ),
    implemented(
        "max-silent-time",
        &["build-max-silent-time"],
        Field::Seconds(|s| &mut s.max_silent_time),
    ),
    implemented(
        "max-substitution-jobs",
        &["substitution-max-jobs"],
        Field::Count(|s| &mut s.max_substitution_jobs),
    ),
    implemented("netrc-file", &[], Field::Path(|s| &mut s.netrc_file)),
    implemented(
        "post-build-hook",
        &[],
        Field::OptionalPath(|s| &mut s.post_build_hook),
    ),
    implemented(
        "pre-build-hook",
        &[],
        Field::OptionalPath(|s| &mut s.pre_build_hook),
    ),
    implemented(
        "print-repeated-builds",
        &[],
        Field::Switch(|s| &mut s.print_repeated_builds),
    ),
    implemented("repeat", &["build-repeat"], Field::Count(|s| &mut s.repeat)),
    implemented(
        "run-diff-hook",
        &[],
        Field::Switch(|s| &mut s.run_diff_hook),
    ),
    implemented(
        "sandbox",
        &["build-use-chroot", "build-use-sandbox"],
        Field::Sandbox(|s| &mut s.sandbox),
    ),
    implemented(
        "sandbox-build-dir",
        &[],
        Field::Path(|s| &mut s.sandbox_build_dir),
    ),
    implemented(
        "sandbox-dev-shm-size",
        &[],
        Field::Text(|s| &mut s.sandbox_dev_shm_size),
    ),
    implemented(
        "sandbox-init",
        &[],
        Field::OptionalPath(|s| &mut s.sandbox_init),
    ),
    implemented(
        "sandbox-paths",
        &["build-chroot-dirs", "build-sandbox-paths"],
        Field::SandboxPaths(|s| &mut s.sandbox_paths),
    ),
    implemented(
        "secret-key-files",
        &["binary-cache-secret-key-file"],
        Field::Paths(|s| &mut s.secret_key_files),
    ),
    implemented(
        "ssl-cert-file",
        &[],
        Field::OptionalPath(|s| &mut s.ssl_cert_file),
    ),
    implemented(
        "stalled-download-timeout",
        &[],
        Field::Seconds(|s| &mut s.stalled_download_timeout),
    ),
    implemented("start-id", &[], Field::Id(|s| &mut s.start_id)),
    implemented(
        "substitute",
        &["build-use-substitutes", "use-binary-caches"],
        Field::Switch(|s| &mut s.substitute),
    ),
    implemented("system", &[], Field::Text(|s| &mut s.system)),
    implemented(
        "system-features",
        &[],
        Field::Words(|s| &mut s.system_features),
    ),
    implemented(
        "timeout",
        &["build-timeout"],
        Field::Seconds(|s| &mut s.timeout),
    ),
    refused(
        "builders",
        &[],
        &["", "@/etc/nix/machines"],
        "goalctl builds on this machine only; set 'builders =' to go on without the others",
    ),
    refused(
        "external-builders",
        &[],
        &["", "[]"],
        "every builder runs in goalctl's own sandbox; set 'external-builders = []' to go on",
    ),
    refused(
        "impure-env",
        &[],
        &[""],
        "fixed-output builders get their variables from goalctl's own environment; \
         set 'impure-env =' to go on",
    ),
    refused(
        "store",
        &[],
        &["", "auto", "local"],
        "the store is named by '--store ROOT' or by NIX_STORE_DIR",
    ),
];
