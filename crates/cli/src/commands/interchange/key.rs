//! `sign` and `key`: trust in paths.
//!
//! Secret keys are printed by `key generate` alone, and are in no message.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use registry::{AddSignatures, QueryClosure};
use store_model::signature::key_file_warning;
use store_model::{SecretKey, StorePath};

use crate::args::{KeyAction, SignArguments};
use crate::commands::Session;
use crate::commands::nar;
use crate::commands::query::path_info;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::output::{Output, warn};
use crate::store::Store;
use crate::target::Finder;

/// Longest key that is read, in bytes; ours have some hundred.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Where the kernel hands out what nobody can guess.
const RANDOM: &str = "/dev/urandom";

/// Prints a key, without a newline, as Nix does.
pub(in crate::commands) async fn make(
    action: KeyAction,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    let text = match action {
        KeyAction::Generate { name } => SecretKey::from_seed(&name, &seed()?)?.expose(),
        KeyAction::ConvertSecretToPublic => {
            let read = nar::on_thread(|| {
                nar::stdin()
                    .and_then(read_text)
                    .map_err(|error| Failure::message(format!("reading standard input: {error}")))
            });
            let text = interrupts.unless(read).await?;
            text.parse::<SecretKey>()?.to_public_key().to_string()
        }
    };
    output
        .write_all(text.as_bytes())
        .map_err(|error| Failure::stdout(&error))
}

/// Signs each path, and adds the signatures to those that it has.
pub(super) async fn sign(
    store: &Store,
    session: &Session,
    finder: &Finder<'_>,
    arguments: &SignArguments,
) -> Result<()> {
    let key = read_key(session, &arguments.key_file)?;
    let words = arguments.paths.iter();
    let mut paths: BTreeSet<StorePath> = words
        .map(|word| finder.store_path(word))
        .collect::<Result<_>>()?;
    if arguments.recursive {
        paths = store.ask(QueryClosure { roots: paths }).await?;
    }
    let mut signatures = BTreeMap::new();
    for path in paths {
        let info = path_info(store, &path).await?;
        let signature = key.sign(&info.fingerprint(store.dir()));
        if !info.signatures.contains(&signature) {
            signatures.insert(path, BTreeSet::from([signature]));
        }
    }
    store.ask(AddSignatures { signatures }).await
}

/// Reads the key, and warns if others can as well.
fn read_key(session: &Session, file: &Path) -> Result<SecretKey> {
    let path = session.environment.absolute(file);
    let failed = |error| Failure::file("reading secret key file", &path, error);
    let opened = File::open(&path).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.permissions().mode();
    if let Some(warning) = key_file_warning(&path, mode) {
        warn(session.style, &warning);
    }
    let text = read_text(opened).map_err(failed)?;
    text.parse().map_err(|error: store_model::Error| {
        Failure::message(format!("secret key file '{}': {error}", path.display()))
    })
}

fn read_text(source: File) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAX_KEY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns 32 bytes that nobody knows.
fn seed() -> Result<[u8; 32]> {
    let failed = |error| Failure::file("reading", Path::new(RANDOM), error);
    let mut seed = [0; 32];
    let mut random = File::open(RANDOM).map_err(failed)?;
    random.read_exact(&mut seed).map_err(failed)?;
    Ok(seed)
}
