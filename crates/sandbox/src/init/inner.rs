//! The builder's own process, from its birth until it is the builder; a built-in one to its end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use nix::sys::personality::{self, Persona};
use nix::sys::resource::{self, Resource};
use nix::sys::signal::SigSet;
use nix::sys::stat;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::Signal;

use super::failure::{Context, Failure, Reason};
use super::outer::Given;
use super::seccomp::Filters;
use super::{capabilities, identity, outer, sys};
use crate::plan::InnerStep;
use crate::spec::NestedNamespaces;
use crate::wire::{self, Builder, Launch, News, Program};

/// What a builder that cannot be executed, or a built-in one that fails, exits with, as with Nix.
const NOT_EXECUTED: i32 = 1;

/// Linux's 32-bit machine, which nix does not name.
const PER_LINUX32: u64 = 8;

/// What a built-in builder that has panicked exits with, as any program of ours.
const PANICKED: i32 = 101;

/// Becomes the builder.
pub(super) fn run(
    launch: &Launch,
    given: &mut Given,
    gate: OwnedFd,
    news: &OwnedFd,
    filters: &Filters,
) -> ! {
    // The gate opens when the id maps are written; if process 1 dies first it never does.
    let mut gate = File::from(gate);
    if gate.read_exact(&mut [0]).is_err() {
        sys::exit_now(NOT_EXECUTED);
    }
    let status = match prepare(launch, given, news, filters) {
        Ok(Ready::Program { program, found }) => {
            drop(outer::tell(news, News::Started { pid: 0 }));
            let error = match found {
                Ok(()) => execute(program),
                Err(error) => error,
            };
            // The builder's own failure, hence in its log.
            let path = OsStr::from_bytes(program.path.as_bytes());
            let complaint = format!("executing '{}': {}\n", path.display(), Reason(&error));
            drop(io::stderr().write_all(complaint.as_bytes()));
            NOT_EXECUTED
        }
        Ok(Ready::Builtin(request)) => {
            drop(outer::tell(news, News::Started { pid: 0 }));
            run_builtin(&request)
        }
        Err(failure) => {
            drop(outer::tell(news, News::Ended(failure.into_ending())));
            NOT_EXECUTED
        }
    };
    sys::exit_now(status)
}

/// What is about to run.
enum Ready<'a> {
    Program {
        program: &'a Program,
        /// Why it cannot be executed, if so.
        found: io::Result<()>,
    },
    Builtin(Box<builtins::Request>),
}

/// Takes the inner steps.
fn prepare<'a>(
    launch: &'a Launch,
    given: &mut Given,
    news: &OwnedFd,
    filters: &Filters,
) -> Result<Ready<'a>, Failure> {
    let mut ready = match (&launch.builder, given.builtin.take()) {
        (Builder::Program(program), _) => Ready::Program {
            program,
            found: Ok(()),
        },
        // Before the steps, which close every descriptor.
        (Builder::Builtin, Some(sealed)) => {
            let request = wire::unseal_builtin(sealed)
                .context(|| "reading what the built-in builder is told")?;
            Ready::Builtin(Box::new(request))
        }
        (Builder::Builtin, None) => {
            let operation = "reading what the built-in builder is told";
            return Err(Failure::refused(operation, "it is missing"));
        }
    };
    for step in &launch.plan.inner {
        match (step, &mut ready) {
            (InnerStep::FindBuilder, Ready::Program { program, found }) => {
                *found = find_builder(program);
            }
            (step, _) => perform(step, &given.log, news, filters)?,
        }
    }
    Ok(ready)
}

/// Runs a built-in builder where another would be executed; returns what it exits with.
fn run_builtin(request: &builtins::Request) -> i32 {
    // An execution would close the socket that only set-up may use.
    if sys::close_descriptors_except(None).is_err() {
        return NOT_EXECUTED;
    }
    let mut log = io::stderr();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| builtins::run(request, &mut log)));
    match ended {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            let complaint = format!("error: {}\n", crate::error::chain(&error));
            drop(io::stderr().write_all(complaint.as_bytes()));
            NOT_EXECUTED
        }
        // The panic's message is in the log already.
        Err(_) => PANICKED,
    }
}

fn perform(
    step: &InnerStep,
    log: &OwnedFd,
    news: &OwnedFd,
    filters: &Filters,
) -> Result<(), Failure> {
    match step {
        InnerStep::LimitCapabilities => capabilities::limit(),
        InnerStep::BecomeUser {
            uid,
            gid,
            supplementary_gids,
        } => {
            // In a user namespace of its own it has no others, and may not even say so.
            if !supplementary_gids.is_empty() {
                identity::join_groups(supplementary_gids)?;
            }
            identity::become_user(*uid, *gid)
        }
        InnerStep::DieWithParent => {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .context(|| "asking to die with process 1")
        }
        InnerStep::LeaveSession => {
            nix::unistd::setsid().context(|| "starting a session")?;
            Ok(())
        }
        InnerStep::Redirect => redirect(log, news).context(|| "redirecting the builder's output"),
        InnerStep::EnterDirectory(path) => rustix::process::chdir(path)
            .context(|| format!("entering the build directory '{}'", path.display())),
        InnerStep::ForgetKeys => match sys::join_new_session_keyring() {
            // A kernel without key rings has none to leak.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result.context(|| "taking a new key ring"),
        },
        InnerStep::ForbidCoreDumps => {
            resource::setrlimit(Resource::RLIMIT_CORE, 0, 0).context(|| "forbidding core dumps")
        }
        InnerStep::Imitate {
            linux_26,
            thirty_two_bit,
        } => imitate(*linux_26, *thirty_two_bit).context(|| "setting the personality"),
        InnerStep::ResetProcess => {
            stat::umask(stat::Mode::from_bits_truncate(0o022));
            sys::reset_signal_actions();
            SigSet::empty()
                .thread_set_mask()
                .context(|| "unblocking signals")
        }
        // Not a failure to prepare but the builder's own, so it is dealt with above. What is built
        // in has no path.
        InnerStep::FindBuilder => Ok(()),
        InnerStep::DropCapabilities => capabilities::drop_all(),
        InnerStep::ForbidNewPrivileges => capabilities::forbid_new_privileges(),
        InnerStep::ScopeSockets => {
            // Best effort: kernels before 6.12 cannot.
            drop(sys::scope_with_landlock());
            Ok(())
        }
        InnerStep::FilterSystemCalls(nested_namespaces) => {
            let filter = match nested_namespaces {
                NestedNamespaces::Allowed => &filters.nested_allowed,
                NestedNamespaces::Denied => &filters.nested_denied,
            };
            sys::load_filter(filter).context(|| "loading the filter of system calls")
        }
    }
}

/// Makes nothing the input and the log both outputs, and closes everything else but the socket,
/// which the kernel closes when the builder is executed.
fn redirect(log: &OwnedFd, news: &OwnedFd) -> io::Result<()> {
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    std::mem::forget(nothing);
    sys::close_descriptors_except(Some(news.as_fd()))
}

fn imitate(linux_26: bool, thirty_two_bit: bool) -> io::Result<()> {
    let mut persona = personality::get()? | Persona::ADDR_NO_RANDOMIZE;
    if linux_26 {
        persona |= Persona::UNAME26;
    }
    if thirty_two_bit {
        let bits = i32::try_from(PER_LINUX32).map_err(io::Error::other)?;
        persona |= Persona::from_bits_retain(bits);
    }
    personality::set(persona)?;
    Ok(())
}

/// Executes the builder; returns why that did not work.
fn execute(program: &Program) -> io::Error {
    match nix::unistd::execve(&program.path, &program.args, &program.env) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// Refuses a builder that is not a file of the sandbox's own: `/proc/self/exe` would be this
/// program, and `/dev/fd/3` whatever was left open (CVE-2019-5736).
fn find_builder(program: &Program) -> io::Result<()> {
    if !program.path.to_bytes().starts_with(b"/") {
        return Err(io::Error::other("the builder's path is not absolute"));
    }
    let builder = rustix::fs::openat2(
        rustix::fs::CWD,
        program.path.as_c_str(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    let number = builder.as_raw_fd();
    let real = rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new())?;
    let real = Path::new(OsStr::from_bytes(real.as_bytes()));
    if real.starts_with("/proc") || real.starts_with("/dev") {
        return Err(io::Error::other("a builder cannot lie in /proc or /dev"));
    }
    Ok(())
}
