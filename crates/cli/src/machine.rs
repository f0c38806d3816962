//! What this machine brings to the settings: its platform, its cores, its features, its shell.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Group, Uid, access};
use store_model::Settings;
use store_model::settings::SandboxPath;

/// Returns the settings that hold here where nobody says otherwise.
#[must_use]
pub(crate) fn default_settings() -> Settings {
    let mut settings = Settings {
        max_jobs: std::thread::available_parallelism().map_or(1, usize::from),
        ..Settings::default()
    };
    settings.extra_platforms.extend(extra_platforms());
    if access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK).is_ok() {
        settings.system_features.insert("kvm".to_owned());
    }
    if Uid::effective().is_root() && has_members("nixbld") {
        "nixbld".clone_into(&mut settings.build_users_group);
    }
    settings
        .sandbox_paths
        .extend(find_static_shell().map(|source| SandboxPath {
            target: PathBuf::from("/bin/sh"),
            source,
            optional: false,
            writable: false,
        }));
    settings
}

#[cfg(target_arch = "x86_64")]
fn extra_platforms() -> Vec<String> {
    use std::arch::is_x86_feature_detected as has;

    let mut platforms = vec!["i686-linux", "x86_64-v1-linux"];
    // The levels of the x86-64 psABI; each includes those before it.
    let level_2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
    let level_2 = level_2 && has!("popcnt") && has!("cmpxchg16b");
    let level_3 = level_2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c");
    let level_3 = level_3 && has!("fma") && has!("lzcnt") && has!("movbe");
    let level_4 = level_3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd");
    let level_4 = level_4 && has!("avx512dq") && has!("avx512vl");
    for (has_level, platform) in [
        (level_2, "x86_64-v2-linux"),
        (level_3, "x86_64-v3-linux"),
        (level_4, "x86_64-v4-linux"),
    ] {
        if has_level {
            platforms.push(platform);
        }
    }
    platforms.into_iter().map(str::to_owned).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn extra_platforms() -> Vec<String> {
    Vec::new()
}

fn has_members(group: &str) -> bool {
    // A group that cannot be looked up has no members that we could use.
    matches!(Group::from_name(group), Ok(Some(group)) if !group.mem.is_empty())
}

/// Builders expect `/bin/sh`, and a dynamic one would need libraries that the sandbox hides.
fn find_static_shell() -> Option<PathBuf> {
    [
        "/bin/busybox",
        "/usr/bin/busybox",
        "/usr/lib/busybox/busybox",
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|path| is_static_program(path))
}

/// Returns whether the file is a 64-bit ELF program that asks for no interpreter.
fn is_static_program(path: &Path) -> bool {
    let mut head = Vec::new();
    // Program headers follow the file header; 64 KiB hold all that a linker ever writes.
    let read = File::open(path).and_then(|file| file.take(64 * 1024).read_to_end(&mut head));
    read.is_ok() && asks_for_no_interpreter(&head).unwrap_or(false)
}

/// Reads a little-endian ELF64 header; `None` if the bytes are not one.
fn asks_for_no_interpreter(head: &[u8]) -> Option<bool> {
    const PT_INTERP: [u8; 4] = 3_u32.to_le_bytes();
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let offset = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
    let entry_len = u16::from_le_bytes(head.get(54..56)?.try_into().ok()?);
    let n_entries = u16::from_le_bytes(head.get(56..58)?.try_into().ok()?);
    let table = head.get(usize::try_from(offset).ok()?..)?;
    let entries = table.chunks(usize::from(entry_len.max(4)));
    let mut types = entries
        .take(usize::from(n_entries))
        .map(|entry| entry.get(..4));
    Some(types.all(|kind| kind.is_some_and(|kind| kind != PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_and_a_text_are_no_static_shell() {
        // This test is itself dynamically linked.
        let itself = std::env::current_exe().unwrap_or_default();
        assert!(!is_static_program(&itself));
        assert!(!is_static_program(Path::new("/etc/passwd")));
        assert!(!is_static_program(Path::new("/no/such/file")));
        assert_eq!(asks_for_no_interpreter(b"\x7fELF\x02\x01"), None);
    }

    #[test]
    fn the_machine_has_at_least_one_core_and_its_own_platform() {
        let settings = default_settings();
        assert!(settings.max_jobs > 0);
        assert!(settings.system.ends_with("-linux"));
        assert!(!settings.extra_platforms.contains(&settings.system));
    }
}
