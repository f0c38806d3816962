//! `dump-db`, `load-db` and `register-validity`: what is known of paths, without their contents.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};

use registry::{PresentMetadata, PresentPath, QueryAllValidPaths, RegisterPresent, ValidAlready};
use store_model::StorePath;
use store_model::validity_text::{self, HashAndSize};

use crate::args::RegisterValidityArguments;
use crate::commands::nar::{self, BUFFER_LEN};
use crate::commands::query::path_info;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::Finder;

/// Prints what is known of each path, in the order of the words, or of all in the order of names.
pub(super) async fn dump(
    store: &Store,
    finder: &Finder<'_>,
    words: &[String],
    output: &mut Output,
) -> Result<()> {
    let paths: Vec<StorePath> = if words.is_empty() {
        store.ask(QueryAllValidPaths).await?.into_iter().collect()
    } else {
        let words = words.iter();
        words
            .map(|word| finder.store_path(word))
            .collect::<Result<_>>()?
    };
    for path in paths {
        let info = path_info(store, &path).await?;
        output
            .write_all(validity_text::print(&info, store.dir()).as_bytes())
            .map_err(|error| Failure::stdout(&error))?;
    }
    Ok(())
}

/// Believes what standard input says, whatever was known.
pub(super) async fn load(store: &Store) -> Result<()> {
    store
        .ask(RegisterPresent {
            paths: read_paths(store, HashAndSize::Said).await?,
            metadata: PresentMetadata::Trust,
            valid: ValidAlready::Replace,
        })
        .await
}

/// Looks at the contents of what standard input names.
pub(super) async fn register(store: &Store, arguments: &RegisterValidityArguments) -> Result<()> {
    let hash_and_size = if arguments.hash_given {
        HashAndSize::Said
    } else {
        HashAndSize::NotSaid
    };
    let valid = if arguments.reregister {
        ValidAlready::Replace
    } else {
        ValidAlready::Keep
    };
    store
        .ask(RegisterPresent {
            paths: read_paths(store, hash_and_size).await?,
            metadata: PresentMetadata::MakeCanonical,
            valid,
        })
        .await
}

/// Reads paths from standard input; of what is said twice, the last counts.
async fn read_paths(store: &Store, hash_and_size: HashAndSize) -> Result<Vec<PresentPath>> {
    let store_dir = store.dir().clone();
    let said = nar::on_thread(move || {
        let stdin = nar::stdin()
            .map_err(|error| Failure::message(format!("reading standard input: {error}")))?;
        let mut stdin = BufReader::with_capacity(BUFFER_LEN, stdin);
        validity_text::read(&mut stdin, hash_and_size, &store_dir).map_err(Failure::new)
    })
    .await?;
    let paths: BTreeMap<StorePath, PresentPath> = said
        .into_iter()
        .map(|said| {
            let present = PresentPath {
                path: said.path.clone(),
                nar: said.nar,
                deriver: said.deriver,
                references: said.references,
            };
            (said.path, present)
        })
        .collect();
    Ok(paths.into_values().collect())
}
