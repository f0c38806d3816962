//! Plain lines for a pipe or a log file: one for each thing that happens, never rewritten.

use scheduler::{BuildMode, Event, EventKind, Outcome, Status, WaitReason};
use store_model::{StoreDir, StorePath};

use super::Style;
use super::progress::{Progress, lock_owner, name_of};
use super::sanitise::sanitise;

/// Turns events into lines.
#[derive(Debug)]
pub(crate) struct Plain {
    store_dir: StoreDir,
    style: Style,
    logs: BuildLogs,
}

/// Whether what builders write is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuildLogs {
    /// Line by line, behind the derivation's name.
    Printed,
    /// Only as part of a failure.
    Hidden,
}

impl Plain {
    /// Prints paths in this directory.
    #[must_use]
    pub(crate) fn new(store_dir: StoreDir, style: Style, logs: BuildLogs) -> Self {
        Self {
            store_dir,
            style,
            logs,
        }
    }

    /// Returns the lines for one event, each ending in a newline; mostly none. `progress` has not
    /// seen the event yet.
    #[must_use]
    pub(crate) fn lines(&self, event: &Event, progress: &Progress) -> String {
        let Some(path) = progress.path(event.goal) else {
            return String::new();
        };
        match &event.kind {
            EventKind::Started { round, .. } => {
                let verb = match progress.mode(event.goal) {
                    BuildMode::Normal | BuildMode::Hash => "building",
                    BuildMode::Check => "checking",
                    BuildMode::Repair => "repairing outputs of",
                };
                let path = self.store_dir.print(path);
                match round.of {
                    1 => format!("{verb} '{path}'...\n"),
                    n_rounds => format!("{verb} '{path}' (round {}/{n_rounds})...\n", round.number),
                }
            }
            EventKind::Waiting {
                reason: WaitReason::Lock { path, holder },
            } => format!(
                "waiting for the lock on '{}', held by {}\n",
                self.store_dir.print(path),
                lock_owner(*holder)
            ),
            EventKind::Waiting {
                reason: WaitReason::Resolved { drv_path },
            } => format!(
                "resolved derivation: '{}' -> '{}'...\n",
                self.store_dir.print(path),
                self.store_dir.print(drv_path)
            ),
            EventKind::Waiting {
                reason: WaitReason::PostBuildHook,
            } => format!(
                "running post-build-hook for '{}'...\n",
                self.store_dir.print(path)
            ),
            EventKind::Fetching { cache, .. } => format!(
                "copying path '{}' from '{cache}'...\n",
                self.store_dir.print(path)
            ),
            EventKind::HookLogged(lines) => lines
                .text
                .split(|byte| *byte == b'\n')
                .fold(String::new(), |text, line| {
                    text + "post-build-hook: " + &sanitise(line, self.style) + "\n"
                }),
            EventKind::Logged(lines) if self.logs == BuildLogs::Printed => {
                let name = self.style.faint(&format!("{}>", name_of(path)));
                let mut text = String::with_capacity(lines.text.len() * 2);
                for line in lines.text.split(|byte| *byte == b'\n') {
                    text.push_str(&name);
                    text.push(' ');
                    text.push_str(&sanitise(line, self.style));
                    text.push('\n');
                }
                text
            }
            EventKind::Finished(_) if progress.is_path(event.goal) => String::new(),
            EventKind::Finished(outcome) => self.ending(outcome, path),
            EventKind::Created { .. }
            | EventKind::Waiting { .. }
            | EventKind::Fetched { .. }
            | EventKind::Logged(_) => String::new(),
        }
    }

    /// What failed by itself is told at once; what failed for it is told by the report, but for the
    /// paths that it lacked, which tell nothing themselves: not to be had is mostly no failure.
    fn ending(&self, outcome: &Outcome, path: &StorePath) -> String {
        if outcome.status.is_success() || outcome.status == Status::Cancelled {
            return String::new();
        }
        let message = if outcome.status == Status::DependencyFailed {
            match outcome.message.split_once('\n') {
                Some((_, causes)) => causes.to_owned(),
                None => return String::new(),
            }
        } else if outcome.message.is_empty() {
            format!("'{}' failed", self.store_dir.print(path))
        } else {
            outcome.message.clone()
        };
        let text = message
            .lines()
            .map(|line| sanitise(line.as_bytes(), self.style))
            .collect::<Vec<_>>()
            .join("\n");
        format!("{} {text}\n", self.style.error("error:"))
    }
}
