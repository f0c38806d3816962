//! The builders that a derivation names `builtin:…`: downloading, making a user environment,
//! unpacking a channel.
//!
//! They run in a builder's own process, where an ordinary builder would be executed, and so with
//! nothing but a builder's rights and view. What they need of the host comes with the [`Request`].
//!
//! Reading order: this file, [`fetchurl`], `buildenv`, `unpack_channel`, and what these use.

pub mod error;
pub mod fetchurl;

mod attributes;
mod buildenv;
mod decompress;
mod restore;
mod tarball;
mod unpack_channel;

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

pub use self::error::Error;
pub use self::fetchurl::Provisions;

use self::attributes::Attributes;

/// Everything that a built-in builder is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which one, without `builtin:`.
    pub name: String,
    /// The derivation's variables, placeholders replaced.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What a download needs of the host.
    pub provisions: Provisions,
}

/// Returns whether a built-in builder of this name downloads.
#[must_use]
pub fn downloads(name: &str) -> bool {
    name == "fetchurl"
}

/// Builds. What is worth telling goes to `log`, in whole lines.
///
/// # Errors
/// There is no such builder, or it failed.
pub fn run(request: &Request, log: &mut dyn Write) -> Result<(), Error> {
    let attributes = Attributes(&request.attributes);
    match request.name.as_str() {
        "fetchurl" => fetchurl::run(attributes, &request.provisions, log),
        "buildenv" => buildenv::run(attributes, log),
        "unpack-channel" => unpack_channel::run(attributes),
        name => Err(Error::Unsupported {
            name: name.to_owned(),
        }),
    }
}

/// Tells something. A log that nobody reads is no reason to stop.
fn say(log: &mut dyn Write, line: std::fmt::Arguments<'_>) {
    // One write for each line, so that a reader sees whole ones.
    drop(log.write_all(format!("{line}\n").as_bytes()));
}
