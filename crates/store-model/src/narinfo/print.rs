//! Writes a narinfo as Nix 2.8 does.

use std::fmt::Write as _;

use super::NarInfo;
use crate::{StoreDir, StorePath};

impl NarInfo {
    /// Returns the text of the narinfo, byte for byte what Nix 2.8 writes.
    #[must_use]
    pub fn print(&self, store_dir: &StoreDir) -> String {
        let mut text = String::with_capacity(512);
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _infallible = writeln!(text, "{name}: {value}");
        };
        let info = &self.info;
        line("StorePath", &store_dir.print(&info.path));
        line("URL", &self.url);
        line("Compression", &self.compression);
        if let Some(hash) = &self.file_hash {
            line("FileHash", hash);
        }
        if let Some(size) = &self.file_size_bytes {
            line("FileSize", size);
        }
        line("NarHash", &info.nar_hash);
        line("NarSize", &info.nar_size_bytes);
        let references: Vec<&str> = info.references.iter().map(StorePath::base_name).collect();
        line("References", &references.join(" "));
        if let Some(deriver) = &info.deriver {
            line("Deriver", deriver);
        }
        for signature in &info.signatures {
            line("Sig", signature);
        }
        if let Some(address) = &info.content_address {
            line("CA", address);
        }
        text
    }
}
