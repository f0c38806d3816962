//! `goalctl`: realises store paths from the command line.
//!
//! This crate reads the environment, files and flags, asks the scheduler and the registry, and
//! shows what they say. It is the only one that prints or ends the process.
//!
//! Reading order: [`args`] (what can be asked), [`commands`] (what each does), [`configure`] and
//! [`locate`] (with which settings, on which store), [`target`] (what words mean), [`goals_toml`]
//! (derivations without an evaluator), [`render`] (what is shown of a build), [`failure`] and
//! [`exit_status`] (how it ends).

#![forbid(unsafe_code)]

mod args;
mod commands;
mod configure;
mod environment;
mod exit_status;
mod failure;
mod goals_toml;
mod interrupt;
mod locate;
mod machine;
mod output;
mod render;
mod store;
mod target;

use std::process::ExitCode;

use clap::Parser as _;
use tracing::level_filters::LevelFilter;

use crate::args::{Arguments, Command};
use crate::commands::{Session, perform};
use crate::environment::Environment;
use crate::exit_status::ExitStatus;
use crate::failure::Result;
use crate::interrupt::Interrupts;
use crate::output::say;
use crate::render::Style;
use crate::render::diagnostics::Diagnostics;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return tell_usage(&error),
    };
    let environment = Environment::of_this_process();
    let style = Style::of_stderr(&environment);
    let diagnostics = Diagnostics::default();
    trace(arguments.global.verbose, style, diagnostics.clone());
    let session = Session {
        environment,
        style,
        diagnostics,
        typed_options: arguments.typed_options(),
        global: arguments.global,
    };
    let done = run(&session, arguments.command);
    let status = match done {
        Ok(()) => ExitStatus::Success,
        Err(failure) => {
            say(&failure.render(style));
            failure.status()
        }
    };
    status.into()
}

/// Runs one command to its end within an actix system.
fn run(session: &Session, command: Command) -> Result<()> {
    actix::System::new().block_on(async {
        let mut interrupts = Interrupts::listen()?;
        perform(session, command, &mut interrupts).await
    })
}

/// Prints help, the version, or what is wrong with the command line, which ends with status 1: 2
/// would not be in the table.
fn tell_usage(error: &clap::Error) -> ExitCode {
    // If nobody reads help there is nobody to tell.
    let _unheard = error.print();
    if error.use_stderr() {
        ExitStatus::Failure.into()
    } else {
        ExitStatus::Success.into()
    }
}

/// Sends what the program says about itself to standard error, as far as was asked for.
fn trace(verbosity: u8, style: Style, diagnostics: Diagnostics) {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(diagnostics)
        .with_ansi(style == Style::Colour)
        .with_target(verbosity > 1)
        .without_time();
    // Only a second subscriber could fail, and nobody else sets one.
    let _alone = subscriber.try_init();
}
