//! Who a process is: id maps, users and groups.

use std::fs;
use std::path::Path;

use nix::unistd::{Gid, Uid};

use super::failure::{Context, Failure};
use crate::plan::IdMapping;

/// Writes the id maps of a process that was started in a user namespace of its own.
pub(crate) fn map_ids(pid: i32, mapping: &IdMapping) -> Result<(), Failure> {
    write_maps(
        Path::new(&format!("/proc/{pid}")),
        (mapping.inside_uid, mapping.outside_uid),
        (mapping.inside_gid, mapping.outside_gid),
    )
}

/// Writes one line into each map of the user namespace of the process that `proc_dir` shows; pairs
/// are an id inside and the same one outside.
pub(crate) fn write_maps(
    proc_dir: &Path,
    users: (u32, u32),
    groups: (u32, u32),
) -> Result<(), Failure> {
    // Before the group map: without it a process could drop a group that a file's mode excludes.
    let write = |name: &str, content: String| {
        let path = proc_dir.join(name);
        fs::write(&path, content).context(|| format!("writing '{}'", path.display()))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{} {} 1", users.0, users.1))?;
    write("gid_map", format!("{} {} 1", groups.0, groups.1))
}

/// Is in these groups besides its own from now on, and in no others.
pub(crate) fn join_groups(gids: &[u32]) -> Result<(), Failure> {
    let groups: Vec<Gid> = gids.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).context(|| "joining the build user's groups")
}

/// Becomes another user with one group and no way back.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The group first: the right to change it goes with the user.
    nix::unistd::setresgid(group, group, group).context(|| format!("becoming the group {gid}"))?;
    nix::unistd::setresuid(user, user, user).context(|| format!("becoming the user {uid}"))
}
