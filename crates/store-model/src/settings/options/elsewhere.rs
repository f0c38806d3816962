//! Options that are accepted and do nothing here, each with the reason.

use super::{SettingOption, without_effect};

const NO_POLLING: &str =
    "no other process is asked every so many seconds; what a goal waits for wakes it at once";
const SANDBOX_ALWAYS: &str =
    "a builder never runs without the sandbox unless 'sandbox' or its derivation says so";
const NO_NEW_RIGHTS: &str = "a builder never gains rights that it did not begin with";
const CONTROL_GROUPS: &str =
    "resources are limited by control groups wherever the system lets goalctl make them";
const SYNCED: &str = "contents and names are synced by 'fsync-store-paths'";
const WRITE_AHEAD: &str = "the database always uses a write-ahead log";
const ATTRIBUTES: &str =
    "an output with an access-control list or an extended attribute has it removed";
const WRITING: &str = "it concerns how files are written, not what";
const DARWIN: &str = "it concerns Darwin";
const MACHINES: &str = "it concerns other machines, and goalctl builds on this one only";
const CACHE_LISTS: &str = "caches are named by 'substituters'";
const SSH_CACHES: &str = "caches are asked over http, https or files, not over ssh";
const BUFFERS: &str = "what is downloaded is read in pieces of a fixed size";
const SIGNATURES: &str = "'require-sigs' says whether a path must be signed";
const CERTIFICATES: &str = "certificates are always verified";
const TRANSFERS: &str = "'builtin:fetchurl' downloads as fast as the server sends, over HTTP/1.1, and waits between \
     attempts as long as Nix 2.8 does";
const COLLECTOR: &str = "it concerns the garbage collector, which never runs by itself";
const CLIENTS: &str = "it concerns the daemon's clients";
const FAILURES: &str = "failed builds are not remembered";
const PRINTING: &str = "what goalctl prints is chosen on its command line";
const STORE_DIR: &str = "the store directory is opened as the layout names it";
const NIX_PROGRAM: &str = "it concerns Nix's own program";
const EVALUATOR: &str = "it concerns the evaluator";

pub(super) const OPTIONS: &[SettingOption] = &[
    without_effect("abort-on-warn", &[], EVALUATOR),
    without_effect("accept-flake-config", &[], EVALUATOR),
    without_effect("access-tokens", &[], EVALUATOR),
    without_effect("allow-dirty", &[], EVALUATOR),
    without_effect("allow-dirty-locks", &[], EVALUATOR),
    without_effect("allow-import-from-derivation", &[], EVALUATOR),
    without_effect("allow-new-privileges", &[], NO_NEW_RIGHTS),
    without_effect("allow-symlinked-store", &[], STORE_DIR),
    without_effect("allow-unsafe-native-code-during-evaluation", &[], EVALUATOR),
    without_effect("allowed-uris", &[], EVALUATOR),
    without_effect("allowed-users", &[], CLIENTS),
    without_effect("bash-prompt", &[], NIX_PROGRAM),
    without_effect("bash-prompt-prefix", &[], NIX_PROGRAM),
    without_effect("bash-prompt-suffix", &[], NIX_PROGRAM),
    without_effect("binary-caches-files", &[], CACHE_LISTS),
    without_effect("build-cache-failure", &[], FAILURES),
    without_effect("build-hook", &[], MACHINES),
    without_effect("build-hook-kill-timeout", &[], MACHINES),
    without_effect("build-poll-interval", &[], NO_POLLING),
    without_effect("builders-use-substitutes", &[], MACHINES),
    without_effect(
        "commit-lock-file-summary",
        &["commit-lockfile-summary"],
        EVALUATOR,
    ),
    without_effect("darwin-log-sandbox-violations", &[], DARWIN),
    without_effect("debugger-on-trace", &[], EVALUATOR),
    without_effect("debugger-on-warn", &[], EVALUATOR),
    without_effect("download-buffer-size", &[], BUFFERS),
    without_effect("download-speed", &[], TRANSFERS),
    without_effect("enable-import-native", &[], EVALUATOR),
    without_effect("eval-attrset-update-layer-rhs-threshold", &[], EVALUATOR),
    without_effect("eval-cache", &[], EVALUATOR),
    without_effect("eval-profile-file", &[], EVALUATOR),
    without_effect("eval-profiler", &[], EVALUATOR),
    without_effect("eval-profiler-frequency", &[], EVALUATOR),
    without_effect("eval-system", &[], EVALUATOR),
    without_effect("filetransfer-retry-delay", &[], TRANSFERS),
    without_effect("filetransfer-retry-delay-rate-limited", &[], TRANSFERS),
    without_effect("filetransfer-retry-jitter", &[], TRANSFERS),
    without_effect("filetransfer-retry-max-delay", &[], TRANSFERS),
    without_effect("filter-syscalls", &[], NO_NEW_RIGHTS),
    without_effect("flake-registry", &[], EVALUATOR),
    without_effect("force-manifest", &[], CACHE_LISTS),
    without_effect("gc-check-reachability", &[], COLLECTOR),
    without_effect("gc-reserved-space", &[], COLLECTOR),
    without_effect("http3", &[], TRANSFERS),
    without_effect("ignore-try", &[], EVALUATOR),
    without_effect("ignored-acls", &[], ATTRIBUTES),
    without_effect("json-log-path", &[], PRINTING),
    without_effect("keep-derivations", &["gc-keep-derivations"], COLLECTOR),
    without_effect("keep-env-derivations", &["env-keep-derivations"], COLLECTOR),
    without_effect("keep-outputs", &["gc-keep-outputs"], COLLECTOR),
    without_effect("lint-absolute-path-literals", &[], EVALUATOR),
    without_effect("lint-short-path-literals", &[], EVALUATOR),
    without_effect("lint-url-literals", &[], EVALUATOR),
    without_effect("log-servers", &[], PRINTING),
    without_effect("max-call-depth", &[], EVALUATOR),
    without_effect("max-free", &[], COLLECTOR),
    without_effect("min-free", &[], COLLECTOR),
    without_effect("min-free-check-interval", &[], COLLECTOR),
    without_effect("nar-buffer-size", &[], WRITING),
    without_effect("nix-path", &[], EVALUATOR),
    without_effect("nix-shell-always-looks-for-shell-nix", &[], NIX_PROGRAM),
    without_effect(
        "nix-shell-shebang-arguments-relative-to-script",
        &[],
        NIX_PROGRAM,
    ),
    without_effect("plugin-files", &[], NIX_PROGRAM),
    without_effect("preallocate-contents", &[], WRITING),
    without_effect("print-missing", &[], PRINTING),
    without_effect("pure-eval", &[], EVALUATOR),
    without_effect("require-drop-supplementary-groups", &[], NO_NEW_RIGHTS),
    without_effect("restrict-eval", &[], EVALUATOR),
    without_effect("sandbox-fallback", &[], SANDBOX_ALWAYS),
    without_effect("show-trace", &[], PRINTING),
    without_effect("signed-binary-caches", &[], SIGNATURES),
    without_effect("ssh-auth-keys", &[], MACHINES),
    without_effect("ssh-substituter-hosts", &[], SSH_CACHES),
    without_effect("sync-before-registering", &[], SYNCED),
    without_effect("tarball-ttl", &[], EVALUATOR),
    without_effect("trace-function-calls", &[], EVALUATOR),
    without_effect("trace-import-from-derivation", &[], EVALUATOR),
    without_effect("trace-verbose", &[], EVALUATOR),
    without_effect("trust-tarballs-from-git-forges", &[], EVALUATOR),
    without_effect("trusted-users", &[], CLIENTS),
    without_effect("upgrade-nix-store-path-url", &[], NIX_PROGRAM),
    without_effect("use-case-hack", &[], DARWIN),
    without_effect("use-cgroups", &[], CONTROL_GROUPS),
    without_effect("use-registries", &[], EVALUATOR),
    without_effect("use-sqlite-wal", &[], WRITE_AHEAD),
    without_effect("use-ssh-substituter", &[], SSH_CACHES),
    without_effect("use-xdg-base-directories", &[], PRINTING),
    without_effect("verify-https-binary-caches", &[], CERTIFICATES),
    without_effect("warn-dirty", &[], EVALUATOR),
    without_effect("warn-large-path-threshold", &[], WRITING),
    without_effect("warn-short-path-literals", &[], EVALUATOR),
];
