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
use store_model::settings::Assignment;
use store_model::{PathInfo, Settings, StorePath};
use substituter::{
    CacheWriter, PrepareCache, QueryPresent, StopWriter, UploadError, UploadPath, Uploaded,
};

use super::query::path_info;
use super::{Session, build, nar};
use crate::args::{CopyArguments, Source};
use crate::configure::typed;
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
        // In a list of caches it would be two, or none.
        if url.is_empty() || url.contains(char::is_whitespace) {
            return Err(Failure::message(format!(
                "'{url}' is not the address of a cache"
            )));
        }
        let fetching = arguments.fetching(url);
        return build::build(session, &fetching, interrupts, output).await;
    }
    let url = arguments.to.clone().unwrap_or_default();
    let layout = session.layout()?;
    let settings = session.settings()?;
    let store = Store::open(&layout, &settings)?;
    let writer = match start_writer(session, &url, &store, &settings) {
        Ok(writer) => writer,
        Err(failure) => {
            store.close().await;
            return Err(failure);
        }
    };
    let copying = Copying {
        store: &store,
        finder: &session.finder(&layout),
        writer: &writer,
        url: substituter::shown_address(&url),
        style: session.style,
        is_json: arguments.json,
        max_under_way: match settings.http_connections {
            0 => MAX_UNDER_WAY,
            n => n.min(MAX_UNDER_WAY),
        },
    };
    let done = interrupts.unless(copying.copy(&arguments, output)).await;
    let stopping = async {
        let settled = ask(&writer, StopWriter).await;
        store.close().await;
        settled
    };
    let Some(signal) = done.as_ref().err().and_then(Failure::signal) else {
        let settled = stopping.await;
        return done.and(settled);
    };
    let stopping = async {
        // Nothing of what was interrupted is said to be there.
        let _settled = stopping.await;
    };
    interrupts.clean_up(signal, stopping).await;
    done
}

/// Returns what stands for the one cache among the settings.
pub(super) fn assignments(source: &Source) -> Vec<Assignment> {
    let mut assignments = vec![
        typed("substitute", "true"),
        typed("substituters", &source.url),
    ];
    if source.no_check_sigs {
        assignments.push(typed("require-sigs", "false"));
    }
    assignments
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
            return tell_json(&event, output);
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
        tell_json(&event, output)
    }

    fn tell_failed(&self, path: &StorePath, error: UploadError, output: &mut Output) -> Result<()> {
        let path = self.store.dir().print(path);
        let failure = Failure::new(error);
        say(&failure.render(self.style));
        if !self.is_json {
            return Ok(());
        }
        tell_json(&json!({"event": "failed", "path": path}), output)
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
            return tell_json(&event, output);
        }
        say(&tally.summary(&self.url));
        Ok(())
    }
}

impl Tally {
    /// Returns a line for people.
    fn summary(&self, url: &str) -> String {
        let paths = match self.n_copied {
            1 => "1 path".to_owned(),
            n_copied => format!("{n_copied} paths"),
        };
        let (before, after) = (size(self.nar_size_bytes), size(self.file_size_bytes));
        let parts = [
            (1, format!("copied {paths} to '{url}'")),
            (self.n_copied, format!("{before}, {after} as it keeps them")),
            (self.n_present, format!("{} were there", self.n_present)),
            (self.n_failed, format!("{} were not copied", self.n_failed)),
        ];
        let told = parts.into_iter().filter(|(n_paths, _)| *n_paths > 0);
        let told: Vec<String> = told.map(|(_, part)| part).collect();
        told.join("; ") + "\n"
    }
}

/// Prints an event at once, for whoever waits for it.
fn tell_json(event: &Value, output: &mut Output) -> Result<()> {
    output.line(event)?;
    output.flush()
}
