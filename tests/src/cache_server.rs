//! A binary cache on a web server of a test's own: a directory, served as it is but for what a test
//! wants to go wrong.
//!
//! ```ignore
//! let cache = CacheServer::start(directory);
//! cache.play(Files::Nars, |asked| asked.honest().stalling_after(100));
//! ```

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::web::{Answer, Authority, Flaw, Request, WebServer};

/// A cache on a server, which ends with the value.
#[derive(Debug)]
pub struct CacheServer {
    web: WebServer,
    shelf: Arc<Shelf>,
}

/// Which files of a cache something is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// Every one.
    All,
    /// What the cache says of itself.
    Info,
    /// What it says of paths.
    Narinfos,
    /// Archives.
    Nars,
    /// What a build said.
    Logs,
    /// One, by its path below the cache.
    One(String),
}

/// What somebody wants from the cache.
#[derive(Debug)]
pub struct Asked<'a> {
    /// As it came.
    pub request: &'a Request,
    /// What the directory has there.
    contents: Option<Vec<u8>>,
    root: &'a Path,
    takes_files: bool,
}

/// Decides what is answered.
type Play = Box<dyn Fn(&Asked<'_>) -> Answer + Send + Sync>;

struct Shelf {
    root: PathBuf,
    plays: Mutex<Vec<(Files, Play)>>,
    delay: Mutex<Duration>,
    takes_files: AtomicBool,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl CacheServer {
    /// Serves a directory.
    pub fn start(root: impl Into<PathBuf>) -> Self {
        Self::with_web(root, |shelf| {
            WebServer::start(move |request| shelf.answer(request))
        })
    }

    /// Serves a directory over TLS; `authority` vouches for the server.
    pub fn start_with_tls(root: impl Into<PathBuf>, authority: &Authority, flaw: Flaw) -> Self {
        Self::with_web(root, |shelf| {
            WebServer::start_with_certificate(authority, flaw, move |request| shelf.answer(request))
        })
    }

    fn with_web(root: impl Into<PathBuf>, start: impl FnOnce(Arc<Shelf>) -> WebServer) -> Self {
        let shelf = Arc::new(Shelf {
            root: root.into(),
            plays: Mutex::default(),
            delay: Mutex::default(),
            takes_files: AtomicBool::new(false),
        });
        Self {
            web: start(Arc::clone(&shelf)),
            shelf,
        }
    }

    /// From now on answers requests for some files as `play` says. What was said last counts.
    pub fn play(
        &self,
        files: Files,
        play: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static,
    ) -> &Self {
        let mut plays = lock(&self.shelf.plays);
        plays.push((files, Box::new(play)));
        drop(plays);
        self
    }

    /// From now on does what is honest.
    pub fn repent(&self) {
        lock(&self.shelf.plays).clear();
    }

    /// From now on answers everything, honestly or not, after a while: a server that is far away.
    pub fn delay(&self, delay: Duration) -> &Self {
        *lock(&self.shelf.delay) = delay;
        self
    }

    /// From now on takes files that are put into the cache.
    pub fn take_files(&self) -> &Self {
        self.shelf.takes_files.store(true, Ordering::SeqCst);
        self
    }

    /// Returns the cache's address, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        self.web.url("")
    }

    /// Returns the server, for what it was asked.
    #[must_use]
    pub fn web(&self) -> &WebServer {
        &self.web
    }

    /// Returns how often it was asked for some files.
    #[must_use]
    pub fn n_requests(&self, files: &Files) -> usize {
        let requests = self.web.requests();
        let is_meant = |request: &&Request| files.contain(file_of(request));
        requests.iter().filter(is_meant).count()
    }

    /// Returns which of some files it was sent, in order, as often as it was.
    #[must_use]
    pub fn puts(&self, files: &Files) -> Vec<String> {
        let requests = self.web.requests();
        let puts = requests.iter().filter(|request| request.method == "PUT");
        let puts = puts.map(|request| file_of(request).to_owned());
        puts.filter(|file| files.contain(file)).collect()
    }
}

impl Asked<'_> {
    /// Returns the file, or the part of it that is asked for, with a tag that names the version; 404
    /// if there is none. What is sent is put into the directory, if the server takes files.
    #[must_use]
    pub fn honest(&self) -> Answer {
        if self.request.method == "PUT" {
            return self.put();
        }
        let Some(contents) = &self.contents else {
            return Answer::error(404);
        };
        let tag = tag(contents);
        let condition = self.request.headers.get("if-range");
        let answer = if condition.is_none_or(|condition| *condition == tag) {
            Answer::part(self.request, contents)
        } else {
            Answer::file(contents.as_slice())
        };
        answer.with("ETag", &tag).with("Accept-Ranges", "bytes")
    }

    fn put(&self) -> Answer {
        let Some(path) = place(self.root, file_of(self.request)).filter(|_| self.takes_files)
        else {
            return Answer::error(405);
        };
        let folder = path.parent().expect("it lies below the root");
        std::fs::create_dir_all(folder).expect("the cache is ours");
        // Nobody is to see a part of it.
        let part = tempfile::NamedTempFile::new_in(folder).expect("the cache is ours");
        std::fs::write(part.path(), &self.request.body).expect("the file is ours");
        part.persist(path).expect("the cache is ours");
        Answer::done()
    }

    /// Returns the whole file, whatever part is asked for, as a server does that knows neither parts
    /// nor versions; 404 if there is none.
    #[must_use]
    pub fn whole(&self) -> Answer {
        match &self.contents {
            Some(contents) => Answer::file(contents.as_slice()),
            None => Answer::error(404),
        }
    }

    /// Returns another file of the cache.
    #[must_use]
    pub fn other(&self, file: &str) -> Answer {
        let contents = read(self.root, file);
        contents.map_or_else(|| Answer::error(404), Answer::file)
    }
}

impl Files {
    fn contain(&self, file: &str) -> bool {
        match self {
            Self::All => true,
            Self::Info => file == "nix-cache-info",
            Self::Narinfos => file.ends_with(".narinfo"),
            Self::Nars => file.starts_with("nar/"),
            Self::Logs => file.starts_with("log/"),
            Self::One(one) => file == one,
        }
    }
}

impl Shelf {
    fn answer(&self, request: &Request) -> Answer {
        let file = file_of(request);
        let asked = Asked {
            contents: read(&self.root, file),
            root: &self.root,
            takes_files: self.takes_files.load(Ordering::SeqCst),
            request,
        };
        let plays = lock(&self.plays);
        let play = plays.iter().rev().find(|(files, _)| files.contain(file));
        let answer = match play {
            Some((_, play)) => play(&asked),
            None => asked.honest(),
        };
        let delay = *lock(&self.delay);
        if delay.is_zero() {
            answer
        } else {
            answer.after(delay)
        }
    }
}

/// Returns which file of the cache is asked for.
fn file_of(request: &Request) -> &str {
    let path = request.path.split('?').next().unwrap_or_default();
    path.trim_start_matches('/')
}

/// Reads a file below the root, if there is one.
fn read(root: &Path, file: &str) -> Option<Vec<u8>> {
    std::fs::read(place(root, file)?).ok()
}

/// Returns where a file is, unless that is not below the root.
fn place(root: &Path, file: &str) -> Option<PathBuf> {
    let file = Path::new(file);
    let is_below = |part: Component<'_>| matches!(part, Component::Normal(_));
    file.components().all(is_below).then(|| root.join(file))
}

/// Returns a name for some contents, other for others.
fn tag(contents: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    format!("\"{:x}\"", hasher.finish())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
