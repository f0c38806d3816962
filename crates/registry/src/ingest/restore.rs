//! Unpacking an archive and checking it against what was promised, in one pass.
//!
//! ```text
//! reader ─► at most the promised bytes, hashed as they come ─► the archive's form ─► files
//! ```
//!
//! What lies in another store of this machine is not read as an archive where the file system can have
//! both share their contents (`share`).
//!
//! All of it happens in our own directory; whatever is wrong, and whenever this ends half-way,
//! nothing of it has a name in the store.

mod files;
mod share;
mod source;

use std::collections::BTreeSet;

use store_model::content_address::References;
use store_model::derivation::IngestionMethod;
use store_model::nar::{self, ReadError};
use store_model::{ContentAddress, Hash, HashAlgorithm, OutputName, PathInfo, StorePath};
use tokio::sync::oneshot;

use self::files::Files;
use self::source::{Digests, Failure, Source};
use super::hash_scan::{ContentHash, ContentHasher};
use super::repair::keep_signatures;
use super::{Ingest, Staged};
use crate::Error;
use crate::db::write::Registration;
use crate::derivations::parse_staged;
use crate::layout::Layout;
use crate::messages::{Occupied, RegisterRestored, RestoreError, RestoreNar, RestoredPath};

impl Ingest {
    /// Unpacks an archive in our own directory.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing is left of it.
    pub(crate) fn restore(&mut self, request: RestoreNar) -> Result<RestoredPath, RestoreError> {
        let _announced = self.commits.announce();
        let staged = Staged::new(self.trash.clone());
        let restored = self.restore_staged(&staged, request).and_then(|info| {
            self.check_derivation(&info.path, &staged)?;
            Ok(info)
        });
        match restored {
            Ok(info) => Ok(RestoredPath { info, staged }),
            Err(error) => {
                // At once, not when there is time: the disk may be full.
                staged.delete();
                Err(error)
            }
        }
    }

    fn restore_staged(
        &mut self,
        staged: &Staged,
        request: RestoreNar,
    ) -> Result<PathInfo, RestoreError> {
        let RestoreNar {
            promised,
            contents,
            objects,
            cancel,
        } = request;
        let claim = Claim::of(&self.layout, &promised)?;
        let (flat, recursive) = claim.as_ref().map_or((None, None), Claim::hashers);
        if let (None, None, Some(objects)) = (&flat, &recursive, objects)
            && self.share(staged, &promised, claim.as_ref(), &objects, &cancel)?
        {
            return Ok(as_registered(promised));
        }
        let logical_path = self.logical_path(&promised.path);
        let mut files = Files::new(
            &self.layout,
            self.content_sync,
            (self.trash.staging.dir(), &staged.name),
            logical_path.clone(),
            flat,
        );
        let mut source = Source::new(
            contents,
            promised.nar_size_bytes,
            &mut self.buffer.0,
            [&cancel, &self.stopping],
            recursive,
        );
        let summary = nar::read_whole(&mut source, &mut files)
            .map_err(|error| explain(&self.layout, &promised, source.take_failure(), error))?;
        let hashing = |error| Error::file("hashing", &logical_path, error);
        let digests = source.finish().map_err(hashing)?;
        let flat = files.into_flat().map(ContentHasher::finish);
        let flat = flat.transpose().map_err(hashing)?;
        self.check_nar(&promised, &digests)?;
        if let Some(claim) = claim {
            self.check_claim(&promised.path, &claim, flat, &digests)?;
        }
        if summary.max_depth > nar::PORTABLE_DEPTH {
            tracing::warn!(
                "'{}' is nested {} directories deep; today's Nix reads no more than {}",
                logical_path.display(),
                summary.max_depth,
                nar::PORTABLE_DEPTH
            );
        }
        self.optimise_staged(staged, &logical_path, &cancel)?;
        Ok(as_registered(promised))
    }

    /// Checks that what is to be a derivation is one, as long as another source can be asked for it.
    fn check_derivation(&self, path: &StorePath, staged: &Staged) -> Result<(), RestoreError> {
        if !path.is_derivation() {
            return Ok(());
        }
        let flaw = match parse_staged(&self.layout, path, staged) {
            Ok(_) => return Ok(()),
            Err(Error::Derivation { source, .. }) => source.to_string(),
            Err(error @ (Error::DerivationPath { .. } | Error::UnsupportedFile { .. })) => {
                error.to_string()
            }
            Err(error) => return Err(error.into()),
        };
        let path = self.layout.print(path);
        Err(RestoreError::Broken(format!(
            "what came is not the derivation '{path}': {flaw}"
        )))
    }

    /// Checks an archive's size and hash.
    fn check_nar(&self, promised: &PathInfo, digests: &Digests) -> Result<(), RestoreError> {
        let path = self.layout.print(&promised.path);
        if digests.nar.nar_size_bytes != promised.nar_size_bytes {
            return Err(RestoreError::Broken(format!(
                "the archive of '{path}' has {} bytes where {} were promised",
                digests.nar.nar_size_bytes, promised.nar_size_bytes
            )));
        }
        check_hash(
            || format!("hash mismatch in the archive of '{path}'"),
            &promised.nar_hash.to_hash(),
            &digests.nar.nar_hash.to_hash(),
        )
    }

    /// Checks that contents are what their path was made from (SECURITY V18).
    fn check_claim(
        &self,
        path: &StorePath,
        claim: &Claim<'_>,
        flat: Option<Hash>,
        digests: &Digests,
    ) -> Result<(), RestoreError> {
        let got = flat.or(digests.recursive);
        let got = got.unwrap_or_else(|| digests.nar.nar_hash.to_hash());
        check_hash(
            || {
                let path = self.layout.print(path);
                format!("content address mismatch in the archive of '{path}'")
            },
            &claim.address.hash,
            &got,
        )
    }

    /// Puts what was restored in its place, whose lock the caller holds, and has it registered.
    pub(crate) fn add_restored(
        &mut self,
        request: RegisterRestored,
        known: RestoredFacts,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        let RestoredPath {
            mut info,
            mut staged,
        } = request.restored;
        let placed = match request.occupied {
            Occupied::Refused => self.replace(&mut staged, &info.path).map(|()| None),
            Occupied::Repaired => {
                keep_signatures(&mut info, known.earlier.as_slice());
                self.put_in_place_of(staged, info.path.clone())
            }
        };
        match placed {
            Ok(displaced) => {
                let registration = Registration {
                    info,
                    derivation_outputs: known.derivation_outputs,
                };
                let displaced = displaced.into_iter().collect();
                self.commit_over(vec![registration], Vec::new(), displaced, (), reply);
            }
            Err(error) => {
                let _listener_gone = reply.send(Err(error));
            }
        }
    }
}

/// What was found out about a restored path before it is put in its place.
#[derive(Debug, Default)]
pub(crate) struct RestoredFacts {
    /// Of a derivation, the outputs whose paths are known.
    pub(crate) derivation_outputs: Vec<(OutputName, StorePath)>,
    /// What the database knows of the path that is repaired.
    pub(crate) earlier: Vec<PathInfo>,
}

/// That a path follows from its contents, which is true of the path; of the contents it is yet to be
/// seen.
struct Claim<'a> {
    path: &'a StorePath,
    address: ContentAddress,
    mentions_itself: bool,
}

impl<'a> Claim<'a> {
    /// Reads the claim, if there is one.
    ///
    /// # Errors
    /// The path does not follow from it, whatever the contents are.
    fn of(layout: &Layout, promised: &'a PathInfo) -> Result<Option<Self>, RestoreError> {
        let Some(text) = &promised.content_address else {
            return Ok(None);
        };
        let path = &promised.path;
        let refuse = |reason: String| {
            let path = layout.print(path);
            RestoreError::Broken(format!("the content address '{text}' of '{path}' {reason}"))
        };
        let address: ContentAddress = text
            .parse()
            .map_err(|error| refuse(format!("is malformed: {error}")))?;
        let others: BTreeSet<StorePath> = promised
            .references
            .iter()
            .filter(|reference| *reference != path)
            .cloned()
            .collect();
        let references = References {
            to_self: promised.references.contains(path),
            others,
        };
        let store_dir = &layout.paths.store_dir;
        let expected = store_dir
            .make_content_addressed_path(&address, path.name(), &references)
            .map_err(|error| refuse(format!("is wrong: {error}")))?;
        if expected != *path {
            let expected = layout.print(&expected);
            return Err(refuse(format!("is that of '{expected}'")));
        }
        Ok(Some(Self {
            path,
            address,
            mentions_itself: references.to_self,
        }))
    }

    /// Returns what hashes the contents of the only file, or else the archive; neither, where the
    /// NAR hash says it all.
    fn hashers(&self) -> (Option<ContentHasher>, Option<ContentHasher>) {
        let ContentAddress { method, hash } = self.address;
        let algorithm = hash.algorithm();
        let modulo = ContentHash {
            method,
            algorithm,
            own_path: Some(self.path),
            redirected: &[],
        };
        match method {
            // A text cannot refer to itself.
            IngestionMethod::Text => {
                let plain = ContentHash {
                    own_path: None,
                    ..modulo
                };
                (Some(ContentHasher::new(plain)), None)
            }
            IngestionMethod::Flat => (Some(ContentHasher::new(modulo)), None),
            IngestionMethod::Recursive
                if algorithm == HashAlgorithm::Sha256 && !self.mentions_itself =>
            {
                (None, None)
            }
            IngestionMethod::Recursive => (None, Some(ContentHasher::new(modulo))),
        }
    }
}

/// Returns what is registered of what was promised.
fn as_registered(promised: PathInfo) -> PathInfo {
    PathInfo {
        registration_time: 0,
        ultimate: false,
        ..promised
    }
}

/// Says why an archive was not read to its end.
fn explain(
    layout: &Layout,
    promised: &PathInfo,
    failure: Option<Failure>,
    error: ReadError<RestoreError>,
) -> RestoreError {
    let path = layout.print(&promised.path);
    match (failure, error) {
        (Some(Failure::Cancelled), _) => RestoreError::Cancelled,
        (Some(Failure::TooLong), _) => RestoreError::Broken(format!(
            "the archive of '{path}' is larger than the {} bytes that were promised",
            promised.nar_size_bytes
        )),
        (Some(Failure::Reader(source)), _) | (None, ReadError::Source(source)) => {
            RestoreError::Source { path, source }
        }
        (None, ReadError::Malformed(error)) => {
            RestoreError::Broken(format!("the archive of '{path}' is malformed: {error}"))
        }
        (None, ReadError::Visitor(error)) => error,
    }
}

fn check_hash(
    what: impl FnOnce() -> String,
    wanted: &Hash,
    got: &Hash,
) -> Result<(), RestoreError> {
    if wanted == got {
        return Ok(());
    }
    Err(RestoreError::Broken(format!(
        "{}:\n  specified: {}\n     got:    {}",
        what(),
        wanted.to_sri(),
        got.to_sri()
    )))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
