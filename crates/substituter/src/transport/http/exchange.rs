//! One request to a server, and to those that it redirects to.

use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::client::HasRoots;
use super::origin::{Origin, strip_user};
use super::version::Version;
use super::{HttpError, Web, attempts};

/// More than any cache needs, and few enough to see soon that there is no end.
const MAX_REDIRECTS: usize = 5;

/// How much of the text beside an error is read, so that the connection can be used again, and for
/// how long. The others of a server's texts cost a new connection.
const MAX_LEFTOVER_BYTES: usize = 64 << 10;
const LEFTOVER_LIMIT: Duration = Duration::from_secs(1);

/// The part of a file that is still wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest<'a> {
    /// Where it begins, in bytes.
    pub(super) position: u64,
    /// What is here already.
    pub(super) version: &'a Version,
}

/// Asks for a file, or the rest of it. Returns with the answer's headers, which are those of a file:
/// status 200, or 206 if a rest was asked for.
///
/// # Errors
/// No server answers, or one answers that it does not give the file.
pub(super) async fn get(
    web: &Web,
    origin: &Origin,
    url: &Url,
    rest: Option<Rest<'_>>,
) -> Result<Response, HttpError> {
    let mut url = url.clone();
    let mut is_at_home = true;
    for _ in 0..=MAX_REDIRECTS {
        let mut headers = login_header(origin, &url, is_at_home)?;
        if let Some(rest) = rest {
            headers.insert(RANGE, header(&format!("bytes={}-", rest.position))?);
            if let Some(condition) = rest.version.if_range() {
                headers.insert(IF_RANGE, header(condition)?);
            }
        }
        let response = send(web, Method::GET, &url, |request| request.headers(headers)).await?;
        let status = response.status();
        match status.as_u16() {
            200 => return Ok(response),
            206 if rest.is_some() => return Ok(response),
            206 => {
                return Err(HttpError::Misbehaved {
                    what: "sent a part of the file though it was asked for all of it",
                });
            }
            301 | 302 | 303 | 307 | 308 => {
                let next = redirected(&url, &response)?;
                is_at_home &= next.origin() == url.origin();
                url = next;
                drain(response).await;
            }
            _ => return Err(refused(status, rest, response).await),
        }
    }
    Err(HttpError::Redirect {
        whither: "without end",
    })
}

/// Returns the header that says who we are to the server of an address: none, unless it is the cache's
/// own and nobody has sent us there.
///
/// # Errors
/// The login cannot be said.
pub(super) fn login_header(
    origin: &Origin,
    url: &Url,
    is_at_home: bool,
) -> Result<HeaderMap, HttpError> {
    let mut headers = HeaderMap::new();
    if let Some(login) = origin.login(url).filter(|_| is_at_home) {
        let value = HeaderValue::from_str(&login.to_basic());
        let mut value = value.map_err(|_| HttpError::Unusable { what: "the login" })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Returns how a body is encoded, if in another way than was asked for.
pub(super) fn encoding(response: &Response) -> Option<String> {
    let encoding = response.headers().get(CONTENT_ENCODING)?;
    let encoding = String::from_utf8_lossy(encoding.as_bytes());
    let encoding = encoding.trim().to_ascii_lowercase();
    (!encoding.is_empty() && encoding != "identity").then_some(encoding)
}

/// Waits for something that the server does; not for longer than a server may be silent.
pub(super) async fn unless_stalled<T>(
    limit: Option<Duration>,
    event: impl Future<Output = T>,
) -> Result<T, HttpError> {
    let Some(limit) = limit else {
        return Ok(event.await);
    };
    let happened = tokio::time::timeout(limit, event).await;
    happened.map_err(|_| HttpError::Stalled { limit })
}

/// Sends one request, whose headers and body `fill` adds; returns with the answer's headers.
///
/// # Errors
/// Nobody answers.
pub(super) async fn send(
    web: &Web,
    method: Method,
    url: &Url,
    fill: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Response, HttpError> {
    check_trust(web, url)?;
    let answer = fill(web.client.request(method, url.clone())).send();
    unless_stalled(web.stall_limit, answer)
        .await?
        .map_err(|error| HttpError::from_request(&error, web.connect_limit))
}

/// Makes sure that there is somebody to vouch for a server that needs it.
///
/// # Errors
/// There is nobody.
pub(super) fn check_trust(web: &Web, url: &Url) -> Result<(), HttpError> {
    if url.scheme() == "https" && web.has_roots == HasRoots::No {
        return Err(HttpError::NoCertificates);
    }
    Ok(())
}

fn header(text: &str) -> Result<HeaderValue, HttpError> {
    let value = HeaderValue::from_str(text);
    value.map_err(|_| HttpError::Misbehaved {
        what: "names a version that cannot be named to it",
    })
}

/// Returns where a server sends us.
pub(super) fn redirected(from: &Url, response: &Response) -> Result<Url, HttpError> {
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|location| std::str::from_utf8(location.as_bytes()).ok());
    let refuse = |whither| HttpError::Redirect { whither };
    let location = location.ok_or(refuse("to nowhere"))?;
    let mut next = from
        .join(location)
        .map_err(|_| refuse("to what is no address"))?;
    match (from.scheme(), next.scheme()) {
        ("https", "http") => return Err(refuse("from an encrypted connection to an open one")),
        (_, "http" | "https") if next.has_host() => {}
        _ => return Err(refuse("to what is no server of the web")),
    }
    // Whoever is asked next is not told a password that somebody else thought of either.
    strip_user(&mut next);
    Ok(next)
}

async fn refused(status: StatusCode, rest: Option<Rest<'_>>, response: Response) -> HttpError {
    let retry_after = attempts::retry_after(response.headers());
    drain(response).await;
    match status.as_u16() {
        status @ (403 | 404 | 410) => HttpError::Missing { status },
        // The file has fewer bytes by now than are here.
        416 if rest.is_some() => HttpError::Changed,
        number => HttpError::Status {
            status: number,
            reason: status.canonical_reason(),
            retry_after,
        },
    }
}

/// Reads what comes with an error or a redirect.
pub(super) async fn drain(mut response: Response) {
    let read = async {
        let mut n_bytes = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            n_bytes += chunk.len();
            if n_bytes > MAX_LEFTOVER_BYTES {
                break;
            }
        }
    };
    // Whether it is in time only decides about the connection.
    let _in_time = tokio::time::timeout(LEFTOVER_LIMIT, read).await;
}
