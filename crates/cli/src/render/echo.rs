//! Keeps what is typed off the screen while the live view is there.
//!
//! The view is drawn anew from where the cursor was left, and the kernel moves the cursor when it
//! shows what is typed: the `^C` of an interrupt is enough for a row of the view to stay for good.

use std::io;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The kernel does not show what is typed while this lives. What is typed is not lost, and the keys
/// that send signals send them.
///
/// Where the process is killed so that nothing is dropped, a shell with line editing sets its
/// terminal up again by itself.
#[derive(Debug)]
pub(crate) struct EchoOff {
    switched_off: LocalFlags,
}

impl EchoOff {
    /// Begins; `None` where the terminal is not this process's to change, or shows nothing already:
    /// then somebody else, perhaps another of us, will switch it on again.
    #[must_use]
    pub(crate) fn begin() -> Option<Self> {
        let mut modes = modes_in_foreground()?;
        let switched_off = modes.local_flags & (LocalFlags::ECHO | LocalFlags::ECHONL);
        if switched_off.is_empty() {
            return None;
        }
        modes.local_flags.remove(switched_off);
        set(&modes).then_some(Self { switched_off })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // The modes of now, so that what others have changed meanwhile stays.
        if let Some(mut modes) = modes_in_foreground() {
            modes.local_flags.insert(self.switched_off);
            // A terminal that is gone shows nothing.
            let _is_set = set(&modes);
        }
    }
}

/// Returns the modes of the terminal at standard error, if this process is in its foreground: the
/// kernel stops every other one that changes them, and the shell there has modes of its own.
fn modes_in_foreground() -> Option<Termios> {
    let stderr = io::stderr();
    let is_in_foreground = tcgetpgrp(&stderr).is_ok_and(|group| group == getpgrp());
    is_in_foreground.then(|| tcgetattr(&stderr).ok()).flatten()
}

fn set(modes: &Termios) -> bool {
    tcsetattr(io::stderr(), SetArg::TCSANOW, modes).is_ok()
}
