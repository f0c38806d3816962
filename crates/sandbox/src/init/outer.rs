//! A build's first process: makes the surroundings, starts the builder, reaps.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use rustix::mount::MountFlags;
use rustix::process::Signal as RustixSignal;

use super::capabilities::Memory;
use super::failure::{Context, Failure};
use super::mounts::{self, NewRoot};
use super::processes::{self, STOP_SIGNAL};
use super::seccomp::Filters;
use super::views::{self, Views};
use super::{capabilities, identity, inner, network, sys};
use crate::plan::{Descendants, Plan, Step};
use crate::spec::View;
use crate::wire::{self, Ending, Launch, News, Told};

/// The longest packet of news; messages are cut to fit.
pub(super) const MAX_NEWS_LEN: usize = 4096;

/// Leaves room for the encoding around the text.
const MAX_MESSAGE_LEN: usize = MAX_NEWS_LEN - 64;

/// What every build has from its launcher.
#[derive(Debug)]
pub(super) struct Shared {
    /// Readable when the launcher is gone.
    pub(super) launcher_life: OwnedFd,
    /// What builders load.
    pub(super) filters: Filters,
    /// What further builds with the same inputs can use.
    pub(super) views: Views,
}

/// The descriptors that come with a launch.
#[derive(Debug)]
pub(super) struct Given {
    /// Becomes the builder's output.
    pub(super) log: OwnedFd,
    /// Holds what a built-in builder is told.
    pub(super) builtin: Option<OwnedFd>,
}

/// Lives as the build's first process and ends with it.
pub(super) fn run(launch: &Launch, given: Given, news: &OwnedFd, shared: &Shared) -> ! {
    let ending = supervise(launch, given, news, shared).unwrap_or_else(|failure| {
        let fault = failure.fault();
        let mut message = failure.to_string();
        let cut = message.floor_char_boundary(MAX_MESSAGE_LEN);
        message.truncate(cut);
        Ending::SetupFailed { message, fault }
    });
    // Nobody is left to hear of a failure to tell; the launcher then says what it saw.
    drop(tell(news, News::Ended(ending)));
    sys::exit_now(0)
}

fn supervise(
    launch: &Launch,
    mut given: Given,
    news: &OwnedFd,
    shared: &Shared,
) -> Result<Ending, Failure> {
    die_with_launcher(&shared.launcher_life)?;
    let plan = &launch.plan;
    if plan.descendants != Descendants::InPidNamespace {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context(|| "adopting the builder's descendants")?;
        processes::block_stop_signal().context(|| "blocking signals")?;
    }
    perform(plan, &shared.views, news)?;
    let builder = start_builder(launch, &mut given, news, &shared.filters)?;
    // Both are the builder's alone from now on.
    drop(given);
    // From here on nothing is set up any more. The rights would only be worth stealing; but where
    // there is no pid namespace, killing another user's processes takes some.
    if !matches!(plan.descendants, Descendants::OfUser(_)) {
        capabilities::drop_all()?;
    }
    capabilities::forbid_new_privileges()?;
    capabilities::set_memory(Memory::Hidden)?;
    die_with_launcher(&shared.launcher_life)?;
    open_gate(builder.gate)?;
    let ending = reap_until(builder.pid).context(|| "waiting for the builder")?;
    let operation = || "killing what the builder left";
    match plan.descendants {
        Descendants::InPidNamespace => {}
        Descendants::Adopted => processes::kill_adopted().context(operation)?,
        Descendants::OfUser(uid) => {
            processes::kill_user(uid).context(operation)?;
            processes::kill_adopted().context(operation)?;
        }
    }
    Ok(ending)
}

/// Asks to be killed when the launcher ends, and makes sure that it has not ended already. Changed
/// credentials make the kernel forget, so it is asked again after each change.
fn die_with_launcher(launcher_life: &OwnedFd) -> Result<(), Failure> {
    let operation = || "asking to die with the launcher";
    rustix::process::set_parent_process_death_signal(Some(RustixSignal::KILL))
        .context(operation)?;
    let mut life = [rustix::event::PollFd::new(
        launcher_life,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec::default();
    if rustix::event::poll(&mut life, Some(&now)).context(operation)? != 0 {
        return Err(Failure::refused(operation(), "it has ended"));
    }
    Ok(())
}

/// Performs the outer steps, in order.
fn perform(plan: &Plan, views: &Views, news: &OwnedFd) -> Result<(), Failure> {
    let mut root: Option<NewRoot> = None;
    for step in &plan.outer {
        match (step, root.as_mut()) {
            (Step::MountRoot { over }, _) => root = Some(NewRoot::mount(over)?),
            (Step::EnterRoot, _) => match root.take() {
                Some(made) => made.enter()?,
                None => return Err(no_root()),
            },
            (
                Step::MountStore {
                    scratch,
                    source,
                    target,
                    names,
                    view,
                },
                Some(root),
            ) => match known_view(views, news, *view, (scratch, source, names)) {
                Some(known) => root.place_view(known.as_fd(), target)?,
                None => root.mount_store(scratch, source, target, names)?,
            },
            (step, Some(root)) => perform_inside(step, root)?,
            (step, None) => perform_alone(step)?,
        }
    }
    Ok(())
}

/// Returns what a build with the same inputs has mounted, or mounts it for further ones.
fn known_view(
    views: &Views,
    news: &OwnedFd,
    View { id, is_known }: View,
    (scratch, source, names): (&Path, &Path, &[String]),
) -> Option<OwnedFd> {
    if !is_known || !views::is_worthwhile(names.len()) {
        return None;
    }
    if let Some(known) = views.get(id) {
        return known.try_clone_to_owned().ok();
    }
    // Best effort: it only saves time, and older kernels cannot.
    let made = views::make(scratch, source, names).ok()?;
    let kept = wire::tell(news.as_fd(), &Told::ViewMade { id }, Some(made.as_fd()));
    // A launcher that is gone keeps nothing, and this build ends with it.
    drop(kept);
    Some(made)
}

/// Performs a step that needs no root directory in the making.
fn perform_alone(step: &Step) -> Result<(), Failure> {
    match step {
        Step::DetachFromHost => mounts::detach_from_host(),
        Step::OverlayStore {
            store_dir,
            upper,
            work,
        } => mounts::overlay_store(store_dir, upper, work),
        Step::ShowOnly { directory, name } => mounts::show_only(directory, name),
        Step::CoverProc => mounts::cover_proc(),
        Step::RaiseLoopback => network::raise_loopback(),
        Step::NameHost { host, domain } => network::name_host(host, domain),
        Step::VolunteerForOom => {
            // What /proc shows of a process that hides its memory belongs to root.
            capabilities::set_memory(Memory::Readable)?;
            // Best effort: where /proc is not ours to write, the kernel's own choice stands.
            drop(fs::write("/proc/self/oom_score_adj", "1000"));
            capabilities::set_memory(Memory::Hidden)
        }
        Step::MountRoot { .. }
        | Step::MakeDirectory { .. }
        | Step::WriteFile { .. }
        | Step::MakeLink { .. }
        | Step::Bind { .. }
        | Step::BindOwn { .. }
        | Step::OverlayInputs { .. }
        | Step::MountStore { .. }
        | Step::MountProc
        | Step::MountTerminals
        | Step::MountSharedMemory { .. }
        | Step::SealRoot
        | Step::EnterRoot => Err(no_root()),
    }
}

/// Performs a step in the root directory in the making.
fn perform_inside(step: &Step, root: &mut NewRoot) -> Result<(), Failure> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    match step {
        Step::MakeDirectory { path, mode } => root.make_directory(path, *mode),
        Step::WriteFile { path, content } => root.write_file(path, content.as_bytes()),
        Step::MakeLink { path, target } => root.make_link(path, target),
        Step::Bind {
            source,
            target,
            access,
            absence,
            link,
        } => root.bind(source, target, *access, *absence, *link),
        Step::BindOwn { source, target } => root.bind_own(source, target),
        Step::OverlayInputs {
            upper,
            work,
            source,
            target,
            names,
        } => root.overlay_inputs(upper, work, source, target, names),
        Step::MountProc => root.mount_special("proc", "/proc", safe | MountFlags::NODEV, ""),
        Step::MountTerminals => root.mount_special(
            "devpts",
            "/dev/pts",
            safe,
            "newinstance,mode=0620,ptmxmode=0666",
        ),
        Step::MountSharedMemory { size } => root.mount_special(
            "tmpfs",
            "/dev/shm",
            MountFlags::NOSUID | MountFlags::NODEV,
            &format!("mode=1777,size={size}"),
        ),
        Step::SealRoot => root.seal(),
        Step::DetachFromHost
        | Step::MountRoot { .. }
        | Step::MountStore { .. }
        | Step::OverlayStore { .. }
        | Step::ShowOnly { .. }
        | Step::CoverProc
        | Step::RaiseLoopback
        | Step::NameHost { .. }
        | Step::EnterRoot
        | Step::VolunteerForOom => perform_alone(step),
    }
}

fn no_root() -> Failure {
    Failure::refused("making the root directory", "the steps are out of order")
}

/// The builder's process, which waits behind its gate.
struct Waiting {
    pid: i32,
    gate: OwnedFd,
}

fn start_builder(
    launch: &Launch,
    given: &mut Given,
    news: &OwnedFd,
    filters: &Filters,
) -> Result<Waiting, Failure> {
    let mapping = launch.plan.mapping.as_ref();
    // The mount namespace stays the one that was made above: a greater user namespace owns it, so
    // nobody in the builder's may change a mount of it, and a copy of it that a further namespace
    // makes has every mount locked. A copy made here would lock no more and cost every mount twice.
    let flags = mapping.map_or(0, |_| libc::CLONE_NEWUSER);
    // The builder's process inherits it, and of a hidden process nobody may write the id maps.
    capabilities::set_memory(Memory::Readable)?;
    let (gate_inside, gate) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "making a pipe")?;
    let cloned = sys::clone_process(flags).context(
        || "making the builder's user namespace (see the sysctl user.max_user_namespaces)",
    )?;
    match cloned {
        sys::Cloned::Child => {
            drop(gate);
            inner::run(launch, given, gate_inside, news, filters)
        }
        sys::Cloned::Parent(pid) => {
            if let Some(mapping) = mapping {
                identity::map_ids(pid, mapping)?;
            }
            Ok(Waiting { pid, gate })
        }
    }
}

fn open_gate(gate: OwnedFd) -> Result<(), Failure> {
    fs::File::from(gate)
        .write_all(&[1])
        .context(|| "letting the builder go")
}

/// Sends a packet to the launcher.
pub(super) fn tell(news: impl AsFd, what: News) -> io::Result<()> {
    wire::tell(news.as_fd(), &Told::News(what), None)
}

/// Reaps everything until the builder is among it, or until told to stop.
fn reap_until(builder: i32) -> io::Result<Ending> {
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.add(STOP_SIGNAL);
    loop {
        match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == builder => {
                return Ok(Ending::Exited { code });
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == builder => {
                let signal = signal as i32;
                return Ok(Ending::Signalled { signal });
            }
            // SIGCHLD has been blocked since the launcher started, so none is missed in between.
            Ok(WaitStatus::StillAlive) => {
                if awaited.wait()? == STOP_SIGNAL {
                    let signal = Signal::SIGKILL as i32;
                    return Ok(Ending::Signalled { signal });
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
