//! Which users there are.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User};
use store_model::Settings;

use crate::Error;

/// The distance of two users of a range, so that each could have a range of sub-users.
const IDS_PER_USER: u32 = 1 << 16;

/// A user that builders may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) supplementary_gids: Vec<u32>,
    /// Of the file that whoever uses the user locks, as Nix names it.
    pub(super) lock_name: String,
}

/// Returns the members of the group of build users: none if there is no such group, for Debian's
/// configuration names one that only another package makes.
pub(super) fn of_group(name: &str) -> Result<Vec<Account>, Error> {
    let unusable = |why: String| Error::BuildUsersGroup {
        group: name.to_owned(),
        why,
    };
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let found = Group::from_name(name);
    let found = found.map_err(|errno| unusable(format!("cannot be read: {errno}")))?;
    let Some(group) = found else {
        tracing::debug!("there is no group '{name}'");
        return Ok(Vec::new());
    };
    group
        .mem
        .iter()
        .map(|member| account(&group, member).map_err(unusable))
        .collect()
}

fn account(group: &Group, member: &str) -> Result<Account, String> {
    let user = User::from_name(member)
        .map_err(|errno| format!("has the member '{member}', which cannot be read: {errno}"))?
        .ok_or_else(|| format!("has the member '{member}', who does not exist"))?;
    if user.uid.is_root() || user.uid == Uid::current() || user.uid == Uid::effective() {
        return Err(format!(
            "has the member '{member}', who is the user that goalctl runs as"
        ));
    }
    let c_name = CString::new(member).map_err(|error| error.to_string())?;
    let groups = nix::unistd::getgrouplist(&c_name, user.gid).map_err(|errno| {
        format!("has the member '{member}', whose groups cannot be read: {errno}")
    })?;
    // Never root's, whatever the account says.
    let is_harmless = |gid: &Gid| gid.as_raw() != 0;
    Ok(Account {
        uid: user.uid.as_raw(),
        gid: group.gid.as_raw(),
        supplementary_gids: groups
            .into_iter()
            .filter(is_harmless)
            .map(Gid::as_raw)
            .collect(),
        lock_name: user.uid.to_string(),
    })
}

/// Returns the users of the range of ids that belong to no account.
pub(super) fn of_range(settings: &Settings) -> Vec<Account> {
    (0..settings.id_count / IDS_PER_USER)
        .filter_map(|slot_idx| {
            let uid = settings.start_id.checked_add(slot_idx * IDS_PER_USER)?;
            (uid != 0).then(|| Account {
                uid,
                gid: uid,
                supplementary_gids: Vec::new(),
                lock_name: format!("slot-{slot_idx}"),
            })
        })
        .collect()
}
