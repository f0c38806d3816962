//! The network and the names of a builder's own little machine.

use rustix::net::{AddressFamily, SocketType};
use std::os::fd::AsFd;

use super::failure::{Context, Failure};
use super::sys;

/// Switches the loopback interface of this network namespace on.
pub(crate) fn raise_loopback() -> Result<(), Failure> {
    let operation = || "switching the loopback interface on";
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).context(operation)?;
    sys::raise_loopback(socket.as_fd()).context(operation)
}

/// Names this UTS namespace.
pub(crate) fn name_host(host: &str, domain: &str) -> Result<(), Failure> {
    nix::unistd::sethostname(host).context(|| "setting the host name")?;
    sys::set_domain_name(domain).context(|| "setting the domain name")
}
