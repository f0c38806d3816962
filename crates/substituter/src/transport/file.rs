//! A cache in a directory.
//!
//! Whoever may write to the directory must not be able to have other files read (SECURITY N01), so
//! every file is opened below the directory's descriptor and no symbolic link is followed on the
//! way; the directory itself is named by the user and may be reached through links.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use store_model::narinfo::RelativeUrl;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::{OpenRequest, Transport, TransportError};

/// How often a lookup is done again that a rename somewhere in the directory disturbed.
const MAX_DISTURBANCES: usize = 16;

/// Reads a cache from a directory of this machine.
#[derive(Debug, Clone)]
pub(crate) struct FileTransport {
    root: Arc<Path>,
}

impl FileTransport {
    /// Names the directory; it is opened anew for each file, since it may come and go.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root: root.into() }
    }

    /// Opens a regular file of the cache; `None` if it is not there.
    fn open_file(&self, file: &RelativeUrl) -> Result<Option<File>, TransportError> {
        let root = rustix::fs::open(
            &*self.root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| TransportError::NoAnswer {
            address: self.address(""),
            retry_after: None,
            source: io::Error::from(errno).into(),
        })?;
        match open_below(&root, file) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::LOOP | Errno::XDEV) => Err(self.broken(
                file,
                io::Error::other("it is reached through a symbolic link"),
            )),
            Err(errno) => Err(self.broken(file, errno.into())),
        }
    }

    fn read_small_now(
        &self,
        file: &RelativeUrl,
        max_bytes: usize,
    ) -> Result<Option<Bytes>, TransportError> {
        let Some(opened) = self.open_file(file)? else {
            return Ok(None);
        };
        let mut contents = Vec::new();
        // One byte more, to tell a file that is as large as allowed from one that is larger.
        opened
            .take(max_bytes as u64 + 1)
            .read_to_end(&mut contents)
            .map_err(|error| self.broken(file, error))?;
        if contents.len() > max_bytes {
            let reason = format!("it has more than {max_bytes} bytes");
            return Err(self.broken(file, io::Error::other(reason)));
        }
        Ok(Some(contents.into()))
    }

    fn broken(&self, file: &RelativeUrl, source: io::Error) -> TransportError {
        TransportError::Broken {
            address: self.address(file.as_str()),
            source: source.into(),
        }
    }

    fn address(&self, file: &str) -> String {
        format!("file://{}", self.root.join(file).display())
    }

    /// Does what waits for a disk on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        file: &RelativeUrl,
        work: impl FnOnce(&Self, &RelativeUrl) -> Result<T, TransportError> + Send + 'static,
    ) -> Result<T, TransportError> {
        let (transport, wanted) = (self.clone(), file.clone());
        let done = tokio::task::spawn_blocking(move || work(&transport, &wanted)).await;
        done.unwrap_or_else(|lost| Err(self.broken(file, io::Error::other(lost))))
    }
}

/// Opens what a directory has below it without following any link.
///
/// # Errors
/// The kernel's own; `LOOP` or `XDEV` if a link is on the way.
pub(super) fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut n_disturbances = 0;
    loop {
        let result = rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        );
        match result {
            Err(Errno::AGAIN) if n_disturbances < MAX_DISTURBANCES => n_disturbances += 1,
            result => return result,
        }
    }
}

/// Opens a regular file below a directory without following any link.
fn open_below(root: &OwnedFd, file: &RelativeUrl) -> Result<File, Errno> {
    // Without waiting, as it may be a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = open_beneath(root, file.as_str(), flags)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
    if kind == FileType::RegularFile {
        Ok(File::from(opened))
    } else {
        // A directory of that name is no file of the cache, nor is a device.
        Err(Errno::ISDIR)
    }
}

impl Transport for FileTransport {
    fn read_small<'a>(
        &'a self,
        file: &'a RelativeUrl,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, TransportError>> {
        self.run(file, move |transport, file| {
            transport.read_small_now(file, max_bytes)
        })
        .boxed()
    }

    fn open<'a>(
        &'a self,
        file: &'a RelativeUrl,
        request: OpenRequest,
    ) -> BoxFuture<'a, Result<Box<dyn Read + Send>, TransportError>> {
        self.run(file, move |transport, file| {
            let contents = transport
                .open_file(file)?
                .ok_or_else(|| TransportError::Missing {
                    address: transport.address(file.as_str()),
                })?;
            let reader = EndableFile {
                contents,
                ended: request.ended,
            };
            Ok(Box::new(reader) as Box<dyn Read + Send>)
        })
        .boxed()
    }
}

/// A file that nobody reads any more once the other end says so.
#[derive(Debug)]
struct EndableFile {
    contents: File,
    ended: oneshot::Receiver<()>,
}

impl Read for EndableFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ended.try_recv() {
            Err(TryRecvError::Empty) => self.contents.read(buffer),
            Ok(()) | Err(TryRecvError::Closed) => Err(super::given_up()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;
    use tempfile::TempDir;

    use super::*;

    fn cache() -> (TempDir, FileTransport) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cache/nar")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(dir.path().join("cache/nar/x"), "contents").unwrap();
        let transport = FileTransport::new(dir.path().join("cache"));
        (dir, transport)
    }

    async fn read(transport: &FileTransport, file: &str) -> Result<Option<Bytes>, TransportError> {
        transport.read_small(&file.parse().unwrap(), 8).await
    }

    fn open_request() -> (oneshot::Sender<()>, OpenRequest) {
        let (alive, ended) = oneshot::channel();
        let request = OpenRequest { ended };
        (alive, request)
    }

    #[tokio::test]
    async fn a_file_is_read_and_one_that_is_not_there_is_told() {
        let (_dir, transport) = cache();
        let contents = read(&transport, "nar/x").await.unwrap().unwrap();
        assert_eq!(contents, "contents");
        assert_eq!(read(&transport, "nar/y").await.unwrap(), None);
        assert_eq!(read(&transport, "nar/x/y").await.unwrap(), None);
        let (_alive, request) = open_request();
        let missing = transport.open(&"nar/y".parse().unwrap(), request).await;
        assert!(matches!(missing, Err(TransportError::Missing { .. })));
    }

    #[tokio::test]
    async fn no_link_leads_out_of_the_cache_or_within() {
        let (dir, transport) = cache();
        let root = dir.path().join("cache");
        symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
        symlink("../secret", root.join("relative")).unwrap();
        symlink("nar/x", root.join("inside")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        for file in [
            "absolute",
            "relative",
            "inside",
            "up/secret",
            "magic/etc/passwd",
        ] {
            let error = read(&transport, file).await.unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("symbolic link"), "{file}: {cause}");
        }
        // What the user named may itself be a link.
        symlink(&root, dir.path().join("link")).unwrap();
        let transport = FileTransport::new(dir.path().join("link"));
        assert!(read(&transport, "nar/x").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_is_no_file_or_too_large_is_refused_without_waiting() {
        let (dir, transport) = cache();
        let root = dir.path().join("cache");
        rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::write(root.join("large"), "123456789").unwrap();
        for file in ["pipe", "nar", "large"] {
            let error = read(&transport, file).await.unwrap_err();
            assert!(matches!(error, TransportError::Broken { .. }), "{file}");
        }
    }

    #[tokio::test]
    async fn a_cache_that_is_not_there_gives_no_answer() {
        let (dir, _) = cache();
        let transport = FileTransport::new(dir.path().join("unplugged"));
        let error = read(&transport, "nix-cache-info").await.unwrap_err();
        assert!(matches!(error, TransportError::NoAnswer { .. }));
    }

    #[tokio::test]
    async fn a_transfer_ends_when_nobody_wants_it() {
        let (_dir, transport) = cache();
        let (alive, request) = open_request();
        let mut reader = transport
            .open(&"nar/x".parse().unwrap(), request)
            .await
            .unwrap();
        let mut start = [0; 3];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"con");
        drop(alive);
        assert!(reader.read(&mut start).is_err());
    }
}
