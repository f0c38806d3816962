//! What lies in the store and is said to be something: looked at, or believed; and signatures, which
//! are said of what is valid.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;

use rustix::fs::AtFlags;
use store_model::{NarHash, PathInfo, StorePath};
use tokio::sync::oneshot;

use super::Ingest;
use super::canonical::Canonical;
use super::hash_scan::{Metadata, Question, read_tree};
use crate::Error;
use crate::db::write::Registration;
use crate::messages::PresentPath;
use crate::staging::c_name;
use crate::writer::Commit;

impl Ingest {
    /// Makes the metadata of something in the store canonical, whoever owns it, and reads it.
    ///
    /// # Errors
    /// It is not there or cannot be read, no store may hold it, or it is not what it is said to be.
    pub(crate) fn read_present(&mut self, present: PresentPath) -> Result<PathInfo, Error> {
        let mut canonical = Canonical::of_anybody(&self.layout);
        let question = Question {
            metadata: Metadata::Set(&mut canonical, self.content_sync),
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: &self.stopping,
        };
        let name = c_name(present.path.base_name());
        let logical_path = self.logical_path(&present.path);
        let store = self.layout.store.as_fd();
        let contents = read_tree(store, &name, &logical_path, question, &mut self.buffer)?;
        let got = (contents.nar.nar_hash, contents.nar.nar_size_bytes);
        match present.nar {
            Some(said) if said != got => Err(Error::OtherContents {
                path: self.layout.print(&present.path),
                wanted: describe(said),
                got: describe(got),
            }),
            Some(_) | None => Ok(info(present, got)),
        }
    }

    /// Believes what is said of something in the store, or else reads it as it is.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub(crate) fn trust_present(&mut self, present: PresentPath) -> Result<PathInfo, Error> {
        let name = c_name(present.path.base_name());
        let logical_path = self.logical_path(&present.path);
        let store = self.layout.store.as_fd();
        rustix::fs::statat(store, &*name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Error::file("looking at", &logical_path, errno))?;
        if let Some(said) = present.nar {
            return Ok(info(present, said));
        }
        let question = Question {
            metadata: Metadata::Keep,
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: &self.stopping,
        };
        let contents = read_tree(store, &name, &logical_path, question, &mut self.buffer)?;
        Ok(info(
            present,
            (contents.nar.nar_hash, contents.nar.nar_size_bytes),
        ))
    }

    /// Has what lies in the store registered. It stays there if that fails: it was there before.
    pub(crate) fn register_present(
        &self,
        registrations: Vec<Registration>,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        self.commits.submit_blocking(Commit {
            registrations,
            realisations: Vec::new(),
            signatures: BTreeMap::new(),
            done: Box::new(move |outcome| {
                let _listener_gone = reply.send(outcome);
            }),
        });
    }

    /// Has signatures added to those of valid paths.
    pub(crate) fn add_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<String>>,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        self.commits.submit_blocking(Commit {
            registrations: Vec::new(),
            realisations: Vec::new(),
            signatures,
            done: Box::new(move |outcome| {
                let _listener_gone = reply.send(outcome);
            }),
        });
    }
}

fn info(present: PresentPath, (nar_hash, nar_size_bytes): (NarHash, u64)) -> PathInfo {
    PathInfo {
        path: present.path,
        nar_hash,
        nar_size_bytes,
        references: present.references,
        deriver: present.deriver,
        registration_time: 0,
        ultimate: false,
        signatures: BTreeSet::new(),
        content_address: None,
    }
}

fn describe((nar_hash, nar_size_bytes): (NarHash, u64)) -> String {
    format!("{}, {nar_size_bytes} bytes", nar_hash.to_hash().to_sri())
}
