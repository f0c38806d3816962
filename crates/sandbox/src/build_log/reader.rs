//! Reads a builder's terminal, on a thread of its own for each running builder.
//!
//! The thread is the back-pressure: while the observers hold as much of the log as the session's
//! budget allows it does not read, the terminal fills up, and the builder waits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use actix::Recipient;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::file::LogFile;
use super::lines::{LineBuffer, MAX_LINE_LEN, Tail};
use crate::{LogCredit, LogLines};

/// How many bytes of one build's log may be on their way to observers.
pub(crate) const BUDGET_BYTES: usize = 4 << 20;

/// Told to the session by the thread.
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub(crate) enum LogNews {
    /// The builder wrote lines.
    Lines(LogLines),
    /// It wrote more than it may. Nothing more is kept.
    LimitExceeded,
}

/// Everything that the thread needs.
#[derive(Debug)]
pub(crate) struct LogReader {
    /// Our end of the terminal.
    pub(crate) master: OwnedFd,
    /// Becomes readable when the builder is gone, for somebody else may still hold the other end.
    pub(crate) stop: Arc<OwnedFd>,
    /// Closed when the builder is gone.
    pub(crate) budget: Arc<Semaphore>,
    /// The session.
    pub(crate) session: Recipient<LogNews>,
    /// Where the log is kept.
    pub(crate) file: LogFile,
    /// How many lines a failure quotes.
    pub(crate) n_tail_lines: usize,
    /// Most bytes.
    pub(crate) limit_bytes: Option<u64>,
}

/// What is left when a log has ended.
#[derive(Debug)]
pub(crate) struct FinishedLog {
    /// The last lines.
    pub(crate) tail: Vec<String>,
    /// Where the whole log is kept.
    pub(crate) path: Option<PathBuf>,
    /// To be finished where it takes nobody's time.
    pub(crate) file: LogFile,
}

/// What one look at the terminal brought.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It may have more.
    Something,
    /// It is empty for now.
    Empty,
    /// Nobody holds the other end any more.
    Ended,
}

/// The thread's state.
struct Reading {
    reader: LogReader,
    runtime: Handle,
    lines: LineBuffer,
    tail: Tail,
    n_bytes: u64,
    is_cut: bool,
}

impl LogReader {
    /// Reads until the builder is gone and its terminal is empty.
    pub(crate) fn run(self, runtime: Handle) -> FinishedLog {
        let mut reading = Reading {
            lines: LineBuffer::default(),
            tail: Tail::new(self.n_tail_lines),
            reader: self,
            runtime,
            n_bytes: 0,
            is_cut: false,
        };
        if let Err(error) = reading.read_all() {
            tracing::warn!("reading the log of a builder: {error}");
        }
        reading.finish()
    }
}

impl Reading {
    fn read_all(&mut self) -> io::Result<()> {
        loop {
            let is_stopping = self.wait()?;
            loop {
                match self.look()? {
                    Look::Something => {}
                    Look::Ended => return Ok(()),
                    Look::Empty if is_stopping => return Ok(()),
                    Look::Empty => break,
                }
            }
        }
    }

    /// Waits for bytes or for the builder's end; returns whether it is the end.
    fn wait(&self) -> io::Result<bool> {
        let mut sources = [
            PollFd::new(&self.reader.master, PollFlags::IN),
            PollFd::new(&*self.reader.stop, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))?;
        Ok(!sources[1].revents().is_empty())
    }

    /// Reads what there is, up to a batch's worth, and passes on the lines.
    fn look(&mut self) -> io::Result<Look> {
        let mut buffer = [0; 16 << 10];
        let mut n_read = 0;
        let look = loop {
            match rustix::io::read(&self.reader.master, &mut buffer) {
                Ok(0) | Err(Errno::IO) => break Look::Ended,
                Ok(n) => {
                    n_read += n;
                    self.take(&buffer[..n])?;
                    if n_read >= MAX_LINE_LEN {
                        break Look::Something;
                    }
                }
                Err(Errno::AGAIN) => break Look::Empty,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        if let Some(lines) = self.lines.take_lines() {
            self.pass_on(lines);
        }
        Ok(look)
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.is_cut {
            return Ok(());
        }
        let n_bytes = self.n_bytes + bytes.len() as u64;
        let limit = self.reader.limit_bytes.filter(|limit| n_bytes > *limit);
        if let Some(limit) = limit {
            let n_allowed = usize::try_from(limit - self.n_bytes).map_err(io::Error::other)?;
            bytes = &bytes[..n_allowed];
        }
        self.n_bytes = n_bytes;
        self.lines.push(bytes);
        if let Err(error) = self.reader.file.write(bytes) {
            tracing::warn!("writing the log of a builder: {error}");
        }
        if let Some(limit) = limit {
            self.is_cut = true;
            self.reader.session.do_send(LogNews::LimitExceeded);
            let marker = format!("\n(the log is cut here: it is longer than {limit} bytes)\n");
            if let Err(error) = self.reader.file.write(marker.as_bytes()) {
                tracing::warn!("writing the log of a builder: {error}");
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, text: Bytes) {
        self.tail.push(&text);
        let permit = self.credit(text.len());
        let credit = Arc::new(LogCredit { permit });
        self.reader
            .session
            .do_send(LogNews::Lines(LogLines { text, credit }));
    }

    /// Waits until the observers have let go of enough lines. When the builder is gone there is
    /// nobody to slow down, and no more to come than a terminal holds.
    fn credit(&self, n_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let n_bytes = u32::try_from(n_bytes.clamp(1, BUDGET_BYTES)).unwrap_or(1);
        let budget = &self.reader.budget;
        if let Ok(permit) = Arc::clone(budget).try_acquire_many_owned(n_bytes) {
            return Some(permit);
        }
        let acquired = self
            .runtime
            .block_on(Arc::clone(budget).acquire_many_owned(n_bytes));
        acquired.ok()
    }

    fn finish(mut self) -> FinishedLog {
        if let Some(rest) = self.lines.take_rest() {
            self.pass_on(rest);
        }
        FinishedLog {
            tail: self.tail.into_lines(),
            path: self.reader.file.final_path(),
            file: self.reader.file,
        }
    }
}
