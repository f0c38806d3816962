//! A small file of a cache, wholly.

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
/// The server does not give it, also not when it is asked again, or it is longer than `max_bytes`.
pub(super) async fn read(
    web: &Web,
    origin: &Origin,
    url: &Url,
    max_bytes: usize,
) -> Result<Option<Bytes>, HttpError> {
    let mut attempts = Attempts::new(web.n_attempts);
    let begun = Instant::now();
    loop {
        let error = match read_once(web, origin, url, max_bytes).await {
            Ok(file) => return Ok(Some(file)),
            Err(HttpError::Missing { .. }) => return Ok(None),
            Err(error) => error,
        };
        // Whoever asks would not wait for an attempt that is that late, nor hear this error.
        let is_late =
            |delay| matches!(web.answer_limit, Some(limit) if begun.elapsed() + delay >= limit);
        let delay = attempts.wait_after(&error, random());
        let Some(delay) = delay.filter(|delay| !is_late(*delay)) else {
            return Err(error);
        };
        tracing::debug!("asking {origin:?} again in {delay:?}: {error}");
        tokio::time::sleep(delay).await;
    }
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
