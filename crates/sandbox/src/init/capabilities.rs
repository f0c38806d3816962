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

/// Keeps processes of the same user from reading this one's memory or attaching to it.
pub(crate) fn hide_memory() -> Result<(), Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "making the process unreadable")
}

/// Makes every later exec in this process tree add no privileges.
pub(crate) fn forbid_new_privileges() -> Result<(), Failure> {
    rustix::thread::set_no_new_privs(true).context(|| "forbidding new privileges")
}
