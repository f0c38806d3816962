//! The address of a cache that is written to, and what its user wants to be written:
//! `file:///cache?compression=zstd&secret-key=/key`.
//!
//! The parameters are those of Nix 2.8. What asks such a cache reads `address`.

use std::path::PathBuf;

use store_model::narinfo::{CacheInfo, Compression};
use store_model::{StoreDir, percent};

use crate::address::CacheAddress;
use crate::compress::{Method, Workers};

/// A cache to write to.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Where it is.
    pub(crate) address: CacheAddress,
    /// How archives are compressed.
    pub(crate) method: Method,
    /// What is written beside archives.
    pub(crate) listings: Listings,
    /// The file with the key that signs what is copied.
    pub(crate) secret_key_file: Option<PathBuf>,
    want_mass_query: bool,
    /// Parameters without effect, to be told.
    pub(crate) warnings: Vec<String>,
}

/// Whether the contents of archives are listed in files beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listings {
    /// In one for each path.
    Written,
    /// Nowhere.
    Unwanted,
}

/// How Nix says that it has a default of its own.
const DEFAULT_LEVEL: &str = "-1";

impl Destination {
    /// Reads an address.
    ///
    /// # Errors
    /// It is not the address of a cache that can be written to, or a parameter of it has a value that
    /// cannot be meant; the text says why.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Err("a cache in a directory is named 'file://' and the directory".to_owned());
        }
        let mut destination = Self {
            address: CacheAddress::parse(text)?,
            method: Method {
                compression: Compression::Xz,
                level: None,
                workers: Workers::One,
            },
            listings: Listings::Unwanted,
            secret_key_file: None,
            want_mass_query: false,
            warnings: Vec::new(),
        };
        let mut level = None;
        let (_, parameters) = text.split_once('?').unwrap_or((text, ""));
        for parameter in parameters.split('&') {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = String::from_utf8_lossy(&percent::decode(value)).into_owned();
            if key == "compression-level" {
                level = Some(value).filter(|value| value != DEFAULT_LEVEL);
            } else {
                destination.set(key, value)?;
            }
        }
        if let Some(level) = level {
            destination.set_level(&level)?;
        }
        destination.check_workers();
        Ok(destination)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "compression" => {
                let known = Compression::ALL.iter().find(|known| known.name() == value);
                self.method.compression = *known.ok_or_else(|| {
                    let names = Compression::ALL.map(Compression::name).join(", ");
                    format!("there is no compression '{value}', only {names}")
                })?;
            }
            "parallel-compression" => {
                self.method.workers = if parse_switch(key, &value)? {
                    Workers::OneForEachCore
                } else {
                    Workers::One
                }
            }
            "write-nar-listing" => {
                self.listings = if parse_switch(key, &value)? {
                    Listings::Written
                } else {
                    Listings::Unwanted
                }
            }
            "want-mass-query" => self.want_mass_query = parse_switch(key, &value)?,
            "secret-key" => {
                self.secret_key_file = Some(PathBuf::from(value)).filter(|file| *file != *"");
            }
            "index-debug-info" if parse_switch(key, &value)? => {
                return Err("'index-debug-info' is not supported".to_owned());
            }
            // Of the others some are about reading, and what nobody knows is in the address.
            _ => {}
        }
        Ok(())
    }

    fn set_level(&mut self, text: &str) -> Result<(), String> {
        let compression = self.method.compression;
        let Some(levels) = compression_levels(compression) else {
            let warning = format!("'compression-level' has no effect on '{compression}'");
            self.warnings.push(warning);
            return Ok(());
        };
        let level = text.parse().ok().filter(|level| levels.contains(level));
        self.method.level = Some(level.ok_or_else(|| {
            let (least, most) = levels.into_inner();
            format!("'{compression}' has levels from {least} to {most}, not '{text}'")
        })?);
        Ok(())
    }

    /// Says so if one core alone can do what all are to do.
    fn check_workers(&mut self) {
        let compression = self.method.compression;
        let is_parallel = matches!(compression, Compression::Xz | Compression::Zstd);
        if self.method.workers == Workers::OneForEachCore && !is_parallel {
            self.method.workers = Workers::One;
            let warning = format!("'parallel-compression' has no effect on '{compression}'");
            self.warnings.push(warning);
        }
    }

    /// Returns what a cache that is made says of itself.
    pub(crate) fn to_info(&self, store_dir: &StoreDir) -> CacheInfo {
        CacheInfo {
            store_dir: Some(store_dir.clone()),
            want_mass_query: self.want_mass_query,
            priority: self.address.priority,
        }
    }
}

/// Returns the levels that a library knows; `None` if there is nothing to choose.
fn compression_levels(compression: Compression) -> Option<std::ops::RangeInclusive<u32>> {
    match compression {
        Compression::None => None,
        Compression::Xz | Compression::Gzip => Some(0..=9),
        Compression::Bzip2 => Some(1..=9),
        Compression::Zstd => Some(1..=22),
        Compression::Brotli => Some(0..=11),
    }
}

fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err(format!("'{key}' is either true or false, not '{value}'")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn parse(parameters: &str) -> Destination {
        Destination::parse(&format!("file:///cache?{parameters}")).unwrap()
    }

    #[test]
    fn without_parameters_archives_are_compressed_by_xz_and_nothing_is_signed() {
        let destination = Destination::parse("file:///cache").unwrap();
        assert_eq!(destination.method.compression, Compression::Xz);
        assert_eq!(destination.method.level, None);
        assert_eq!(destination.method.workers, Workers::One);
        assert_eq!(destination.listings, Listings::Unwanted);
        assert_eq!(destination.secret_key_file, None);
        let info = destination.to_info(&StoreDir::default());
        assert_eq!(info.to_string(), "StoreDir: /nix/store\n");
    }

    #[test]
    fn every_parameter_is_read() {
        let destination = parse(
            "compression-level=19&compression=zstd&parallel-compression=true&write-nar-listing=1\
             &secret-key=/my%20keys/key&want-mass-query=yes&priority=7&unheard-of=1",
        );
        assert_eq!(destination.method.compression, Compression::Zstd);
        assert_eq!(destination.method.level, Some(19));
        assert_eq!(destination.method.workers, Workers::OneForEachCore);
        assert_eq!(destination.listings, Listings::Written);
        let key = destination.secret_key_file.as_deref();
        assert_eq!(key, Some("/my keys/key".as_ref()));
        let info = destination.to_info(&StoreDir::default()).to_string();
        assert_eq!(
            info,
            "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n"
        );
        assert_eq!(destination.address.unknown, ["unheard-of"]);
        assert!(destination.warnings.is_empty());
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_refused_and_says_what_could() {
        for (parameters, reason) in [
            (
                "compression=lz4",
                "no compression 'lz4', only none, xz, bzip2",
            ),
            (
                "compression-level=10",
                "'xz' has levels from 0 to 9, not '10'",
            ),
            (
                "compression=zstd&compression-level=23",
                "'zstd' has levels from 1 to 22, not '23'",
            ),
            ("compression-level=best", "not 'best'"),
            ("write-nar-listing=maybe", "either true or false"),
            ("index-debug-info=true", "not supported"),
            ("priority=first", "'first' is not a priority"),
        ] {
            let error = Destination::parse(&format!("file:///c?{parameters}")).unwrap_err();
            assert!(error.contains(reason), "{parameters}: {error}");
        }
        for text in ["/cache", "s3://bucket", "cache", ""] {
            assert!(Destination::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_compression_cannot_have_is_told_and_the_default_of_nix_is_none() {
        let destination = parse("compression=none&compression-level=3&parallel-compression=1");
        assert_eq!(destination.warnings.len(), 2);
        assert_eq!(destination.method.level, None);
        assert_eq!(destination.method.workers, Workers::One);
        let destination = parse("compression-level=-1&index-debug-info=false");
        assert_eq!(destination.method.level, None);
        assert!(destination.warnings.is_empty());
    }
}
