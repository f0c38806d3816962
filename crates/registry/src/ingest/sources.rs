//! Adding texts and source trees, which are named after their contents.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use store_model::content_address::References;
use store_model::derivation::IngestionMethod;
use store_model::{ContentAddress, Hash, HashAlgorithm, OutputName, PathInfo, StorePath};
use tokio::sync::oneshot;

use super::copy::{Place, RequiredOwner, write_all};
use super::hash_scan::{ContentHash, Contents};
use super::{Ingest, Staged, StagedQuestion, place};
use crate::db::write::{Registration, unix_time};
use crate::layout::Layout;
use crate::messages::AddPath;
use crate::staging::c_name;
use crate::tree::describe;
use crate::{CancelFlag, Error};

/// A text and the path that follows from it.
#[derive(Debug, Clone)]
pub(crate) struct NewText {
    pub(crate) path: StorePath,
    pub(crate) contents: Vec<u8>,
    pub(crate) references: BTreeSet<StorePath>,
    /// Of a derivation, the outputs whose paths are known.
    pub(crate) derivation_outputs: Vec<(OutputName, StorePath)>,
    content_hash: Hash,
}

impl NewText {
    /// Names a text.
    ///
    /// # Errors
    /// The name is not allowed.
    pub(crate) fn new(
        layout: &Layout,
        name: &str,
        contents: Vec<u8>,
        references: BTreeSet<StorePath>,
    ) -> Result<Self, Error> {
        let content_hash = Hash::digest(HashAlgorithm::Sha256, &contents);
        let path = layout
            .paths
            .store_dir
            .make_text_path(name, &content_hash, &references)
            .map_err(|source| Error::Name {
                name: name.to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self {
            path,
            contents,
            references,
            derivation_outputs: Vec::new(),
            content_hash,
        })
    }
}

/// A source tree that has been copied, and the path that follows from its contents.
#[derive(Debug)]
pub(crate) struct NamedSource {
    pub(crate) path: StorePath,
    staged: Staged,
    contents: Contents,
    address: ContentAddress,
}

impl Ingest {
    /// Puts a text in its place, whose lock the caller holds, and has it registered.
    pub(crate) fn add_text(&mut self, text: NewText, reply: oneshot::Sender<Result<(), Error>>) {
        match self.place_text(&text) {
            Ok(contents) => {
                let address = ContentAddress {
                    method: IngestionMethod::Text,
                    hash: text.content_hash,
                };
                let info = source_info(text.path, &contents, text.references, address);
                let registration = Registration {
                    info,
                    derivation_outputs: text.derivation_outputs,
                };
                self.commit(vec![registration], Vec::new(), (), reply);
            }
            Err(error) => {
                let _listener_gone = reply.send(Err(error));
            }
        }
    }

    fn place_text(&mut self, text: &NewText) -> Result<Contents, Error> {
        let mut staged = Staged::new(self.trash.clone());
        let path = self.trash.staging.path_of(&staged.name);
        let failed = |errno| Error::file("writing", &path, errno);
        let file: OwnedFd = rustix::fs::openat(
            self.trash.staging.dir(),
            &*staged.name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(failed)?;
        write_all(&file, &text.contents).map_err(failed)?;
        drop(file);
        let logical = self.logical_path(&text.path);
        // A text is small, and adding it is worth finishing.
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: &CancelFlag::default(),
        };
        let contents = self.read_staged(&staged, &logical, question)?;
        self.optimise_staged(&staged, &logical, &CancelFlag::default())?;
        self.replace(&mut staged, &text.path)?;
        Ok(contents)
    }

    /// Copies a source tree, and finds its path.
    ///
    /// # Errors
    /// The source is not what the method needs, cannot be copied, or its name is not allowed; or the
    /// registry stops.
    pub(crate) fn copy_source(&mut self, request: &AddPath) -> Result<NamedSource, Error> {
        let (dir, name) = open_parent(&request.source)?;
        if request.method != IngestionMethod::Recursive {
            check_plain(&dir, &name, &request.source)?;
        }
        let from = Place {
            dir: std::os::fd::AsFd::as_fd(&dir),
            name: &name,
            path: &request.source,
        };
        let staged = self.copy_in(from, RequiredOwner::Anybody, &self.stopping)?;
        if request.method != IngestionMethod::Recursive {
            // The hash of bare contents does not tell whether they may be executed.
            self.make_plain(&staged)?;
        }
        let algorithm = request.algorithm;
        let method = request.method;
        let stopping = self.stopping.clone();
        let question = StagedQuestion {
            candidates: &BTreeSet::new(),
            content_hash: Some(ContentHash {
                method,
                algorithm,
                own_path: None,
                redirected: &[],
            }),
            cancel: &stopping,
        };
        let contents = self.read_staged(&staged, &request.source, question)?;
        let hash = contents
            .content_hash
            .unwrap_or_else(|| contents.nar.nar_hash.to_hash());
        let address = ContentAddress { method, hash };
        let path = self
            .layout
            .paths
            .store_dir
            .make_content_addressed_path(&address, &request.name, &References::default())
            .map_err(|source| Error::Name {
                name: request.name.clone(),
                source: Box::new(source),
            })?;
        Ok(NamedSource {
            path,
            staged,
            contents,
            address,
        })
    }

    /// Puts a copied source in its place, whose lock the caller holds, and has it registered.
    pub(crate) fn add_source(
        &mut self,
        mut source: NamedSource,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        let path = self.logical_path(&source.path);
        let stopping = self.stopping.clone();
        let placed = self
            .optimise_staged(&source.staged, &path, &stopping)
            .and_then(|()| self.replace(&mut source.staged, &source.path));
        if let Err(error) = placed {
            let _listener_gone = reply.send(Err(error));
            return;
        }
        let NamedSource {
            path,
            contents,
            address,
            ..
        } = source;
        let registration = Registration {
            info: source_info(path, &contents, BTreeSet::new(), address),
            derivation_outputs: Vec::new(),
        };
        self.commit(vec![registration], Vec::new(), (), reply);
    }

    /// Moves something to its place, where something invalid may still lie.
    pub(super) fn replace(&self, staged: &mut Staged, path: &StorePath) -> Result<(), Error> {
        match self.place_staged(staged, path) {
            Err(Error::PathExists { .. }) => {
                let ours = (self.trash.staging.dir(), &*staged.name);
                let name = c_name(path.base_name());
                // What lay there is ours then, and is deleted.
                if place::exchange(ours, (self.layout.store.as_fd(), &name)).is_ok() {
                    return Ok(());
                }
                self.trash.discard(path)?;
                self.place_staged(staged, path)
            }
            outcome => outcome,
        }
    }

    fn make_plain(&self, staged: &Staged) -> Result<(), Error> {
        rustix::fs::chmodat(
            self.trash.staging.dir(),
            &*staged.name,
            Mode::RUSR | Mode::WUSR,
            AtFlags::empty(),
        )
        .map_err(|errno| {
            let path = self.trash.staging.path_of(&staged.name);
            Error::file("setting permissions of", path, errno)
        })
    }
}

fn source_info(
    path: StorePath,
    contents: &Contents,
    references: BTreeSet<StorePath>,
    address: ContentAddress,
) -> PathInfo {
    PathInfo {
        path,
        nar_hash: contents.nar.nar_hash,
        nar_size_bytes: contents.nar.nar_size_bytes,
        references,
        deriver: None,
        registration_time: unix_time(),
        ultimate: false,
        signatures: BTreeSet::new(),
        content_address: Some(address.to_string()),
    }
}

/// Opens the directory that has the source, and returns the source's name in it.
fn open_parent(source: &Path) -> Result<(OwnedFd, CString), Error> {
    let (dir, name) = match (source.parent(), source.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
        (Some(parent), Some(name)) => (parent, name),
        // "/", "." and "..", which end in no name of their own.
        _ => (source, ".".as_ref()),
    };
    let opened = rustix::fs::openat(
        CWD,
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::file("opening", dir, errno))?;
    let name = CString::new(name.as_bytes())
        .map_err(|error| Error::file("opening", source, std::io::Error::from(error)))?;
    Ok((opened, name))
}

/// Checks that a source has contents but no structure.
fn check_plain(dir: &OwnedFd, name: &CString, source: &Path) -> Result<(), Error> {
    let stat = rustix::fs::statat(dir, &**name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::file("looking at", source, errno))?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type == FileType::RegularFile {
        return Ok(());
    }
    Err(Error::UnsupportedFile {
        path: source.to_owned(),
        kind: describe(file_type),
    })
}
