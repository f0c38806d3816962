//! System calls without a safe wrapper, and nothing else.
//!
//! Each function is a few lines under a `SAFETY` paragraph. Everything that nix or rustix offers
//! safely is called there.
#![expect(
    unsafe_code,
    reason = "the one file of the workspace that makes raw system calls"
)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// Which of the two processes after [`clone_process`] this is.
pub(crate) enum Cloned {
    /// The new one.
    Child,
    /// The old one, with the new one's number.
    Parent(i32),
}

/// Starts a copy of this process in the namespaces that `flags` name.
///
/// The caller must have one thread only; the copy may then do whatever the original may.
pub(crate) fn clone_process(flags: c_int) -> io::Result<Cloned> {
    let flags = c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the copy has its own memory
    // and goes on at this very point. The program is single-threaded, so no lock can be held by a
    // thread that the copy lacks. None of the flags makes the kernel write through the null
    // pointers.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => i32::try_from(pid)
            .map(Cloned::Parent)
            .map_err(io::Error::other),
    }
}

/// Ends this process without running anything that its copy's owner registered for the end.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but the first three and `kept`.
///
/// The caller is about to become the builder, and uses none of them again.
pub(crate) fn close_descriptors_except(kept: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let kept = kept.map_or(2, |kept| kept.as_raw_fd());
    let kept = c_uint::try_from(kept).map_err(io::Error::other)?;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, c_uint::MAX)] {
        if first <= last {
            // SAFETY: the call reads no memory. Descriptors that Rust values still own become
            // stale; by the contract above nothing uses or drops those values any more: the process
            // executes, or runs what is built in, which was handed none of them, and ends by
            // `exit_now`.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// Gives every signal its default action, those included that the C library keeps for itself and
/// whose disposition it would not change, though an ignored one is inherited all the same.
pub(crate) fn reset_signal_actions() {
    /// `struct kernel_sigaction`, which is not the C library's: handler, flags, restorer, mask.
    #[repr(C)]
    struct KernelAction {
        handler: usize,
        flags: c_ulong,
        restorer: usize,
        mask: u64,
    }
    const LAST_SIGNAL: c_int = 64;
    let action = KernelAction {
        handler: libc::SIG_DFL,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the structure lives across the call, which only reads it, and is as large as the
        // kernel's on every 64-bit machine; the default action runs no code of ours. The calls for
        // SIGKILL and SIGSTOP fail, which is as good.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const action,
                std::ptr::null_mut::<c_void>(),
                mem::size_of::<u64>(),
            )
        };
    }
}

/// Changes the flags of the mount that `dirfd` and `path` name.
pub(crate) fn mount_setattr(
    dirfd: BorrowedFd<'_>,
    path: &CStr,
    flags: c_int,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: `path` is a C string and `attributes` lives across the call, which gets its true
    // size and only reads it.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dirfd.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes).cast::<c_void>(),
            mem::size_of::<libc::mount_attr>(),
        )
    })
}

/// Switches the loopback interface on.
pub(crate) fn raise_loopback(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of the structure, both set above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
}

/// Sets the NIS domain of this namespace.
pub(crate) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the call reads exactly as many bytes as the slice has.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
}

/// Takes every capability, those of kernels newer than this program included, out of the set of
/// those that can ever be had again.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for number in 0..c_ulong::from(u64::BITS) {
        // SAFETY: the call takes numbers and no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        match check(result.into()) {
            // The first number that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && number > 0 => break,
            result => result?,
        }
    }
    Ok(())
}

/// Takes a new, empty session key ring.
pub(crate) fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous ring; the call reads no memory.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<c_char>(),
        )
    })
}

/// Keeps this process from connecting to abstract sockets, and from signalling processes, that were
/// there before it. Landlock, ABI 6.
pub(crate) fn scope_with_landlock() -> io::Result<()> {
    /// `struct landlock_ruleset_attr`: what is handled of the file system, the network, and scopes.
    #[repr(C)]
    struct RulesetAttr {
        handled_access_fs: u64,
        handled_access_net: u64,
        scoped: u64,
    }
    const ABSTRACT_UNIX_SOCKET: u64 = 1;
    const SIGNAL: u64 = 2;
    let attributes = RulesetAttr {
        handled_access_fs: 0,
        handled_access_net: 0,
        scoped: ABSTRACT_UNIX_SOCKET | SIGNAL,
    };
    // SAFETY: the structure lives across the call, which gets its true size and only reads it.
    let ruleset = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attributes,
            mem::size_of::<RulesetAttr>(),
            0,
        )
    };
    let ruleset = owned(ruleset)?;
    // SAFETY: the call takes a descriptor and no memory.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
}

/// Loads a filter of system calls for the rest of this process's life.
pub(crate) fn load_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the structure and the instructions that it points at live across the call, which
    // copies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    })
}

/// Unlocks a pseudo-terminal and opens its other end without going through a path, which could lead
/// into another instance of the file system.
pub(crate) fn open_terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which lives across the call.
    check(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into(),
    )?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its flags by value and returns a new descriptor.
    owned(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as c_ulong, flags) }.into())
}

fn owned(descriptor: c_long) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = c_int::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned it as a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
