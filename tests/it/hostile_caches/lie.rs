//! What a hostile cache says that is not so.

use std::path::PathBuf;
use std::sync::Arc;

use it::publication::{Narinfo, Publication, SigningKey};
use it::web::{Answer, Authority, Flaw, Request, WebServer};

/// The one thing that is wrong about a cache.
pub(super) struct Lie {
    /// In a few words.
    pub(super) name: String,
    /// Who vouches for the server and how, if it speaks TLS.
    pub(super) certificate: Option<(Arc<Authority>, Flaw)>,
    tell: Box<dyn Fn(&Asked<'_>) -> Answer + Send + Sync>,
}

/// What an honest cache would know.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    /// The path that is asked for.
    pub(super) path: Publication,
    /// Another path of the same cache.
    pub(super) other: Publication,
    /// The key that everybody trusts.
    pub(super) key: SigningKey,
    /// A file of the host that is nobody's business.
    pub(super) canary: PathBuf,
}

/// Which of its files a cache is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    /// What it says of itself.
    Info,
    /// What it says of the path.
    Narinfo,
    /// The path's archive.
    Archive,
    /// What no honest cache has.
    Unknown,
}

/// A question to the cache.
pub(super) struct Asked<'a> {
    pub(super) truth: &'a Truth,
    pub(super) file: File,
    pub(super) request: &'a Request,
}

impl Truth {
    /// Describes the path, signed by the trusted key.
    pub(super) fn narinfo(&self) -> Narinfo {
        self.path.narinfo().signed_by(&self.key)
    }

    /// Describes the path as if it had this archive, and signs that.
    pub(super) fn narinfo_of(&self, archive: impl Into<Vec<u8>>) -> Narinfo {
        let path = self.path.containing(archive);
        path.narinfo().signed_by(&self.key)
    }

    /// Describes the path otherwise, and signs that.
    pub(super) fn signed(&self, change: impl FnOnce(Narinfo) -> Narinfo) -> Narinfo {
        change(self.path.narinfo()).signed_by(&self.key)
    }
}

impl Asked<'_> {
    /// Returns what is true.
    pub(super) fn honest(&self) -> Answer {
        match self.file {
            File::Info => Answer::file("StoreDir: /nix/store\n"),
            File::Narinfo => Answer::file(self.truth.narinfo().to_string()),
            File::Archive => Answer::part(self.request, &self.truth.path.archive),
            File::Unknown => Answer::error(404),
        }
    }
}

impl Lie {
    /// Is told in any answer.
    pub(super) fn new(
        name: impl Into<String>,
        tell: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            certificate: None,
            tell: Box::new(tell),
        }
    }

    /// Is none.
    pub(super) fn none() -> Self {
        Self::of("the truth", File::Info, |honest| honest)
    }

    /// Is told over TLS.
    pub(super) fn over_tls(mut self, authority: &Arc<Authority>, flaw: Flaw) -> Self {
        self.certificate = Some((Arc::clone(authority), flaw));
        self
    }

    /// Makes something else of the honest answer about one kind of files.
    pub(super) fn of(
        name: impl Into<String>,
        file: File,
        tell: impl Fn(Answer) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |asked| {
            let honest = asked.honest();
            if asked.file == file {
                tell(honest)
            } else {
                honest
            }
        })
    }

    /// Describes the path by another text.
    pub(super) fn narinfo<T: Into<Vec<u8>>>(
        name: impl Into<String>,
        text: impl Fn(&Truth) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |asked| match asked.file {
            File::Narinfo => Answer::file(text(asked.truth)),
            File::Info | File::Archive | File::Unknown => asked.honest(),
        })
    }

    /// Describes the path otherwise, under a trusted signature of what is described.
    pub(super) fn signed(
        name: impl Into<String>,
        change: impl Fn(Narinfo) -> Narinfo + Send + Sync + 'static,
    ) -> Self {
        Self::narinfo(name, move |truth| truth.signed(&change).to_string())
    }

    /// Describes the path otherwise, after it was signed: what somebody in the middle can do.
    pub(super) fn in_the_middle(
        name: impl Into<String>,
        change: impl Fn(Narinfo) -> Narinfo + Send + Sync + 'static,
    ) -> Self {
        Self::narinfo(name, move |truth| change(truth.narinfo()).to_string())
    }

    /// Sends an archive that is not the one of the description.
    pub(super) fn archive(
        name: impl Into<String>,
        archive: impl Fn(&Truth) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |asked| match asked.file {
            File::Archive => Answer::file(archive(asked.truth)),
            File::Info | File::Narinfo | File::Unknown => asked.honest(),
        })
    }

    /// Describes an archive truly, under a trusted signature, and sends just that: only that it is no
    /// archive that anybody should unpack.
    pub(super) fn evil(
        name: impl Into<String>,
        archive: impl Fn(&Truth) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, move |asked| match asked.file {
            File::Narinfo => {
                let narinfo = asked.truth.narinfo_of(archive(asked.truth));
                Answer::file(narinfo.to_string())
            }
            File::Archive => Answer::file(archive(asked.truth)),
            File::Info | File::Unknown => asked.honest(),
        })
    }

    /// Answers.
    pub(super) fn tell(&self, asked: &Asked<'_>) -> Answer {
        (self.tell)(asked)
    }
}

/// Starts a cache that has some paths and tells a lie about them.
pub(super) fn serve(lie: &Arc<Lie>, truths: Vec<Truth>) -> WebServer {
    let teller = Arc::clone(lie);
    let answer = move |request: &Request| {
        let file = request.path.trim_start_matches('/');
        let known = |truth: &&Truth| {
            let path = &truth.path;
            file == path.narinfo_file() || file == path.url()
        };
        let truth = truths.iter().find(known);
        let kind = match truth {
            Some(truth) if file == truth.path.narinfo_file() => File::Narinfo,
            Some(_) => File::Archive,
            None if file == "nix-cache-info" => File::Info,
            None => File::Unknown,
        };
        let truth = truth.unwrap_or(&truths[0]);
        teller.tell(&Asked {
            truth,
            file: kind,
            request,
        })
    };
    match &lie.certificate {
        Some((authority, flaw)) => WebServer::start_with_certificate(authority, *flaw, answer),
        None => WebServer::start(answer),
    }
}
