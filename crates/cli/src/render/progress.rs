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
    Fetching(Transfer),
}

/// An archive that comes.
#[derive(Debug, PartialEq, Eq)]
struct Transfer {
    since: SystemTime,
    n_bytes: u64,
    n_expected: Option<u64>,
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
    /// Paths that came from caches.
    pub(crate) n_fetched: usize,
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
            if let Some(goal) = self.goals.remove(&event.goal) {
                match goal.key {
                    GoalKey::Derivation(..) => self.counts.add(outcome),
                    GoalKey::Path(..) if outcome.status == Status::Substituted => {
                        self.counts.n_fetched += 1;
                    }
                    GoalKey::Path(..) => {}
                }
            }
            return;
        }
        let Some(goal) = self.goals.get_mut(&event.goal) else {
            return;
        };
        match &event.kind {
            EventKind::Waiting { reason } => goal.phase = Phase::Waiting(reason.clone()),
            EventKind::Started { .. } => goal.phase = Phase::Running { since: event.at },
            EventKind::Fetching { n_expected, .. } => {
                goal.phase = Phase::Fetching(Transfer {
                    since: event.at,
                    n_bytes: 0,
                    n_expected: *n_expected,
                });
            }
            EventKind::Fetched {
                n_bytes: now,
                n_expected: expected,
            } => {
                if let Phase::Fetching(transfer) = &mut goal.phase {
                    transfer.n_bytes = *now;
                    transfer.n_expected = expected.or(transfer.n_expected);
                }
            }
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

    /// Returns whether a goal that has not ended is about a path, and not about a derivation.
    #[must_use]
    pub(crate) fn is_path(&self, goal: GoalId) -> bool {
        let key = self.goals.get(&goal).map(|goal| &goal.key);
        matches!(key, Some(GoalKey::Path(..)))
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
        let mut transfers: Vec<(&GoalProgress, &Transfer)> = Vec::new();
        for goal in self.goals.values() {
            match &goal.phase {
                Phase::Running { since } => running.push((*since, goal)),
                Phase::Fetching(transfer) => transfers.push((goal, transfer)),
                Phase::Waiting(reason)
                    if matches!(goal.key, GoalKey::Derivation(..))
                        || matches!(reason, WaitReason::Cache { .. }) =>
                {
                    waits.add(goal, reason);
                }
                Phase::Deciding | Phase::Waiting(_) => {}
            }
        }
        running.sort_by_key(|(since, _)| *since);
        transfers.sort_by_key(|(_, transfer)| transfer.since);
        let mut lines = vec![self.summary(running.len(), waits.n_goals, style)];
        let mut room = max_lines.max(2) - 2;
        if !transfers.is_empty() {
            lines.push(format!("  {}", total(&transfers, now)));
            room = room.saturating_sub(1);
        }
        // Builders matter more: at most half of what is left shows transfers.
        let n_shown = transfers
            .len()
            .min(room.saturating_sub(running.len()).max(room / 2));
        for (goal, transfer) in transfers.iter().take(n_shown) {
            let name = style.strong(&name_of(goal.key.path()));
            lines.push(format!("  {name} {}", style.faint(&transfer.describe(now))));
        }
        room -= n_shown;
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
            n_fetched,
            n_valid,
            n_failed,
        } = self.counts;
        let mut words = vec![format!("{n_built} built")];
        if n_fetched > 0 {
            words.push(format!("{n_fetched} fetched"));
        }
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
            Status::Built => self.n_built += 1,
            Status::AlreadyValid | Status::ResolvesToAlreadyValid => self.n_valid += 1,
            // Its outputs are counted as paths; and what nobody wanted any more is no failure.
            Status::Substituted | Status::Cancelled => {}
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
    n_substitutes: usize,
    n_contents: usize,
    n_slot: usize,
    n_build_user: usize,
    n_registration: usize,
    n_hook: usize,
    locks: Vec<(&'a StorePath, LockOwner)>,
    /// Caches that give no answer, each as often as it is waited for.
    caches: Vec<&'a str>,
}

impl<'a> Waits<'a> {
    fn add(&mut self, goal: &'a GoalProgress, reason: &'a WaitReason) {
        match reason {
            // What it was resolved to is a goal as well, and says what that waits for.
            WaitReason::Resolved { .. } => return,
            WaitReason::Inputs { .. } => self.n_inputs += 1,
            WaitReason::Substitutes { .. } => self.n_substitutes += 1,
            WaitReason::Cache { cache } => self.caches.push(cache),
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
            (self.n_substitutes, "waiting for caches"),
            (self.n_inputs, "waiting for inputs"),
        ] {
            if n_goals > 0 {
                words.push(format!("{n_goals} {what}"));
            }
        }
        if let Some(cache) = self.caches.first() {
            let n_goals = self.caches.len();
            words.push(format!(
                "{n_goals} waiting for '{cache}', which gives no answer"
            ));
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

impl Transfer {
    /// Returns how far it is, how fast, and how long it will take, as far as that is known.
    fn describe(&self, now: SystemTime) -> String {
        amounts(
            self.n_bytes,
            self.n_expected,
            now.duration_since(self.since).unwrap_or_default(),
        )
    }
}

/// Returns how far all transfers are.
fn total(transfers: &[(&GoalProgress, &Transfer)], now: SystemTime) -> String {
    let n_bytes = transfers.iter().map(|(_, transfer)| transfer.n_bytes).sum();
    let expected = transfers.iter().map(|(_, transfer)| transfer.n_expected);
    let since = transfers.iter().map(|(_, transfer)| transfer.since).min();
    let elapsed = since.and_then(|since| now.duration_since(since).ok());
    format!(
        "fetching {}: {}",
        transfers.len(),
        amounts(n_bytes, expected.sum(), elapsed.unwrap_or_default())
    )
}

fn amounts(n_bytes: u64, n_expected: Option<u64>, elapsed: Duration) -> String {
    let mut text = size(n_bytes);
    if let Some(n_expected) = n_expected {
        text.push_str(" of ");
        text.push_str(&size(n_expected));
    }
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 || n_bytes == 0 {
        return text;
    }
    let rate = n_bytes.saturating_mul(1000) / milliseconds;
    text.push_str(", ");
    text.push_str(&size(rate));
    text.push_str("/s");
    if let Some(n_left) = n_expected.and_then(|expected| expected.checked_sub(n_bytes))
        && n_left > 0
        && rate > 0
    {
        text.push_str(", ");
        text.push_str(&age(Duration::from_secs(n_left / rate)));
        text.push_str(" left");
    }
    text
}

/// Returns a number of bytes in the largest unit that leaves it above one, such as `1.5 MiB`.
#[must_use]
pub(crate) fn size(n_bytes: u64) -> String {
    let mut tenths = n_bytes.saturating_mul(10);
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = "TiB";
    for smaller in units.by_ref() {
        if tenths < 10_240 {
            unit = smaller;
            break;
        }
        tenths /= 1024;
    }
    if unit == "B" {
        return format!("{n_bytes} B");
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
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
