//! Repairing what is below outputs whose own contents are good (SPEC B8).

use std::sync::Arc;

use store_model::wanted_outputs::{WantedOutputs, Widened};

use super::transitions::{Step, check_outputs, end, live};
use super::{AfterFailure, BrokenPath, Effect, Examined, Facts, InputFailures, Phase};
use crate::events::WaitReason;
use crate::goal::recipe::Recipe;
use crate::goal::{Outcome, Status};

impl Examined {
    /// Takes note of further wanted outputs.
    pub(super) fn widen(mut self, more: &WantedOutputs) -> Self {
        if self.wanted.widen(more) == Widened::Grown {
            self.growth = Widened::Grown;
        }
        self
    }
}

/// Looks at everything below outputs that are good themselves.
pub(super) fn examine_closure(recipe: Arc<Recipe>, wanted: WantedOutputs) -> Step {
    let outputs = recipe.wanted(&wanted).into_values().collect();
    let examined = Examined {
        wanted,
        growth: Widened::Unchanged,
    };
    let effects = vec![
        Effect::Announce(WaitReason::Contents),
        Effect::ExamineClosure(outputs),
    ];
    live(recipe, Phase::ExaminingClosure(examined), effects)
}

/// Has what is broken repaired, by the derivations that make it.
pub(super) fn closure_examined(
    facts: &Facts,
    recipe: Arc<Recipe>,
    examined: Examined,
    broken: Vec<BrokenPath>,
) -> Step {
    if broken.is_empty() {
        return all_good(facts, recipe, examined);
    }
    let warn = |broken: &BrokenPath| {
        Effect::Warn(format!(
            "found corrupted or missing path '{}' in the output closure of '{}'",
            broken.printed_path, facts.printed_path
        ))
    };
    let mut effects: Vec<Effect> = broken.iter().map(warn).collect();
    effects.push(Effect::RequireRepairs(broken));
    live(recipe, Phase::RequiringRepairs(examined), effects)
}

/// Decides what follows when a repair has ended, or when it is known how many there are.
pub(super) fn repairs_changed(
    facts: &Facts,
    recipe: Arc<Recipe>,
    examined: Examined,
    n_pending: usize,
    failures: InputFailures,
) -> Step {
    let gives_up = facts.after_failure == AfterFailure::Stop && failures.releases_the_rest();
    if n_pending > 0 && !gives_up {
        let phase = Phase::AwaitingRepairs {
            examined,
            n_pending,
            failures,
        };
        let effects = vec![Effect::Announce(WaitReason::Inputs { n_pending })];
        return live(recipe, phase, effects);
    }
    if failures.paths.is_empty() {
        return all_good(facts, recipe, examined);
    }
    let effects = if n_pending > 0 {
        vec![Effect::LeaveInputs]
    } else {
        vec![]
    };
    end(effects, not_repaired(facts, &failures))
}

/// Ends the goal, unless somebody wants outputs by now that nobody has looked at.
fn all_good(facts: &Facts, recipe: Arc<Recipe>, examined: Examined) -> Step {
    match examined.growth {
        Widened::Grown => check_outputs(facts, recipe, examined.wanted),
        Widened::Unchanged => {
            let outputs = recipe.wanted(&examined.wanted);
            end(vec![], Outcome::success(Status::AlreadyValid, outputs))
        }
    }
}

fn not_repaired(facts: &Facts, failures: &InputFailures) -> Outcome {
    let names: Vec<String> = failures
        .root_causes
        .iter()
        .map(|path| format!("'{}'", path.name()))
        .collect();
    let mut message = format!(
        "some paths in the output closure of derivation '{}' could not be repaired: {} failed",
        facts.printed_path,
        names.join(", ")
    );
    for cause in &failures.messages {
        message.push('\n');
        message.push_str(cause);
    }
    // As in Nix this is a kind of failure of its own, whatever kind the repair's was.
    Outcome::failure(Status::MiscFailure, message)
}
