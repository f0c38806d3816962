# The names that CI uses too.

# Formatting, lints.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Everything, unit tests and end-to-end tests.
test:
    cargo test --workspace

# The end-to-end tests alone; a test that cannot run here fails instead of saying why.
it *FILTER:
    GOAL_REQUIRE_SANDBOX=1 cargo test -p it -- {{FILTER}}

# The documentation, where a broken link is an error.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, advisories, sources (needs cargo-deny).
deny:
    cargo deny check

# goalctl against genuine Nix, as a table (release build, a quiet machine).
versus-nix *ARGS:
    cargo build --release -p cli -p sandbox --bins
    cargo run --release -p it --bin versus-nix -- {{ARGS}}
