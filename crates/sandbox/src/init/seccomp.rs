//! The filter of system calls, as data: a table of rules for each calling convention, and the
//! compiler that makes a search tree of it.
//!
//! Whatever no rule names is allowed, except calls newer than this table, which get `ENOSYS`: what
//! we do not know we cannot have judged, and libraries fall back. A tree because the kernel runs the
//! filter for every call, and because loading a list twice as long takes twice as long.

use nix::libc::{self, sock_filter};

/// Set-user-id and set-group-id.
const SET_ID_BITS: u32 = 0o6000;

/// The bits of open flags that make the mode argument count.
const CREATES: u32 = 0o100 | 0o20_000_000;

/// The last system call of Linux 6.18; numbers from 424 on are the same everywhere.
const LAST_KNOWN: u32 = 469;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    /// It fails with this number.
    Fail(i32),
    /// It fails if this argument, a file mode, has set-id bits (CVE-2024-27297 and its kin make use
    /// of set-user-id files of the build user).
    RefuseSetId {
        mode: u8,
    },
    /// The same for a call that may create a file, if it does.
    RefuseSetIdOnCreation {
        flags: u8,
        mode: u8,
    },
    /// It fails unless it makes a Unix, internet, or routing socket.
    LimitSocket,
    /// It fails if it types into a terminal.
    LimitIoctl,
    /// It fails if this argument asks for a user namespace.
    RefuseUserNamespace {
        flags: u8,
    },
}

/// Consecutive system calls and what happens to them.
#[derive(Debug, Clone, Copy)]
struct Rule {
    first: u32,
    last: u32,
    action: Action,
}

/// How system calls are numbered.
#[derive(Debug, Clone, Copy)]
struct Convention {
    audit_arch: u32,
    rules: &'static [Rule],
    /// Further rules where nested user namespaces are denied.
    denial: &'static [Rule],
}

/// The filters for all builds, compiled once.
#[derive(Debug)]
pub(crate) struct Filters {
    pub(crate) nested_allowed: Vec<sock_filter>,
    pub(crate) nested_denied: Vec<sock_filter>,
}

impl Filters {
    pub(crate) fn compile() -> Self {
        Self {
            nested_allowed: program(|convention| segments(&[convention.rules])),
            nested_denied: program(|convention| segments(&[convention.rules, convention.denial])),
        }
    }
}

const fn one(number: u32, action: Action) -> Rule {
    range(number, number, action)
}

const fn range(first: u32, last: u32, action: Action) -> Rule {
    Rule {
        first,
        last,
        action,
    }
}

const EPERM: Action = Action::Fail(libc::EPERM);
const ENOSYS: Action = Action::Fail(libc::ENOSYS);
/// What file systems without extended attributes say. Attributes and ACLs would get around the
/// canonical permissions of the store, and reading them shows the host's.
const ENOTSUP: Action = Action::Fail(libc::EOPNOTSUPP);

const SHARED: [Rule; 5] = [
    // io_uring opens files past any filter.
    range(425, 427, ENOSYS),
    // openat2's mode is behind a pointer, which a filter cannot follow.
    one(437, ENOSYS),
    one(443, EPERM),                           // quotactl_fd
    one(452, Action::RefuseSetId { mode: 2 }), // fchmodat2
    range(463, 466, ENOTSUP),                  // setxattrat to removexattrat
];

const SHARED_DENIAL: [Rule; 3] = [
    range(428, 433, EPERM), // open_tree to fspick
    // clone3's flags are behind a pointer; libraries fall back to clone.
    one(435, ENOSYS),
    one(442, EPERM), // mount_setattr
];

#[cfg(target_arch = "x86_64")]
const CONVENTIONS: [Convention; 2] = [
    Convention {
        audit_arch: 0xc000_003e,
        rules: &[
            one(2, Action::RefuseSetIdOnCreation { flags: 1, mode: 2 }), // open
            one(16, Action::LimitIoctl),
            one(41, Action::LimitSocket),
            one(53, Action::LimitSocket),                   // socketpair
            one(85, Action::RefuseSetId { mode: 1 }),       // creat
            range(90, 91, Action::RefuseSetId { mode: 1 }), // chmod, fchmod
            one(103, EPERM),                                // syslog
            one(133, Action::RefuseSetId { mode: 1 }),      // mknod
            one(163, EPERM),                                // acct
            range(167, 169, EPERM),                         // swapon, swapoff, reboot
            range(174, 176, EPERM),                         // kernel modules
            one(179, EPERM),                                // quotactl
            range(188, 199, ENOTSUP),                       // setxattr to fremovexattr
            one(246, EPERM),                                // kexec_load
            range(248, 250, ENOSYS),                        // key rings
            one(257, Action::RefuseSetIdOnCreation { flags: 2, mode: 3 }), // openat
            one(259, Action::RefuseSetId { mode: 2 }),      // mknodat
            one(268, Action::RefuseSetId { mode: 2 }),      // fchmodat
            one(298, EPERM),                                // perf_event_open
            one(304, EPERM),                                // open_by_handle_at
            one(313, EPERM),                                // finit_module
            range(320, 321, EPERM),                         // kexec_file_load, bpf
            one(323, EPERM),                                // userfaultfd
            SHARED[0],
            SHARED[1],
            SHARED[2],
            SHARED[3],
            SHARED[4],
        ],
        denial: &[
            one(56, Action::RefuseUserNamespace { flags: 0 }), // clone
            one(155, EPERM),                                   // pivot_root
            range(165, 166, EPERM),                            // mount, umount2
            one(272, Action::RefuseUserNamespace { flags: 0 }), // unshare
            one(308, EPERM),                                   // setns
            SHARED_DENIAL[0],
            SHARED_DENIAL[1],
            SHARED_DENIAL[2],
        ],
    },
    // 64-bit builds with 32-bit parts are common, so these calls get the same filter. Their
    // socketcall, which hides its arguments behind a pointer, is what old libraries live on; it
    // stays allowed.
    Convention {
        audit_arch: 0x4000_0003,
        rules: &[
            one(5, Action::RefuseSetIdOnCreation { flags: 1, mode: 2 }), // open
            one(8, Action::RefuseSetId { mode: 1 }),                     // creat
            range(14, 15, Action::RefuseSetId { mode: 1 }),              // mknod, chmod
            one(51, EPERM),                                              // acct
            one(54, Action::LimitIoctl),
            range(87, 88, EPERM),                     // swapon, reboot
            one(94, Action::RefuseSetId { mode: 1 }), // fchmod
            one(103, EPERM),                          // syslog
            one(115, EPERM),                          // swapoff
            range(127, 129, EPERM),                   // kernel modules
            one(131, EPERM),                          // quotactl
            range(226, 237, ENOTSUP),                 // setxattr to fremovexattr
            one(283, EPERM),                          // kexec_load
            range(286, 288, ENOSYS),                  // key rings
            one(295, Action::RefuseSetIdOnCreation { flags: 2, mode: 3 }), // openat
            one(297, Action::RefuseSetId { mode: 2 }), // mknodat
            one(306, Action::RefuseSetId { mode: 2 }), // fchmodat
            one(336, EPERM),                          // perf_event_open
            one(342, EPERM),                          // open_by_handle_at
            one(350, EPERM),                          // finit_module
            one(357, EPERM),                          // bpf
            range(359, 360, Action::LimitSocket),     // socket, socketpair
            one(374, EPERM),                          // userfaultfd
            SHARED[0],
            SHARED[1],
            SHARED[2],
            SHARED[3],
            SHARED[4],
        ],
        denial: &[
            range(21, 22, EPERM),                               // mount, umount
            one(52, EPERM),                                     // umount2
            one(120, Action::RefuseUserNamespace { flags: 0 }), // clone
            one(217, EPERM),                                    // pivot_root
            one(310, Action::RefuseUserNamespace { flags: 0 }), // unshare
            one(346, EPERM),                                    // setns
            SHARED_DENIAL[0],
            SHARED_DENIAL[1],
            SHARED_DENIAL[2],
        ],
    },
];

#[cfg(target_arch = "aarch64")]
const CONVENTIONS: [Convention; 1] = [Convention {
    audit_arch: 0xc000_00b7,
    rules: &[
        range(5, 16, ENOTSUP), // setxattr to fremovexattr
        one(29, Action::LimitIoctl),
        one(33, Action::RefuseSetId { mode: 2 }), // mknodat
        range(52, 53, Action::RefuseSetId { mode: 1 }), // fchmod
        one(56, Action::RefuseSetIdOnCreation { flags: 2, mode: 3 }), // openat
        one(60, EPERM),                           // quotactl
        one(89, EPERM),                           // acct
        range(104, 106, EPERM),                   // kexec_load, kernel modules
        one(116, EPERM),                          // syslog
        one(142, EPERM),                          // reboot
        range(198, 199, Action::LimitSocket),     // socket, socketpair
        range(217, 219, ENOSYS),                  // key rings
        range(224, 225, EPERM),                   // swapon, swapoff
        one(241, EPERM),                          // perf_event_open
        one(265, EPERM),                          // open_by_handle_at
        one(273, EPERM),                          // finit_module
        one(280, EPERM),                          // bpf
        one(282, EPERM),                          // userfaultfd
        one(294, EPERM),                          // kexec_file_load
        SHARED[0],
        SHARED[1],
        SHARED[2],
        SHARED[3],
        SHARED[4],
    ],
    denial: &[
        range(39, 41, EPERM),                               // umount2, mount, pivot_root
        one(97, Action::RefuseUserNamespace { flags: 0 }),  // unshare
        one(220, Action::RefuseUserNamespace { flags: 0 }), // clone
        one(268, EPERM),                                    // setns
        SHARED_DENIAL[0],
        SHARED_DENIAL[1],
        SHARED_DENIAL[2],
    ],
}];

/// Cuts the number line into segments; each begins at a number and reaches to the next.
fn segments(tables: &[&[Rule]]) -> Vec<(u32, Action)> {
    let mut rules: Vec<Rule> = tables.concat();
    rules.sort_by_key(|rule| rule.first);
    let mut segments = Vec::new();
    let mut next = 0;
    for rule in rules {
        if rule.first > next {
            segments.push((next, Action::Allow));
        }
        segments.push((rule.first, rule.action));
        next = rule.last + 1;
    }
    if next <= LAST_KNOWN {
        segments.push((next, Action::Allow));
    }
    // Calls of the x32 convention have a bit set that puts them here too.
    segments.push((LAST_KNOWN + 1, ENOSYS));
    segments
}

/// Puts the trees of all conventions behind a switch.
fn program(segments_of: impl Fn(&Convention) -> Vec<(u32, Action)>) -> Vec<sock_filter> {
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    let mut program = vec![load(ARCH)];
    for convention in &CONVENTIONS {
        let tree = tree(&segments_of(convention));
        program.push(jump_if(libc::BPF_JEQ, convention.audit_arch, 1, 0));
        program.push(jump(tree.len() + 1));
        program.push(load(NUMBER));
        program.extend(tree);
    }
    program.extend(code(ENOSYS));
    program
}

/// Finds the segment of the number in the accumulator.
fn tree(segments: &[(u32, Action)]) -> Vec<sock_filter> {
    let (low, high) = segments.split_at(segments.len() / 2);
    let Some((first_high, action)) = high.first() else {
        return code(Action::Allow);
    };
    if low.is_empty() {
        return code(*action);
    }
    let low = tree(low);
    let mut program = match u8::try_from(low.len()) {
        Ok(distance) => vec![jump_if(libc::BPF_JGE, *first_high, distance, 0)],
        Err(_) => vec![jump_if(libc::BPF_JGE, *first_high, 0, 1), jump(low.len())],
    };
    program.extend(low);
    program.extend(tree(high));
    program
}

/// Decides about one call.
fn code(action: Action) -> Vec<sock_filter> {
    const UNIX: u32 = 1;
    const INET: u32 = 2;
    const INET6: u32 = 10;
    const NETLINK: u32 = 16;
    const NETLINK_ROUTE: u32 = 0;
    const TIOCSTI: u32 = 0x5412;
    const TIOCLINUX: u32 = 0x541c;
    const CLONE_NEWUSER: u32 = 0x1000_0000;
    match action {
        Action::Allow => vec![answer(libc::SECCOMP_RET_ALLOW)],
        Action::Fail(errno) => vec![fail(errno)],
        Action::RefuseSetId { mode } => refuse_if_set(mode, SET_ID_BITS),
        Action::RefuseUserNamespace { flags } => refuse_if_set(flags, CLONE_NEWUSER),
        Action::RefuseSetIdOnCreation { flags, mode } => {
            let check = refuse_if_set(mode, SET_ID_BITS);
            let mut program = vec![
                load_argument(flags),
                jump_if(libc::BPF_JSET, CREATES, 1, 0),
                answer(libc::SECCOMP_RET_ALLOW),
            ];
            program.extend(check);
            program
        }
        Action::LimitSocket => vec![
            load_argument(0),
            jump_if(libc::BPF_JEQ, UNIX, 5, 0),
            jump_if(libc::BPF_JEQ, INET, 4, 0),
            jump_if(libc::BPF_JEQ, INET6, 3, 0),
            jump_if(libc::BPF_JEQ, NETLINK, 0, 3),
            load_argument(2),
            jump_if(libc::BPF_JEQ, NETLINK_ROUTE, 0, 1),
            answer(libc::SECCOMP_RET_ALLOW),
            fail(libc::EAFNOSUPPORT),
        ],
        // The argument's upper half does not count for the kernel either (CVE-2019-10063).
        Action::LimitIoctl => vec![
            load_argument(1),
            jump_if(libc::BPF_JEQ, TIOCSTI, 2, 0),
            jump_if(libc::BPF_JEQ, TIOCLINUX, 1, 0),
            answer(libc::SECCOMP_RET_ALLOW),
            fail(libc::EPERM),
        ],
    }
}

fn refuse_if_set(argument: u8, bits: u32) -> Vec<sock_filter> {
    vec![
        load_argument(argument),
        jump_if(libc::BPF_JSET, bits, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        fail(libc::EPERM),
    ]
}

fn load_argument(idx: u8) -> sock_filter {
    // The lower half of a 64-bit argument on a little-endian machine.
    const ARGUMENTS: u32 = 16;
    load(ARGUMENTS + 8 * u32::from(idx))
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump_if(condition: u32, operand: u32, if_true: u8, if_false: u8) -> sock_filter {
    instruction(
        libc::BPF_JMP | condition | libc::BPF_K,
        if_true,
        if_false,
        operand,
    )
}

fn jump(distance: usize) -> sock_filter {
    // Programs have at most 4,096 instructions; the kernel refuses longer ones.
    let distance = u32::try_from(distance).unwrap_or(u32::MAX);
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, distance)
}

fn fail(errno: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

fn answer(value: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        // All codes are below 256.
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, arch, 0, 0];
        for argument in arguments {
            data.extend([
                u32::try_from(argument & 0xffff_ffff).unwrap_or_default(),
                u32::try_from(argument >> 32).unwrap_or_default(),
            ]);
        }
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                0x20 => accumulator = data[k as usize / 4],
                0x05 => at += k as usize,
                0x15 => at += branch(accumulator == k),
                0x35 => at += branch(accumulator >= k),
                0x45 => at += branch(accumulator & k != 0),
                0x06 => return k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    /// Looks a number up in the table, the slow way.
    fn action(tables: &[&[Rule]], number: u32) -> Action {
        if number > LAST_KNOWN {
            return ENOSYS;
        }
        let rules = tables.concat();
        let found = rules
            .iter()
            .find(|rule| (rule.first..=rule.last).contains(&number));
        found.map_or(Action::Allow, |rule| rule.action)
    }

    #[test]
    fn the_tree_decides_like_the_table_for_every_number() {
        let filters = Filters::compile();
        for convention in CONVENTIONS {
            for number in (0..1000).chain([0x4000_0000, 0x4000_0200, u32::MAX]) {
                for (program, tables) in [
                    (&filters.nested_allowed, &[convention.rules][..]),
                    (
                        &filters.nested_denied,
                        &[convention.rules, convention.denial][..],
                    ),
                ] {
                    let decided = verdict(program, convention.audit_arch, number, [0; 6]);
                    let expected = match action(tables, number) {
                        Action::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
                        // Socket family 0 exists nowhere.
                        Action::LimitSocket => {
                            libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT.unsigned_abs()
                        }
                        _ => libc::SECCOMP_RET_ALLOW,
                    };
                    assert_eq!(
                        decided, expected,
                        "{number} of {:#x}",
                        convention.audit_arch
                    );
                }
            }
        }
    }

    #[test]
    fn rules_of_one_convention_do_not_overlap() {
        for convention in CONVENTIONS {
            let mut rules = [convention.rules, convention.denial].concat();
            rules.sort_by_key(|rule| rule.first);
            for pair in rules.windows(2) {
                assert!(pair[0].last < pair[1].first, "{pair:?}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn arguments_decide_where_they_should() {
        let program = Filters::compile().nested_denied;
        let allowed = |number, arguments| {
            verdict(&program, 0xc000_003e, number, arguments) == libc::SECCOMP_RET_ALLOW
        };
        // open: the mode counts only when a file is created.
        assert!(allowed(2, [0, 0, 0o6755, 0, 0, 0]));
        assert!(allowed(2, [0, 0o101, 0o755, 0, 0, 0]));
        assert!(!allowed(2, [0, 0o101, 0o4755, 0, 0, 0]));
        assert!(!allowed(257, [0, 0, 0o20_200_002, 0o2755, 0, 0]));
        assert!(allowed(90, [0, 0o1777, 0, 0, 0, 0]));
        assert!(!allowed(90, [0, 0o2755, 0, 0, 0, 0]));
        assert!(!allowed(268, [0, 0, 0o4755, 0, 0, 0]));
        for family in 0..50 {
            let routing_only = allowed(41, [family, 1, 0, 0, 0, 0]);
            assert_eq!(routing_only, [1, 2, 10, 16].contains(&family), "{family}");
        }
        assert!(!allowed(41, [16, 3, 9, 0, 0, 0]), "an audit socket");
        assert!(!allowed(16, [0, 0x1_0000_5412, 0, 0, 0, 0]));
        assert!(allowed(16, [0, 0x5401, 0, 0, 0, 0]));
        assert!(!allowed(56, [0x1000_0011, 0, 0, 0, 0, 0]));
        assert!(allowed(56, [0x11, 0, 0, 0, 0, 0]));
        let unknown = verdict(&program, 0x1234, 2, [0; 6]);
        assert_eq!(
            unknown,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()
        );
    }
}
