//! Starts a session for each build, keeps the launchers, and looks after what sessions leave.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message,
    ResponseFuture, WrapFuture,
};
use store_model::Settings;
use store_model::settings::StoreLayout;
use tokio::sync::oneshot;

use super::builder_session::{BuilderSession, LauncherLost, LauncherSaid};
use crate::build_log::file::LogFile;
use crate::environment::HostEnvironment;
use crate::error::chain;
use crate::host::Host;
use crate::init::Profile;
use crate::launch::{Launcher, LauncherEvent};
use crate::wire::{News, Report};
use crate::workspace::Workspace;
use crate::{
    BuildEvent, BuildExited, BuildId, BuildProgress, BuildVerdict, CancelBuild, DisposeBuild,
    Disposition, Error, SetupFault, StartBuild, StopSandbox,
};

/// Opens the places for builds and starts the actor that runs them. It must be called on a thread
/// with an actix system.
///
/// `host_environment` is what fixed-output builders may ask for with `impureEnvVars`.
///
/// # Errors
/// A directory cannot be made or is not safe, or the launcher is missing.
pub fn start(
    layout: StoreLayout,
    settings: &Settings,
    host_environment: HostEnvironment,
) -> Result<Addr<SandboxSupervisor>, Error> {
    let host = Arc::new(Host::open(layout, settings, host_environment)?);
    Ok(SandboxSupervisor {
        host,
        launchers: BTreeMap::new(),
        n_launchers: 0,
        sessions: BTreeMap::new(),
        orphans: BTreeMap::new(),
        finished: BTreeMap::new(),
        n_chores: 0,
        stopping: Vec::new(),
    }
    .start())
}

/// Runs builders.
#[derive(Debug)]
pub struct SandboxSupervisor {
    host: Arc<Host>,
    launchers: BTreeMap<Profile, (LauncherId, Arc<Launcher>)>,
    n_launchers: u64,
    sessions: BTreeMap<BuildId, Session>,
    /// Builds whose session has crashed, and whose end the launcher will tell.
    orphans: BTreeMap<BuildId, Arc<StartBuild>>,
    finished: BTreeMap<BuildId, (Arc<StartBuild>, Workspace)>,
    /// Deletions and compressions under way.
    n_chores: usize,
    /// Who waits for the end.
    stopping: Vec<oneshot::Sender<()>>,
}

impl SandboxSupervisor {
    /// Returns the sessions of running builders.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Addr<BuilderSession>> {
        self.sessions.values().map(|session| &session.address)
    }
}

/// Names a launcher among those that there have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LauncherId(u64);

#[derive(Debug)]
struct Session {
    address: Addr<BuilderSession>,
    launcher: LauncherId,
}

/// Sent by a launcher's thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct LauncherNews {
    launcher: LauncherId,
    event: LauncherEvent,
}

/// Sent by a session just before it reports the end of its build.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SessionEnded {
    /// Which build it was.
    pub(crate) request: Arc<StartBuild>,
    /// Its directories, until the goal disposes of them.
    pub(crate) workspace: Option<Workspace>,
    /// Its log, to be finished.
    pub(crate) log_file: Option<LogFile>,
}

/// Sent by a session that ends by a panic.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SessionCrashed {
    /// Which build it was.
    pub(crate) request: Arc<StartBuild>,
    /// Whether the launcher will still tell of its end.
    pub(crate) is_launched: bool,
}

impl SandboxSupervisor {
    fn start_session(
        &mut self,
        request: &Arc<StartBuild>,
        ctx: &mut Context<Self>,
    ) -> Result<(), Error> {
        let confinement = self
            .host
            .confinement(&request.derivation, &request.settings)?;
        let (launcher_id, launcher) = self.launcher(self.host.profile(confinement), ctx)?;
        let build_id = request.build_id;
        let supervisor = ctx.address().downgrade();
        let host = Arc::clone(&self.host);
        let request = Arc::clone(request);
        let session = BuilderSession::new(request, host, confinement, launcher, supervisor);
        let address = session.start();
        self.sessions.insert(
            build_id,
            Session {
                address,
                launcher: launcher_id,
            },
        );
        Ok(())
    }

    /// Returns the warm launcher of a profile, or starts one.
    fn launcher(
        &mut self,
        profile: Profile,
        ctx: &mut Context<Self>,
    ) -> Result<(LauncherId, Arc<Launcher>), Error> {
        if let Some((id, launcher)) = self.launchers.get(&profile) {
            return Ok((*id, Arc::clone(launcher)));
        }
        self.n_launchers += 1;
        let id = LauncherId(self.n_launchers);
        // Weak, or the supervisor would live as long as the launcher, and the other way round.
        let supervisor = ctx.address().downgrade();
        let listener = move |event| {
            if let Some(supervisor) = supervisor.upgrade() {
                supervisor.do_send(LauncherNews {
                    launcher: id,
                    event,
                });
            }
        };
        let launcher = Launcher::start(self.host.launcher.clone(), profile, listener)?;
        let launcher = Arc::new(launcher);
        self.launchers.insert(profile, (id, Arc::clone(&launcher)));
        Ok((id, launcher))
    }

    /// Has something done on a worker thread; the end waits for it.
    fn do_chore(&mut self, ctx: &mut Context<Self>, chore: impl FnOnce() + Send + 'static) {
        self.n_chores += 1;
        let worker = tokio::task::spawn_blocking(chore);
        ctx.spawn(worker.into_actor(self).map(|_, supervisor, ctx| {
            supervisor.n_chores -= 1;
            supervisor.stop_if_done(ctx);
        }));
    }

    fn finish_orphan(&mut self, build_id: BuildId) {
        if let Some(request) = self.orphans.remove(&build_id) {
            let message = "the session of the build crashed";
            report_failure(&request, message.to_owned(), SetupFault::Passing);
        }
    }

    fn stop_if_done(&mut self, ctx: &mut Context<Self>) {
        let is_idle = self.sessions.is_empty() && self.orphans.is_empty() && self.n_chores == 0;
        if self.stopping.is_empty() || !is_idle {
            return;
        }
        // Their threads tell when the processes have been reaped.
        for (_, launcher) in self.launchers.values() {
            launcher.close();
        }
        if self.launchers.is_empty() {
            for waiter in self.stopping.drain(..) {
                // A waiter that has gone away does not wait.
                let _ = waiter.send(());
            }
            ctx.stop();
        }
    }
}

impl Actor for SandboxSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let places = Arc::clone(&self.host.places);
        self.do_chore(ctx, move || places.remove_leftovers());
    }

    fn stopped(&mut self, _ctx: &mut Self::Context) {
        for (_, launcher) in self.launchers.values() {
            launcher.close();
        }
    }
}

impl Handler<StartBuild> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, request: StartBuild, ctx: &mut Self::Context) {
        if !self.stopping.is_empty() {
            let message = "the sandbox is being shut down";
            return report_failure(&request, message.to_owned(), SetupFault::Passing);
        }
        let request = Arc::new(request);
        if let Err(error) = self.start_session(&request, ctx) {
            report_failure(&request, chain(&error), error.fault());
        }
    }
}

impl Handler<CancelBuild> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, cancel: CancelBuild, _ctx: &mut Self::Context) {
        // One that is not there any more has ended by itself.
        if let Some(session) = self.sessions.get(&cancel.build_id) {
            session.address.do_send(cancel);
        }
    }
}

impl Handler<DisposeBuild> for SandboxSupervisor {
    type Result = ResponseFuture<Result<Option<PathBuf>, Error>>;

    fn handle(&mut self, dispose: DisposeBuild, ctx: &mut Self::Context) -> Self::Result {
        let Some((request, workspace)) = self.finished.remove(&dispose.build_id) else {
            return Box::pin(std::future::ready(Ok(None)));
        };
        match dispose.disposition {
            Disposition::Delete => {
                self.do_chore(ctx, move || workspace.dispose());
                Box::pin(std::future::ready(Ok(None)))
            }
            Disposition::Keep => {
                let (sender, receiver) = oneshot::channel();
                let host = Arc::clone(&self.host);
                self.do_chore(ctx, move || {
                    let outputs = host.scratch_outputs(&request);
                    drop(sender.send(workspace.keep(&outputs)));
                });
                Box::pin(async move { receiver.await.ok().transpose() })
            }
        }
    }
}

impl Handler<StopSandbox> for SandboxSupervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopSandbox, ctx: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = oneshot::channel();
        self.stopping.push(sender);
        for (build_id, session) in &self.sessions {
            let build_id = *build_id;
            session.address.do_send(CancelBuild { build_id });
        }
        for (_, workspace) in std::mem::take(&mut self.finished).into_values() {
            self.do_chore(ctx, move || drop(workspace));
        }
        let places = Arc::clone(&self.host.places);
        self.do_chore(ctx, move || places.close());
        self.stop_if_done(ctx);
        Box::pin(async move {
            // It is only ever dropped when the actor itself is gone.
            drop(receiver.await);
        })
    }
}

impl Handler<LauncherNews> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, news: LauncherNews, ctx: &mut Self::Context) {
        match news.event {
            LauncherEvent::Reported(Report { build_id, news }) => {
                let build_id = BuildId(build_id);
                if let Some(session) = self.sessions.get(&build_id) {
                    session.address.do_send(LauncherSaid { news });
                } else if matches!(news, News::Ended(_)) {
                    self.finish_orphan(build_id);
                    self.stop_if_done(ctx);
                }
            }
            LauncherEvent::Lost { reason } => {
                self.launchers.retain(|_, (id, _)| *id != news.launcher);
                let of_this_one = |session: &&Session| session.launcher == news.launcher;
                for session in self.sessions.values().filter(of_this_one) {
                    let reason = reason.clone();
                    session.address.do_send(LauncherLost { reason });
                }
                let orphans: Vec<_> = self.orphans.keys().copied().collect();
                for build_id in orphans {
                    self.finish_orphan(build_id);
                }
                self.stop_if_done(ctx);
            }
        }
    }
}

impl Handler<SessionEnded> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, ended: SessionEnded, ctx: &mut Self::Context) {
        let build_id = ended.request.build_id;
        self.sessions.remove(&build_id);
        if let Some(workspace) = ended.workspace {
            if self.stopping.is_empty() {
                self.finished.insert(build_id, (ended.request, workspace));
            } else {
                self.do_chore(ctx, move || drop(workspace));
            }
        }
        if let Some(log_file) = ended.log_file {
            self.do_chore(ctx, move || {
                if let Err(error) = log_file.finish() {
                    tracing::warn!("finishing the log of a builder: {error}");
                }
            });
        }
        self.stop_if_done(ctx);
    }
}

impl Handler<SessionCrashed> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, crashed: SessionCrashed, ctx: &mut Self::Context) {
        let build_id = crashed.request.build_id;
        self.sessions.remove(&build_id);
        self.orphans.insert(build_id, crashed.request);
        if !crashed.is_launched {
            self.finish_orphan(build_id);
        }
        self.stop_if_done(ctx);
    }
}

/// Ends a build that never began.
fn report_failure(request: &StartBuild, message: String, fault: SetupFault) {
    let now = super::wall_clock();
    request.observer.do_send(BuildProgress {
        build_id: request.build_id,
        event: BuildEvent::Exited(Box::new(BuildExited {
            verdict: BuildVerdict::SetupFailed { message, fault },
            scratch: None,
            started_at: now,
            stopped_at: now,
            log_tail: Vec::new(),
            log_path: None,
            disk_nearly_full: false,
        })),
    });
}
