//! The live view of a terminal: lines that stay scroll by above, what is going on stands below.

use std::time::SystemTime;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Style;
use super::diagnostics::Diagnostics;
use super::echo::EchoOff;
use super::progress::Progress;

/// How often the terminal is redrawn at most, in times a second.
const REDRAWS_PER_SECOND: u8 = 10;

/// How many lines the view takes at most; a build with more runs shows the oldest of them.
const MAX_LINES: usize = 12;

/// A terminal that is being drawn on.
#[derive(Debug)]
pub(crate) struct Human {
    terminal: MultiProgress,
    lines: Vec<ProgressBar>,
    style: Style,
    diagnostics: Diagnostics,
    echo_off: Option<EchoOff>,
}

impl Human {
    /// Draws on standard error, `diagnostics` included.
    #[must_use]
    pub(crate) fn new(style: Style, diagnostics: Diagnostics) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
        let terminal = MultiProgress::with_draw_target(target);
        diagnostics.attach(&terminal);
        Self {
            terminal,
            lines: Vec::new(),
            style,
            diagnostics,
            echo_off: EchoOff::begin(),
        }
    }

    /// Prints lines that stay, above the view.
    pub(crate) fn print(&self, lines: &str) {
        if !lines.is_empty() {
            // All at once, since each call draws the view anew. A terminal that is gone shows
            // nothing, and the signal for that comes by itself.
            let _gone = self.terminal.println(lines.trim_end_matches('\n'));
        }
    }

    /// Draws the view anew.
    pub(crate) fn draw(&mut self, progress: &Progress, now: SystemTime) {
        let lines = progress.lines(now, MAX_LINES, self.style);
        while self.lines.len() > lines.len() {
            if let Some(line) = self.lines.pop() {
                self.terminal.remove(&line);
            }
        }
        while self.lines.len() < lines.len() {
            let line = self.terminal.add(ProgressBar::new_spinner());
            // The template cuts what is wider than the terminal, and knows no other field.
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                line.set_style(style);
            }
            self.lines.push(line);
        }
        for (bar, line) in self.lines.iter().zip(lines) {
            bar.set_message(line);
        }
    }

    /// Removes the view; what was printed stays.
    pub(crate) fn clear(&mut self) {
        self.diagnostics.detach();
        // As in `print`.
        let _gone = self.terminal.clear();
        // What happens to the lines from here on must not draw them again.
        self.terminal.set_draw_target(ProgressDrawTarget::hidden());
        self.lines.clear();
        self.echo_off = None;
    }
}
