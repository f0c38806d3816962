//! `builtin:unpack-channel`: a channel is the only file or directory of a tarball, under a name of
//! its own.

use std::fs;

use crate::Error;
use crate::attributes::Attributes;
use crate::tarball;

/// Unpacks the tarball `src` into the output, and names what it holds `channelName`.
///
/// # Errors
/// An attribute is missing, the tarball cannot be unpacked, or it holds anything but one file.
pub(crate) fn run(attributes: Attributes<'_>) -> Result<(), Error> {
    let out = attributes.path("out")?;
    let name = attributes.text("channelName")?;
    let tarball = attributes.path("src")?;
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Error::Attribute {
            name: "channelName".to_owned(),
            why: "is not the name of a file",
        });
    }
    fs::create_dir_all(&out).map_err(Error::file("creating the directory", &out))?;
    tarball::extract(&tarball, &out)?;
    let entries = fs::read_dir(&out)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(Error::file("reading the directory", &out))?;
    match entries.as_slice() {
        [entry] => {
            let from = entry.path();
            fs::rename(&from, out.join(name))
                .map_err(Error::file("renaming the channel directory", from))
        }
        [] => Err(Error::NoFile { path: tarball }),
        _ => Err(Error::ManyFiles { path: tarball }),
    }
}
