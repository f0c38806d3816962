//! Running one program to its end, or beside the test, with its output line by line.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure;
use crate::processes::Watched;
use crate::requirement;
use crate::terminal::Terminal;

/// How long a program may run before the test gives it up. No test waits this long unless it fails.
const DEADLINE: Duration = Duration::from_mins(3);

/// A program about to be run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Option<File>,
    deadline: Duration,
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Where a program at a terminal has its standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputOf {
    /// At the terminal as well.
    Terminal,
    /// In a pipe that the test reads.
    Pipe,
}

/// One line that a program wrote, without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where.
    pub stream: Stream,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// When it was read.
    pub read_at: Instant,
}

/// A program that runs beside the test. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    watched: Watched,
    lines: Receiver<Line>,
    seen: Vec<Line>,
    description: String,
    deadline: Instant,
    reaped: bool,
}

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote, in the order in which it was read.
    pub lines: Vec<Line>,
    /// When its end was seen.
    pub ended_at: Instant,
    description: String,
}

impl Invocation {
    /// Prepares a program with an empty environment; see
    /// [`TestStore`](crate::TestStore) for the ones that work on a store.
    #[must_use]
    pub fn new(mut command: Command) -> Self {
        command.env_clear();
        Self {
            command,
            input: None,
            deadline: DEADLINE,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds `--option NAME VALUE`, which goalctl and Nix both take.
    #[must_use]
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg("--option").arg(name).arg(value)
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives the program a file to read from standard input; without one there is nothing.
    #[must_use]
    pub fn input(mut self, file: File) -> Self {
        self.input = Some(file);
        self
    }

    /// Changes the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Puts another program in front, such as `strace` with its options.
    #[must_use]
    pub fn under(self, mut wrapper: Command) -> Self {
        wrapper.arg(self.command.get_program());
        wrapper.args(self.command.get_args());
        wrapper.env_clear();
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                wrapper.env(name, value);
            }
        }
        Self {
            command: wrapper,
            input: self.input,
            deadline: self.deadline,
        }
    }

    /// Runs the program to its end.
    #[must_use]
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Runs the program to its end, which must be a success.
    pub fn succeed(self) -> Finished {
        let finished = self.run();
        finished.expect_status(0);
        finished
    }

    /// Starts the program.
    #[must_use]
    pub fn start(mut self) -> Running {
        self.command
            .stdin(self.input.take().map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.spawn()
    }

    /// Starts the program as the one that a terminal's keyboard talks to; the terminal shows
    /// standard error, and standard output where `output` says so. It is one that can do everything,
    /// unless the environment names another.
    #[must_use]
    pub fn start_at(self, terminal: &mut Terminal, output: OutputOf) -> Running {
        let setsid = requirement::find_program("setsid").expect("it comes with util-linux");
        let mut wrapper = Command::new(setsid);
        // With a terminal of its own, as a shell gives it.
        wrapper.arg("--ctty");
        let is_named = self.command.get_envs().any(|(name, _)| name == "TERM");
        let mut invocation = self.under(wrapper);
        if !is_named {
            invocation = invocation.env("TERM", "xterm-256color");
        }
        invocation
            .command
            .stdin(terminal.line())
            .stderr(terminal.line())
            .stdout(match output {
                OutputOf::Terminal => terminal.line(),
                OutputOf::Pipe => Stdio::piped(),
            });
        let running = invocation.spawn();
        terminal.hand_over();
        running
    }

    /// Starts the program with the streams that were chosen.
    fn spawn(mut self) -> Running {
        let description = describe(&self.command);
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{description}: {error}"));
        // The command would hold a terminal open.
        drop(self.command);
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            forward(output, Stream::Output, sender.clone());
        }
        if let Some(error) = child.stderr.take() {
            forward(error, Stream::Error, sender);
        }
        let watched = Watched::new(child.id()).expect("a child that is not reaped can be watched");
        Running {
            child,
            watched,
            lines,
            seen: Vec::new(),
            description,
            deadline: measure::now() + self.deadline,
            reaped: false,
        }
    }
}

impl Running {
    /// Returns the program's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id fits");
        kill(Pid::from_raw(pid), signal).expect("a child can be sent signals");
    }

    /// Waits for the first line, on either stream, that `wanted` accepts; lines before it count as
    /// seen. Lines that an earlier call passed over are not looked at again.
    pub fn await_line(&mut self, wanted: impl Fn(&str) -> bool) -> Line {
        loop {
            match self.lines.recv_timeout(self.remaining()) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line.text()) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.give_up("it wrote no such line"),
                Err(RecvTimeoutError::Disconnected) => {
                    self.give_up("it closed its output without such a line")
                }
            }
        }
    }

    /// Waits for the program's end and for the end of its output, so a process that it left
    /// behind with the output open fails the test.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        if !self.watched.await_end(self.remaining()) {
            self.give_up("it did not end");
        }
        let ended_at = measure::now();
        let status = self.child.wait().expect("an ended child can be reaped");
        self.reaped = true;
        loop {
            match self.lines.recv_timeout(self.remaining()) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.give_up("somebody still holds its output open")
                }
            }
        }
        Finished {
            status,
            lines: std::mem::take(&mut self.seen),
            ended_at,
            description: std::mem::take(&mut self.description),
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(measure::now())
    }

    fn give_up(&self, reason: &str) -> ! {
        panic!("{}: {reason}\n{}", self.description, render(&self.seen));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // The test has failed or is done with it; either way nothing may outlive the test.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Line {
    /// Returns the line as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Finished {
    /// Returns standard output as text.
    #[must_use]
    pub fn output(&self) -> String {
        self.text_of(Stream::Output)
    }

    /// Returns standard output as it was written, which ended without a newline.
    #[must_use]
    pub fn output_bytes(&self) -> Vec<u8> {
        let lines = self.lines.iter();
        let output = lines.filter(|line| line.stream == Stream::Output);
        let pieces: Vec<&[u8]> = output.map(|line| &line.bytes[..]).collect();
        pieces.join(&b'\n')
    }

    /// Returns standard error as text.
    #[must_use]
    pub fn error(&self) -> String {
        self.text_of(Stream::Error)
    }

    /// Returns the lines of standard output.
    #[must_use]
    pub fn output_lines(&self) -> Vec<String> {
        self.output().lines().map(str::to_owned).collect()
    }

    /// Returns the exit status, or 128 and the signal's number, as a shell would.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .or_else(|| self.status.signal().map(|signal| 128 + signal))
            .expect("an ended process has a status or a signal")
    }

    /// Returns itself if the exit status is as it should be.
    #[track_caller]
    pub fn expect_status(&self, wanted: i32) -> &Self {
        assert_eq!(self.code(), wanted, "exit status of {self}");
        self
    }

    /// Returns itself if standard error holds `words`.
    #[track_caller]
    pub fn expect_error(&self, words: &str) -> &Self {
        assert!(
            self.error().contains(words),
            "no {words:?} in what was said by {self}"
        );
        self
    }

    fn text_of(&self, stream: Stream) -> String {
        self.lines
            .iter()
            .filter(|line| line.stream == stream)
            .fold(String::new(), |text, line| text + &line.text() + "\n")
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({})\n{}",
            self.description,
            self.status,
            render(&self.lines)
        )
    }
}

/// Sends what a program writes on to the test, line by line, until every writer is gone.
fn forward(from: impl Read + Send + 'static, stream: Stream, to: Sender<Line>) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        loop {
            let mut bytes = Vec::new();
            // A pipe is not read in error while its reading end is open.
            if from.read_until(b'\n', &mut bytes).unwrap_or(0) == 0 {
                return;
            }
            if bytes.ends_with(b"\n") {
                bytes.pop();
            }
            let read_at = measure::now();
            let line = Line {
                stream,
                bytes,
                read_at,
            };
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsString::from)
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Renders lines for a failed test, the middle left out where there are many.
fn render(lines: &[Line]) -> String {
    const SHOWN: usize = 60;
    lines
        .iter()
        .enumerate()
        .filter(|(idx, _)| *idx < SHOWN || idx + SHOWN >= lines.len())
        .map(|(_, line)| {
            let mark = match line.stream {
                Stream::Output => "1",
                Stream::Error => "2",
            };
            format!("  {mark}| {}", line.text())
        })
        .collect::<Vec<_>>()
        .join("\n")
}
