//! One running builder: its worker thread, its time limits and its one ending.
//!
//! ```text
//!              ┌─ worker thread: directories, launch ─┬─ the log ─┐
//! created ─────┤                                      │           ├─► Exited, once, to the observer
//!              └─ launcher ─────────────── Started ───┴── Ended ──┘
//! ```
//!
//! Whoever wants the build to end early (a time limit, the log limit, a cancellation) only notes the
//! cause and asks the launcher to kill; the ending then comes the usual way.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, Recipient,
    WeakAddr, WrapFuture,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::sandbox_supervisor::{SandboxSupervisor, SessionCrashed, SessionEnded};
use crate::build_log::file::LogFile;
use crate::build_log::reader::{BUDGET_BYTES, FinishedLog, LogNews, LogReader};
use crate::build_log::{lines::MAX_LINE_LEN, terminal};
use crate::error::chain;
use crate::host::{Confinement, Host, Prepared};
use crate::launch::Launcher;
use crate::user_pool::Withdrawal;
use crate::wire::{Ending, News};
use crate::workspace::Workspace;
use crate::{
    BuildEvent, BuildExited, BuildProgress, BuildVerdict, BuilderStarted, CancelBuild, Error,
    LogLines, SetupFault, StartBuild,
};

/// How long the log's reader has to catch up before a builder counts as silent.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(200);

/// Runs one builder.
pub(crate) struct BuilderSession {
    request: Arc<StartBuild>,
    host: Arc<Host>,
    confinement: Confinement,
    launcher: Arc<Launcher>,
    supervisor: WeakAddr<SandboxSupervisor>,
    /// Wakes the worker if it waits for a build user.
    withdrawal: Arc<Withdrawal>,
    /// Wakes the worker if it waits for the user's hook.
    give_up: Option<Arc<OwnedFd>>,
    /// Wakes the log's reader when the builder is gone.
    stop_log: Option<Arc<OwnedFd>>,
    budget: Arc<Semaphore>,
    builder_uid: u32,
    is_launched: bool,
    running: Option<Running>,
    /// Lines that overtook the news that the builder runs.
    early_lines: Vec<LogLines>,
    last_output: Instant,
    /// Why we ended it ourselves, if we did.
    cause: Option<BuildVerdict>,
    ending: Option<Ending>,
    work: Option<FinishedWork>,
    /// Whether outputs are being collected that its builder has put into the store itself.
    is_collecting: bool,
    has_reported: bool,
}

/// What is known of a builder that runs.
struct Running {
    since: SystemTime,
    /// Becomes readable when its first process, and so every one, is gone.
    life: Option<OwnedFd>,
}

/// What the worker thread leaves.
struct FinishedWork {
    workspace: Option<Workspace>,
    log: Option<FinishedLog>,
    disk_nearly_full: bool,
    error: Option<Error>,
}

/// Sent by the worker.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
enum WorkNews {
    /// There is no build user for the builder yet.
    AwaitingUser,
    /// The builder will run as this user.
    Prepared { builder_uid: u32 },
    /// The launcher has been asked, so it can also be asked to kill.
    Launched,
}

/// Sent by the supervisor when the launcher says something about this build.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LauncherSaid {
    /// What.
    pub(crate) news: News,
}

/// Sent by the supervisor when the launcher that runs this build is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LauncherLost {
    /// Why.
    pub(crate) reason: String,
}

impl BuilderSession {
    pub(crate) fn new(
        request: Arc<StartBuild>,
        host: Arc<Host>,
        confinement: Confinement,
        launcher: Arc<Launcher>,
        supervisor: WeakAddr<SandboxSupervisor>,
    ) -> Self {
        Self {
            request,
            host,
            confinement,
            launcher,
            supervisor,
            withdrawal: Arc::default(),
            give_up: None,
            stop_log: None,
            budget: Arc::new(Semaphore::new(BUDGET_BYTES)),
            builder_uid: 0,
            is_launched: false,
            running: None,
            early_lines: Vec::new(),
            last_output: Instant::now(),
            cause: None,
            ending: None,
            work: None,
            is_collecting: false,
            has_reported: false,
        }
    }

    fn start_worker(&mut self, ctx: &mut Context<Self>) -> io::Result<()> {
        let new_wake = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let (stop_log, given_up) = (Arc::new(new_wake()?), Arc::new(new_wake()?));
        self.stop_log = Some(Arc::clone(&stop_log));
        self.give_up = Some(Arc::clone(&given_up));
        let work = Work {
            request: Arc::clone(&self.request),
            host: Arc::clone(&self.host),
            confinement: self.confinement,
            launcher: Arc::clone(&self.launcher),
            withdrawal: Arc::clone(&self.withdrawal),
            given_up,
            stop_log,
            budget: Arc::clone(&self.budget),
            session: ctx.address().recipient(),
            log_news: ctx.address().recipient(),
        };
        let runtime = Handle::current();
        let worker = tokio::task::spawn_blocking(move || work.run(runtime));
        let finished = worker.into_actor(self).map(|result, session, ctx| {
            let work = result.unwrap_or_else(|error| {
                FinishedWork::failed(Error::Launcher {
                    source: io::Error::other(error),
                })
            });
            session.finish_work(work, ctx);
        });
        ctx.spawn(finished);
        Ok(())
    }

    fn finish_work(&mut self, work: FinishedWork, ctx: &mut Context<Self>) {
        if let Some(error) = &work.error {
            // Nothing was launched, so nothing will be heard of the launcher.
            self.ending.get_or_insert(Ending::SetupFailed {
                message: chain(error),
                fault: error.fault(),
            });
        }
        self.work = Some(work);
        self.report_if_over(ctx);
    }

    /// Has the build killed; the first cause counts.
    fn end_early(&mut self, cause: BuildVerdict) {
        if self.ending.is_none() {
            self.cause.get_or_insert(cause);
            self.kill();
        }
    }

    /// A builder that wrote too much has failed, also if it was gone before its log was read.
    fn exceed_log_limit(&mut self, cause: BuildVerdict) {
        self.cause.get_or_insert(cause);
        if self.ending.is_none() {
            self.kill();
        }
    }

    fn kill(&self) {
        // Before that the launcher would not know which build is meant.
        if !self.is_launched {
            if let Some(users) = &self.host.users {
                users.withdraw(&self.withdrawal);
            }
            return wake(self.give_up.as_ref());
        }
        let (launcher, build_id) = (Arc::clone(&self.launcher), self.request.build_id.0);
        // A launcher that cannot be asked is gone, which its thread tells everybody.
        let kill = move || drop(launcher.kill(build_id));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(kill)),
            // The system is coming down around this actor; nobody is left to be held up.
            Err(_) => kill(),
        }
    }

    fn note_start(&mut self, pid: u32, ctx: &mut Context<Self>) {
        let life = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
            });
        self.running = Some(Running {
            since: super::wall_clock(),
            life,
        });
        let uid = self.builder_uid;
        self.tell(BuildEvent::Started(BuilderStarted { pid, uid }));
        for lines in std::mem::take(&mut self.early_lines) {
            self.tell(BuildEvent::Logged(lines));
        }
        self.last_output = Instant::now();
        if let Some(after) = self.request.settings.timeout {
            ctx.run_later(after, move |session, _| {
                session.end_early(BuildVerdict::TimedOut { after });
            });
        }
        if let Some(limit) = self.request.settings.max_silent_time {
            Self::watch_silence(limit, limit, ctx);
        }
    }

    /// Looks after `wait` whether the builder has been silent for `limit`.
    fn watch_silence(limit: Duration, wait: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(wait, move |session, ctx| {
            match session.silence_left(limit) {
                Some(rest) => Self::watch_silence(limit, rest, ctx),
                // After we were stopped ourselves, timers run before anybody has read what the builder
                // has written meanwhile.
                None => {
                    ctx.run_later(SECOND_LOOK_AFTER, move |session, ctx| {
                        match session.silence_left(limit) {
                            Some(rest) => Self::watch_silence(limit, rest, ctx),
                            None => session.end_early(BuildVerdict::Silent { after: limit }),
                        }
                    });
                }
            }
        });
    }

    /// Returns how much longer the builder may be silent; `None` if it has been for too long.
    fn silence_left(&mut self, limit: Duration) -> Option<Duration> {
        // A builder that waits for its observers to read is not silent.
        if self.budget.available_permits() < MAX_LINE_LEN {
            self.last_output = Instant::now();
        }
        limit
            .checked_sub(self.last_output.elapsed())
            .filter(|rest| !rest.is_zero())
    }

    fn note_end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        self.ending.get_or_insert(ending);
        self.stop_reading();
        self.report_if_over(ctx);
    }

    /// Tells the log's reader that no more will be written.
    fn stop_reading(&self) {
        self.budget.close();
        wake(self.stop_log.as_ref());
    }

    fn report_if_over(&mut self, ctx: &mut Context<Self>) {
        if self.ending.is_none() || self.work.is_none() || self.collects_outputs(ctx) {
            return;
        }
        let (Some(ending), Some(work)) = (self.ending.take(), self.work.take()) else {
            return;
        };
        self.has_reported = true;
        let stopped_at = super::wall_clock();
        let scratch = work
            .workspace
            .as_ref()
            .map(|workspace| workspace.scratch().clone());
        let (log_tail, log_path, log_file) = match work.log {
            Some(log) => (log.tail, log.path, Some(log.file)),
            None => (Vec::new(), None, None),
        };
        // First the supervisor, for the goal's answer to the rest goes there.
        if let Some(supervisor) = self.supervisor.upgrade() {
            supervisor.do_send(SessionEnded {
                request: Arc::clone(&self.request),
                workspace: work.workspace,
                log_file,
            });
        }
        let verdict = self.cause.take().unwrap_or_else(|| verdict(ending));
        self.tell(BuildEvent::Exited(Box::new(BuildExited {
            verdict,
            scratch,
            started_at: self
                .running
                .as_ref()
                .map_or(stopped_at, |running| running.since),
            stopped_at,
            log_tail,
            log_path,
            disk_nearly_full: work.disk_nearly_full,
        })));
        ctx.stop();
    }

    /// Has what lies in the store itself collected, now that its builder is gone; returns whether
    /// there is something to wait for.
    fn collects_outputs(&mut self, ctx: &mut Context<Self>) -> bool {
        let scattered = self
            .work
            .as_mut()
            .and_then(|work| work.workspace.take_if(|it| it.is_scattered()));
        let Some(mut workspace) = scattered else {
            return self.is_collecting;
        };
        self.is_collecting = true;
        let collecting = tokio::task::spawn_blocking(move || {
            workspace.collect_outputs();
            workspace
        });
        let collected = collecting.into_actor(self).map(|workspace, session, ctx| {
            session.is_collecting = false;
            if let Some(work) = &mut session.work {
                work.workspace = workspace.ok();
            }
            session.report_if_over(ctx);
        });
        ctx.spawn(collected);
        true
    }

    fn tell(&self, event: BuildEvent) {
        self.request.observer.do_send(BuildProgress {
            build_id: self.request.build_id,
            event,
        });
    }
}

impl Actor for BuilderSession {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Err(source) = self.start_worker(ctx) {
            self.finish_work(FinishedWork::failed(Error::Terminal { source }), ctx);
        }
    }

    /// Also called after a panic, when the supervisor has to bring the build to its end.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        if self.has_reported {
            return;
        }
        self.stop_reading();
        self.kill();
        if let Some(supervisor) = self.supervisor.upgrade() {
            supervisor.do_send(SessionCrashed {
                request: Arc::clone(&self.request),
                is_launched: self.is_launched && self.ending.is_none(),
            });
        }
    }
}

impl Handler<WorkNews> for BuilderSession {
    type Result = ();

    fn handle(&mut self, news: WorkNews, _ctx: &mut Self::Context) {
        match news {
            WorkNews::AwaitingUser => self.tell(BuildEvent::AwaitingUser),
            WorkNews::Prepared { builder_uid } => self.builder_uid = builder_uid,
            WorkNews::Launched => {
                self.is_launched = true;
                if self.cause.is_some() {
                    self.kill();
                }
            }
        }
    }
}

impl Handler<LauncherSaid> for BuilderSession {
    type Result = ();

    fn handle(&mut self, said: LauncherSaid, ctx: &mut Self::Context) {
        match said.news {
            News::Started { pid } => self.note_start(pid, ctx),
            News::Ended(ending) => self.note_end(ending, ctx),
        }
    }
}

impl Handler<LauncherLost> for BuilderSession {
    type Result = ();

    fn handle(&mut self, lost: LauncherLost, ctx: &mut Self::Context) {
        let Some(running) = &mut self.running else {
            let ending = Ending::SetupFailed {
                message: lost.reason,
                fault: SetupFault::Passing,
            };
            return self.note_end(ending, ctx);
        };
        tracing::error!("{}", lost.reason);
        // The kernel kills the build with its launcher, but not within the same instant.
        let life = running.life.take();
        let death = tokio::task::spawn_blocking(move || {
            if let Some(life) = life {
                wait_for_death(&life);
            }
        });
        let ended = death.into_actor(self).map(|_, session, ctx| {
            let signal = rustix::process::Signal::KILL.as_raw();
            session.note_end(Ending::Signalled { signal }, ctx);
        });
        ctx.spawn(ended);
    }
}

impl Handler<LogNews> for BuilderSession {
    type Result = ();

    fn handle(&mut self, news: LogNews, _ctx: &mut Self::Context) {
        match news {
            LogNews::Lines(lines) if self.running.is_some() => {
                self.last_output = Instant::now();
                self.tell(BuildEvent::Logged(lines));
            }
            LogNews::Lines(lines) => self.early_lines.push(lines),
            LogNews::LimitExceeded => {
                let limit_bytes = self.request.settings.max_build_log_size_bytes;
                self.exceed_log_limit(BuildVerdict::LogLimitExceeded {
                    limit_bytes: limit_bytes.unwrap_or(u64::MAX),
                });
            }
        }
    }
}

impl Handler<CancelBuild> for BuilderSession {
    type Result = ();

    fn handle(&mut self, _: CancelBuild, _ctx: &mut Self::Context) {
        self.end_early(BuildVerdict::Cancelled);
    }
}

/// What the worker thread needs.
struct Work {
    request: Arc<StartBuild>,
    host: Arc<Host>,
    confinement: Confinement,
    launcher: Arc<Launcher>,
    withdrawal: Arc<Withdrawal>,
    given_up: Arc<OwnedFd>,
    stop_log: Arc<OwnedFd>,
    budget: Arc<Semaphore>,
    session: Recipient<WorkNews>,
    log_news: Recipient<LogNews>,
}

impl Work {
    /// Prepares the build, has it launched, and reads its log until it ends.
    fn run(self, runtime: Handle) -> FinishedWork {
        let wait = || self.session.do_send(WorkNews::AwaitingUser);
        let prepared = self
            .host
            .acquire_user(&self.withdrawal, wait)
            .and_then(|user| {
                let given_up = self.given_up.as_fd();
                self.host
                    .prepare(&self.request, self.confinement, user, given_up)
            });
        let Prepared {
            workspace,
            launch,
            builtin,
        } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return FinishedWork::failed(error),
        };
        let failed = |workspace, error| FinishedWork {
            workspace: Some(workspace),
            ..FinishedWork::failed(error)
        };
        let builder_uid = workspace.scratch().builder_uid;
        self.session.do_send(WorkNews::Prepared { builder_uid });
        let terminal = match terminal::open(builder_uid) {
            Ok(terminal) => terminal,
            Err(error) => return failed(workspace, error),
        };
        let (log, builtin) = (terminal.slave.as_fd(), builtin.as_ref().map(AsFd::as_fd));
        if let Err(error) = self.launcher.launch(launch, log, builtin) {
            return failed(workspace, error);
        }
        // Only the builder holds it from now on, so that its end is seen.
        drop(terminal.slave);
        self.session.do_send(WorkNews::Launched);
        let settings = &self.request.settings;
        let reader = LogReader {
            master: terminal.master,
            stop: self.stop_log,
            budget: self.budget,
            session: self.log_news,
            file: LogFile::new(&self.host.layout.log_dir, &self.request.drv_path, settings),
            n_tail_lines: settings.log_lines,
            limit_bytes: settings.max_build_log_size_bytes,
        };
        let log = reader.run(runtime);
        FinishedWork {
            disk_nearly_full: workspace.is_disk_nearly_full(),
            workspace: Some(workspace),
            log: Some(log),
            error: None,
        }
    }
}

impl FinishedWork {
    fn failed(error: Error) -> Self {
        Self {
            workspace: None,
            log: None,
            disk_nearly_full: false,
            error: Some(error),
        }
    }
}

fn verdict(ending: Ending) -> BuildVerdict {
    match ending {
        Ending::Exited { code } => BuildVerdict::Exited { code },
        Ending::Signalled { signal } => BuildVerdict::Signalled { signal },
        Ending::SetupFailed { message, fault } => BuildVerdict::SetupFailed { message, fault },
    }
}

/// Makes an event descriptor readable.
fn wake(event: Option<&Arc<OwnedFd>>) {
    if let Some(event) = event {
        // Counts of this size do not add up to what a counter cannot hold.
        let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
    }
}

fn wait_for_death(life: &OwnedFd) {
    let mut source = [rustix::event::PollFd::new(
        life,
        rustix::event::PollFlags::IN,
    )];
    // There is nothing better to do about a failure than to go on.
    let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut source, None));
}
