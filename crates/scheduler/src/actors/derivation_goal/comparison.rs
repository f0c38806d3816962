//! Comparing what was built: what is asked of the registry, and what people and the diff hook are
//! told.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use registry::{Comparand, CompareOutputs, Compared, DifferingOutputs, OutputDifference};
use store_model::OutputName;
use tokio::sync::oneshot;

use super::{DerivationGoal, service_failed};
use crate::actors::diff_hook::{self, DiffHook, HookUser};
use crate::actors::questions::{discard_invalid_paths, refusal};
use crate::goal::BuildMode;
use crate::goal::derivation::{Comparison, Event, OnDifference, OutputsDiffer, Shown};

impl DerivationGoal {
    /// Returns whether the builder's log is handed on (`print-repeated-builds`).
    pub(super) fn shows_log(&self) -> bool {
        self.round.number == 1 || self.settings.print_repeated_builds
    }

    pub(super) fn compare_outputs(
        &mut self,
        names: &BTreeSet<OutputName>,
        comparison: Comparison,
        ctx: &mut Context<Self>,
    ) {
        let candidate = match self.describe_outputs(names) {
            Ok(candidate) => candidate,
            Err(event) => return self.advance(event, ctx),
        };
        let with = match (comparison, self.earlier_rounds.take()) {
            (Comparison::WithValid, _) => Comparand::Valid,
            (Comparison::WithEarlierRound, Some(earlier)) => Comparand::Round(earlier),
            (Comparison::WithEarlierRound | Comparison::OfFirstRound, _) => Comparand::Nothing,
        };
        let compare = CompareOutputs {
            candidate,
            with,
            differing: self.differing(),
        };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.compare_outputs.send(compare).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(compared)) => goal.outputs_compared(compared),
                    Ok(Err(error)) => refusal(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    /// Returns what becomes of outputs that differ: they are kept for people and shown to the hook.
    fn differing(&self) -> DifferingOutputs {
        let settings = &self.settings;
        let becomes_valid =
            self.facts.mode == BuildMode::Normal && self.facts.on_difference == OnDifference::Tell;
        if settings.run_diff_hook && settings.diff_hook.is_some() && !becomes_valid {
            DifferingOutputs::Show
        } else if settings.run_diff_hook || settings.keep_failed {
            DifferingOutputs::Keep
        } else {
            DifferingOutputs::Discard
        }
    }

    fn outputs_compared(&mut self, compared: Compared) -> Event {
        self.earlier_rounds = compared.round;
        if let Some(build) = &mut self.build {
            build.owner_uid = Some(compared.owner_uid);
        }
        let differences = compared.differences;
        if differences.is_empty() {
            return Event::OutputsCompared { difference: None };
        }
        let (mode, drv_path) = (self.facts.mode, &self.facts.printed_path);
        let lines: Vec<String> = differences
            .iter()
            .map(|difference| describe(difference, mode, drv_path))
            .collect();
        let has_hook = self.settings.run_diff_hook && self.settings.diff_hook.is_some();
        let shown = differences
            .into_iter()
            .filter(|_| has_hook)
            .filter_map(|difference| shown(difference, mode))
            .collect();
        Event::OutputsCompared {
            difference: Some(Box::new(OutputsDiffer {
                message: lines.join("\n"),
                shown,
            })),
        }
    }

    pub(super) fn run_diff_hook(&mut self, shown: Vec<Shown>, ctx: &mut Context<Self>) {
        let (stop, stopped) = oneshot::channel();
        self.diff_hook = Some(stop);
        let hook = self.described_hook();
        let discard = discard_invalid_paths(Arc::clone(&self.ports), self.places());
        let question = async move {
            let report = match hook {
                Some(hook) => diff_hook::run(&hook, &shown, stopped).await,
                None => String::new(),
            };
            discard.await?;
            Ok(Event::DiffHookEnded { report })
        };
        self.ask(question, ctx);
    }

    fn described_hook(&self) -> Option<DiffHook> {
        let build = self.build.as_ref()?;
        let scratch = build.scratch.as_ref()?;
        // Where the builder is the user that we are there is nobody else to become.
        let is_other = build.owner_uid != Some(scratch.builder_uid);
        Some(DiffHook {
            program: self.settings.diff_hook.clone()?,
            drv_path: self.facts.printed_path.clone(),
            build_dir: scratch.build_dir.clone(),
            user: is_other.then_some(HookUser {
                uid: scratch.builder_uid,
                gid: scratch.builder_gid,
            }),
        })
    }
}

/// Says which output differs, in Nix's words, and which of its files.
fn describe(difference: &OutputDifference, mode: BuildMode, drv_path: &str) -> String {
    let output = difference.output.display();
    let kept_at = difference.kept_at.as_ref().map(|path| path.display());
    let mut text = match (mode, kept_at) {
        (BuildMode::Check, Some(kept_at)) => format!(
            "derivation '{drv_path}' may not be deterministic: output '{output}' differs from \
             '{kept_at}'"
        ),
        (BuildMode::Check, None) => {
            format!("derivation '{drv_path}' may not be deterministic: output '{output}' differs")
        }
        (BuildMode::Normal | BuildMode::Repair | BuildMode::Hash, Some(kept_at)) => format!(
            "output '{output}' of '{drv_path}' differs from '{kept_at}' from previous round"
        ),
        (BuildMode::Normal | BuildMode::Repair | BuildMode::Hash, None) => {
            format!("output '{output}' of '{drv_path}' differs from previous round")
        }
    };
    for line in difference.summary.lines() {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

/// Returns what the hook compares: the valid output with the new one, or one round with the next.
fn shown(difference: OutputDifference, mode: BuildMode) -> Option<Shown> {
    let (output, kept_at) = (difference.output, difference.kept_at?);
    Some(match mode {
        BuildMode::Check => Shown {
            earlier: output,
            later: kept_at,
        },
        BuildMode::Normal | BuildMode::Repair | BuildMode::Hash => Shown {
            earlier: kept_at,
            later: output,
        },
    })
}
