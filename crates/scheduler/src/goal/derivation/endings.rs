//! How failures are classified, counted and put into words.

use std::fmt::Write;

use sandbox::{BuildVerdict, SetupFault};

use super::{BuilderEnding, Disk, Facts, InputEnding, InputFailures};
use crate::goal::recipe::Recipe;
use crate::goal::{Outcome, Status};

/// How many causes a failure quotes: whoever reads more than these looks for the first anyway.
const MAX_CAUSES: usize = 10;

impl InputFailures {
    /// Counts inputs that have ended.
    pub(crate) fn of(endings: &[InputEnding]) -> Self {
        let mut failures = Self::default();
        for ending in endings {
            failures.count(ending);
        }
        failures
    }

    pub(crate) fn count(&mut self, ending: &InputEnding) {
        let outcome = &ending.outcome;
        if outcome.status.is_success() {
            return;
        }
        self.paths.insert(ending.path.clone());
        if outcome.root_causes.is_empty() {
            self.root_causes.insert(ending.path.clone());
        } else {
            self.root_causes.extend(outcome.root_causes.iter().cloned());
        }
        let is_mild = outcome.status.is_absence();
        if outcome.status == Status::IncompleteClosure {
            self.n_incomplete += 1;
        } else if is_mild {
            self.n_without_substituter += 1;
        }
        // Goals of derivations tell their own failures; those of paths leave it to whoever needs them.
        if is_mild || !ending.path.is_derivation() {
            self.note_causes(outcome);
        }
        self.bits = self.bits | outcome.failure_bits;
    }

    /// Notes what was said where it began. What failed for others quotes them below its first line; many
    /// quote the same.
    fn note_causes(&mut self, outcome: &Outcome) {
        let n_own = usize::from(!outcome.root_causes.is_empty());
        let quoted = outcome.message.lines().skip(n_own);
        let causes: Vec<String> = match n_own {
            0 => vec![outcome.message.clone()],
            _ => quoted.map(str::to_owned).collect(),
        };
        for cause in causes {
            if self.messages.len() < MAX_CAUSES && !self.messages.contains(&cause) {
                self.messages.push(cause);
            }
        }
    }

    /// Returns whether an input failed in a way that makes waiting for the others pointless
    /// (SPEC A3).
    pub(crate) fn releases_the_rest(&self) -> bool {
        self.paths.len() > self.n_without_substituter + self.n_incomplete
    }
}

pub(super) fn dependency_failed(facts: &Facts, failures: &InputFailures) -> Outcome {
    let names: Vec<String> = failures
        .root_causes
        .iter()
        .map(|path| format!("'{}'", path.name()))
        .collect();
    let n_failed = failures.paths.len();
    let noun = if n_failed == 1 {
        "dependency"
    } else {
        "dependencies"
    };
    let mut message = format!(
        "{n_failed} {noun} of derivation '{}' failed: {}",
        facts.printed_path,
        names.join(", ")
    );
    for cause in &failures.messages {
        message.push('\n');
        message.push_str(cause);
    }
    let mut outcome = Outcome::failure(Status::DependencyFailed, message);
    outcome.failure_bits = failures.bits;
    outcome.root_causes = failures.root_causes.iter().cloned().collect();
    outcome
}

/// Classifies a builder that did not succeed (SPEC A8, B11).
pub(super) fn failure(facts: &Facts, recipe: &Recipe, ending: &BuilderEnding) -> (Status, String) {
    let drv_path = &facts.printed_path;
    let own_failure = if recipe.is_fixed_output || ending.disk == Disk::NearlyFull {
        Status::TransientFailure
    } else {
        Status::PermanentFailure
    };
    match &ending.verdict {
        BuildVerdict::Exited { code } => (
            own_failure,
            format!("builder for '{drv_path}' failed with exit code {code}"),
        ),
        BuildVerdict::Signalled { signal } => (
            own_failure,
            format!("builder for '{drv_path}' failed due to signal {signal}"),
        ),
        BuildVerdict::TimedOut { after } => (
            Status::TimedOut,
            format!(
                "building of '{drv_path}' timed out after {} seconds",
                after.as_secs_f64()
            ),
        ),
        BuildVerdict::Silent { after } => (
            Status::TimedOut,
            format!(
                "building of '{drv_path}' timed out after {} seconds of silence",
                after.as_secs_f64()
            ),
        ),
        BuildVerdict::LogLimitExceeded { limit_bytes } => (
            Status::LogLimitExceeded,
            format!(
                "builder for '{drv_path}' killed after writing more than {limit_bytes} bytes of \
                 log output"
            ),
        ),
        BuildVerdict::Cancelled => (
            Status::Cancelled,
            format!("building '{drv_path}' was cancelled"),
        ),
        BuildVerdict::SetupFailed { message, fault } => (
            match fault {
                SetupFault::Lasting => Status::InputRejected,
                SetupFault::Passing => Status::TransientFailure,
                SetupFault::Refused => Status::MiscFailure,
            },
            while_setting_up(facts, message),
        ),
    }
}

/// Says that a builder never ran, and why.
pub(super) fn while_setting_up(facts: &Facts, message: &str) -> String {
    let drv_path = &facts.printed_path;
    format!("while setting up the build environment of '{drv_path}': {message}")
}

pub(super) fn quote_log(message: &mut String, facts: &Facts, log_tail: &[String]) {
    if log_tail.is_empty() {
        return;
    }
    let noun = if log_tail.len() == 1 { "line" } else { "lines" };
    // Writing to a string cannot fail, here and below.
    let _infallible = write!(message, ";\nlast {} log {noun}:", log_tail.len());
    for line in log_tail {
        message.push_str("\n> ");
        message.push_str(line);
    }
    let _infallible = write!(
        message,
        "\nfor the full log, run 'goalctl log {}'",
        facts.printed_path
    );
}

pub(super) fn cancelled(facts: &Facts) -> Outcome {
    let message = format!("building '{}' was cancelled", facts.printed_path);
    Outcome::failure(Status::Cancelled, message)
}
