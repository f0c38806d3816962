//! End-to-end tests: the real programs, in a fresh store each, beside genuine Nix.

mod cache_server;
mod caches_on_servers;
mod harness;
mod structure;

mod bad_input;
mod build_users;
mod builders;
mod builtins;
mod commands;
mod cooperation;
mod copying;
mod differential;
mod events;
mod faults;
mod fetch_faults;
mod floating;
mod full_disk;
mod hostile_caches;
mod interchange;
mod interruption;
mod large_closures;
mod library;
mod local_stores;
mod logs_and_pings;
mod panics;
mod post_build_hook;
mod read_only;
mod registration;
mod scarcity;
mod surroundings;
mod terminal;

mod guard;
mod hostility;
mod isolation;
mod races;
mod repair;
mod repeated;
mod substitution;
mod unsandboxed;
