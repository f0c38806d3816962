//! Makes files as a tarball tells them.
//!
//! Names come from anywhere. Each is walked from the output's directory by descriptor, and no link
//! is followed on the way, whether the tarball had it before or not: a name cannot lead out.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use bstr::{BStr, ByteSlice as _};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::{Error, decompress};

/// Makes everything that a tarball, compressed or not, holds below `root`.
///
/// # Errors
/// It is no tarball, ends early, or holds something that cannot be made.
pub(crate) fn extract(tarball: &Path, root: &Path) -> Result<(), Error> {
    let file = File::open(tarball).map_err(Error::file("opening", tarball))?;
    let broken = |source| Error::Tarball {
        path: tarball.to_owned(),
        source,
    };
    let content =
        decompress::by_content(io::BufReader::with_capacity(64 << 10, file)).map_err(broken)?;
    let extractor = Extractor {
        root: open_directory(CWD, root).map_err(Error::file("opening the directory", root))?,
    };
    let mut archive = Archive::new(content);
    for member in archive.entries().map_err(broken)? {
        let mut member = member.map_err(broken)?;
        let made = extractor.make(&mut member);
        made.map_err(|problem| match problem {
            Problem::Broken(source) => broken(source),
            Problem::Refused(why) => Error::TarballMember {
                path: tarball.to_owned(),
                member: member.path_bytes().as_bstr().to_string(),
                why,
            },
        })?;
    }
    Ok(())
}

/// Why a member was not made.
enum Problem {
    /// The tarball is damaged, or the disk full.
    Broken(io::Error),
    /// It is not to be made.
    Refused(&'static str),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Broken(errno.into())
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

struct Extractor {
    root: OwnedFd,
}

impl Extractor {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever is not named here is refused"
    )]
    fn make(&self, member: &mut Entry<'_, impl io::Read>) -> Result<(), Problem> {
        let name = member.path_bytes().into_owned();
        let name = name.as_bstr();
        match member.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(name, member)
            }
            EntryType::Directory => self.directory(name),
            EntryType::Symlink => {
                let target = link_target(member)?;
                let (parent, name) = self.place(name)?;
                make_room(&parent, name)?;
                Ok(rustix::fs::symlinkat(
                    target.as_slice(),
                    &parent,
                    name.as_bytes(),
                )?)
            }
            EntryType::Link => {
                let target = link_target(member)?;
                self.hard_link(name, target.as_bstr())
            }
            // Says something of the archive; git writes one.
            EntryType::XGlobalHeader => Ok(()),
            // Devices, pipes, and whatever else there may be.
            _ => Err(Problem::Refused(
                "is neither a file nor a directory nor a link",
            )),
        }
    }

    fn file(&self, name: &BStr, member: &mut Entry<'_, impl io::Read>) -> Result<(), Problem> {
        let (parent, name) = self.place(name)?;
        make_room(&parent, name)?;
        let is_executable = member.header().mode()? & 0o100 != 0;
        let mode = if is_executable { 0o755 } else { 0o644 };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name.as_bytes(), flags, Mode::from_raw_mode(mode))?;
        let size_bytes = member.size();
        if io::copy(member, &mut File::from(file))? != size_bytes {
            return Err(Problem::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn directory(&self, name: &BStr) -> Result<(), Problem> {
        match self.place(name) {
            Ok((parent, name)) => enter(&parent, name).map(drop),
            // The output's directory itself.
            Err(Problem::Refused(NO_NAME)) => Ok(()),
            Err(problem) => Err(problem),
        }
    }

    fn hard_link(&self, name: &BStr, target: &BStr) -> Result<(), Problem> {
        let (target_parent, target) = self.place(target)?;
        let (parent, name) = self.place(name)?;
        make_room(&parent, name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&target_parent, target.as_bytes(), flags)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(Problem::Refused("is another name of what is no file"));
        }
        let (target, name) = (target.as_bytes(), name.as_bytes());
        Ok(rustix::fs::linkat(
            &target_parent,
            target,
            &parent,
            name,
            AtFlags::empty(),
        )?)
    }

    /// Returns the directory that a name lies in, made where there is none, and the last part of
    /// the name.
    fn place<'n>(&self, name: &'n BStr) -> Result<(OwnedFd, &'n BStr), Problem> {
        let mut parts = Vec::new();
        for part in name.split_str("/") {
            match part {
                // Absolute names too begin at the output.
                b"" | b"." => {}
                b".." => return Err(Problem::Refused("leads out of its directory")),
                part => parts.push(part.as_bstr()),
            }
        }
        let last = parts.pop().ok_or(Problem::Refused(NO_NAME))?;
        let mut parent = self.root.try_clone()?;
        for part in parts {
            parent = enter(&parent, part)?;
        }
        Ok((parent, last))
    }
}

const NO_NAME: &str = "has no name";

/// Opens a directory in `parent`, made where there is none.
fn enter(parent: &OwnedFd, name: &BStr) -> Result<OwnedFd, Problem> {
    match rustix::fs::mkdirat(parent, name.as_bytes(), Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    match open_directory(parent, name.as_bytes()) {
        Err(Errno::LOOP | Errno::NOTDIR) => Err(Problem::Refused(
            "leads through something that is no directory",
        )),
        opened => Ok(opened?),
    }
}

/// Removes what an earlier member of the same name made.
fn make_room(parent: &OwnedFd, name: &BStr) -> Result<(), Problem> {
    match rustix::fs::unlinkat(parent, name.as_bytes(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(Problem::Refused("is also a directory")),
        Err(errno) => Err(errno.into()),
    }
}

fn link_target(member: &Entry<'_, impl io::Read>) -> Result<Vec<u8>, Problem> {
    let target = member.link_name_bytes().map(std::borrow::Cow::into_owned);
    target.ok_or(Problem::Refused("leads nowhere"))
}

fn open_directory(
    parent: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests;
