//! Registering outputs whose paths follow from what they contain.
//!
//! ```text
//! read all ─► whatever others mention comes first:
//!               hash ─► path ─► a copy that says this path where its builder had to say another ─┐
//! register  ◄─ move what is not valid ◄─ (the caller locks the paths, which may take a while) ◄──┘
//! ```
//!
//! A hash counts mentions of the output itself as nothing, so it does not change with the path that
//! follows from it. What mentions neither itself nor another output is moved as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use store_model::content_address::References;
use store_model::{ContentAddress, Hash, OutputName, PathInfo, StorePath};
use tokio::sync::oneshot;

use super::{Ready, Source, blame};
use crate::Error;
use crate::db::write::Registration;
use crate::ingest::copy::{Mentions, Place, RequiredOwner};
use crate::ingest::hash_scan::{ContentHash, Contents, Metadata, Question, read_tree};
use crate::ingest::{Ingest, Staged, StagedQuestion, discard_all, place};
use crate::messages::{OutputKind, RegisterError, RegisterFloatingOutputs, RegisterOutputs};
use crate::staging::{Staging, c_name};
use crate::writer::Commit;

/// Provisional paths, and the ones that there are in the end.
type Redirections = Vec<(StorePath, StorePath)>;

/// An output whose path is known now.
#[derive(Debug)]
pub(crate) struct SettledOutput {
    name: OutputName,
    /// The path that its builder was told.
    provisional: StorePath,
    /// What will be known of it.
    pub(crate) info: PathInfo,
    source: Source,
}

/// What there is already at the paths of floating outputs.
#[derive(Debug, Default)]
pub(crate) struct Present {
    /// The paths that are valid.
    pub(crate) valid: BTreeSet<StorePath>,
    /// Those of them whose contents are not what the database says, where they are to be repaired.
    pub(crate) broken: BTreeSet<StorePath>,
}

impl Ingest {
    /// Finds the paths of floating outputs, and makes those mention them that mention themselves.
    ///
    /// # Errors
    /// An output is not what a store may hold, or is forbidden by its derivation.
    pub(crate) fn settle_outputs(
        &mut self,
        request: &RegisterFloatingOutputs,
    ) -> Result<Vec<SettledOutput>, RegisterError> {
        let made = &request.made;
        let ready = self
            .prepare_outputs(made)
            .map_err(|refusal| refusal.error)?;
        self.refuse_cycles(made, &ready)?;
        let settled = request.settled.iter();
        let mut redirected: Redirections = settled
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        let mut outputs = Vec::with_capacity(ready.len());
        for ready in referred_to_first(ready) {
            let output = self.settle(made, ready, &redirected)?;
            redirected.push((output.provisional.clone(), output.info.path.clone()));
            outputs.push(output);
        }
        let infos = outputs
            .iter()
            .map(|output| (output.name.clone(), output.info.clone()))
            .collect();
        self.check_outputs(made, &infos)?;
        for output in &outputs {
            self.optimise_output(made, &output.provisional, &output.source)?;
        }
        made.cancel.check()?;
        Ok(outputs)
    }

    /// Finds one output's path, when those that it mentions have theirs.
    fn settle(
        &mut self,
        request: &RegisterOutputs,
        ready: Ready<'_>,
        redirected: &[(StorePath, StorePath)],
    ) -> Result<SettledOutput, RegisterError> {
        let OutputKind::Floating { method, algorithm } = ready.output.kind else {
            unreachable!("'{}' is not a floating output", ready.output.path);
        };
        let provisional = &ready.output.path;
        // References that are not to be recorded were not looked for, but may be there.
        let discards = request.checks.discards_references(&ready.output.name);
        let found = &ready.contents.nar.references;
        let mentions = |path: &StorePath| discards || found.contains(path);
        let mentioned = redirected.iter().filter(|(from, _)| mentions(from));
        let mut mentioned: Redirections = mentioned.cloned().collect();
        let content_hash = ContentHash {
            method,
            algorithm,
            own_path: Some(provisional),
            redirected: &mentioned,
        };
        let hash = self.hash_redirected(request, &ready, content_hash)?;
        let references = References {
            others: found
                .iter()
                .filter(|path| *path != provisional)
                .map(|path| redirect(path, redirected))
                .collect(),
            to_self: found.contains(provisional),
        };
        let address = ContentAddress { method, hash };
        let path = self.path_of(request, &ready, &address, &references)?;
        if mentions(provisional) {
            mentioned.push((provisional.clone(), path.clone()));
        }
        let (source, mut contents) = if mentioned.is_empty() {
            (ready.source, ready.contents)
        } else {
            let (copy, contents) = self.rewrite(request, &ready, &path, address, &mentioned)?;
            (Source::Copy(copy), contents)
        };
        contents.nar.references = references.others;
        if references.to_self {
            contents.nar.references.insert(path.clone());
        }
        Ok(SettledOutput {
            name: ready.output.name.clone(),
            provisional: provisional.clone(),
            info: self.built_info(request, path, &contents, Some(address)),
            source,
        })
    }

    /// Returns the hash of contents, as if they mentioned the paths that there are.
    fn hash_redirected(
        &mut self,
        request: &RegisterOutputs,
        ready: &Ready<'_>,
        content_hash: ContentHash<'_>,
    ) -> Result<Hash, RegisterError> {
        let path = self.logical_path(&ready.output.path);
        let hash = if content_hash.redirected.is_empty() {
            ready.contents.content_hash
        } else {
            let question = Question {
                metadata: Metadata::Keep,
                candidates: &BTreeSet::new(),
                content_hash: Some(content_hash),
                cancel: &request.cancel,
            };
            let staging = Arc::clone(&self.trash.staging);
            let (dir, name) = place_of(request, ready, &staging);
            read_tree(dir, &name, &path, question, &mut self.buffer)?.content_hash
        };
        hash.ok_or_else(|| Error::file("hashing", path, Errno::IO).into())
    }

    /// Returns the path that follows from an output's contents.
    fn path_of(
        &self,
        request: &RegisterOutputs,
        ready: &Ready<'_>,
        address: &ContentAddress,
        references: &References,
    ) -> Result<StorePath, RegisterError> {
        let name = ready.output.path.name();
        self.layout
            .paths
            .store_dir
            .make_content_addressed_path(address, name, references)
            .map_err(|error| {
                RegisterError::Rejected(format!(
                    "output '{}' of '{}' has no path: {error}",
                    ready.output.name,
                    self.layout.print(&request.drv_path)
                ))
            })
    }

    /// Makes a copy of an output that mentions the paths that there are.
    fn rewrite(
        &mut self,
        request: &RegisterOutputs,
        ready: &Ready<'_>,
        path: &StorePath,
        address: ContentAddress,
        mentioned: &[(StorePath, StorePath)],
    ) -> Result<(Staged, Contents), RegisterError> {
        let printed = self.logical_path(path);
        let staging = Arc::clone(&self.trash.staging);
        let (dir, name) = place_of(request, ready, &staging);
        let from = Place {
            dir,
            name: &name,
            path: &printed,
        };
        // It has been made canonical.
        let owner = RequiredOwner::User(self.layout.owner_uid);
        let mentions = Mentions::Redirected(mentioned);
        let copy = self.copy_redirected(from, owner, mentions, &request.cancel)?;
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: Some(ContentHash {
                method: address.method,
                algorithm: address.hash.algorithm(),
                own_path: Some(path),
                redirected: &[],
            }),
            cancel: &request.cancel,
        };
        let contents = self.read_staged(&copy, &printed, question).map_err(blame)?;
        if contents.content_hash == Some(address.hash) {
            return Ok((copy, contents));
        }
        // The order of names may have changed with them.
        Err(RegisterError::Rejected(format!(
            "output '{}' of '{}' is another one once it mentions the path '{}' that follows from \
             its contents",
            ready.output.name,
            self.layout.print(&request.drv_path),
            printed.display()
        )))
    }

    /// Moves outputs to their paths, whose locks the caller holds, but for those that are valid and
    /// not broken, and has all of them registered.
    pub(crate) fn register_settled(
        &mut self,
        request: &RegisterOutputs,
        mut outputs: Vec<SettledOutput>,
        present: &Present,
        reply: oneshot::Sender<Result<BTreeMap<OutputName, StorePath>, RegisterError>>,
    ) {
        let mut placed = Vec::new();
        for output in &mut outputs {
            let path = &output.info.path;
            let is_new = !present.valid.contains(path);
            if !is_new && !present.broken.contains(path) {
                continue;
            }
            if let Err(error) = self.place_settled(request, output) {
                discard_all(&self.trash, &placed);
                let _listener_gone = reply.send(Err(error.into()));
                return;
            }
            if is_new {
                placed.push(output.info.path.clone());
            }
        }
        let infos: BTreeMap<OutputName, PathInfo> = outputs
            .into_iter()
            .map(|output| (output.name, output.info))
            .collect();
        let realisations = self.realisations(request, &infos);
        let registration = |info: &PathInfo| Registration {
            info: info.clone(),
            derivation_outputs: Vec::new(),
        };
        let registrations = infos.values().map(registration).collect();
        let trash = self.trash.clone();
        let good_paths = self.good_paths.clone();
        let done = Box::new(move |outcome: Result<(), Error>| {
            if outcome.is_err() {
                // What was valid before stays so.
                discard_all(&trash, &placed);
            } else {
                for info in infos.values() {
                    good_paths.set(info.path.clone(), true);
                }
            }
            let paths = infos.into_iter().map(|(name, info)| (name, info.path));
            let answer = outcome.map(|()| paths.collect());
            // A cancelled goal no longer listens; the paths are valid all the same.
            let _listener_gone = reply.send(answer.map_err(RegisterError::from));
        });
        self.commits.submit_blocking(Commit {
            registrations,
            realisations,
            signatures: BTreeMap::new(),
            done,
        });
    }

    /// Moves an output to its path, where something invalid or broken may still lie.
    fn place_settled(
        &mut self,
        request: &RegisterOutputs,
        output: &mut SettledOutput,
    ) -> Result<(), Error> {
        let path = &output.info.path;
        let mut copy = match &mut output.source {
            Source::Copy(copy) => return self.replace(copy, path),
            Source::Scratch => {
                let name = c_name(output.provisional.base_name());
                let to = c_name(path.base_name());
                let rename = || {
                    let scratch = request.scratch.dir.as_fd();
                    place::rename((scratch, &name), (self.layout.store.as_fd(), &to))
                };
                let moved = match rename() {
                    Err(Errno::EXIST) => {
                        // What is broken goes with the directory of the builder.
                        let scratch = request.scratch.dir.as_fd();
                        let store = self.layout.store.as_fd();
                        match place::exchange((scratch, &name), (store, &to)) {
                            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                                self.trash.discard(path)?;
                                rename()
                            }
                            outcome => outcome,
                        }
                    }
                    outcome => outcome,
                };
                match moved {
                    Ok(()) => return Ok(()),
                    Err(Errno::XDEV) => {
                        let nar_hash = output.info.nar_hash;
                        self.copy_unchanged(request, &output.provisional, nar_hash)?
                    }
                    Err(errno) => {
                        let real_path = self.layout.real_path(path);
                        return Err(Error::file("moving a build output to", real_path, errno));
                    }
                }
            }
        };
        self.replace(&mut copy, path)
    }
}

/// Returns where an output lies that has been made canonical and read.
fn place_of<'a>(
    request: &'a RegisterOutputs,
    ready: &Ready<'_>,
    staging: &'a Staging,
) -> (BorrowedFd<'a>, CString) {
    match &ready.source {
        Source::Copy(copy) => (staging.dir(), copy.name.clone()),
        Source::Scratch => {
            let name = c_name(ready.output.path.base_name());
            (request.scratch.dir.as_fd(), name)
        }
    }
}

/// Returns what a path is in the end.
fn redirect(path: &StorePath, redirected: &[(StorePath, StorePath)]) -> StorePath {
    let found = redirected.iter().find(|(from, _)| from == path);
    found.map_or(path, |(_, to)| to).clone()
}

/// Puts outputs in such an order that each comes after those that it refers to; there are no
/// circles.
fn referred_to_first(ready: Vec<Ready<'_>>) -> Vec<Ready<'_>> {
    let idx_of: BTreeMap<StorePath, usize> = ready
        .iter()
        .enumerate()
        .map(|(idx, ready)| (ready.output.path.clone(), idx))
        .collect();
    let mut ready: Vec<Option<Ready<'_>>> = ready.into_iter().map(Some).collect();
    let mut is_seen = vec![false; ready.len()];
    let mut ordered = Vec::with_capacity(ready.len());
    for first in 0..ready.len() {
        let mut stack = vec![(first, Visit::Enter)];
        while let Some((idx, visit)) = stack.pop() {
            match visit {
                Visit::Leave => ordered.extend(ready[idx].take()),
                Visit::Enter if std::mem::replace(&mut is_seen[idx], true) => {}
                Visit::Enter => {
                    stack.push((idx, Visit::Leave));
                    let references = ready[idx].iter().flat_map(|it| &it.contents.nar.references);
                    let siblings = references.filter_map(|path| idx_of.get(path));
                    stack.extend(siblings.map(|idx| (*idx, Visit::Enter)));
                }
            }
        }
    }
    ordered
}

/// Which side of what it refers to a walk is on.
#[derive(Clone, Copy)]
enum Visit {
    Enter,
    Leave,
}
