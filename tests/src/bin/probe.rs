//! A program that builders run to find out what the sandbox lets them do.
//!
//! `probe mode FILE` tries to make a file with set-user-ID bits in every way that the kernel has,
//! `probe sockets` opens a socket of every family, `probe keyring add|find` leaves a key and looks
//! for it, `probe terminal` types into the caller's terminal, `probe xattrs FILE` reads and writes
//! extended attributes, `probe socket FILE` leaves a socket at FILE.
//! `probe peak PROGRAM ARGUMENTS` is for tests: it runs a program and prints the most memory it held.
//! Each attempt prints `NAME ok`, or `NAME` and the number of the error.

#![expect(
    clippy::print_stdout,
    reason = "what the kernel answered goes into the build's output"
)]

use std::ffi::CString;
use std::process::ExitCode;

use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};

/// Set-user-ID, set-group-ID and `0755`.
const MODE: libc::c_long = 0o6755;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["mode", file] => try_modes(file),
        ["sockets"] => try_socket_families(),
        ["keyring", action] => try_keyring(action),
        ["terminal"] => try_terminal(),
        ["xattrs", file] => try_extended_attributes(file),
        ["socket", file] => {
            std::os::unix::net::UnixListener::bind(file).expect("a socket can be bound");
        }
        ["nest", depth] => nest(depth.parse().expect("a depth is a number")),
        ["peak", program, arguments @ ..] => return print_peak_memory(program, arguments),
        other => panic!("no such probe: {other:?}"),
    }
    ExitCode::SUCCESS
}

/// Runs a program, prints how many kilobytes of memory it held at most, and ends as it did.
fn print_peak_memory(program: &str, arguments: &[&str]) -> ExitCode {
    let status = std::process::Command::new(program)
        .args(arguments)
        .status()
        .expect("the program can be run");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("one's own usage can be asked for");
    println!("peak {}", usage.max_rss());
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or_else(|| panic!("{program}: {status}")))
}

/// Makes folders within folders, deeper than any path is long.
fn nest(depth: usize) {
    for _ in 0..depth {
        std::fs::create_dir("d").expect("a folder can be made");
        std::env::set_current_dir("d").expect("one's own folder can be entered");
    }
}

/// Makes a system call; the caller vouches for the arguments being what the call takes.
fn call(number: libc::c_long, arguments: [libc::c_long; 5]) -> libc::c_long {
    let [first, second, third, fourth, fifth] = arguments;
    #[expect(
        unsafe_code,
        reason = "a hostile builder is not bound to the calls that have safe wrappers"
    )]
    // SAFETY: every pointer among the arguments comes from a value that its caller keeps alive, and
    // no call made here writes to memory, but for reading attributes into a buffer of stated size.
    unsafe {
        libc::syscall(number, first, second, third, fourth, fifth)
    }
}

/// Prints what a call answered.
fn report(name: &str, answer: libc::c_long) {
    if answer < 0 {
        let error = std::io::Error::last_os_error();
        println!("{name} {}", error.raw_os_error().unwrap_or(-1));
    } else {
        println!("{name} ok");
    }
}

fn text(value: &str) -> CString {
    CString::new(value).expect("an argument holds no NUL")
}

fn address<T>(value: *const T) -> libc::c_long {
    libc::c_long::try_from(value.addr()).expect("user space is the lower half")
}

fn try_modes(file: &str) {
    let here = libc::c_long::from(libc::AT_FDCWD);
    let create = libc::c_long::from(libc::O_CREAT | libc::O_WRONLY);
    let attempt = |name: &str, number, arguments: &dyn Fn(libc::c_long) -> [libc::c_long; 5]| {
        let path = text(&format!("{file}-{name}"));
        report(name, call(number, arguments(address(path.as_ptr()))));
    };
    attempt("open", libc::SYS_open, &|path| [path, create, MODE, 0, 0]);
    attempt("openat", libc::SYS_openat, &|path| {
        [here, path, create, MODE, 0]
    });
    attempt("creat", libc::SYS_creat, &|path| [path, MODE, 0, 0, 0]);
    let regular = libc::c_long::from(libc::S_IFREG);
    attempt("mknod", libc::SYS_mknod, &|path| {
        [path, regular | MODE, 0, 0, 0]
    });
    attempt("mknodat", libc::SYS_mknodat, &|path| {
        [here, path, regular | MODE, 0, 0]
    });
    // struct open_how: flags, mode, resolve.
    let how: [u64; 3] = [
        u64::try_from(create).expect("flags are positive"),
        u64::try_from(MODE).expect("a mode is positive"),
        0,
    ];
    attempt("openat2", libc::SYS_openat2, &|path| {
        [here, path, address(how.as_ptr()), 24, 0]
    });
    let unnamed = libc::c_long::from(libc::O_TMPFILE | libc::O_WRONLY);
    let folder = text(".");
    report(
        "tmpfile",
        call(
            libc::SYS_openat,
            [here, address(folder.as_ptr()), unnamed, MODE, 0],
        ),
    );
    report("io_uring", call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]));

    let victim = text(&format!("{file}-victim"));
    std::fs::write(format!("{file}-victim"), "").expect("a plain file can be made");
    let path = address(victim.as_ptr());
    report("chmod", call(libc::SYS_chmod, [path, MODE, 0, 0, 0]));
    report(
        "fchmodat",
        call(libc::SYS_fchmodat, [here, path, MODE, 0, 0]),
    );
    report(
        "fchmodat2",
        call(libc::SYS_fchmodat2, [here, path, MODE, 0, 0]),
    );
}

fn try_socket_families() {
    for (name, family) in [
        ("unix", libc::AF_UNIX),
        ("inet", libc::AF_INET),
        ("inet6", libc::AF_INET6),
        ("netlink", libc::AF_NETLINK),
        ("vsock", libc::AF_VSOCK),
        ("alg", libc::AF_ALG),
        ("packet", libc::AF_PACKET),
        ("bluetooth", libc::AF_BLUETOOTH),
    ] {
        let kind = match family {
            libc::AF_ALG => libc::SOCK_SEQPACKET,
            libc::AF_PACKET | libc::AF_NETLINK | libc::AF_BLUETOOTH => libc::SOCK_RAW,
            _ => libc::SOCK_STREAM,
        };
        let arguments = [family.into(), kind.into(), 0, 0, 0];
        report(name, call(libc::SYS_socket, arguments));
    }
}

fn try_keyring(action: &str) {
    let kind = text("user");
    let name = text("goalctl-probe");
    let payload = b"left behind";
    let user_keyring = libc::c_long::from(libc::KEY_SPEC_USER_KEYRING);
    let (kind, name) = (address(kind.as_ptr()), address(name.as_ptr()));
    let answer = match action {
        "add" => call(
            libc::SYS_add_key,
            [kind, name, address(payload.as_ptr()), 11, user_keyring],
        ),
        "find" => call(
            libc::SYS_keyctl,
            [
                libc::c_long::from(libc::KEYCTL_SEARCH),
                user_keyring,
                kind,
                name,
                0,
            ],
        ),
        other => panic!("no such action: {other}"),
    };
    report(action, answer);
}

fn try_terminal() {
    let terminal = text("/dev/tty");
    let read_write = libc::c_long::from(libc::O_RDWR);
    report(
        "open",
        call(
            libc::SYS_open,
            [address(terminal.as_ptr()), read_write, 0, 0, 0],
        ),
    );
    let byte = b'x';
    let request = libc::c_long::try_from(libc::TIOCSTI).expect("a request is a small number");
    // The upper half of the request is ignored by the kernel, so a filter must ignore it too.
    for (name, request) in [("sti", request), ("sti-high", request | (1 << 32))] {
        for descriptor in 0..3 {
            let arguments = [descriptor, request, address(&raw const byte), 0, 0];
            report(
                &format!("{name}-{descriptor}"),
                call(libc::SYS_ioctl, arguments),
            );
        }
    }
}

fn try_extended_attributes(file: &str) {
    let path = text(file);
    let name = text("user.probe");
    let mut buffer = [0_u8; 64];
    let (path, name) = (address(path.as_ptr()), address(name.as_ptr()));
    let here = libc::c_long::from(libc::AT_FDCWD);
    let value = address(buffer.as_mut_ptr());
    report("set", call(libc::SYS_setxattr, [path, name, value, 1, 0]));
    report("lset", call(libc::SYS_lsetxattr, [path, name, value, 1, 0]));
    report("get", call(libc::SYS_getxattr, [path, name, value, 64, 0]));
    report("list", call(libc::SYS_listxattr, [path, value, 64, 0, 0]));
    // setxattrat, getxattrat and listxattrat of Linux 6.13, which libc does not name yet.
    for (call_name, number) in [("setat", 463), ("getat", 464), ("listat", 465)] {
        report(call_name, call(number, [here, path, 0, name, value]));
    }
}
