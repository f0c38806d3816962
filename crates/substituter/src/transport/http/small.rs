//! A small file of a cache, wholly.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{Response, Url};
use tokio::time::Instant;

use super::attempts::{Attempts, Pace};
use super::exchange::{self, encoding, unless_stalled};
use super::origin::Origin;
use super::{HttpError, Web, encoding as encodings, random};

/// Reads a file; `None` if there is none.
///
/// # Errors
/// The server does not give it, also not when it is asked again, or not in time, or it is longer than
/// `max_bytes`.
pub(super) async fn read(
    web: &Web,
    origin: &Origin,
    url: &Url,
    max_bytes: usize,
) -> Result<Option<Bytes>, HttpError> {
    let mut attempts = Attempts::new(web.n_attempts);
    let deadline = web.answer_limit.map(|limit| Deadline {
        limit,
        at: Instant::now() + limit,
    });
    loop {
        let attempt = read_once(web, origin, url, max_bytes);
        let error = match unless_late(deadline, attempt).await {
            Ok(file) => return Ok(Some(file)),
            Err(HttpError::Missing { .. }) => return Ok(None),
            Err(error) => error,
        };
        // Nobody waits for an attempt that could only be late.
        let is_late = |delay| deadline.is_some_and(|by| Instant::now() + delay >= by.at);
        let delay = attempts.wait_after(&error, random());
        let Some(delay) = delay.filter(|delay| !is_late(*delay)) else {
            return Err(error);
        };
        tracing::debug!("asking {origin:?} again in {delay:?}: {error}");
        tokio::time::sleep(delay).await;
    }
}

/// When all attempts have to be over.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    limit: Duration,
    at: Instant,
}

async fn unless_late(
    deadline: Option<Deadline>,
    attempt: impl Future<Output = Result<Bytes, HttpError>>,
) -> Result<Bytes, HttpError> {
    let Some(Deadline { limit, at }) = deadline else {
        return attempt.await;
    };
    let attempted = tokio::time::timeout_at(at, attempt).await;
    attempted.unwrap_or(Err(HttpError::Unanswered { limit }))
}

async fn read_once(
    web: &Web,
    origin: &Origin,
    url: &Url,
    max_bytes: usize,
) -> Result<Bytes, HttpError> {
    let response = exchange::get(web, origin, url, None).await?;
    let encoding = encoding(&response);
    let body = read_body(web, response, max_bytes).await?;
    let Some(encoding) = encoding else {
        return Ok(body);
    };
    let decoded = tokio::task::spawn_blocking(move || encodings::undo(&encoding, body, max_bytes));
    // The task is only lost when the runtime ends.
    decoded.await.unwrap_or(Err(HttpError::Stopped))
}

async fn read_body(
    web: &Web,
    mut response: Response,
    max_bytes: usize,
) -> Result<Bytes, HttpError> {
    let too_long = HttpError::TooLong { max_bytes };
    let is_longer = |n_bytes: u64| usize::try_from(n_bytes).is_ok_and(|n| n > max_bytes);
    if response.content_length().is_some_and(is_longer) {
        return Err(too_long);
    }
    let mut body = BytesMut::new();
    let mut pace = Pace::new(web.stall_limit);
    loop {
        let begun = Instant::now();
        let chunk = unless_stalled(web.stall_limit, response.chunk()).await?;
        let Some(chunk) = chunk.map_err(|error| HttpError::from_body(&error))? else {
            return Ok(body.freeze());
        };
        pace.received(begun.elapsed(), chunk.len())?;
        if body.len() + chunk.len() > max_bytes {
            return Err(too_long);
        }
        body.extend_from_slice(&chunk);
    }
}
