//! Running `post-build-hook`: one thread for each hook that runs, twice as many at once as there are
//! build slots. A goal waits for its own hook, and builds wait for none.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::WeakRecipient;
use bytes::{Bytes, BytesMut};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use sandbox::{HostEnvironment, LogLines};
use tokio::sync::{Semaphore, oneshot};

use crate::error::chain;
use crate::events::EventKind;
use crate::goal::GoalId;
use crate::goal::derivation::Event;
use crate::messages::GoalNews;
use crate::ports::tell;
use crate::start::Config;

/// How much of a hook's output is shown. It goes to subscribers whose memory nobody else guards; a
/// hook that has this much to say is broken.
const MAX_SHOWN_BYTES: usize = 4 << 20;

/// Most hooks wait for a network, so that more of them than of builders keep a machine busy; still
/// there is a limit, for a graph of short builds would else have all its hooks run at once.
const HOOKS_PER_SLOT: usize = 2;

/// A line longer than this is shown in parts.
const MAX_LINE_LEN: u64 = 64 << 10;

/// What every hook of a scheduler has in common. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    permits: Arc<Semaphore>,
    environment: Arc<HostEnvironment>,
    nix_config: Arc<str>,
}

/// One hook that is to run.
#[derive(Debug)]
pub(crate) struct HookRun {
    pub(crate) goal: GoalId,
    pub(crate) program: PathBuf,
    /// Full path of the derivation.
    pub(crate) drv_path: String,
    /// Full paths of its outputs.
    pub(crate) out_paths: Vec<String>,
    /// How many of its last lines a failure quotes.
    pub(crate) log_lines: usize,
    pub(crate) news: WeakRecipient<GoalNews>,
}

impl Hooks {
    pub(crate) fn new(config: &Config) -> Self {
        let n_slots = config.settings.max_jobs.max(1);
        let n_permits = n_slots
            .saturating_mul(HOOKS_PER_SLOT)
            .min(Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(n_permits)),
            environment: Arc::new(config.host_environment.clone()),
            nix_config: config.nix_config.as_str().into(),
        }
    }

    /// Runs a hook to its end, or kills it when `cancelled` resolves or nobody waits any more.
    ///
    /// # Errors
    /// There is no thread to be had, or it panicked.
    pub(crate) async fn run(
        self,
        run: HookRun,
        mut cancelled: oneshot::Receiver<()>,
    ) -> Result<Event, String> {
        let gone = || Event::HookEnded {
            failure: Some("the post-build-hook was cancelled".to_owned()),
        };
        let permit = tokio::select! {
            permit = Arc::clone(&self.permits).acquire_owned() => permit,
            _ = &mut cancelled => return Ok(gone()),
        };
        let process = Arc::new(HookProcess::default());
        let guard = KillOnDrop(Arc::clone(&process));
        let (reply, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("post-build-hook".to_owned())
            .spawn(move || {
                let _permit = permit;
                // A goal that was cancelled no longer listens.
                let _listener_gone = reply.send(self.execute(&run, &process));
            })
            .map_err(|error| format!("starting a thread for the post-build-hook: {error}"))?;
        let outcome = tokio::select! {
            ended = ended => ended.map_err(|_| "running the post-build-hook failed".to_owned())?,
            _ = cancelled => return Ok(gone()),
        };
        drop(guard);
        Ok(Event::HookEnded {
            failure: outcome.err(),
        })
    }

    /// Runs a hook on this thread; says what went wrong.
    fn execute(&self, run: &HookRun, process: &HookProcess) -> Result<(), String> {
        let program = run.program.display();
        let failed = |error: std::io::Error| {
            format!(
                "running post-build-hook '{program}' for '{}': {error}",
                run.drv_path
            )
        };
        let (output, writer) = std::io::pipe().map_err(failed)?;
        let mut command = Command::new(&run.program);
        command
            .env_clear()
            .envs(
                self.environment
                    .iter()
                    .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))),
            )
            .env("DRV_PATH", &run.drv_path)
            .env("OUT_PATHS", run.out_paths.join(" "))
            .env("NIX_CONFIG", &*self.nix_config)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            // So that it can be killed together with what it starts, and an interrupt at the
            // terminal reaches it through us only.
            .process_group(0);
        let mut child = process.spawn(&mut command).map_err(failed)?;
        // It holds the writing end, without which the output would never end.
        drop(command);
        let tail = run.show(output);
        let status = process.wait(&mut child).map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let mut message = format!(
            "post-build-hook of '{}': program '{program}' failed {}",
            run.drv_path,
            describe(status)
        );
        if !tail.is_empty() {
            let noun = if tail.len() == 1 { "line" } else { "lines" };
            // Writing to a string cannot fail.
            let _infallible = write!(message, ";\nlast {} {noun} of its output:", tail.len());
        }
        for line in tail {
            message.push_str("\n> ");
            message.push_str(&line);
        }
        Err(message)
    }
}

impl HookRun {
    /// Passes on what a hook writes, until nobody can write any more; returns the last lines.
    fn show(&self, output: PipeReader) -> VecDeque<String> {
        let mut reader = BufReader::new(output);
        let mut tail = VecDeque::new();
        let mut n_shown = 0;
        loop {
            let mut line = Vec::new();
            let read = std::io::Read::take(&mut reader, MAX_LINE_LEN).read_until(b'\n', &mut line);
            // What cannot be read any more has ended.
            if !read.is_ok_and(|n_bytes| n_bytes > 0) {
                return tail;
            }
            if line.ends_with(b"\n") {
                line.pop();
            }
            if self.log_lines > 0 {
                if tail.len() == self.log_lines {
                    tail.pop_front();
                }
                tail.push_back(String::from_utf8_lossy(&line).into_owned());
            }
            if n_shown > MAX_SHOWN_BYTES {
                continue;
            }
            n_shown += line.len() + 1;
            self.tell(Bytes::from(line));
            if n_shown > MAX_SHOWN_BYTES {
                let note = "(the rest of its output is not shown)";
                self.tell(BytesMut::from(note.as_bytes()).freeze());
            }
        }
    }

    fn tell(&self, line: Bytes) {
        let news = GoalNews {
            goal: self.goal,
            kind: EventKind::HookLogged(LogLines::unbudgeted(line)),
        };
        tell(&self.news, news);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("due to signal {signal}"),
        (None, None) => format!("with {status}"),
    }
}

/// A hook's process, as far as it may be killed.
#[derive(Debug, Default)]
struct HookProcess(Mutex<Life>);

#[derive(Debug, Default)]
enum Life {
    #[default]
    NotStarted,
    Runs(Pid),
    /// It was reaped, so that its number may be another's, or must not be started.
    Over,
}

impl HookProcess {
    fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        let mut life = self.life();
        if matches!(*life, Life::Over) {
            return Err(std::io::Error::other("it was cancelled"));
        }
        let child = command.spawn()?;
        *life = Pid::from_raw(child.id().cast_signed()).map_or(Life::Over, Life::Runs);
        Ok(child)
    }

    /// Waits until it has ended, and reaps it when nobody can mean it any more.
    fn wait(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let ended = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options));
            ended?;
        }
        let mut life = self.life();
        *life = Life::Over;
        child.wait()
    }

    fn kill(&self) {
        let mut life = self.life();
        match *life {
            Life::NotStarted => *life = Life::Over,
            Life::Runs(pid) => {
                if let Err(errno) = kill_process_group(pid, Signal::KILL) {
                    tracing::debug!("killing a post-build-hook: {}", chain(&errno));
                }
            }
            Life::Over => {}
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a hook that nobody waits for any more.
struct KillOnDrop(Arc<HookProcess>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}
