//! A file of a cache, sent to its server.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Response, Url};
use tokio::sync::Notify;

use super::attempts::{self, Attempts};
use super::exchange::{self, drain, login_header, redirected};
use super::origin::Origin;
use super::{HttpError, Web, random};

/// How much of a file is read and handed to the connection at once.
const CHUNK_BYTES: usize = 256 << 10;

/// More than any cache needs, and few enough to see soon that there is no end.
const MAX_REDIRECTS: usize = 5;

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    /// A small file.
    Small(Bytes),
    /// A large one, read while it is sent.
    File {
        /// Read by position, from its beginning for every attempt.
        file: Arc<File>,
        /// How long it is.
        n_bytes: u64,
    },
}

/// Puts a file; asks again where that may help.
///
/// # Errors
/// The server does not take it.
pub(super) async fn put(
    web: &Web,
    origin: &Origin,
    url: &Url,
    contents: &Contents,
    content_type: &'static str,
) -> Result<(), HttpError> {
    let sent = || converse(web, origin, url, Some((contents, content_type)));
    persistently(web, origin, sent).await.map(drop)
}

/// Asks whether a server has a file; one that answers no such question is said not to have it.
///
/// # Errors
/// It gives no answer at all.
pub(super) async fn has(web: &Web, origin: &Origin, url: &Url) -> Result<bool, HttpError> {
    match persistently(web, origin, || converse(web, origin, url, None)).await {
        Ok(()) => Ok(true),
        Err(HttpError::Missing { .. } | HttpError::Unwelcome { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn persistently<F: Future<Output = Result<(), HttpError>>>(
    web: &Web,
    origin: &Origin,
    mut attempt: impl FnMut() -> F,
) -> Result<(), HttpError> {
    let mut attempts = Attempts::new(web.n_attempts);
    loop {
        let error = match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let Some(delay) = attempts.wait_after(&error, random()) else {
            return Err(error);
        };
        tracing::debug!("asking {origin:?} again in {delay:?}: {error}");
        tokio::time::sleep(delay).await;
    }
}

/// Sends a file, or asks for the headers of one, to the server and those that it redirects to.
async fn converse(
    web: &Web,
    origin: &Origin,
    url: &Url,
    sent: Option<(&Contents, &'static str)>,
) -> Result<(), HttpError> {
    let mut url = url.clone();
    let mut is_at_home = true;
    for _ in 0..=MAX_REDIRECTS {
        let headers = login_header(origin, &url, is_at_home)?;
        let response = send_once(web, &url, headers, sent).await?;
        let status = response.status();
        let is_redirect = match status.as_u16() {
            307 | 308 => true,
            // Of a file that is sent these would make a question.
            301..=303 => sent.is_none(),
            _ => false,
        };
        if is_redirect {
            let next = redirected(&url, &response)?;
            is_at_home &= next.origin() == url.origin();
            url = next;
            drain(response).await;
            continue;
        }
        let error = refusal(&response, sent.is_some());
        drain(response).await;
        return error.map_or(Ok(()), Err);
    }
    Err(HttpError::Redirect {
        whither: "without end",
    })
}

/// Returns what a status means; `None` if all is well.
fn refusal(response: &Response, is_sent: bool) -> Option<HttpError> {
    let status = response.status();
    let number = status.as_u16();
    let reason = status.canonical_reason();
    match number {
        200..=299 => None,
        403 | 404 | 410 if !is_sent => Some(HttpError::Missing { status: number }),
        // Neither will the server learn it, nor will it let us the next time.
        401 | 403 | 405 | 501 => Some(HttpError::Unwelcome {
            status: number,
            reason,
        }),
        _ => Some(HttpError::Status {
            status: number,
            reason,
            retry_after: attempts::retry_after(response.headers()),
        }),
    }
}

async fn send_once(
    web: &Web,
    url: &Url,
    mut headers: HeaderMap,
    sent: Option<(&Contents, &'static str)>,
) -> Result<Response, HttpError> {
    let Some((contents, content_type)) = sent else {
        return exchange::send(web, Method::HEAD, url, |request| request.headers(headers)).await;
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    match contents {
        Contents::Small(bytes) => {
            let bytes = bytes.clone();
            let fill = |request: reqwest::RequestBuilder| request.headers(headers).body(bytes);
            exchange::send(web, Method::PUT, url, fill).await
        }
        Contents::File { file, n_bytes } => {
            exchange::check_trust(web, url)?;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(*n_bytes));
            let moved = Arc::new(Notify::new());
            let body = body(Arc::clone(file), *n_bytes, Arc::clone(&moved));
            let request = web.client.put(url.clone()).headers(headers).body(body);
            unless_stuck(web.stall_limit, &moved, request.send())
                .await?
                .map_err(|error| HttpError::from_request(&error, web.connect_limit))
        }
    }
}

/// Waits for an answer; not for longer than a server may be silent that takes nothing either.
async fn unless_stuck<T>(
    limit: Option<Duration>,
    moved: &Notify,
    answer: impl Future<Output = T>,
) -> Result<T, HttpError> {
    let mut answer = std::pin::pin!(answer);
    loop {
        let step = async {
            tokio::select! {
                answer = &mut answer => Some(answer),
                () = moved.notified() => None,
            }
        };
        if let Some(answer) = exchange::unless_stalled(limit, step).await? {
            return Ok(answer);
        }
    }
}

/// Reads a file piece by piece, as the connection takes them, and tells of each.
fn body(file: Arc<File>, n_bytes: u64, moved: Arc<Notify>) -> Body {
    Body::wrap_stream(try_unfold(0, move |position| {
        let (file, moved) = (Arc::clone(&file), Arc::clone(&moved));
        async move {
            moved.notify_one();
            let n_left = usize::try_from(n_bytes - position).unwrap_or(usize::MAX);
            if n_left == 0 {
                return Ok(None);
            }
            let read = move || {
                let mut piece = vec![0; n_left.min(CHUNK_BYTES)];
                file.read_exact_at(&mut piece, position).map(|()| piece)
            };
            let read = tokio::task::spawn_blocking(read).await;
            let piece = read.unwrap_or_else(|lost| Err(io::Error::other(lost)))?;
            // A usize is never wider than 64 bits.
            let position = position + piece.len() as u64;
            Ok::<_, io::Error>(Some((Bytes::from(piece), position)))
        }
    }))
}
