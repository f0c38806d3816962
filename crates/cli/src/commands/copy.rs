//! `copy`: puts paths of the store into a cache, or fetches them from one.
//!
//! Fetching is what `ensure` does, with one cache and no other. The other way the cache is asked what it
//! has, and the rest is read here and handed to the cache's writer, references first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use actix::Addr;
use actix::dev::ToEnvelope;
use actix::prelude::*;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use registry::{AddTempRoots, QueryClosure};
use serde_json::{Value, json};
use store_model::export::references_first;
use store_model::{PathInfo, Settings, StorePath};
use substituter::{
    CacheWriter, PrepareCache, QueryPresent, StopWriter, UploadError, UploadPath, Uploaded,
};

use super::query::path_info;
use super::{Session, build, nar};
use crate::args::CopyArguments;
use crate::exit_status::ExitStatus;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::output::{Output, say};
use crate::render::Style;
use crate::render::progress::size;
use crate::store::Store;
use crate::target::Finder;

/// How many paths are on their way at once where the settings set no limit: more than one connection or
/// one sync can carry.
const MAX_UNDER_WAY: usize = 100;

/// Where archives wait for their server where the environment does not say.
const SPOOL_DIR: &str = "/tmp";

/// Copies in one direction.
pub(super) async fn copy(
    session: &Session,
    mut arguments: CopyArguments,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    // Exactly one of them is there.
    if let Some(url) = arguments.from.take() {
        let fetching = arguments.fetching(url);
        return build::build(session, &fetching, interrupts, output).await;
    }
    let url = arguments.to.clone().unwrap_or_default();
    let layout = session.layout()?;
    let settings = session.settings()?;
    let store = Store::open(&layout, &settings)?;
    let writer = start_writer(session, &url, &store, &settings);
    let done = match &writer {
        Ok(writer) => {
            let finder = session.finder(&layout);
            let copying = Copying {
                store: &store,
                finder: &finder,
                writer,
                url: substituter::shown_address(&url),
                style: session.style,
                is_json: arguments.json,
                max_under_way: match settings.http_connections {
                    0 => MAX_UNDER_WAY,
                    n => n.min(MAX_UNDER_WAY),
                },
            };
            interrupts.unless(copying.copy(&arguments, output)).await
        }
        Err(_) => Ok(()),
    };
    let stopping = async {
        let settled = match &writer {
            Ok(writer) => ask(writer, StopWriter).await,
            Err(_) => Ok(()),
        };
        store.close().await;
        settled
    };
    match done.as_ref().err().and_then(Failure::signal) {
        Some(signal) => {
            let cleaned = async {
                // Nothing that was interrupted is said to be there.
                let _settled = stopping.await;
            };
            interrupts.clean_up(signal, cleaned).await;
            done
        }
        None => {
            let settled = stopping.await;
            writer?;
            done.and(settled)
        }
    }
}

fn start_writer(
    session: &Session,
    url: &str,
    store: &Store,
    settings: &Settings,
) -> Result<Addr<CacheWriter>> {
    let variables = |name: &str| session.environment.get(name)?.to_str().map(str::to_owned);
    let spool_dir = session.environment.path("TMPDIR");
    let spool_dir = spool_dir.unwrap_or_else(|| PathBuf::from(SPOOL_DIR));
    substituter::start_writer(url, settings, store.dir().clone(), spool_dir, &variables)
        .map_err(Failure::new)
}

/// Asks the cache's writer.
async fn ask<M, T>(writer: &Addr<CacheWriter>, message: M) -> Result<T>
where
    M: Message<Result = std::result::Result<T, UploadError>> + Send + 'static,
    T: Send + 'static,
    CacheWriter: Handler<M>,
    <CacheWriter as Actor>::Context: ToEnvelope<CacheWriter, M>,
{
    let answer = writer.send(message).await;
    let answer = answer.unwrap_or(Err(UploadError::Stopped));
    answer.map_err(Failure::new)
}

/// One copy into a cache.
struct Copying<'a> {
    store: &'a Store,
    finder: &'a Finder<'a>,
    writer: &'a Addr<CacheWriter>,
    url: String,
    style: Style,
    is_json: bool,
    max_under_way: usize,
}

/// What has become of the paths.
#[derive(Debug, Default)]
struct Tally {
    n_present: usize,
    n_copied: usize,
    n_failed: usize,
    nar_size_bytes: u64,
    file_size_bytes: u64,
}

impl Copying<'_> {
    async fn copy(&self, arguments: &CopyArguments, output: &mut Output) -> Result<()> {
        let words = arguments.paths.iter();
        let roots: BTreeSet<StorePath> = words
            .map(|word| self.finder.store_path(word))
            .collect::<Result<_>>()?;
        let kept = AddTempRoots {
            paths: roots.iter().cloned().collect(),
        };
        let _kept = self.store.ask(kept).await?;
        let infos = self.find(roots, arguments.no_recursive).await?;
        ask(self.writer, PrepareCache).await?;
        let paths = infos.values();
        let paths = paths.flat_map(|info| info.references.iter().chain([&info.path]));
        let question = QueryPresent {
            paths: paths.cloned().collect(),
        };
        let present = ask(self.writer, question).await?;
        let lacking = references_first(&infos).into_iter();
        let lacking = lacking.filter(|info| !present.contains(&info.path));
        let lacking: Vec<PathInfo> = lacking.cloned().collect();
        let mut tally = Tally {
            n_present: infos.len() - lacking.len(),
            ..Tally::default()
        };
        self.upload(lacking, &mut tally, output).await?;
        self.report(&tally, output)?;
        match tally.n_failed {
            0 => Ok(()),
            _ => Err(Failure::silent(ExitStatus::Failure)),
        }
    }

    /// Returns what is known of the paths, and of what they refer to unless that is not wanted.
    async fn find(
        &self,
        roots: BTreeSet<StorePath>,
        no_recursive: bool,
    ) -> Result<BTreeMap<StorePath, PathInfo>> {
        for root in &roots {
            // A closure would not say which path is not valid.
            path_info(self.store, root).await?;
        }
        let paths = if no_recursive {
            roots
        } else {
            self.store.ask(QueryClosure { roots }).await?
        };
        let mut infos = BTreeMap::new();
        for path in paths {
            let info = path_info(self.store, &path).await?;
            infos.insert(path, info);
        }
        Ok(infos)
    }

    /// Uploads paths that come references first, some at once.
    async fn upload(
        &self,
        lacking: Vec<PathInfo>,
        tally: &mut Tally,
        output: &mut Output,
    ) -> Result<()> {
        let mut waiting = lacking.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut has_cache_failed = false;
        loop {
            while !has_cache_failed
                && under_way.len() < self.max_under_way
                && let Some(info) = waiting.next()
            {
                self.tell_begin(&info.path, output)?;
                under_way.push(self.upload_one(info));
            }
            let Some((path, result)) = under_way.next().await else {
                break;
            };
            match result {
                Ok(uploaded) => {
                    tally.n_copied += 1;
                    tally.nar_size_bytes += uploaded.nar_size_bytes;
                    tally.file_size_bytes += uploaded.file_size_bytes;
                    self.tell_copied(&path, uploaded, output)?;
                }
                Err(error) => {
                    tally.n_failed += 1;
                    // What fails with one path fails with all; that is told once, by those under way.
                    has_cache_failed |= error.is_the_caches();
                    self.tell_failed(&path, error, output)?;
                }
            }
        }
        tally.n_failed += waiting.len();
        Ok(())
    }

    async fn upload_one(
        &self,
        info: PathInfo,
    ) -> (StorePath, std::result::Result<Uploaded, UploadError>) {
        let path = info.path.clone();
        let place = self.finder.layout.real_store_dir.join(path.base_name());
        let request = UploadPath {
            info,
            contents: Box::new(move |visitor| nar::tell(&place, visitor)),
        };
        let answer = self.writer.send(request).await;
        (path, answer.unwrap_or(Err(UploadError::Stopped)))
    }

    fn tell_begin(&self, path: &StorePath, output: &mut Output) -> Result<()> {
        let path = self.store.dir().print(path);
        if self.is_json {
            let event = json!({"event": "copying", "path": path, "to": self.url});
            return self.tell_json(&event, output);
        }
        say(&format!("copying path '{path}' to '{}'...\n", self.url));
        Ok(())
    }

    fn tell_copied(&self, path: &StorePath, uploaded: Uploaded, output: &mut Output) -> Result<()> {
        if !self.is_json {
            return Ok(());
        }
        let event = json!({
            "event": "copied",
            "path": self.store.dir().print(path),
            "narSize": uploaded.nar_size_bytes,
            "fileSize": uploaded.file_size_bytes,
        });
        self.tell_json(&event, output)
    }

    fn tell_failed(&self, path: &StorePath, error: UploadError, output: &mut Output) -> Result<()> {
        let path = self.store.dir().print(path);
        let failure = Failure::new(error);
        say(&failure.render(self.style));
        if !self.is_json {
            return Ok(());
        }
        self.tell_json(&json!({"event": "failed", "path": path}), output)
    }

    fn tell_json(&self, event: &Value, output: &mut Output) -> Result<()> {
        output.line(event)?;
        output.flush()
    }

    fn report(&self, tally: &Tally, output: &mut Output) -> Result<()> {
        if self.is_json {
            let event = json!({
                "event": "report",
                "copied": tally.n_copied,
                "present": tally.n_present,
                "failed": tally.n_failed,
                "narSize": tally.nar_size_bytes,
                "fileSize": tally.file_size_bytes,
            });
            return self.tell_json(&event, output);
        }
        say(&tally.summary(&self.url));
        Ok(())
    }
}

impl Tally {
    /// Returns a line for people.
    fn summary(&self, url: &str) -> String {
        let mut text = format!(
            "copied {} to '{url}'",
            match self.n_copied {
                1 => "1 path".to_owned(),
                n_copied => format!("{n_copied} paths"),
            }
        );
        if self.n_copied > 0 {
            text += &format!(
                ": {}, of which it keeps {}",
                size(self.nar_size_bytes),
                size(self.file_size_bytes)
            );
        }
        if self.n_present > 0 {
            text += &format!("; {} were there", self.n_present);
        }
        if self.n_failed > 0 {
            text += &format!("; {} were not copied", self.n_failed);
        }
        text + "\n"
    }
}
