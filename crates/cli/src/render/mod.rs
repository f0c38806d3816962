//! What is shown of the scheduler's events: a live view on a terminal, plain lines in a pipe, JSON
//! lines for programs. All three consume the same stream.

use std::io::IsTerminal as _;
use std::time::SystemTime;

use scheduler::{Event, EventKind};
use serde_json::Value;
use store_model::StoreDir;

use self::diagnostics::Diagnostics;
use self::human::Human;
use self::plain::{BuildLogs, Plain};
use self::progress::{Counts, Progress};
use crate::environment::Environment;
use crate::failure::Result;
use crate::output::{Output, say};

pub(crate) mod diagnostics;
mod echo;
pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod plain;
pub(crate) mod progress;
pub(crate) mod sanitise;

#[cfg(test)]
mod tests;

/// Whether text for people may have colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A terminal that shows them.
    Colour,
    /// A pipe, or `NO_COLOR`.
    Plain,
}

impl Style {
    /// Returns what standard error can show: `NO_COLOR` and a pipe have no colours.
    #[must_use]
    pub(crate) fn of_stderr(environment: &Environment) -> Self {
        if can_be_drawn_on(environment) && environment.get("NO_COLOR").is_none() {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    /// Returns a word in the colour of errors.
    #[must_use]
    pub(crate) fn error(self, word: &str) -> String {
        self.paint("31;1", word)
    }

    /// Returns a word in the colour of warnings.
    #[must_use]
    pub(crate) fn warning(self, word: &str) -> String {
        self.paint("35;1", word)
    }

    /// Returns a word in bold.
    #[must_use]
    pub(crate) fn strong(self, word: &str) -> String {
        self.paint("1", word)
    }

    /// Returns a word that stands back.
    #[must_use]
    pub(crate) fn faint(self, word: &str) -> String {
        self.paint("2", word)
    }

    fn paint(self, parameters: &str, word: &str) -> String {
        match self {
            Self::Colour => format!("\u{1b}[{parameters}m{word}\u{1b}[0m"),
            Self::Plain => word.to_owned(),
        }
    }
}

/// Returns whether standard error is a terminal that can do more than print.
fn can_be_drawn_on(environment: &Environment) -> bool {
    let is_dumb = environment.get("TERM").is_none_or(|term| term == "dumb");
    std::io::stderr().is_terminal() && !is_dumb
}

/// Who is to read the events of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Somebody at a terminal.
    Human,
    /// A pipe, a log file, or a terminal that can do no more than print.
    Plain,
    /// A program, on standard output.
    Json,
}

impl Audience {
    /// Returns who reads standard error.
    #[must_use]
    pub(crate) fn of_stderr(environment: &Environment) -> Self {
        if can_be_drawn_on(environment) {
            Self::Human
        } else {
            Self::Plain
        }
    }
}

/// Consumes the events of a build and shows them.
#[derive(Debug)]
pub(crate) struct Renderer {
    store_dir: StoreDir,
    progress: Progress,
    plain: Plain,
    view: View,
}

/// Where lines go.
#[derive(Debug)]
enum View {
    Terminal(Human),
    Lines,
    Json,
}

impl Renderer {
    /// Begins to show.
    #[must_use]
    pub(crate) fn new(
        audience: Audience,
        store_dir: StoreDir,
        style: Style,
        logs: BuildLogs,
        diagnostics: &Diagnostics,
    ) -> Self {
        Self {
            plain: Plain::new(store_dir.clone(), style, logs),
            store_dir,
            progress: Progress::default(),
            view: match audience {
                Audience::Human => View::Terminal(Human::new(style, diagnostics.clone())),
                Audience::Plain => View::Lines,
                Audience::Json => View::Json,
            },
        }
    }

    /// Shows one event.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn show(&mut self, event: &Event, output: &mut Output) -> Result<()> {
        match &self.view {
            View::Terminal(human) => human.print(&self.plain.lines(event, &self.progress)),
            View::Lines => say(&self.plain.lines(event, &self.progress)),
            View::Json => {
                let path = self.progress.path(event.goal);
                output.line(json::event(event, path, &self.store_dir))?;
                // Whoever watches a program that reads the lines is told what failed.
                if let EventKind::Finished(_) = event.kind {
                    say(&self.plain.lines(event, &self.progress));
                }
            }
        }
        self.progress.update(event);
        Ok(())
    }

    /// Shows what has changed by the passing of time, and hands on what was held back.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn tick(&mut self, now: SystemTime, output: &mut Output) -> Result<()> {
        match &mut self.view {
            View::Terminal(human) => human.draw(&self.progress, now),
            View::Lines => {}
            View::Json => output.flush()?,
        }
        Ok(())
    }

    /// Ends the live view, and returns how many derivations ended in which way.
    pub(crate) fn finish(&mut self) -> Counts {
        if let View::Terminal(human) = &mut self.view {
            human.clear();
        }
        self.progress.counts()
    }

    /// Prints a line of JSON, if that is the audience's language.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn json(&self, line: &Value, output: &mut Output) -> Result<()> {
        match self.view {
            View::Json => output.line(line),
            View::Terminal(_) | View::Lines => Ok(()),
        }
    }
}
