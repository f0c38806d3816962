//! How a builder and a test tell each other things: named pipes and files in a folder that the
//! builder sees as `/signals`.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a builder may take to get to its signal.
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder shared with builders.
#[derive(Debug)]
pub struct Signals {
    dir: PathBuf,
}

impl Signals {
    /// Makes the folder, open to every user, since each builder has a uid of its own.
    #[must_use]
    pub fn create(dir: &Path) -> Self {
        std::fs::create_dir(dir).expect("a fresh folder can be made");
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
            .expect("one's own folder can be opened to others");
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Returns the folder on the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes named pipes.
    pub fn pipes(&self, names: &[&str]) {
        for name in names {
            let path = self.dir.join(name);
            nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o666))
                .expect("a named pipe can be made");
            // mkfifo obeys the umask.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
                .expect("one's own pipe can be opened to others");
        }
    }

    /// Waits until a builder writes into the pipe `name`, as `echo ready > /signals/NAME` does;
    /// returns what it wrote.
    pub fn await_word(&self, name: &str) -> String {
        // Opened for writing as well, so that poll waits for a writer instead of reporting none.
        let mut pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(self.dir.join(name))
            .expect("a named pipe can be opened");
        let timeout = Timespec::try_from(PATIENCE).expect("a minute is a short time");
        let n_ready = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout))
            .expect("a pipe can be polled");
        assert!(n_ready > 0, "no builder wrote into {name}");
        let mut buffer = [0; 4096];
        let n_read = pipe.read(&mut buffer).expect("a ready pipe can be read");
        String::from_utf8_lossy(&buffer[..n_read]).trim().to_owned()
    }

    /// Lets a builder go on that waits for the pipe `name`, as `read line < /signals/NAME` does.
    /// Opens without waiting, so the builder may come later as well, while the result lives.
    #[must_use]
    pub fn release(&self, name: &str) -> std::fs::File {
        let mut pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.join(name))
            .expect("a named pipe can be opened");
        pipe.write_all(b"go\n").expect("a pipe takes a line");
        pipe
    }

    /// Makes a file that every builder may append to, whatever its uid.
    pub fn tally(&self, name: &str) {
        let path = self.dir.join(name);
        std::fs::write(&path, "").expect("a fresh file can be made");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
            .expect("one's own file can be opened to others");
    }

    /// Returns how many lines builders have written to the file `name`, as
    /// `echo run >> /signals/NAME` does.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        std::fs::read_to_string(self.dir.join(name))
            .expect("the tally was made before the builders ran")
            .lines()
            .count()
    }
}
