//! Comparing what a builder has left with what is valid, or with what an earlier round left.
//!
//! Nothing becomes valid here, and nothing that is valid is touched but for its row: an output that
//! was made here again, bit by bit, is `ultimate` from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use store_model::nar::diff;
use store_model::{NarHash, OutputName, PathInfo, StorePath};
use tokio::sync::oneshot;

use super::copy::{Place, RequiredOwner};
use super::open_tree::open_tree;
use super::outputs::{Ready, Source};
use super::{Ingest, Staged, StagedQuestion, place};
use crate::db::write::Registration;
use crate::messages::{
    Comparand, CompareOutputs, Compared, DifferingOutputs, OutputDifference, RegisterError,
    ScratchStore,
};
use crate::staging::c_name;
use crate::writer::Commit;
use crate::{CancelFlag, Error};

/// What is appended to a path's name for what differs from it, as Nix does.
const CHECK_SUFFIX: &str = ".check";

/// How many differences are told of one output: more would bury the first ones.
const MAX_DIFFERENCES: usize = 20;

/// What one round of a build has made, kept for the rounds that follow and deleted when this is
/// dropped.
#[derive(Debug)]
pub struct RoundOutputs {
    outputs: BTreeMap<OutputName, RoundOutput>,
}

#[derive(Debug)]
struct RoundOutput {
    staged: Staged,
    nar_hash: NarHash,
}

/// Where a tree is.
struct Tree<'a> {
    dir: BorrowedFd<'a>,
    name: CString,
    path: PathBuf,
}

impl Ingest {
    /// Compares a build's outputs and answers through `reply`; `valid` is what the database says of
    /// those that are valid.
    pub(crate) fn compare_outputs(
        &mut self,
        request: CompareOutputs,
        valid: &[PathInfo],
        reply: oneshot::Sender<Result<Compared, RegisterError>>,
    ) {
        let compared = self.compare(request, valid);
        let (compared, confirmed) = match compared {
            Ok(compared) => compared,
            Err(error) => {
                let _listener_gone = reply.send(Err(error));
                return;
            }
        };
        if confirmed.is_empty() {
            let _listener_gone = reply.send(Ok(compared));
            return;
        }
        // These paths stay valid whatever becomes of the transaction, so unlike a registration that
        // fails this one takes nothing out of the store.
        let done = Box::new(move |outcome: Result<(), Error>| {
            let _listener_gone = reply.send(outcome.map(|()| compared).map_err(Into::into));
        });
        self.commits.submit_blocking(Commit {
            registrations: confirmed,
            realisations: Vec::new(),
            signatures: BTreeMap::new(),
            done,
        });
    }

    fn compare(
        &mut self,
        request: CompareOutputs,
        valid: &[PathInfo],
    ) -> Result<(Compared, Vec<Registration>), RegisterError> {
        let CompareOutputs {
            candidate,
            with,
            differing,
        } = request;
        // A mismatching output is only refused: the valid one stays what it is.
        let ready = self
            .prepare_outputs(&candidate)
            .map_err(|refusal| refusal.error)?;
        let cancel = &candidate.cancel;
        cancel.check()?;
        let made = Made {
            scratch: &candidate.scratch,
            differing,
            cancel,
        };
        let mut compared = Compared {
            differences: Vec::new(),
            round: None,
            owner_uid: self.layout.owner_uid,
        };
        let mut confirmed = Vec::new();
        match with {
            Comparand::Nothing => {
                let mut outputs = BTreeMap::new();
                for ready in ready {
                    let name = ready.output.name.clone();
                    let kept = RoundOutput {
                        nar_hash: ready.contents.nar.nar_hash,
                        staged: self.take_in(made.scratch, ready, cancel)?,
                    };
                    outputs.insert(name, kept);
                }
                compared.round = Some(RoundOutputs { outputs });
            }
            Comparand::Round(mut earlier) => {
                for ready in ready {
                    let difference = self.compare_with_round(&made, ready, &mut earlier)?;
                    compared.differences.extend(difference);
                }
                compared.round = compared.differences.is_empty().then_some(earlier);
            }
            Comparand::Valid => {
                for ready in ready {
                    let path = &ready.output.path;
                    let Some(info) = valid.iter().find(|info| info.path == *path) else {
                        let path = self.layout.print(path);
                        return Err(Error::InvalidPath { path }.into());
                    };
                    if info.nar_hash != ready.contents.nar.nar_hash {
                        let difference = self.compare_with_valid(&made, ready)?;
                        compared.differences.push(difference);
                    } else if !info.ultimate {
                        confirmed.push(self.confirmation(info));
                    }
                }
            }
        }
        Ok((compared, confirmed))
    }

    fn compare_with_round(
        &mut self,
        made: &Made<'_>,
        ready: Ready<'_>,
        earlier: &mut RoundOutputs,
    ) -> Result<Option<OutputDifference>, Error> {
        let output = ready.output;
        let is_other = |earlier: &RoundOutput| earlier.nar_hash != ready.contents.nar.nar_hash;
        let Some(earlier) = earlier
            .outputs
            .get_mut(&output.name)
            .filter(|it| is_other(it))
        else {
            return Ok(None);
        };
        let trees = (
            self.staged_tree(&earlier.staged),
            self.made_tree(made, &ready),
        );
        let summary = summarise(&trees.0, &trees.1, made.cancel)?;
        let kept_at = match made.differing {
            DifferingOutputs::Discard => None,
            DifferingOutputs::Keep => Some(self.place_check(&mut earlier.staged, &output.path)?),
            DifferingOutputs::Show => {
                let mut later = self.take_in(made.scratch, ready, made.cancel)?;
                self.place_staged(&mut later, &output.path)?;
                Some(self.place_check(&mut earlier.staged, &output.path)?)
            }
        };
        Ok(Some(OutputDifference {
            name: output.name.clone(),
            output: self.layout.real_path(&output.path),
            kept_at,
            summary,
        }))
    }

    fn compare_with_valid(
        &mut self,
        made: &Made<'_>,
        ready: Ready<'_>,
    ) -> Result<OutputDifference, Error> {
        let output = ready.output;
        let real_path = self.layout.real_path(&output.path);
        let valid = Tree {
            dir: self.layout.store.as_fd(),
            name: c_name(output.path.base_name()),
            path: real_path.clone(),
        };
        let summary = summarise(&valid, &self.made_tree(made, &ready), made.cancel)?;
        let kept_at = match made.differing {
            DifferingOutputs::Discard => None,
            DifferingOutputs::Keep | DifferingOutputs::Show => {
                let mut later = self.take_in(made.scratch, ready, made.cancel)?;
                Some(self.place_check(&mut later, &output.path)?)
            }
        };
        Ok(OutputDifference {
            name: output.name.clone(),
            output: real_path,
            kept_at,
            summary,
        })
    }

    /// Takes an output out of the directory that its builder had, which may go then.
    pub(super) fn take_in(
        &mut self,
        scratch: &ScratchStore,
        ready: Ready<'_>,
        cancel: &CancelFlag,
    ) -> Result<Staged, Error> {
        let path = &ready.output.path;
        if let Source::Copy(copy) = ready.source {
            return Ok(copy);
        }
        let name = c_name(path.base_name());
        let printed = self.logical_path(path);
        let mut staged = Staged::new(self.trash.clone());
        match place::rename(
            (scratch.dir.as_fd(), &name),
            (self.trash.staging.dir(), &staged.name),
        ) {
            Ok(()) => return Ok(staged),
            // Nothing has been made under its name.
            Err(Errno::XDEV) => staged.is_there = false,
            Err(errno) => {
                staged.is_there = false;
                return Err(Error::file("putting aside", printed, errno));
            }
        }
        let from = Place {
            dir: scratch.dir.as_fd(),
            name: &name,
            path: &printed,
        };
        let owner = RequiredOwner::User(self.layout.owner_uid);
        let copy = self.copy_in(from, owner, cancel)?;
        // A fresh copy has fresh metadata.
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel,
        };
        let contents = self.read_staged(&copy, &printed, question)?;
        if contents.nar.nar_hash != ready.contents.nar.nar_hash {
            return Err(Error::file("copying", printed, Errno::IO));
        }
        Ok(copy)
    }

    /// Puts an output beside the one that it differs from, in place of an older one of that name.
    fn place_check(&self, staged: &mut Staged, path: &StorePath) -> Result<PathBuf, Error> {
        let base_name = format!("{}{CHECK_SUFFIX}", path.base_name());
        let name = c_name(&base_name);
        let check_path = self.layout.paths.real_store_dir.join(&base_name);
        self.trash.discard_named(&name, &check_path)?;
        let from = (self.trash.staging.dir(), &*staged.name);
        place::rename(from, (self.layout.store.as_fd(), &name))
            .map_err(|errno| Error::file("moving an output to", &check_path, errno))?;
        staged.is_there = false;
        Ok(check_path)
    }

    /// Returns what is written of an output that was made here again as it was: it is as good as
    /// built here, so it is signed as that.
    fn confirmation(&self, info: &PathInfo) -> Registration {
        let mut info = PathInfo {
            ultimate: true,
            ..info.clone()
        };
        self.sign(&mut info);
        Registration {
            info,
            derivation_outputs: Vec::new(),
        }
    }

    fn staged_tree(&self, staged: &Staged) -> Tree<'_> {
        Tree {
            dir: self.trash.staging.dir(),
            name: staged.name.clone(),
            path: self.trash.staging.path_of(&staged.name),
        }
    }

    fn made_tree<'a>(&'a self, made: &Made<'a>, ready: &Ready<'_>) -> Tree<'a> {
        match &ready.source {
            Source::Copy(copy) => self.staged_tree(copy),
            Source::Scratch => Tree {
                dir: made.scratch.dir.as_fd(),
                name: c_name(ready.output.path.base_name()),
                path: self.logical_path(&ready.output.path),
            },
        }
    }
}

/// What a builder has made, and what becomes of it.
struct Made<'a> {
    scratch: &'a ScratchStore,
    differing: DifferingOutputs,
    cancel: &'a CancelFlag,
}

/// Finds where two trees differ. That they do is known by then: what cannot be read is only said.
fn summarise(earlier: &Tree<'_>, later: &Tree<'_>, cancel: &CancelFlag) -> Result<String, Error> {
    let open = |tree: &Tree<'_>| open_tree(tree.dir, &tree.name, cancel);
    let compared = open(earlier)
        .map_err(|error| (earlier, error))
        .and_then(|root| Ok((root, open(later).map_err(|error| (later, error))?)));
    let differences = match compared {
        Ok((earlier, later)) => diff::diff(earlier, later, MAX_DIFFERENCES),
        Err((tree, error)) => {
            let path = tree.path.display();
            return Ok(format!("the files cannot be compared: '{path}': {error}"));
        }
    };
    cancel.check()?;
    Ok(match differences {
        Ok(differences) if differences.is_empty() => {
            // What is on the disk is what has just been made, and not what was registered.
            "the files are the same: what lies in the store was changed after it was registered"
                .to_owned()
        }
        Ok(differences) => differences.to_string(),
        Err(error) => format!("the files cannot be compared: {error}"),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
