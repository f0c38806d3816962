//! Giving rights up.

use caps::CapSet;
use rustix::process::DumpableBehavior;
use rustix::thread::CapabilitiesSecureBits;

use super::failure::{Context, Failure};

/// Empties every capability set for good. The order matters: emptying the bounding set and locking
/// the secure bits need a capability, so permitted and effective go last.
pub(crate) fn drop_all() -> Result<(), Failure> {
    caps::clear(None, CapSet::Ambient)
        .map_err(std::io::Error::other)
        .context(|| "clearing the ambient capabilities")?;
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)
        .map_err(std::io::Error::other)
        .context(|| "reading the capabilities")?
    {
        caps::clear(None, CapSet::Bounding)
            .map_err(std::io::Error::other)
            .context(|| "clearing the capability bounding set")?;
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
        .context(|| "locking the secure bits")?;
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)
            .map_err(std::io::Error::other)
            .context(|| "clearing the capabilities")?;
    }
    Ok(())
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
