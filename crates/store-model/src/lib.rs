//! Nix's formats as values: store paths, hashes, derivations, NARs, path metadata and settings.
//!
//! Nothing here does I/O of its own: readers and writers go through `std::io` traits, so a fuzzer
//! can drive all of it. The crate knows neither tokio nor actix.
//!
//! Reading order: [`base32`], [`hash`], [`store_path`], [`store_dir`], [`content_address`],
//! [`derivation`], [`wanted_outputs`], [`nar`], [`ref_scan`], [`hash_rewrite`], [`path_info`],
//! [`closure`], [`export`], [`validity_text`], [`signature`], [`realisation`], [`settings`];
//! [`percent`], [`netrc`], [`proxy`], [`certificates`] and [`backoff`] are for those who speak to
//! servers.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod base32;
pub mod certificates;
pub mod closure;
pub mod content_address;
pub mod derivation;
pub mod error;
pub mod export;
pub mod hash;
pub mod hash_rewrite;
mod json_text;
pub mod nar;
pub mod narinfo;
pub mod netrc;
pub mod path_info;
pub mod path_info_json;
pub mod percent;
pub mod proxy;
pub mod realisation;
pub mod ref_scan;
pub mod settings;
pub mod signature;
pub mod store_dir;
pub mod store_path;
pub mod validity_text;
pub mod wanted_outputs;

pub use content_address::ContentAddress;
pub use derivation::{
    Derivation, DerivationKind, DerivationOutput, HashModuloCache, IngestionMethod, OutputName,
};
pub use error::Error;
pub use hash::{Hash, HashAlgorithm, NarHash};
pub use path_info::PathInfo;
pub use proxy::ProxyVariables;
pub use realisation::{DrvOutput, Realisation};
pub use settings::Settings;
pub use signature::{PublicKey, PublicKeys, SecretKey};
pub use store_dir::StoreDir;
pub use store_path::StorePath;
pub use wanted_outputs::WantedOutputs;
