//! Starts builders on behalf of `goalctl`, which spawns it; not a command for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox::init::main()
}
