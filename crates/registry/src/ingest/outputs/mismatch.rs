//! A fixed output with other contents than promised: it is refused, but kept as what it is.
//!
//! Whoever corrects the hash in the derivation then finds the output there, and need not download
//! it again.

use std::collections::BTreeMap;

use store_model::{ContentAddress, PathInfo};
use tokio::sync::oneshot;

use super::{Ready, Source, references_of};
use crate::Error;
use crate::db::write::Registration;
use crate::ingest::{Ingest, Staged};
use crate::messages::{OutputKind, RegisterError, RegisterOutputs};

/// Why outputs are not registered.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the goal is told.
    pub(crate) error: RegisterError,
    /// The output that is something else than promised, if it can be registered as that.
    pub(crate) found: Option<Box<FoundOutput>>,
}

impl<E: Into<RegisterError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            found: None,
        }
    }
}

/// An output under the path that its contents have.
#[derive(Debug)]
pub(crate) struct FoundOutput {
    /// What will be known of it.
    pub(crate) info: PathInfo,
    staged: Staged,
}

impl Ingest {
    /// Refuses outputs of which one has other contents than promised.
    pub(super) fn check_promises<'a>(
        &self,
        request: &RegisterOutputs,
        mut ready: Vec<Ready<'a>>,
    ) -> Result<Vec<Ready<'a>>, Refusal> {
        let broken = ready.iter().enumerate().find_map(|(idx, ready)| {
            let OutputKind::Fixed {
                method,
                hash: wanted,
            } = ready.output.kind
            else {
                return None;
            };
            let got = ready.contents.content_hash?;
            (wanted != got).then_some((idx, method, wanted, got))
        });
        let Some((idx, method, wanted, got)) = broken else {
            return Ok(ready);
        };
        let address = ContentAddress { method, hash: got };
        let found = self.find_place(request, ready.swap_remove(idx), address);
        Err(Refusal {
            error: RegisterError::HashMismatch {
                drv_path: self.layout.print(&request.drv_path),
                wanted: Box::new(wanted),
                got: Box::new(got),
            },
            found: found.map(Box::new),
        })
    }

    /// Finds the path that an output's contents have. What mentions the path that was promised has
    /// none as it is, and some kinds of address do not cover references.
    fn find_place(
        &self,
        request: &RegisterOutputs,
        ready: Ready<'_>,
        address: ContentAddress,
    ) -> Option<FoundOutput> {
        let references = references_of(&ready);
        if references.to_self {
            return None;
        }
        let name = ready.output.path.name();
        let store_dir = &self.layout.paths.store_dir;
        let path = store_dir
            .make_content_addressed_path(&address, name, &references)
            .ok()?;
        let Source::Copy(staged) = ready.source else {
            return None;
        };
        let info = self.built_info(request, path, &ready.contents, Some(address));
        Some(FoundOutput { info, staged })
    }

    /// Reads the only output of a derivation, which is fixed, and finds where it belongs by its
    /// contents.
    ///
    /// # Errors
    /// It is refused, or its contents have no path.
    pub(crate) fn find_by_contents(
        &mut self,
        request: &RegisterOutputs,
    ) -> Result<FoundOutput, RegisterError> {
        let mut ready = self.read_outputs(request)?;
        let address = ready.first().and_then(|ready| {
            let OutputKind::Fixed { method, .. } = ready.output.kind else {
                return None;
            };
            let hash = ready.contents.content_hash?;
            Some(ContentAddress { method, hash })
        });
        let found = address.and_then(|address| {
            let output = ready[0].output.name.clone();
            let found = self.find_place(request, ready.swap_remove(0), address)?;
            Some((output, found))
        });
        let Some((output, found)) = found else {
            return Err(RegisterError::Rejected(format!(
                "no path follows from what '{}' has made: it refers to itself, or to others \
                 though it is hashed as a plain file",
                self.layout.print(&request.drv_path)
            )));
        };
        let infos = BTreeMap::from([(output, found.info.clone())]);
        self.check_outputs(request, &infos)?;
        Ok(found)
    }

    /// Puts an output where it belongs by its contents, whose lock the caller holds, and has it
    /// registered.
    pub(crate) fn add_found(
        &mut self,
        mut found: FoundOutput,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        let path = self.logical_path(&found.info.path);
        let stopping = self.stopping.clone();
        let placed = self
            .optimise_staged(&found.staged, &path, &stopping)
            .and_then(|()| self.replace(&mut found.staged, &found.info.path));
        if let Err(error) = placed {
            let _listener_gone = reply.send(Err(error));
            return;
        }
        let registration = Registration {
            info: found.info,
            derivation_outputs: Vec::new(),
        };
        self.commit(vec![registration], Vec::new(), (), reply);
    }
}
