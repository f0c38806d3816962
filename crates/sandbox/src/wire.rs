//! The bytes between the supervisor and `sandbox-init`.
//!
//! A frame is its length (4 bytes, little-endian), a version byte and a bincode payload. The
//! descriptors of a frame travel with its first byte. Nothing else in the workspace knows the
//! encoding, so that it stays replaceable in an afternoon.
//!
//! The supervisor trusts the launcher and the launcher the supervisor: both belong to one program.
//! The limits guard against mistakes, not against attacks; no byte of a builder gets here.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek as _, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::SetupFault;
use crate::plan::Plan;

/// Bumped with every change of a wire type: a launcher of another version is refused, not misread.
const VERSION: u8 = 2;

/// Length and version.
const HEADER_LEN: usize = 5;

/// A closure of 100,000 inputs takes 7 MB; a megabyte of environment is legal; eight times that is
/// a mistake.
const MAX_PAYLOAD_LEN: usize = 64 << 20;

/// The log's pseudo-terminal travels, and what a built-in builder is told; room for two more is
/// free.
const MAX_DESCRIPTORS: usize = 4;

/// What the supervisor asks of the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a builder. The frame carries the descriptor that becomes its output; for a built-in one
    /// a second one, which the request is read from.
    Launch(Box<Launch>),
    /// Kill every process of a build, if it still runs.
    Kill {
        /// Which.
        build_id: u64,
    },
}

/// Everything that the launcher must know to run one builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Comes back in each report.
    pub(crate) build_id: u64,
    /// What to set up.
    pub(crate) plan: Plan,
    /// What to run in it.
    pub(crate) builder: Builder,
}

/// What runs as the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Builder {
    /// A program of the sandbox.
    Program(Program),
    /// One of ours. What it is told holds passwords, and is for its own process alone: it is
    /// sealed in the descriptor that comes with the launch.
    Builtin,
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The file.
    pub(crate) path: CString,
    /// Its arguments with `argv[0]`.
    pub(crate) args: Vec<CString>,
    /// Its environment as `NAME=value`.
    pub(crate) env: Vec<CString>,
}

/// What the launcher tells about one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Which.
    pub(crate) build_id: u64,
    /// What happened.
    pub(crate) news: News,
}

/// What process 1 tells its launcher, each in a packet of a sequenced socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// What the supervisor has to know.
    News(News),
    /// The descriptor beside this is a view that further builds can use.
    ViewMade {
        /// Its name.
        id: u64,
    },
}

/// The two things that can happen to a launched build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// Set-up is done, the builder is about to be executed.
    Started {
        /// The build's first process, as the host numbers it.
        pid: u32,
    },
    /// It is over; no process of the build is left.
    Ended(Ending),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// The builder exited.
    Exited {
        /// With this status.
        code: i32,
    },
    /// A signal ended the builder or its process 1.
    Signalled {
        /// This one.
        signal: i32,
    },
    /// The builder never ran.
    SetupFailed {
        /// The chain of causes.
        message: String,
        /// Whether another try may succeed.
        fault: SetupFault,
    },
}

/// Writes a request and hands over `descriptors` with it.
///
/// # Errors
/// The launcher is gone, or a path in the request is not UTF-8.
pub(crate) fn send_request(
    socket: &UnixStream,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_frame(socket, request, descriptors)
}

/// Waits for the next request; `None` when the supervisor has closed its end.
///
/// # Errors
/// The bytes are not a request of this version.
pub(crate) fn receive_request(socket: &UnixStream) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    receive_frame(socket)
}

/// Puts what a built-in builder is told where only its own process reads it.
///
/// # Errors
/// There is no memory, or the request is too large.
pub(crate) fn seal_builtin(request: &builtins::Request) -> io::Result<OwnedFd> {
    let payload = encode(request)?;
    if payload.len() > MAX_PAYLOAD_LEN {
        return Err(invalid("the message is longer than 64 MiB"));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("builtin", flags)?);
    file.write_all(&payload)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads what [`seal_builtin`] has written.
///
/// # Errors
/// It is no request of this version.
pub(crate) fn unseal_builtin(sealed: OwnedFd) -> io::Result<builtins::Request> {
    let mut file = File::from(sealed);
    let mut payload = Vec::new();
    // Whoever wrote it had the same open file, and left it at its end.
    file.rewind()?;
    file.read_to_end(&mut payload)?;
    decode(&payload)
}

/// Writes a report.
///
/// # Errors
/// The supervisor is gone.
pub(crate) fn send_report(socket: &UnixStream, report: &Report) -> io::Result<()> {
    send_frame(socket, report, &[])
}

/// Waits for the next report; `None` when the launcher has closed its end.
///
/// # Errors
/// The bytes are not a report of this version.
pub(crate) fn receive_report(socket: &UnixStream) -> io::Result<Option<Report>> {
    Ok(receive_frame(socket)?.map(|(report, _)| report))
}

/// Sends a packet, and a descriptor with it, from process 1 to its launcher.
///
/// # Errors
/// The launcher is gone.
pub(crate) fn tell(
    socket: BorrowedFd<'_>,
    what: &Told,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let packet = encode(what)?;
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(invalid("too many descriptors for one packet"));
    }
    let packet = [IoSlice::new(&packet)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Takes a packet of process 1 if there is one; `None` when all who could send one are gone.
///
/// # Errors
/// There is none yet, or the bytes are not one whole [`Told`].
pub(crate) fn hear(
    socket: BorrowedFd<'_>,
    packet: &mut [u8],
) -> io::Result<Option<(Told, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut control, flags)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = descriptors(&mut control).next();
    Ok(Some((decode(&packet[..received.bytes])?, descriptor)))
}

/// Takes the descriptors out of what came beside a message.
fn descriptors<'a>(control: &'a mut RecvAncillaryBuffer<'_>) -> impl Iterator<Item = OwnedFd> + 'a {
    control
        .drain()
        .filter_map(|message| {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                Some(rights)
            } else {
                None
            }
        })
        .flatten()
}

fn send_frame<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let payload = encode(message)?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD_LEN)
        .ok_or_else(|| invalid("the message is longer than 64 MiB"))?;
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.push(VERSION);
    frame.extend_from_slice(&payload);

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors for one message"));
    }
    let n_sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&frame)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    let mut rest = socket;
    rest.write_all(&frame[n_sent..])
}

fn receive_frame<T: DeserializeOwned>(
    mut socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; HEADER_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = descriptors(&mut control).collect();
    socket.read_exact(&mut header[received.bytes..])?;

    let [l0, l1, l2, l3, version] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if version != VERSION {
        return Err(invalid(
            "the other side speaks another version of the launcher's protocol",
        ));
    }
    if length > MAX_PAYLOAD_LEN {
        return Err(invalid("the message is longer than 64 MiB"));
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload)?;
    Ok(Some((decode(&payload)?, descriptors)))
}

fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    let config = bincode::config::standard().with_limit::<MAX_PAYLOAD_LEN>();
    let (message, n_read) = bincode::serde::decode_from_slice(payload, config)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if n_read != payload.len() {
        return Err(invalid("bytes are left over after the message"));
    }
    Ok(message)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn launch(n_args: usize) -> Request {
        Request::Launch(Box::new(Launch {
            build_id: 7,
            plan: Plan {
                cleared_uid: None,
                namespaces: Vec::new(),
                outer: Vec::new(),
                mapping: None,
                inner: Vec::new(),
                descendants: crate::plan::Descendants::Adopted,
            },
            builder: Builder::Program(Program {
                path: c"/builder".into(),
                args: vec![c"an argument that is not short".into(); n_args],
                env: vec![c"NAME=\xff".into()],
            }),
        }))
    }

    #[test]
    fn a_large_request_arrives_whole_and_with_its_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let sender = std::thread::spawn(move || {
            send_request(&ours, &launch(100_000), &[writer.as_fd()]).unwrap();
            send_request(&ours, &Request::Kill { build_id: 7 }, &[]).unwrap();
        });
        let (first, descriptors) = receive_request(&theirs).unwrap().unwrap();
        let Request::Launch(received) = first else {
            panic!("{first:?}");
        };
        let Builder::Program(program) = received.builder else {
            panic!("{received:?}");
        };
        assert_eq!(program.args.len(), 100_000);
        assert_eq!(program.env[0].as_bytes(), b"NAME=\xff");
        let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        std::fs::File::from(descriptor)
            .write_all(b"through")
            .unwrap();
        let (second, descriptors) = receive_request(&theirs).unwrap().unwrap();
        assert!(matches!(second, Request::Kill { build_id: 7 }));
        assert!(descriptors.is_empty());
        sender.join().unwrap();
        assert!(
            receive_request(&theirs).unwrap().is_none(),
            "the end of the stream"
        );
        let mut text = String::new();
        std::io::BufReader::new(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_a_builtin_is_told_arrives_whole_and_can_be_changed_by_nobody() {
        let request = builtins::Request {
            name: "fetchurl".to_owned(),
            attributes: [(b"url".to_vec(), vec![0xff; 1 << 20])].into(),
            provisions: builtins::Provisions::default(),
        };
        let sealed = seal_builtin(&request).unwrap();
        let copy = std::fs::File::from(sealed.try_clone().unwrap());
        assert!((&copy).write_all(b"x").is_err());
        assert!(copy.set_len(0).is_err());
        assert_eq!(unseal_builtin(sealed).unwrap(), request);
    }

    #[test]
    fn another_version_too_long_a_frame_and_trailing_bytes_are_refused() {
        let refuse = |frame: &[u8]| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(frame).unwrap();
            drop(ours);
            receive_report(&theirs).unwrap_err().to_string()
        };
        assert!(refuse(&[1, 0, 0, 0, VERSION + 1, 0]).contains("another version"));
        assert!(refuse(&[0, 0, 0, 0xff, VERSION]).contains("64 MiB"));
        let report = Report {
            build_id: 1,
            news: News::Started { pid: 2 },
        };
        let mut payload = encode(&report).unwrap();
        payload.push(0);
        let mut frame = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        frame.push(VERSION);
        frame.extend(payload);
        assert!(refuse(&frame).contains("left over"));
        assert!(
            refuse(&[9, 0, 0, 0, VERSION, 1]).contains("fill"),
            "cut short"
        );
    }
}
