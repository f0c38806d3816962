//! One cache that is written: which paths are on their way, and who waits for them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, AsyncContext as _, Context, Handler, Message, ResponseFuture};
use store_model::StorePath;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::messages::{PrepareCache, QueryPresent, StopWriter, UploadError, UploadPath, Uploaded};
use crate::publications::Publications;
use crate::runtime::Engine;
use crate::transport::{Publication, ShelfError};
use crate::upload::Uploader;

/// Sent by the task that packed a path.
#[derive(Message)]
#[rtype(result = "()")]
struct PackEnded {
    path: StorePath,
    result: Result<(Publication, Uploaded), UploadError>,
}

/// Sent by the task that asked what the cache has.
#[derive(Message)]
#[rtype(result = "()")]
struct PresenceHeard {
    present: BTreeSet<StorePath>,
}

/// Sent by the task that published paths.
#[derive(Message)]
#[rtype(result = "()")]
struct PublishEnded {
    paths: Vec<StorePath>,
    result: Result<(), Arc<ShelfError>>,
}

/// Writes one cache.
#[derive(Debug)]
pub struct CacheWriter {
    uploader: Arc<Uploader>,
    /// `None` once stopped.
    engine: Option<Engine>,
    publications: Publications,
    /// What lacks nothing but to be published.
    packed: HashMap<StorePath, (Publication, Uploaded)>,
    askers: HashMap<StorePath, Asker>,
    present: HashSet<StorePath>,
}

#[derive(Debug)]
struct Asker {
    reply: oneshot::Sender<Result<Uploaded, UploadError>>,
    /// Known once it is packed.
    uploaded: Option<Uploaded>,
}

impl CacheWriter {
    pub(crate) fn new(uploader: Uploader, engine: Engine) -> Self {
        Self {
            uploader: Arc::new(uploader),
            engine: Some(engine),
            publications: Publications::default(),
            packed: HashMap::new(),
            askers: HashMap::new(),
            present: HashSet::new(),
        }
    }

    fn runtime(&self) -> Result<Handle, UploadError> {
        let engine = self.engine.as_ref().ok_or(UploadError::Stopped)?;
        Ok(engine.handle())
    }

    /// Takes a path on, and has it packed.
    fn begin(
        &mut self,
        request: UploadPath,
        reply: oneshot::Sender<Result<Uploaded, UploadError>>,
        ctx: &Context<Self>,
    ) -> Result<(), (oneshot::Sender<Result<Uploaded, UploadError>>, UploadError)> {
        let runtime = match self.check(&request) {
            Ok(runtime) => runtime,
            Err(error) => return Err((reply, error)),
        };
        let path = request.info.path.clone();
        self.publications.announce(&path, &request.info.references);
        let asker = Asker {
            reply,
            uploaded: None,
        };
        self.askers.insert(path.clone(), asker);
        let (uploader, writer) = (Arc::clone(&self.uploader), ctx.address());
        runtime.spawn(async move {
            let result = uploader.pack(request.info, request.contents).await;
            writer.do_send(PackEnded { path, result });
        });
        Ok(())
    }

    fn check(&self, request: &UploadPath) -> Result<Handle, UploadError> {
        let runtime = self.runtime()?;
        let print = |path| self.uploader.store_dir.print(path);
        let info = &request.info;
        if self.publications.contain(&info.path) {
            return Err(UploadError::Repeated {
                path: print(&info.path),
            });
        }
        let is_missing = |reference: &&StorePath| {
            **reference != info.path
                && !self.present.contains(*reference)
                && !self.publications.contain(reference)
        };
        match info.references.iter().find(is_missing) {
            Some(missing) => Err(self.reference_missing(&info.path, missing)),
            None => Ok(runtime),
        }
    }

    fn reference_missing(&self, path: &StorePath, reference: &StorePath) -> UploadError {
        UploadError::ReferenceMissing {
            path: self.uploader.store_dir.print(path),
            reference: self.uploader.store_dir.print(reference),
            cache: Arc::clone(&self.uploader.name),
        }
    }

    /// Publishes whatever can be published.
    fn publish(&mut self, ctx: &Context<Self>) {
        // Once stopped nothing is published any more.
        let Ok(runtime) = self.runtime() else { return };
        let grouping = self.uploader.shelf.grouping();
        let ready = self.publications.take_ready(grouping);
        let group_len = match grouping {
            crate::publications::Grouping::Singly => 1,
            crate::publications::Grouping::Together => ready.len().max(1),
        };
        for paths in ready.chunks(group_len) {
            let paths = paths.to_vec();
            let mut group = Vec::with_capacity(paths.len());
            for path in &paths {
                if let Some((publication, uploaded)) = self.packed.remove(path) {
                    group.push(publication);
                    if let Some(asker) = self.askers.get_mut(path) {
                        asker.uploaded = Some(uploaded);
                    }
                }
            }
            let (uploader, writer) = (Arc::clone(&self.uploader), ctx.address());
            runtime.spawn(async move {
                let result = uploader.publish(group).await;
                writer.do_send(PublishEnded { paths, result });
            });
        }
    }

    /// Ends a path without success, and all that refer to it.
    fn fail(&mut self, path: &StorePath, error: UploadError) {
        self.answer(path, Err(error));
        for lost in self.publications.failed(path) {
            self.packed.remove(&lost);
            let error = self.reference_missing(&lost, path);
            self.answer(&lost, Err(error));
        }
    }

    fn answer(&mut self, path: &StorePath, result: Result<Uploaded, UploadError>) {
        if let Some(asker) = self.askers.remove(path) {
            // The asker may be gone.
            let _unheard = asker.reply.send(result);
        }
    }
}

impl Actor for CacheWriter {
    type Context = Context<Self>;
}

impl Handler<PrepareCache> for CacheWriter {
    type Result = ResponseFuture<Result<(), UploadError>>;

    fn handle(&mut self, _: PrepareCache, _: &mut Context<Self>) -> Self::Result {
        let uploader = Arc::clone(&self.uploader);
        let runtime = self.runtime();
        Box::pin(async move {
            let prepared = runtime?.spawn(async move { uploader.prepare().await });
            // Only the end of the runtime loses a task.
            prepared.await.unwrap_or(Err(UploadError::Stopped))
        })
    }
}

impl Handler<QueryPresent> for CacheWriter {
    type Result = ResponseFuture<Result<BTreeSet<StorePath>, UploadError>>;

    fn handle(&mut self, question: QueryPresent, ctx: &mut Context<Self>) -> Self::Result {
        let (uploader, writer) = (Arc::clone(&self.uploader), ctx.address());
        let runtime = self.runtime();
        Box::pin(async move {
            let asked = runtime?.spawn(async move { uploader.present(question.paths).await });
            let present = asked.await.unwrap_or(Err(UploadError::Stopped))?;
            let heard = PresenceHeard {
                present: present.clone(),
            };
            // It is heard before whoever asked can refer to it.
            writer.do_send(heard);
            Ok(present)
        })
    }
}

impl Handler<PresenceHeard> for CacheWriter {
    type Result = ();

    fn handle(&mut self, heard: PresenceHeard, _: &mut Context<Self>) {
        self.present.extend(heard.present);
    }
}

impl Handler<UploadPath> for CacheWriter {
    type Result = ResponseFuture<Result<Uploaded, UploadError>>;

    fn handle(&mut self, request: UploadPath, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        if let Err((reply, error)) = self.begin(request, reply, ctx) {
            let _asker_waits = reply.send(Err(error));
        }
        Box::pin(async move { answer.await.unwrap_or(Err(UploadError::Stopped)) })
    }
}

impl Handler<PackEnded> for CacheWriter {
    type Result = ();

    fn handle(&mut self, ended: PackEnded, ctx: &mut Context<Self>) {
        let PackEnded { path, result } = ended;
        match result {
            // What it refers to may have failed meanwhile.
            Ok(_) if !self.publications.contain(&path) => {}
            Ok(packed) => {
                self.packed.insert(path.clone(), packed);
                self.publications.packed(&path);
            }
            Err(error) => self.fail(&path, error),
        }
        self.publish(ctx);
    }
}

impl Handler<PublishEnded> for CacheWriter {
    type Result = ();

    fn handle(&mut self, ended: PublishEnded, ctx: &mut Context<Self>) {
        for path in ended.paths {
            if let Err(error) = &ended.result {
                let error = self.uploader.write_error(Arc::clone(error));
                self.fail(&path, error);
                continue;
            }
            self.publications.published(&path);
            self.present.insert(path.clone());
            let uploaded = self.askers.get(&path).and_then(|asker| asker.uploaded);
            if let Some(uploaded) = uploaded {
                self.answer(&path, Ok(uploaded));
            }
        }
        self.publish(ctx);
    }
}

impl Handler<StopWriter> for CacheWriter {
    type Result = ResponseFuture<Result<(), UploadError>>;

    fn handle(&mut self, _: StopWriter, _: &mut Context<Self>) -> Self::Result {
        self.uploader
            .packing
            .is_given_up
            .store(true, Ordering::Relaxed);
        // Whoever still waits is told by the end of their channels.
        self.askers.clear();
        let uploader = Arc::clone(&self.uploader);
        let packed = std::mem::take(&mut self.packed);
        let stopped = self.engine.take().map(Engine::stop);
        Box::pin(async move {
            let Some(stopped) = stopped else {
                return Ok(());
            };
            // Without an answer the threads are gone, or beyond our reach.
            let _ended = stopped.await;
            let (reply, settled) = oneshot::channel();
            let settling = std::thread::Builder::new()
                .name("cache-settle".to_owned())
                .spawn(move || {
                    drop(packed);
                    let _asker_gone = reply.send(uploader.settle());
                });
            settling.map_err(|source| UploadError::StartThreads { source })?;
            settled.await.unwrap_or(Err(UploadError::Stopped))
        })
    }
}
