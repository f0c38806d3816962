//! In which order derivations are written: layer by layer, each layer at once, so that what can be
//! written together shares its transactions and syncs.

use std::collections::HashMap;

use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use registry::AddText;
use store_model::StorePath;

use crate::failure::{Failure, Result};
use crate::store::Store;

/// How many derivations are on their way into the store at once.
const MAX_AT_ONCE: usize = 64;

/// Derivations by the longest way down to one that needs no other.
#[derive(Debug, Default)]
pub(super) struct Layers {
    depths: HashMap<StorePath, usize>,
    layers: Vec<Vec<(StorePath, AddText)>>,
}

impl Layers {
    /// Adds a derivation; those that it needs were added before.
    pub(super) fn push(&mut self, drv_path: StorePath, text: AddText) {
        let below = text.references.iter().filter_map(|path| {
            // Sources, which are in the store already, have no depth.
            self.depths.get(path)
        });
        let depth = below.max().map_or(0, |deepest| deepest + 1);
        if self.depths.insert(drv_path.clone(), depth).is_some() {
            return;
        }
        if depth == self.layers.len() {
            self.layers.push(Vec::new());
        }
        self.layers[depth].push((drv_path, text));
    }

    /// Writes them all.
    ///
    /// # Errors
    /// One of them cannot be written, or the store finds another path for it.
    pub(super) async fn write(self, store: &Store) -> Result<()> {
        for layer in self.layers {
            iter(layer)
                .map(|(drv_path, text)| write_one(store, drv_path, text))
                .buffer_unordered(MAX_AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }
}

async fn write_one(store: &Store, drv_path: StorePath, text: AddText) -> Result<()> {
    let added = store.add(text).await?;
    if added == drv_path {
        return Ok(());
    }
    Err(Failure::message(format!(
        "the store put the derivation '{}' at '{}'",
        store.dir().print(&drv_path),
        store.dir().print(&added)
    )))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn path(number: u8) -> StorePath {
        StorePath::from_digest(&[number; 20], "x.drv").expect("a valid name")
    }

    fn text(references: &[u8]) -> AddText {
        AddText {
            name: "x.drv".to_owned(),
            contents: Vec::new(),
            references: references.iter().copied().map(path).collect(),
        }
    }

    #[test]
    fn a_derivation_comes_after_all_that_it_needs_and_is_written_once() {
        let mut layers = Layers::default();
        // 9 is a source, which nobody adds.
        for (number, needs) in [
            (1, &[9][..]),
            (2, &[1]),
            (3, &[]),
            (4, &[3, 2]),
            (2, &[1]),
            (5, &[1, 3]),
        ] {
            layers.push(path(number), text(needs));
        }
        let layers: Vec<BTreeSet<StorePath>> = layers
            .layers
            .into_iter()
            .map(|layer| layer.into_iter().map(|(path, _)| path).collect())
            .collect();
        let expected = [&[1, 3][..], &[2, 5], &[4]];
        let expected = expected.map(|layer| layer.iter().copied().map(path).collect());
        assert_eq!(layers, expected);
    }
}
