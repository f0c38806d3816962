//! What is going on, gathered from events: the value that the live view draws.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use scheduler::{
    BuildMode, Event, EventKind, GoalId, GoalKey, LockOwner, Outcome, Status, WaitReason,
};
use store_model::StorePath;
use store_model::store_path::DERIVATION_SUFFIX;

use super::Style;
use super::sanitise::sanitise;

/// Everything that subscribers have been told so far, as of now.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    goals: BTreeMap<GoalId, GoalProgress>,
    counts: Counts,
}

/// One goal that has not ended.
#[derive(Debug)]
struct GoalProgress {
    key: GoalKey,
    phase: Phase,
    last_line: String,
}

/// What a goal is at.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Deciding,
    Waiting(WaitReason),
    Running { since: SystemTime },
}

/// How many derivations ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_field_names,
    reason = "`n_` is how this project marks a count"
)]
pub(crate) struct Counts {
    /// A builder made their outputs.
    pub(crate) n_built: usize,
    /// Their outputs were there.
    pub(crate) n_valid: usize,
    /// They failed, or one of their inputs did.
    pub(crate) n_failed: usize,
}

impl Progress {
    /// Takes one event.
    pub(crate) fn update(&mut self, event: &Event) {
        if let EventKind::Created { key, .. } = &event.kind {
            let goal = GoalProgress {
                key: key.clone(),
                phase: Phase::Deciding,
                last_line: String::new(),
            };
            self.goals.insert(event.goal, goal);
            return;
        }
        if let EventKind::Finished(outcome) = &event.kind {
            if let Some(goal) = self.goals.remove(&event.goal)
                && matches!(goal.key, GoalKey::Derivation(..))
            {
                self.counts.add(outcome);
            }
            return;
        }
        let Some(goal) = self.goals.get_mut(&event.goal) else {
            return;
        };
        match &event.kind {
            EventKind::Waiting { reason } => goal.phase = Phase::Waiting(reason.clone()),
            EventKind::Started { .. } => goal.phase = Phase::Running { since: event.at },
            EventKind::Logged(lines) | EventKind::HookLogged(lines) => {
                if let Some(line) = lines.text.rsplit(|byte| *byte == b'\n').next() {
                    goal.last_line = sanitise(line, Style::Plain);
                }
            }
            EventKind::Created { .. } | EventKind::Finished(_) => {}
        }
    }

    /// Returns the path that names a goal that has not ended.
    #[must_use]
    pub(crate) fn path(&self, goal: GoalId) -> Option<&StorePath> {
        self.goals.get(&goal).map(|goal| goal.key.path())
    }

    /// Returns what a goal that has not ended builds for.
    #[must_use]
    pub(crate) fn mode(&self, goal: GoalId) -> BuildMode {
        match self.goals.get(&goal).map(|goal| &goal.key) {
            Some(GoalKey::Derivation(_, mode)) => *mode,
            Some(GoalKey::Path(..)) | None => BuildMode::Normal,
        }
    }

    /// Returns how many derivations ended in which way.
    #[must_use]
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the lines of the live view: counts first, then what runs, oldest first, then what
    /// waits and why. At most `max_lines`, which is at least 2.
    #[must_use]
    pub(crate) fn lines(&self, now: SystemTime, max_lines: usize, style: Style) -> Vec<String> {
        let mut running: Vec<(SystemTime, &GoalProgress)> = Vec::new();
        let mut waits = Waits::default();
        for goal in self.goals.values() {
            match &goal.phase {
                Phase::Running { since } => running.push((*since, goal)),
                Phase::Waiting(reason) if matches!(goal.key, GoalKey::Derivation(..)) => {
                    waits.add(goal, reason);
                }
                Phase::Deciding | Phase::Waiting(_) => {}
            }
        }
        running.sort_by_key(|(since, _)| *since);
        let mut lines = vec![self.summary(running.len(), waits.n_goals, style)];
        let room = max_lines.max(2) - 2;
        for (since, goal) in running.iter().take(room) {
            let name = style.strong(&name_of(goal.key.path()));
            let age = age(now.duration_since(*since).unwrap_or_default());
            lines.push(format!("  {name} {age} {}", style.faint(&goal.last_line)));
        }
        let n_hidden = running.len().saturating_sub(room);
        let mut last = waits.describe();
        if n_hidden > 0 {
            last.insert(0, format!("{n_hidden} more running"));
        }
        if !last.is_empty() {
            lines.push(style.faint(&format!("  {}", last.join("; "))));
        }
        lines
    }

    fn summary(&self, n_running: usize, n_waiting: usize, style: Style) -> String {
        let Counts {
            n_built,
            n_valid,
            n_failed,
        } = self.counts;
        let mut words = vec![format!("{n_built} built")];
        if n_valid > 0 {
            words.push(format!("{n_valid} already there"));
        }
        words.push(format!("{n_running} running"));
        words.push(format!("{n_waiting} waiting"));
        if n_failed > 0 {
            words.push(style.error(&format!("{n_failed} failed")));
        }
        words.join(", ")
    }
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome.status {
            // What it was resolved to has been counted.
            status if status.is_success() && outcome.resolved_to.is_some() => {}
            Status::Built | Status::Substituted => self.n_built += 1,
            Status::AlreadyValid | Status::ResolvesToAlreadyValid => self.n_valid += 1,
            // Nobody wanted it any more; that is no failure of its own.
            Status::Cancelled => {}
            Status::PermanentFailure
            | Status::InputRejected
            | Status::OutputRejected
            | Status::TransientFailure
            | Status::CachedFailure
            | Status::TimedOut
            | Status::MiscFailure
            | Status::DependencyFailed
            | Status::LogLimitExceeded
            | Status::NotDeterministic
            | Status::NoSubstituters
            | Status::IncompleteClosure
            | Status::HashMismatch
            | Status::Crashed => self.n_failed += 1,
        }
    }
}

/// Why goals stand still, gathered.
#[derive(Debug, Default)]
struct Waits<'a> {
    n_goals: usize,
    n_inputs: usize,
    n_contents: usize,
    n_slot: usize,
    n_build_user: usize,
    n_registration: usize,
    n_hook: usize,
    locks: Vec<(&'a StorePath, LockOwner)>,
}

impl<'a> Waits<'a> {
    fn add(&mut self, goal: &'a GoalProgress, reason: &WaitReason) {
        match reason {
            // What it was resolved to is a goal as well, and says what that waits for.
            WaitReason::Resolved { .. } => return,
            WaitReason::Inputs { .. } => self.n_inputs += 1,
            WaitReason::Contents => self.n_contents += 1,
            WaitReason::Slot => self.n_slot += 1,
            WaitReason::BuildUser => self.n_build_user += 1,
            WaitReason::Registration => self.n_registration += 1,
            WaitReason::PostBuildHook => self.n_hook += 1,
            WaitReason::Lock { holder, .. } => self.locks.push((goal.key.path(), *holder)),
        }
        self.n_goals += 1;
    }

    fn describe(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (n_goals, what) in [
            (self.n_registration, "being registered"),
            (self.n_contents, "being read"),
            (self.n_hook, "waiting for the post-build-hook"),
            (self.n_slot, "waiting for a build slot"),
            (self.n_build_user, "waiting for a build user"),
            (self.n_inputs, "waiting for inputs"),
        ] {
            if n_goals > 0 {
                words.push(format!("{n_goals} {what}"));
            }
        }
        // A lock is the one thing that may never come free by itself, so it is named.
        if let Some((path, holder)) = self.locks.first() {
            let more = match self.locks.len() - 1 {
                0 => String::new(),
                n_more => format!(" and {n_more} more"),
            };
            words.push(format!(
                "{}{more} waiting for a lock held by {}",
                name_of(path),
                lock_owner(*holder)
            ));
        }
        words
    }
}

/// Returns the name that people know a derivation by.
#[must_use]
pub(crate) fn name_of(path: &StorePath) -> String {
    let name = path.name();
    name.strip_suffix(DERIVATION_SUFFIX)
        .unwrap_or(name)
        .to_owned()
}

/// Returns who holds a lock, in words.
#[must_use]
pub(crate) fn lock_owner(holder: LockOwner) -> String {
    match holder {
        LockOwner::Goal => "another goal".to_owned(),
        LockOwner::Process(pid) => format!("process {pid}"),
        LockOwner::Unknown => "another process".to_owned(),
    }
}

/// Returns a duration in two units at most, such as `3m07s`.
#[must_use]
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}
