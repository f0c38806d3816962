//! The pseudo-terminal that a builder's output goes to, as builders expect one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::termios::{self, SetArg};
use rustix::fs::{Mode, OFlags, Uid};

use crate::Error;
use crate::init::sys;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// Ours; reading never blocks.
    pub(crate) master: OwnedFd,
    /// The builder's.
    pub(crate) slave: OwnedFd,
}

/// Opens a pseudo-terminal that passes bytes as they are, and that only `uid` may open again.
///
/// # Errors
/// There is none left, or `/dev/ptmx` is missing.
pub(crate) fn open(uid: u32) -> Result<Terminal, Error> {
    open_raw(uid).map_err(|source| Error::Terminal { source })
}

fn open_raw(uid: u32) -> io::Result<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    let slave = sys::open_terminal_peer(master.as_fd())?;
    let mut modes = termios::tcgetattr(&slave)?;
    termios::cfmakeraw(&mut modes);
    termios::tcsetattr(&slave, SetArg::TCSANOW, &modes)?;
    // Builders open /dev/stderr again, which asks for permission anew.
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    }
    rustix::fs::fchmod(&slave, Mode::RUSR | Mode::WUSR)?;
    Ok(Terminal { master, slave })
}
