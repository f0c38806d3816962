//! Registering what a builder has left.

mod floating;
mod mismatch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use store_model::content_address::References;
use store_model::derivation::IngestionMethod;
use store_model::derivation::output_checks::CheckedOutputs;
use store_model::{ContentAddress, NarHash, OutputName, PathInfo, Realisation, StorePath};
use tokio::sync::oneshot;

use super::canonical::Canonical;
use super::copy::{Mentions, Place, RequiredOwner};
use super::hash_scan::{ContentHash, Contents, Metadata, Question, read_tree};
use super::repair::{Displaced, keep_signatures};
use super::{Ingest, Staged, StagedQuestion, discard_all, place};
use crate::Error;
use crate::cycle::find_cycle;
use crate::db::query;
use crate::db::write::{Registration, unix_time};
use crate::messages::{Occupied, OutputKind, RegisterError, RegisterOutputs, ScratchOutput};
use crate::staging::c_name;

pub(crate) use self::floating::Present;
pub(crate) use self::mismatch::{FoundOutput, Refusal};

/// An output that is ready to be moved into the store.
pub(super) struct Ready<'a> {
    pub(super) output: &'a ScratchOutput,
    pub(super) source: Source,
    pub(super) contents: Contents,
}

/// Where an output is.
#[derive(Debug)]
pub(super) enum Source {
    /// Where its builder left it, under the name of its path.
    Scratch,
    /// In our own directory, as a fresh copy.
    Copy(Staged),
}

impl Ingest {
    /// Registers a build's outputs, all or none, and answers through `reply`; `earlier` is what the
    /// database says of those that are repaired.
    pub(crate) fn register_outputs(
        &mut self,
        request: &RegisterOutputs,
        earlier: &[PathInfo],
        reply: oneshot::Sender<Result<Vec<PathInfo>, Refusal>>,
    ) {
        let (infos, displaced) = match self.ingest_outputs(request, earlier) {
            Ok(ingested) => ingested,
            Err(error) => {
                let _listener_gone = reply.send(Err(error));
                return;
            }
        };
        let registrations = infos
            .values()
            .map(|info| Registration {
                info: info.clone(),
                derivation_outputs: Vec::new(),
            })
            .collect();
        let realisations = self.realisations(request, &infos);
        let infos = infos.into_values().collect();
        self.commit_over(registrations, realisations, displaced, infos, reply);
    }

    /// Returns what is to be remembered of outputs, signed.
    fn realisations(
        &self,
        request: &RegisterOutputs,
        infos: &BTreeMap<OutputName, PathInfo>,
    ) -> Vec<Realisation> {
        let remembered = request.realises.iter().filter_map(|(name, id)| {
            let mut realisation = Realisation {
                id: id.clone(),
                out_path: infos.get(name)?.path.clone(),
                signatures: BTreeSet::new(),
                // The builder saw paths, and no derivation that could be realised otherwise.
                dependent_realisations: BTreeMap::new(),
            };
            self.sign_realisation(&mut realisation);
            Some(realisation)
        });
        remembered.collect()
    }

    fn ingest_outputs(
        &mut self,
        request: &RegisterOutputs,
        earlier: &[PathInfo],
    ) -> Result<(BTreeMap<OutputName, PathInfo>, Vec<Displaced>), Refusal> {
        let ready = self.prepare_outputs(request)?;
        self.refuse_cycles(request, &ready)?;
        let mut infos = self.describe(request, &ready);
        for info in infos.values_mut() {
            keep_signatures(info, earlier);
        }
        self.check_outputs(request, &infos)?;
        for ready in &ready {
            self.optimise_output(request, &ready.output.path, &ready.source)?;
        }
        // From here on it takes moments, and whoever cancels now waits for less than it would take
        // to take everything back.
        request.cancel.check()?;
        let displaced = self.place_outputs(request, ready)?;
        self.tell_changes(&infos, earlier);
        Ok((infos, displaced))
    }

    /// Returns what will be known of the outputs, signed.
    fn describe(
        &self,
        request: &RegisterOutputs,
        ready: &[Ready<'_>],
    ) -> BTreeMap<OutputName, PathInfo> {
        let describe = |ready: &Ready<'_>| {
            let path = ready.output.path.clone();
            let address = match ready.output.kind {
                OutputKind::Fixed { method, hash } => Some(ContentAddress { method, hash }),
                OutputKind::InputAddressed | OutputKind::Floating { .. } => None,
            };
            let address = address.filter(|address| self.is_recordable(request, ready, address));
            let info = self.built_info(request, path, &ready.contents, address);
            (ready.output.name.clone(), info)
        };
        ready.iter().map(describe).collect()
    }

    /// Returns what will be known of something that was built here, signed.
    fn built_info(
        &self,
        request: &RegisterOutputs,
        path: StorePath,
        contents: &Contents,
        address: Option<ContentAddress>,
    ) -> PathInfo {
        let mut info = PathInfo {
            path,
            nar_hash: contents.nar.nar_hash,
            nar_size_bytes: contents.nar.nar_size_bytes,
            references: contents.nar.references.clone(),
            deriver: Some(request.drv_path.clone()),
            registration_time: unix_time(),
            ultimate: true,
            signatures: BTreeSet::new(),
            content_address: address.map(|address| address.to_string()),
        };
        self.sign(&mut info);
        info
    }

    /// Signs with every key.
    pub(super) fn sign(&self, info: &mut PathInfo) {
        for key in self.secret_keys.iter() {
            info.sign(&self.layout.paths.store_dir, key);
        }
    }

    /// Returns whether an output's path is the one that follows from its contents together with
    /// what they refer to; warns if it is not.
    ///
    /// A fixed output has its path before it has any references. Registered as content-addressed
    /// all the same, no other store would take it, as it is not what it claims to be.
    fn is_recordable(
        &self,
        request: &RegisterOutputs,
        ready: &Ready<'_>,
        address: &ContentAddress,
    ) -> bool {
        let output = ready.output;
        let references = references_of(ready);
        let store_dir = &self.layout.paths.store_dir;
        let addressed =
            store_dir.make_content_addressed_path(address, output.path.name(), &references);
        if addressed.is_ok_and(|path| path == output.path) {
            return true;
        }
        let mentioned: Vec<String> = ready
            .contents
            .nar
            .references
            .iter()
            .map(|path| format!("'{}'", self.layout.print(path)))
            .collect();
        tracing::warn!(
            "fixed output '{}' of '{}' refers to {}; its hash does not cover that, so it is not \
             registered as content-addressed, and today's Nix refuses it",
            self.layout.print(&output.path),
            self.layout.print(&request.drv_path),
            mentioned.join(", ")
        );
        false
    }

    /// Holds the outputs against what their derivation demands.
    fn check_outputs(
        &self,
        request: &RegisterOutputs,
        infos: &BTreeMap<OutputName, PathInfo>,
    ) -> Result<(), RegisterError> {
        let roots = request.checks.closure_roots(infos);
        let known = if roots.is_empty() {
            BTreeMap::new()
        } else {
            self.readers
                .run_blocking(move |database| query::closure_infos(database, roots))?
        };
        let outputs = CheckedOutputs {
            new: infos,
            others: &request.other_outputs,
        };
        let store_dir = &self.layout.paths.store_dir;
        let rejection = request
            .checks
            .check(store_dir, outputs, &known)
            .map_err(|error| Error::DatabaseCorrupt {
                path: self.layout.state("db/db.sqlite"),
                reason: error.to_string(),
            })?;
        match rejection {
            None => Ok(()),
            Some(rejection) => Err(RegisterError::Rejected(rejection.to_string())),
        }
    }

    /// Makes an output's files share their contents with equal ones, if that is wanted.
    fn optimise_output(
        &mut self,
        request: &RegisterOutputs,
        scratch_path: &StorePath,
        source: &Source,
    ) -> Result<(), Error> {
        let path = self.logical_path(scratch_path);
        match source {
            Source::Copy(copy) => self.optimise_staged(copy, &path, &request.cancel),
            Source::Scratch => {
                let name = c_name(scratch_path.base_name());
                let dir = request.scratch.dir.as_fd();
                self.optimise((dir, &name), &path, &request.cancel)
            }
        }
    }

    /// Checks, copies where that is due, makes canonical, and reads all outputs. What is fixed has
    /// to be what was promised.
    pub(super) fn prepare_outputs<'a>(
        &mut self,
        request: &'a RegisterOutputs,
    ) -> Result<Vec<Ready<'a>>, Refusal> {
        let ready = self.read_outputs(request)?;
        self.check_promises(request, ready)
    }

    /// The same, whatever was promised.
    fn read_outputs<'a>(
        &mut self,
        request: &'a RegisterOutputs,
    ) -> Result<Vec<Ready<'a>>, RegisterError> {
        // Nothing is opened before all of them have been looked at.
        for output in &request.outputs {
            self.check_root(request, output)?;
        }
        let mut canonical = Canonical::new(&self.layout, request.builder_uid);
        let mut ready = Vec::with_capacity(request.outputs.len());
        let is_copied = request.scratch.is_exposed || !request.scratch.redirected.is_empty();
        for output in &request.outputs {
            let content_hash = |method, algorithm| ContentHash {
                method,
                algorithm,
                own_path: Some(&output.path),
                redirected: &[],
            };
            let content_hash = match output.kind {
                OutputKind::InputAddressed => None,
                OutputKind::Fixed { method, hash } => Some(content_hash(method, hash.algorithm())),
                OutputKind::Floating { method, algorithm } => Some(content_hash(method, algorithm)),
            };
            let is_fixed = matches!(output.kind, OutputKind::Fixed { .. });
            let prepared = if is_fixed || is_copied {
                self.read_copy(request, output, content_hash)
            } else {
                self.read_scratch(request, output, &mut canonical, content_hash)
            };
            ready.push(prepared.map_err(blame)?);
        }
        canonical.check_links().map_err(blame)?;
        Ok(ready)
    }

    /// Refuses an output that is missing or that others could have written to.
    fn check_root(
        &self,
        request: &RegisterOutputs,
        output: &ScratchOutput,
    ) -> Result<(), RegisterError> {
        let printed = self.layout.print(&output.path);
        let name = scratch_name(request, &output.path);
        let stat = match rustix::fs::statat(&request.scratch.dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                return Err(RegisterError::Rejected(format!(
                    "builder for '{}' failed to produce output path for output '{}' at '{printed}'",
                    self.layout.print(&request.drv_path),
                    output.name
                )));
            }
            Err(errno) => {
                let path = request.scratch.path.join(&*name.to_string_lossy());
                return Err(Error::file("looking at", path, errno).into());
            }
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let is_writable = file_type != FileType::Symlink && stat.st_mode & 0o022 != 0;
        if is_writable || stat.st_uid != request.builder_uid {
            return Err(RegisterError::Rejected(format!(
                "suspicious ownership or permission on '{printed}'; rejecting this build output"
            )));
        }
        let method = match output.kind {
            OutputKind::InputAddressed => return Ok(()),
            OutputKind::Fixed { method, .. } | OutputKind::Floating { method, .. } => method,
        };
        if method == IngestionMethod::Recursive || is_plain_file(&stat) {
            return Ok(());
        }
        Err(RegisterError::Rejected(format!(
            "output path '{printed}' should be a non-executable regular file since recursive \
             hashing is not enabled (outputHashMode=flat)"
        )))
    }

    fn read_scratch<'a>(
        &mut self,
        request: &RegisterOutputs,
        output: &'a ScratchOutput,
        canonical: &mut Canonical,
        content_hash: Option<ContentHash<'_>>,
    ) -> Result<Ready<'a>, Error> {
        let name = c_name(output.path.base_name());
        let none = BTreeSet::new();
        let contents = read_tree(
            request.scratch.dir.as_fd(),
            &name,
            &self.logical_path(&output.path),
            Question {
                metadata: Metadata::Set(canonical, self.content_sync),
                candidates: candidates(request, output, &none),
                content_hash,
                cancel: &request.cancel,
            },
            &mut self.buffer,
        )?;
        Ok(Ready {
            output,
            source: Source::Scratch,
            contents,
        })
    }

    /// A fixed output's builder had a network, and one without a sandbox every socket of the host,
    /// over which it may have handed out open files: only a copy is hashed and kept. So it is of
    /// what has to mention other paths than it does.
    fn read_copy<'a>(
        &mut self,
        request: &RegisterOutputs,
        output: &'a ScratchOutput,
        content_hash: Option<ContentHash<'_>>,
    ) -> Result<Ready<'a>, Error> {
        let owner = RequiredOwner::User(request.builder_uid);
        let copy = self.copy_from_scratch(request, &output.path, owner)?;
        let none = BTreeSet::new();
        let question = StagedQuestion {
            candidates: candidates(request, output, &none),
            content_hash,
            cancel: &request.cancel,
        };
        let path = self.logical_path(&output.path);
        let contents = self.read_staged(&copy, &path, question)?;
        Ok(Ready {
            output,
            source: Source::Copy(copy),
            contents,
        })
    }

    fn copy_from_scratch(
        &self,
        request: &RegisterOutputs,
        path: &StorePath,
        owner: RequiredOwner,
    ) -> Result<Staged, Error> {
        let from = Place {
            dir: request.scratch.dir.as_fd(),
            name: &scratch_name(request, path),
            path: &self.logical_path(path),
        };
        let redirected = request.scratch.redirected.iter();
        let pairs: Vec<(StorePath, StorePath)> = redirected
            .map(|(output, elsewhere)| (elsewhere.clone(), output.clone()))
            .collect();
        let mentions = if pairs.is_empty() {
            Mentions::Same
        } else {
            Mentions::Redirected(&pairs)
        };
        self.copy_redirected(from, owner, mentions, &request.cancel)
    }

    /// Refuses outputs that refer to each other in a circle.
    fn refuse_cycles(
        &self,
        request: &RegisterOutputs,
        ready: &[Ready<'_>],
    ) -> Result<(), RegisterError> {
        let outputs: BTreeMap<&StorePath, &OutputName> = ready
            .iter()
            .map(|ready| (&ready.output.path, &ready.output.name))
            .collect();
        let graph = ready
            .iter()
            .map(|ready| {
                let references = ready.contents.nar.references.iter();
                let siblings = references.filter_map(|path| outputs.get(path).copied());
                (&ready.output.name, siblings.collect())
            })
            .collect();
        match find_cycle(&graph) {
            None => Ok(()),
            Some((output, from)) => Err(RegisterError::Rejected(format!(
                "cycle detected in build of '{}' in the references of output '{output}' from \
                 output '{from}'",
                self.layout.print(&request.drv_path)
            ))),
        }
    }

    /// Moves all outputs into the store, or none of those that are new there; returns what the
    /// others have replaced.
    fn place_outputs(
        &mut self,
        request: &RegisterOutputs,
        ready: Vec<Ready<'_>>,
    ) -> Result<Vec<Displaced>, Error> {
        let mut displaced = Vec::new();
        let mut placed: Vec<StorePath> = Vec::new();
        for mut ready in ready {
            let path = ready.output.path.clone();
            let outcome = match request.occupied {
                Occupied::Refused => self.place_output(request, &mut ready).map(|()| None),
                Occupied::Repaired => self.repair_output(request, ready),
            };
            match outcome {
                Ok(None) => placed.push(path),
                Ok(Some(old)) => displaced.push(old),
                Err(error) => {
                    discard_all(&self.trash, &placed);
                    return Err(error);
                }
            }
        }
        Ok(displaced)
    }

    fn place_output(
        &mut self,
        request: &RegisterOutputs,
        ready: &mut Ready<'_>,
    ) -> Result<(), Error> {
        let path = &ready.output.path;
        match &mut ready.source {
            Source::Copy(copy) => return self.place_staged(copy, path),
            Source::Scratch => {}
        }
        let name = c_name(path.base_name());
        let dirs = (request.scratch.dir.as_fd(), self.layout.store.as_fd());
        match place::rename((dirs.0, &name), (dirs.1, &name)) {
            Ok(()) => Ok(()),
            Err(Errno::XDEV) => self.place_from_elsewhere(request, ready),
            Err(Errno::EXIST) => Err(Error::PathExists {
                path: self.layout.real_path(path),
            }),
            Err(errno) => Err(Error::file(
                "moving a build output to",
                self.layout.real_path(path),
                errno,
            )),
        }
    }

    /// Moves an output from another file system: by a copy, which must be the same.
    fn place_from_elsewhere(
        &mut self,
        request: &RegisterOutputs,
        ready: &Ready<'_>,
    ) -> Result<(), Error> {
        let path = &ready.output.path;
        let nar_hash = ready.contents.nar.nar_hash;
        let mut copy = self.copy_unchanged(request, path, nar_hash)?;
        self.place_staged(&mut copy, path)
    }

    /// Copies an output that has been read and made canonical, and sees that it is still the same.
    fn copy_unchanged(
        &mut self,
        request: &RegisterOutputs,
        scratch_path: &StorePath,
        nar_hash: NarHash,
    ) -> Result<Staged, Error> {
        let owner = RequiredOwner::User(self.layout.owner_uid);
        let copy = self.copy_from_scratch(request, scratch_path, owner)?;
        let path = self.logical_path(scratch_path);
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: &request.cancel,
        };
        let contents = self.read_staged(&copy, &path, question)?;
        if contents.nar.nar_hash != nar_hash {
            return Err(Error::file("copying", path, Errno::IO));
        }
        self.optimise_staged(&copy, &path, &request.cancel)?;
        Ok(copy)
    }
}

/// Returns the name under which a builder has made an output.
fn scratch_name(request: &RegisterOutputs, path: &StorePath) -> CString {
    let elsewhere = request.scratch.redirected.get(path);
    c_name(elsewhere.unwrap_or(path).base_name())
}

/// Returns the paths that are looked for in an output: `none` if its references are to be
/// discarded.
fn candidates<'a>(
    request: &'a RegisterOutputs,
    output: &ScratchOutput,
    none: &'a BTreeSet<StorePath>,
) -> &'a BTreeSet<StorePath> {
    if request.checks.discards_references(&output.name) {
        none
    } else {
        &request.reference_candidates
    }
}

fn references_of(ready: &Ready<'_>) -> References {
    let mut others = ready.contents.nar.references.clone();
    let to_self = others.remove(&ready.output.path);
    References { others, to_self }
}

fn is_plain_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o100 == 0
}

/// Tells what the builder did wrong from what went wrong with the store.
fn blame(error: Error) -> RegisterError {
    if let Error::Unarchivable { source, .. } = error {
        return RegisterError::Rejected(source.to_string());
    }
    let is_builders = matches!(
        error,
        Error::ForeignOwner { .. }
            | Error::ForeignLink { .. }
            | Error::UnsupportedFile { .. }
            | Error::TooDeep { .. }
    );
    if is_builders {
        RegisterError::Rejected(error.to_string())
    } else {
        error.into()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
