//! `simulate`: the scheduler's decisions in a pretended world.

use std::time::{Duration, Instant};

use scheduler::simulate::{Plan, Summary, run};
use serde_json::json;

use crate::args::SimulateArguments;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Runs one layered graph, or many random worlds; a broken invariant is an error that names the
/// seed.
pub(super) fn simulate(arguments: &SimulateArguments, output: &mut Output) -> Result<()> {
    match arguments.worlds {
        Some(n_worlds) => random_worlds(arguments, n_worlds, output),
        None => layered_graph(arguments, output),
    }
}

fn layered_graph(arguments: &SimulateArguments, output: &mut Output) -> Result<()> {
    let width = arguments.width.min(arguments.goals);
    let n_layers = arguments.goals.div_ceil(width);
    let plan = Plan::layered(
        to_usize(n_layers),
        to_usize(width),
        to_usize(arguments.inputs.min(width)),
        arguments.seed,
    );
    let started = now();
    let summary = run(&plan).map_err(|violation| broken(arguments.seed, &violation))?;
    let took = started.elapsed();
    if arguments.json {
        return output.json(&to_json(&plan, &summary, took));
    }
    output.line(format_args!(
        "{} goals in {:.2} s: {} built, {} steps, {} at once, {} ms of pretended time",
        plan.goals.len(),
        took.as_secs_f64(),
        summary.n_built,
        summary.n_steps,
        summary.peak_slots,
        summary.makespan_ms,
    ))
}

fn random_worlds(arguments: &SimulateArguments, n_worlds: u64, output: &mut Output) -> Result<()> {
    let started = now();
    let mut n_steps = 0;
    for seed in (arguments.seed..).take(usize::try_from(n_worlds).unwrap_or(usize::MAX)) {
        let summary = run(&Plan::random(seed)).map_err(|violation| broken(seed, &violation))?;
        n_steps += summary.n_steps;
    }
    let took = started.elapsed();
    if arguments.json {
        return output.json(&json!({
            "worlds": n_worlds,
            "steps": n_steps,
            "seconds": took.as_secs_f64(),
        }));
    }
    output.line(format_args!(
        "{n_worlds} worlds in {:.2} s: {n_steps} steps, every invariant held",
        took.as_secs_f64(),
    ))
}

fn to_json(plan: &Plan, summary: &Summary, took: Duration) -> serde_json::Value {
    json!({
        "goals": plan.goals.len(),
        "seconds": took.as_secs_f64(),
        "built": summary.n_built,
        "failed": summary.n_failed,
        "steps": summary.n_steps,
        "peakSlots": summary.peak_slots,
        "makespanMs": summary.makespan_ms,
        "workMs": summary.work_ms,
        "longestPathMs": summary.longest_path_ms,
    })
}

fn broken(seed: u64, violation: &scheduler::simulate::Violation) -> Failure {
    Failure::message(format!("seed {seed}: {violation}"))
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Returns the time to measure this command by; the pretended world has a clock of its own.
#[expect(
    clippy::disallowed_methods,
    reason = "this measures the program, and decides nothing"
)]
fn now() -> Instant {
    Instant::now()
}
