//! What a pretended world is made of.

use std::collections::BTreeSet;

use store_model::{OutputName, StorePath};

use super::Random;
use crate::goal::BuildMode;
use crate::goal::derivation::{AfterFailure, OnDifference};

/// A world to run: goals, slots and what goes wrong.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Replays every choice.
    pub seed: u64,
    /// Build slots.
    pub n_slots: usize,
    /// Goals; the inputs of each come before it.
    pub goals: Vec<SimulatedGoal>,
    /// Which goals each request wants, and what for.
    pub requests: Vec<Vec<(usize, BuildMode)>>,
    /// Whether requests go on after a failure.
    pub after_failure: AfterFailure,
    /// What goes wrong.
    pub chaos: Chaos,
}

/// One derivation of a pretended world.
#[derive(Debug, Clone)]
pub struct SimulatedGoal {
    /// Its path.
    pub drv_path: StorePath,
    /// Its outputs.
    pub outputs: Vec<OutputName>,
    /// Which goals it needs, and which of their outputs.
    pub inputs: Vec<(usize, Box<[OutputName]>)>,
    /// The goal that it is resolved to when its inputs are there; that one has none of its own.
    pub resolves_to: Option<usize>,
    /// How long its builder runs.
    pub build_ms: u64,
    /// How many times it is built, and compared.
    pub n_rounds: u32,
    /// What a round that differs comes to.
    pub on_difference: OnDifference,
    /// Whether it is known what its outputs must be.
    pub is_fixed_output: bool,
}

/// How often things go wrong, in percent of the chances that they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chaos {
    /// A builder fails.
    pub builder_fails: u64,
    /// Outputs are refused when they are registered.
    pub outputs_refused: u64,
    /// Outputs that are compared differ.
    pub outputs_differ: u64,
    /// A lock is taken by another process, which may build the derivation meanwhile.
    pub lock_is_busy: u64,
    /// An output is valid from the beginning.
    pub is_valid: u64,
    /// What is valid from the beginning has other contents than it should have.
    pub is_corrupt: u64,
    /// A cache has an output; 0 where there are no caches.
    pub cache_has_it: u64,
    /// An output that is not to be had fails to come, and is not merely absent.
    pub download_fails: u64,
    /// A service fails to answer.
    pub service_fails: u64,
    /// A request is cancelled at some time.
    pub request_is_cancelled: u64,
    /// Messages overtake those of other senders.
    pub reorder: bool,
}

impl Plan {
    /// Makes `n_layers` layers of `width` goals, each of which needs `n_inputs` of the layer below;
    /// one request wants the whole last layer.
    #[must_use]
    pub fn layered(n_layers: usize, width: usize, n_inputs: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut goals: Vec<SimulatedGoal> = Vec::with_capacity(n_layers * width);
        let out = OutputName::default();
        for layer in 0..n_layers {
            for column in 0..width {
                let inputs = match layer.checked_sub(1) {
                    Some(below) => (0..n_inputs)
                        .map(|step| below * width + (column + step * 7) % width)
                        .collect::<BTreeSet<usize>>(),
                    None => BTreeSet::new(),
                };
                goals.push(SimulatedGoal {
                    drv_path: drv_path(goals.len()),
                    outputs: vec![out.clone()],
                    inputs: inputs
                        .into_iter()
                        .map(|input| (input, Box::from([out.clone()])))
                        .collect(),
                    resolves_to: None,
                    build_ms: 10 + random.below(50),
                    n_rounds: 1,
                    on_difference: OnDifference::Fail,
                    is_fixed_output: false,
                });
            }
        }
        let last_layer = goals.len() - width..goals.len();
        Self {
            seed,
            n_slots: 16,
            goals,
            requests: vec![last_layer.map(|idx| (idx, BuildMode::Normal)).collect()],
            after_failure: AfterFailure::Stop,
            chaos: Chaos::default(),
        }
    }

    /// Makes a small world in which anything may go wrong.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x676f_616c_6374_6c00);
        let n_goals = 1 + random.below(40);
        let mut goals = Vec::new();
        for idx in 0..n_goals {
            let outputs = random_outputs(&mut random);
            let inputs = random_inputs(&mut random, &goals);
            let resolves_to = random_resolution(&mut random, &goals, &outputs, &inputs);
            goals.push(SimulatedGoal {
                drv_path: drv_path(usize::try_from(idx).unwrap_or(0)),
                outputs,
                inputs,
                resolves_to,
                build_ms: random.below(100),
                n_rounds: 1 + u32::try_from(random.below(6))
                    .unwrap_or(0)
                    .saturating_sub(3),
                on_difference: if random.chance(50) {
                    OnDifference::Tell
                } else {
                    OnDifference::Fail
                },
                is_fixed_output: random.chance(20),
            });
        }
        let requests = (0..=random.below(3))
            .map(|_| {
                (0..=random.below(4))
                    .map(|_| {
                        let mode = match random.below(10) {
                            0 | 1 => BuildMode::Check,
                            2..4 => BuildMode::Repair,
                            4 => BuildMode::Hash,
                            _ => BuildMode::Normal,
                        };
                        (usize::try_from(random.below(n_goals)).unwrap_or(0), mode)
                    })
                    .collect()
            })
            .collect();
        // Swarm testing: each kind of fault is present in only some of the worlds.
        let mut percent = |limit| {
            if random.chance(50) {
                random.below(limit)
            } else {
                0
            }
        };
        let chaos = Chaos {
            builder_fails: percent(40),
            outputs_refused: percent(20),
            outputs_differ: percent(40),
            lock_is_busy: percent(60),
            is_valid: percent(60),
            is_corrupt: percent(60),
            cache_has_it: percent(60),
            download_fails: percent(40),
            service_fails: percent(5),
            request_is_cancelled: percent(100),
            reorder: true,
        };
        Self {
            seed,
            n_slots: usize::try_from(1 + random.below(6)).unwrap_or(1),
            goals,
            requests,
            after_failure: if random.chance(50) {
                AfterFailure::KeepGoing
            } else {
                AfterFailure::Stop
            },
            chaos,
        }
    }
}

fn random_outputs(random: &mut Random) -> Vec<OutputName> {
    ["out", "dev", "doc"][..usize::try_from(1 + random.below(3)).unwrap_or(1)]
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

fn random_inputs(random: &mut Random, goals: &[SimulatedGoal]) -> Vec<(usize, Box<[OutputName]>)> {
    let n_goals = goals.len() as u64;
    let wanted: BTreeSet<usize> = (0..random.below(5).min(n_goals))
        .map(|_| usize::try_from(random.below(n_goals)).unwrap_or(0))
        .collect();
    wanted
        .into_iter()
        .map(|input| {
            let outputs = &goals[input].outputs;
            let n_wanted = usize::try_from(1 + random.below(outputs.len() as u64)).unwrap_or(1);
            (input, outputs.iter().take(n_wanted).cloned().collect())
        })
        .collect()
}

/// Chooses what a goal with inputs is resolved to, which others may be, too.
fn random_resolution(
    random: &mut Random,
    goals: &[SimulatedGoal],
    outputs: &[OutputName],
    inputs: &[(usize, Box<[OutputName]>)],
) -> Option<usize> {
    if inputs.is_empty() || random.chance(60) {
        return None;
    }
    let is_like = |goal: &SimulatedGoal| goal.inputs.is_empty() && goal.outputs == outputs;
    let candidates: Vec<usize> = (0..goals.len())
        .filter(|idx| is_like(&goals[*idx]))
        .collect();
    let chosen = random.below((candidates.len() as u64).max(1));
    candidates
        .get(usize::try_from(chosen).unwrap_or(0))
        .copied()
}

/// Returns a path that is unique to a number, and sorts like it.
fn drv_path(number: usize) -> StorePath {
    let mut digest = [0; 20];
    digest[12..].copy_from_slice(&(number as u64).to_be_bytes());
    StorePath::from_digest(&digest, "goal.drv").unwrap_or_else(|error| {
        unreachable!("a constant name is a valid one: {error}");
    })
}
