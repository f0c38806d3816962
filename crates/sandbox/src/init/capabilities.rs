//! Giving rights up.

use std::io;

use caps::{CapSet, Capability};
use rustix::process::DumpableBehavior;
use rustix::thread::CapabilitiesSecureBits;

use super::failure::{Context, Failure};
use super::sys;

/// Makes sure that no capability can be gained any more, by whatever is executed or become. Those
/// that are in force stay: changing the user needs some.
pub(crate) fn limit() -> Result<(), Failure> {
    clear(CapSet::Ambient)?;
    let may_limit = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(io::Error::other)
        .context(|| "reading the capabilities")?;
    if !may_limit {
        // Nobody special: no-new-privileges alone must do.
        return Ok(());
    }
    sys::empty_bounding_set().context(|| "emptying the capability bounding set")?;
    // A set-user-id root program, or becoming uid 0, gives nothing any more.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .context(|| "locking the secure bits")
}

/// Gives up every capability in force.
pub(crate) fn drop_all() -> Result<(), Failure> {
    [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
        .into_iter()
        .try_for_each(clear)
}

fn clear(set: CapSet) -> Result<(), Failure> {
    caps::clear(None, set)
        .map_err(io::Error::other)
        .context(|| format!("clearing the capability set {set:?}"))
}

/// Whether processes of the same user may read this one's memory or attach to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// They may.
    Readable,
    /// They may not.
    Hidden,
}

/// Shows or hides this process's memory.
pub(crate) fn set_memory(memory: Memory) -> Result<(), Failure> {
    let behavior = match memory {
        Memory::Readable => DumpableBehavior::Dumpable,
        Memory::Hidden => DumpableBehavior::NotDumpable,
    };
    rustix::process::set_dumpable_behavior(behavior).context(|| "showing or hiding the memory")
}

/// Makes every later exec in this process tree add no privileges.
pub(crate) fn forbid_new_privileges() -> Result<(), Failure> {
    rustix::thread::set_no_new_privs(true).context(|| "forbidding new privileges")
}
