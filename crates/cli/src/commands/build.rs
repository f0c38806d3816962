//! `build`: brings about what the command line wants, and shows how it goes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use registry::QueryPathInfo;
use scheduler::{
    BuildMode, BuildReport, BuildRequest, Config, Event, EventKind, EventStream, GoalKey, Outcome,
    PathMode, Scheduler, SchedulerHandle, Status, Wanted,
};
use serde_json::{Value, json};
use store_model::settings::{Assignment, Configuration, StoreLayout};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{ContentAddress, Settings, StorePath};
use substituter::StopSubstituter;

use super::{Session, copy, out_link, plan};
use crate::args::{BuildArguments, Subject};
use crate::configure::typed;
use crate::exit_status::ExitStatus;
use crate::failure::{Failure, Result};
use crate::goals_toml::Goals;
use crate::interrupt::Interrupts;
use crate::output::{Output, say};
use crate::render::plain::BuildLogs;
use crate::render::progress::Counts;
use crate::render::sanitise::sanitise;
use crate::render::{Audience, Renderer, Style, json};
use crate::store::{Store, explain};
use crate::target::{Finder, Target};

/// How often the live view looks at the clock.
const TICK: Duration = Duration::from_millis(200);

/// How many events are shown before signals and the clock get a look again.
const EVENTS_PER_TURN: usize = 256;

/// Things that are wanted under the same settings: a `goals.toml` may have settings of its own.
struct Group {
    settings: Arc<Settings>,
    wanted: Vec<Wanted>,
}

/// What a word of the command line became, before the store was opened.
enum Planned {
    Wanted(Wanted),
    Repaired(StorePath),
    Goals {
        goals: Box<Goals>,
        outputs: WantedOutputs,
        settings: Arc<Settings>,
    },
}

/// Builds, prints the paths, and makes links.
pub(super) async fn build(
    session: &Session,
    arguments: &BuildArguments,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    let layout = session.layout()?;
    let files = session.configuration_files()?;
    let flags = flags(arguments);
    let settings = Arc::new(session.with_typed(files.clone(), &flags)?.finish()?);
    let planned = plan_words(session, arguments, &layout, &files, &flags)?;
    if arguments.dry_run {
        return dry_run(session, arguments, &settings, planned, interrupts, output).await;
    }
    let scheduler = Scheduler::start(Config {
        layout: layout.clone(),
        settings: Arc::clone(&settings),
        host_environment: session.environment.to_bytes(),
        cache_dir: session.environment.cache_dir(),
        nix_config: nix_config(&session.with_typed(files.clone(), &flags)?, &layout),
    })
    .map_err(|error| {
        let is_the_stores = match &error {
            scheduler::Error::OpenStore(error) => !matches!(
                error,
                registry::Error::ReadSecretKey { .. } | registry::Error::SecretKey { .. }
            ),
            scheduler::Error::StartSandbox(_)
            | scheduler::Error::StartSubstituter(_)
            | scheduler::Error::StartThread(_)
            | scheduler::Error::Stopped => false,
        };
        let failure = Failure::new(error);
        if is_the_stores {
            explain(&layout, failure)
        } else {
            failure
        }
    })?;
    let run = Run {
        session,
        arguments,
        layout: &layout,
        scheduler: &scheduler,
    };
    let done = run.run(planned, &settings, interrupts, output).await;
    if let Some(signal) = done.as_ref().err().and_then(Failure::signal) {
        interrupts.clean_up(signal, scheduler.stop()).await;
    } else {
        scheduler.stop().await;
    }
    done
}

/// Returns what a `post-build-hook` finds in `NIX_CONFIG`, for a Nix on the same store.
fn nix_config(configuration: &Configuration, layout: &StoreLayout) -> String {
    let mut lines = configuration.to_nix_config();
    // The store lies in `nix/store` of a root that is not the system's.
    let root = layout.real_store_dir.ancestors().nth(2);
    if let (true, Some(root)) = (layout.is_relocated(), root) {
        lines = lines + "store = " + &root.to_string_lossy() + "\n";
    }
    lines
}

/// Turns the flags of `build` into assignments, which win over every file.
fn flags(arguments: &BuildArguments) -> Vec<Assignment> {
    let building = &arguments.building;
    let values = [
        ("max-jobs", &building.max_jobs),
        ("cores", &building.cores),
        ("timeout", &building.timeout),
        ("max-silent-time", &building.max_silent_time),
        ("sandbox-paths", &building.sandbox_paths),
        ("extra-sandbox-paths", &building.extra_sandbox_paths),
    ];
    let switches = [
        ("keep-going", building.keep_going),
        ("keep-failed", building.keep_failed),
        ("fallback", building.fallback),
    ];
    let values = values
        .into_iter()
        .filter_map(|(name, value)| Some(typed(name, value.as_deref()?)));
    let switches = switches
        .into_iter()
        .filter(|(_, is_on)| *is_on)
        .map(|(name, _)| typed(name, "true"));
    let rounds = arguments
        .rounds
        .map(|n_rounds| typed("repeat", &n_rounds.saturating_sub(1).to_string()));
    let source = arguments.source.iter().flat_map(copy::assignments);
    let flags = values.chain(switches).chain(rounds);
    flags.chain(source).collect()
}

/// Returns what the outputs are built for.
fn mode(arguments: &BuildArguments) -> BuildMode {
    match (arguments.check, arguments.repair, arguments.hash) {
        (true, _, _) => BuildMode::Check,
        (_, true, _) => BuildMode::Repair,
        (_, _, true) => BuildMode::Hash,
        (false, false, false) => BuildMode::Normal,
    }
}

/// Finds what every word means, so that a wrong one is told before anything is opened.
fn plan_words(
    session: &Session,
    arguments: &BuildArguments,
    layout: &StoreLayout,
    files: &Configuration,
    flags: &[Assignment],
) -> Result<Vec<Planned>> {
    let finder = session.finder(layout);
    let planned: fn(StorePath) -> Planned = match arguments.subject {
        Subject::Realised => return plan_wanted(session, arguments, &finder, files, flags),
        Subject::Ensured | Subject::Copied => {
            |path| Planned::Wanted(Wanted::Path(path, PathMode::Ensure))
        }
        Subject::Repaired => Planned::Repaired,
    };
    let paths = arguments.wanted.iter().map(|word| finder.store_path(word));
    paths.map(|path| Ok(planned(path?))).collect()
}

/// The same for words of many kinds.
fn plan_wanted(
    session: &Session,
    arguments: &BuildArguments,
    finder: &Finder<'_>,
    files: &Configuration,
    flags: &[Assignment],
) -> Result<Vec<Planned>> {
    let plan_word = |word: &String| match finder.target(word)? {
        Target::Outputs { drv_path, outputs } => Ok(Planned::Wanted(Wanted::Outputs {
            drv_path,
            outputs,
            mode: mode(arguments),
        })),
        Target::Path(path) => {
            let mode = match mode(arguments) {
                BuildMode::Repair => PathMode::Repair,
                BuildMode::Normal | BuildMode::Check | BuildMode::Hash => PathMode::Ensure,
            };
            Ok(Planned::Wanted(Wanted::Path(path, mode)))
        }
        Target::Goals {
            file,
            goal,
            outputs,
        } => {
            let goals = Goals::read(&file, goal.as_deref()).map_err(Failure::new)?;
            let mut configuration = files.clone();
            for assignment in goals.settings()? {
                configuration.assign(&assignment)?;
            }
            let settings = session.with_typed(configuration, flags)?.finish()?;
            Ok(Planned::Goals {
                goals: Box::new(goals),
                outputs,
                settings: Arc::new(settings),
            })
        }
    };
    arguments.wanted.iter().map(plan_word).collect()
}

/// Writes the derivations of goals into the store, and groups what is wanted by settings.
async fn group(
    store: &Store,
    planned: Vec<Planned>,
    mode: BuildMode,
    settings: &Arc<Settings>,
) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for planned in planned {
        let (settings, mut wanted) = match planned {
            Planned::Wanted(wanted) => (Arc::clone(settings), vec![wanted]),
            // Whoever only plans cannot know what made it.
            Planned::Repaired(path) => {
                let wanted = Wanted::Path(path, PathMode::Repair);
                (Arc::clone(settings), vec![wanted])
            }
            Planned::Goals {
                goals,
                outputs,
                settings,
            } => {
                let instantiated = goals.instantiate(store, &settings).await?;
                let wanted = instantiated
                    .into_iter()
                    .map(|(_, instantiated)| Wanted::Outputs {
                        drv_path: instantiated.drv_path,
                        outputs: outputs.clone(),
                        mode,
                    });
                (settings, wanted.collect())
            }
        };
        match groups.last_mut() {
            Some(last) if last.settings == settings => last.wanted.append(&mut wanted),
            Some(_) | None => groups.push(Group { settings, wanted }),
        }
    }
    Ok(groups)
}

async fn dry_run(
    session: &Session,
    arguments: &BuildArguments,
    settings: &Arc<Settings>,
    planned: Vec<Planned>,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    let store = Store::open(&session.layout()?, settings)?;
    let caches = session.substituter(store.dir().clone(), settings)?;
    let work = async {
        let groups = group(&store, planned, BuildMode::Normal, settings).await?;
        let wanted: Vec<Wanted> = groups.into_iter().flat_map(|group| group.wanted).collect();
        plan::plan(&store, &caches, settings, &wanted)
            .await?
            .print(&store, arguments.building.json, output)?;
        output.flush()
    };
    let done = interrupts.unless(work).await;
    // What is gone needs no stopping.
    let _gone = caches.send(StopSubstituter).await;
    store.close().await;
    done
}

/// One run of `build`, with a scheduler of its own.
struct Run<'a> {
    session: &'a Session,
    arguments: &'a BuildArguments,
    layout: &'a StoreLayout,
    scheduler: &'a SchedulerHandle,
}

impl Run<'_> {
    async fn run(
        &self,
        planned: Vec<Planned>,
        settings: &Arc<Settings>,
        interrupts: &mut Interrupts,
        output: &mut Output,
    ) -> Result<()> {
        let store = Store::of_scheduler(self.scheduler, self.layout);
        let grouping = async {
            let planned = self.find_remedies(planned).await?;
            group(&store, planned, mode(self.arguments), settings).await
        };
        let groups = interrupts.unless(grouping).await?;
        let mut events = self.scheduler.subscribe().await?;
        let mut renderer = self.renderer();
        let mut outcomes = Vec::new();
        let mut status = 0;
        for group in groups {
            let keep_going = group.settings.keep_going;
            let report = self
                .watch(group, &mut events, &mut renderer, interrupts, output)
                .await;
            let report = match report {
                Ok(report) => report,
                Err(failure) => {
                    renderer.finish();
                    return Err(failure);
                }
            };
            status = merge_statuses(status, report.exit_status());
            let failed = !report.is_success();
            outcomes.extend(report.outcomes);
            if failed && !keep_going {
                break;
            }
        }
        let counts = renderer.finish();
        self.report(&outcomes, &renderer, counts, output)?;
        if self.arguments.hash {
            self.say_hashes(&store, &outcomes).await?;
        }
        self.make_links(&store, &outcomes).await?;
        let status = ExitStatus::from_report(status);
        if status == ExitStatus::Success {
            return Ok(());
        }
        Err(Failure::silent(status))
    }

    /// Finds what makes the paths that are to be repaired.
    async fn find_remedies(&self, planned: Vec<Planned>) -> Result<Vec<Planned>> {
        let mut found = Vec::with_capacity(planned.len());
        for planned in planned {
            found.push(match planned {
                Planned::Repaired(path) => Planned::Wanted(self.scheduler.remedy(path).await?),
                planned @ (Planned::Wanted(_) | Planned::Goals { .. }) => planned,
            });
        }
        Ok(found)
    }

    /// Tells what a derivation has to promise to get what was built.
    async fn say_hashes(&self, store: &Store, outcomes: &[(Wanted, Arc<Outcome>)]) -> Result<()> {
        for path in outcomes.iter().flat_map(|(_, it)| it.outputs.values()) {
            let question = QueryPathInfo { path: path.clone() };
            let info = store.ask(question).await?;
            let address = info.and_then(|info| info.content_address);
            let address = address.and_then(|address| address.parse::<ContentAddress>().ok());
            if let Some(address) = address {
                say(&format!(
                    "build produced path '{}' with hash '{}'\n",
                    store.dir().print(path),
                    address.hash.to_sri()
                ));
            }
        }
        Ok(())
    }

    fn renderer(&self) -> Renderer {
        let audience = if self.arguments.building.json {
            Audience::Json
        } else {
            Audience::of_stderr(&self.session.environment)
        };
        let logs = if audience == Audience::Human && !self.arguments.building.print_build_logs {
            BuildLogs::Hidden
        } else {
            BuildLogs::Printed
        };
        let store_dir = self.layout.store_dir.clone();
        let Session {
            style, diagnostics, ..
        } = self.session;
        Renderer::new(audience, store_dir, *style, logs, diagnostics)
    }

    /// Submits a request and shows events until its report comes.
    async fn watch(
        &self,
        group: Group,
        events: &mut EventStream,
        renderer: &mut Renderer,
        interrupts: &mut Interrupts,
        output: &mut Output,
    ) -> Result<BuildReport> {
        let request = BuildRequest {
            wanted: group.wanted,
            settings: group.settings,
            priority: 0,
        };
        let mut building = pin!(self.scheduler.build_paths(request));
        let mut clock = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                report = &mut building => {
                    // Everything that led to the report has been sent before it.
                    while let Ok(event) = events.try_recv() {
                        renderer.show(&event, output)?;
                    }
                    return Ok(report?);
                }
                Some(event) = events.recv() => {
                    renderer.show(&event, output)?;
                    for _ in 0..EVENTS_PER_TURN {
                        let Ok(event) = events.try_recv() else { break };
                        renderer.show(&event, output)?;
                    }
                }
                _ = clock.tick() => renderer.tick(now(), output)?,
                signal = interrupts.next() => {
                    renderer.finish();
                    return Err(self.cancel(signal, interrupts, events, building).await);
                }
            }
        }
    }

    /// Kills what runs, and says which build directories stay; builders' last words are thrown
    /// away, so that none waits for a reader.
    async fn cancel(
        &self,
        signal: Signal,
        interrupts: &mut Interrupts,
        events: &mut EventStream,
        building: impl Future<Output = std::result::Result<BuildReport, scheduler::Error>>,
    ) -> Failure {
        let cancelled = async {
            let cancelled = self.scheduler.cancel_all().await;
            // A scheduler that has stopped has nothing left to cancel.
            let _report = (cancelled, building.await);
        };
        let work = async {
            let drained = async {
                while let Some(event) = events.recv().await {
                    say_what_was_kept(&event);
                }
            };
            tokio::select! {
                () = cancelled => {}
                () = drained => {}
            }
            // Everything that led to the report has been sent before it.
            while let Ok(event) = events.try_recv() {
                say_what_was_kept(&event);
            }
        };
        interrupts.clean_up(signal, work).await;
        Failure::interrupted(signal)
    }

    /// Prints the paths that are there now, and says what is not there.
    fn report(
        &self,
        outcomes: &[(Wanted, Arc<Outcome>)],
        renderer: &Renderer,
        counts: Counts,
        output: &mut Output,
    ) -> Result<()> {
        let dir = &self.layout.store_dir;
        if self.arguments.building.json {
            let results: Vec<Value> = outcomes
                .iter()
                .map(|(wanted, outcome)| {
                    let mut result = json::outcome(outcome, dir);
                    result["wanted"] = json!(dir.print(wanted.key().path()));
                    result
                })
                .collect();
            let line = json!({"event": "report", "results": results});
            renderer.json(&line, output)?;
        } else if matches!(self.arguments.subject, Subject::Realised | Subject::Ensured) {
            for path in outcomes
                .iter()
                .flat_map(|(_, outcome)| outcome.outputs.values())
            {
                output.line(dir.print(path))?;
            }
        }
        self.say_what_failed(outcomes, counts);
        output.flush()
    }

    fn say_what_failed(&self, outcomes: &[(Wanted, Arc<Outcome>)], counts: Counts) {
        let style = self.session.style;
        for (wanted, outcome) in outcomes {
            // What failed by itself has been told when it happened, with its message.
            let told = if is_path(wanted) && !outcome.status.is_success() {
                // Nobody has told it: of most paths it matters only to who needs them.
                let message = sanitise_lines(&outcome.message);
                say(&format!("{} {message}\n", style.error("error:")));
                continue;
            } else if outcome.status == Status::DependencyFailed {
                outcome
                    .message
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            } else if outcome.status == Status::Cancelled {
                let path = self.layout.store_dir.print(wanted.key().path());
                format!("'{path}' was given up, because another goal failed")
            } else {
                continue;
            };
            let told = sanitise(told.as_bytes(), Style::Plain);
            say(&format!("{} {told}\n", style.warning("not built:")));
        }
        if counts.n_failed > 0 && counts.n_built + counts.n_failed > 1 {
            say(&format!(
                "{} built, {} failed\n",
                counts.n_built, counts.n_failed
            ));
        }
    }

    async fn make_links(&self, store: &Store, outcomes: &[(Wanted, Arc<Outcome>)]) -> Result<()> {
        let Some(link) = &self.arguments.out_link else {
            return Ok(());
        };
        let link = self.session.environment.absolute(link);
        for (idx, (_, outcome)) in outcomes.iter().enumerate() {
            for (name, path) in &outcome.outputs {
                let link = out_link::link_name(&link, idx, name);
                out_link::make(store, link, path.clone()).await?;
            }
        }
        Ok(())
    }
}

/// Returns whether a path was wanted, and not what a derivation makes.
fn is_path(wanted: &Wanted) -> bool {
    matches!(wanted.key(), GoalKey::Path(..))
}

/// Returns lines of which each can be printed.
fn sanitise_lines(text: &str) -> String {
    let lines = text.lines();
    let lines: Vec<String> = lines
        .map(|line| sanitise(line.as_bytes(), Style::Plain))
        .collect();
    lines.join("\n")
}

/// Puts the statuses of two requests together: masks of SPEC A9 are united, and 1 is weaker.
fn merge_statuses(left: u8, right: u8) -> u8 {
    match (left, right) {
        (0 | 1, other) | (other, 0 | 1) if other > 1 => other,
        (left, right) => left | right,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the live view shows ages, and this is the edge that asks the machine"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Says where a build that was cancelled left its directory.
fn say_what_was_kept(event: &Event) {
    if let EventKind::Finished(outcome) = &event.kind
        && let Some(kept) = &outcome.kept_build_dir
    {
        say(&format!(
            "note: keeping build directory '{}'\n",
            kept.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_end_in_one_status() {
        for (left, right, merged) in [
            (0, 0, 0),
            (0, 1, 1),
            (1, 1, 1),
            (1, 100, 100),
            (100, 0, 100),
            (101, 102, 103),
            (104, 100, 108),
        ] {
            assert_eq!(merge_statuses(left, right), merged, "{left} {right}");
        }
    }
}
