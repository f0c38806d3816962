//! `nar`: archives of files, as `nix-store --dump` and `--restore` write and read them.
//!
//! The work is done on a thread of its own, since it blocks; a signal ends the command at once,
//! after what was restored so far is removed.

mod restore;
mod walk;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use store_model::nar::{
    self, NarHasher, NarVisitor, NarWriter, PORTABLE_DEPTH, ReadError, WriteError,
};
use substituter::ContentsError;
use tokio::sync::oneshot;

use self::restore::Restorer;
use self::walk::walk;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::output::{Output, warn};
use crate::render::Style;

/// How much is read or written at once.
pub(super) const BUFFER_LEN: usize = 256 * 1024;

/// Writes the archive of `path` to standard output.
pub(super) async fn dump(path: PathBuf, interrupts: &mut Interrupts) -> Result<()> {
    on_a_thread(interrupts, move || {
        // Not through `io::stdout`, whose lock another thread holds and whose buffer works by line.
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|error| Failure::stdout(&error))?;
        archive(&path, NarWriter::new(File::from(stdout))).map(drop)
    })
    .await
}

/// Prints hash and size of the archive of `path`.
pub(super) async fn hash(
    path: PathBuf,
    json: bool,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    let digest = on_a_thread(interrupts, move || {
        let writer = NarWriter::new(NarHasher::new([]));
        archive(&path, writer).map(|(hasher, _summary)| hasher.finish())
    })
    .await?;
    let hash = digest.nar_hash.to_hash();
    if json {
        return output.json(&json!({
            "narHash": hash.to_sri(),
            "narSize": digest.nar_size_bytes,
        }));
    }
    output.line(format_args!("{hash} {}", digest.nar_size_bytes))
}

/// Makes at `path` what the archive on standard input holds. Nothing stays there after a failure.
pub(super) async fn restore(path: PathBuf, interrupts: &mut Interrupts) -> Result<()> {
    let (until, cancel) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| Failure::message(format!("making a pipe: {error}")))?;
    let (reply, mut replied) = oneshot::channel();
    spawn(reply, move || restore_until(&path, &until))?;
    tokio::select! {
        biased;
        done = &mut replied => done.map_err(|_| thread_is_gone())?,
        signal = interrupts.next() => {
            // The reader sees the closed pipe, gives up, and removes what it made.
            drop(cancel);
            interrupts.clean_up(signal, async {
                let _reply = replied.await;
            }).await;
            Err(Failure::interrupted(signal))
        }
    }
}

fn restore_until(path: &Path, until: &OwnedFd) -> Result<()> {
    let stdin = Cancellable {
        // Unbuffered, so that waiting for more and having some never disagree.
        source: stdin().map_err(|error| Failure::message(format!("standard input: {error}")))?,
        until,
    };
    let mut source = BufReader::with_capacity(BUFFER_LEN, stdin);
    let summary = restore_from(&mut source, path)?;
    if summary.max_depth > PORTABLE_DEPTH {
        warn(
            Style::Plain,
            &format!(
                "directories are nested {} deep, and today's Nix refuses more than {PORTABLE_DEPTH}",
                summary.max_depth
            ),
        );
    }
    Ok(())
}

/// Reads one archive, to the end of `source`, into a new file or directory.
fn restore_from(source: &mut impl io::BufRead, path: &Path) -> Result<nar::NarSummary> {
    let mut restorer = Restorer::new(path).map_err(Failure::new)?;
    match nar::read_whole(source, &mut restorer) {
        Ok(summary) => {
            restorer.keep();
            Ok(summary)
        }
        Err(ReadError::Visitor(error)) => Err(Failure::new(error)),
        Err(error) => Err(Failure::new(error)),
    }
}

/// Writes the archive of `path`, to standard output in the end.
pub(super) fn archive<W: io::Write>(
    path: &Path,
    mut writer: NarWriter<W>,
) -> Result<(W, nar::NarSummary)> {
    walk(path, &mut writer).map_err(|error| match error {
        walk::Error::Visitor(WriteError::Sink(error)) => Failure::stdout(&error),
        walk::Error::Visitor(error) => Failure::new(error),
        walk::Error::File(error) => Failure::new(error),
    })?;
    writer.finish().map_err(|error| match error {
        WriteError::Sink(error) => Failure::stdout(&error),
        WriteError::Refused(error) => Failure::new(error),
    })
}

/// Tells `visitor` what lies at `path`, for an archive that goes to a cache.
pub(super) fn tell(
    path: &Path,
    mut visitor: &mut dyn NarVisitor<Error = WriteError>,
) -> std::result::Result<(), ContentsError> {
    walk(path, &mut visitor).map_err(|error| match error {
        walk::Error::Visitor(error) => ContentsError::Archive(error),
        walk::Error::File(error) => ContentsError::Unreadable(Box::new(error)),
    })
}

/// Runs `work` on a thread that a signal leaves behind: it dies with the process.
async fn on_a_thread<T: Send + 'static>(
    interrupts: &mut Interrupts,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    interrupts.unless(on_thread(work)).await
}

/// Runs `work`, which blocks, on a thread of its own. Whoever no longer waits leaves it behind.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (reply, replied) = oneshot::channel();
    spawn(reply, work)?;
    replied.await.map_err(|_| thread_is_gone())?
}

fn spawn<T: Send + 'static>(
    reply: oneshot::Sender<Result<T>>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<()> {
    start_thread(move || {
        // Nobody waits any more after a signal.
        let _unheard = reply.send(work());
    })
}

/// Starts a thread for work that blocks; it dies with the process.
pub(super) fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name("archive".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| Failure::message(format!("starting a thread: {error}")))
}

fn thread_is_gone() -> Failure {
    Failure::message("the thread that reads and writes the archive is gone")
}

/// Returns standard input, unbuffered.
pub(super) fn stdin() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// A source whose reads end in an error as soon as the other end of a pipe is closed.
struct Cancellable<'a> {
    source: File,
    until: &'a OwnedFd,
}

impl Read for Cancellable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut waiting = [
                PollFd::new(&self.source, PollFlags::IN),
                PollFd::new(self.until, PollFlags::IN),
            ];
            match poll(&mut waiting, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !waiting[1].revents().is_empty() {
                return Err(io::Error::other("interrupted"));
            }
            return self.source.read(buffer);
        }
    }
}

#[cfg(test)]
mod tests;
