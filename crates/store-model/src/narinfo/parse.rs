//! Reads a narinfo.
//!
//! Stricter than Nix where two readers could disagree about what was said (SECURITY N03): each line
//! is `Name: value`, ends with a line feed, and has no blank at either end of its value; a field that
//! can be there once is there once. Fields that nobody knows are passed over, as in Nix.

use std::collections::BTreeSet;

use super::{Compression, MAX_FILE_BYTES, NarInfo, malformed, shorten};
use crate::{Error, Hash, NarHash, PathInfo, StoreDir, StorePath};

/// Most references that a path has. The largest environments of a distribution have some thousands.
const MAX_REFERENCES: usize = 10_000;

/// Most signatures of one path; each that names a trusted key costs a check.
const MAX_SIGNATURES: usize = 100;

/// What a narinfo without the field means, for history's sake.
const DEFAULT_COMPRESSION: Compression = Compression::Bzip2;

impl NarInfo {
    /// Reads the text of a narinfo.
    ///
    /// # Errors
    /// It breaks a rule; the error says which, and in which line.
    pub fn parse(text: &[u8], store_dir: &StoreDir) -> Result<Self, Error> {
        let text = check_text(text)?;
        let mut fields = Fields::default();
        for (line_idx, line) in text.split_terminator('\n').enumerate() {
            fields
                .take_line(line, store_dir)
                .map_err(|reason| malformed(format!("{reason} (line {})", line_idx + 1)))?;
        }
        fields.finish()
    }
}

fn check_text(text: &[u8]) -> Result<&str, Error> {
    let refuse = |reason: &str| Err(malformed(reason.to_owned()));
    if text.len() > MAX_FILE_BYTES {
        return refuse("it has more than a megabyte");
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return refuse("it is not UTF-8");
    };
    if !text.ends_with('\n') {
        return refuse("it does not end with a line feed");
    }
    if text.chars().any(|c| c.is_control() && c != '\n') {
        return refuse("it has a control character other than line feeds");
    }
    Ok(text)
}

/// What has been read so far.
#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<Compression>,
    file_hash: Option<Hash>,
    file_size_bytes: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size_bytes: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<Deriver>,
    system: Option<()>,
    signatures: BTreeSet<String>,
    content_address: Option<String>,
}

/// What the line about the deriver says.
enum Deriver {
    Unknown,
    Known(StorePath),
}

impl Fields {
    fn take_line(&mut self, line: &str, store_dir: &StoreDir) -> Result<(), String> {
        let (name, value) = line
            .split_once(": ")
            .ok_or("a line is not a name, a colon, a blank and a value")?;
        if value.trim() != value {
            return Err(format!(
                "blanks stand around the value of '{}'",
                shorten(name)
            ));
        }
        if value.is_empty() && name != "References" {
            return Err(format!("'{}' has no value", shorten(name)));
        }
        match name {
            "StorePath" => put(&mut self.path, name, store_dir.parse(value)),
            "URL" => put(&mut self.url, name, Ok(value.to_owned())),
            "Compression" => put(&mut self.compression, name, value.parse()),
            "FileHash" => put(&mut self.file_hash, name, value.parse()),
            "FileSize" => put(&mut self.file_size_bytes, name, parse_size(value)),
            "NarHash" => put(&mut self.nar_hash, name, value.parse()),
            "NarSize" => put(&mut self.nar_size_bytes, name, parse_size(value)),
            "References" => put(&mut self.references, name, parse_references(value)),
            "Deriver" => put(&mut self.deriver, name, parse_deriver(value)),
            "System" => put(&mut self.system, name, Ok(())),
            "CA" => put(&mut self.content_address, name, Ok(value.to_owned())),
            "Sig" => self.add_signature(value),
            // What later versions add is not for us.
            _ => Ok(()),
        }
    }

    fn add_signature(&mut self, value: &str) -> Result<(), String> {
        if self.signatures.len() >= MAX_SIGNATURES {
            return Err(format!("it has more than {MAX_SIGNATURES} signatures"));
        }
        // The database separates signatures by blanks.
        if value.contains(char::is_whitespace) {
            return Err("a signature has a blank in it".to_owned());
        }
        self.signatures.insert(value.to_owned());
        Ok(())
    }

    fn finish(self) -> Result<NarInfo, Error> {
        let missing = |name: &str| malformed(format!("it has no '{name}'"));
        let nar_size_bytes = self.nar_size_bytes.ok_or_else(|| missing("NarSize"))?;
        if nar_size_bytes == 0 {
            return Err(malformed("no archive has no bytes".to_owned()));
        }
        Ok(NarInfo {
            info: PathInfo {
                path: self.path.ok_or_else(|| missing("StorePath"))?,
                nar_hash: self.nar_hash.ok_or_else(|| missing("NarHash"))?,
                nar_size_bytes,
                references: self.references.unwrap_or_default(),
                deriver: self.deriver.and_then(Deriver::known),
                registration_time: 0,
                ultimate: false,
                signatures: self.signatures,
                content_address: self.content_address,
            },
            url: self.url.ok_or_else(|| missing("URL"))?,
            compression: self.compression.unwrap_or(DEFAULT_COMPRESSION),
            file_hash: self.file_hash,
            file_size_bytes: self.file_size_bytes,
        })
    }
}

/// Puts the value of a field that can be there once.
fn put<T>(field: &mut Option<T>, name: &str, value: Result<T, Error>) -> Result<(), String> {
    let value = value.map_err(|error| format!("'{name}': {error}"))?;
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("'{name}' stands there twice")),
    }
}

/// Reads a size in bytes; `u64::from_str` would take a plus sign.
fn parse_size(value: &str) -> Result<u64, Error> {
    let refuse = || malformed(format!("'{}' is not a size", shorten(value)));
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse());
    }
    value.parse().map_err(|_| refuse())
}

fn parse_references(value: &str) -> Result<BTreeSet<StorePath>, Error> {
    let mut references = BTreeSet::new();
    if value.is_empty() {
        return Ok(references);
    }
    for base_name in value.split(' ') {
        if references.len() >= MAX_REFERENCES {
            return Err(malformed(format!("there are more than {MAX_REFERENCES}")));
        }
        if !references.insert(base_name.parse()?) {
            return Err(malformed(format!("{base_name} stands there twice")));
        }
    }
    Ok(references)
}

fn parse_deriver(value: &str) -> Result<Deriver, Error> {
    match value {
        "unknown-deriver" => Ok(Deriver::Unknown),
        base_name => base_name.parse().map(Deriver::Known),
    }
}

impl Deriver {
    fn known(self) -> Option<StorePath> {
        match self {
            Self::Unknown => None,
            Self::Known(path) => Some(path),
        }
    }
}
