//! Why a cache on the web gave no file.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use crate::transport::TransportError;

/// A failed request. Which file it was for is said by the [`TransportError`] around it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The address is none that can be asked.
    #[error("the address {why}")]
    Address {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A server that has to be verified would have to be believed.
    #[error(
        "there are no certificates to verify the server with; 'ssl-cert-file' says where they are"
    )]
    NoCertificates,
    /// A setting has a value that nothing can be done with.
    #[error("{what} cannot be used")]
    Unusable {
        /// Which.
        what: &'static str,
    },
    /// The server has no such file, or shows it to nobody, which is how S3 says the same.
    #[error("HTTP status {status}")]
    Missing {
        /// 403, 404 or 410.
        status: u16,
    },
    /// The server has answered that it does not give the file.
    #[error("HTTP status {status}{}", reason.map_or_else(String::new, |reason| format!(" ({reason})")))]
    Status {
        /// Its number.
        status: u16,
        /// What that means.
        reason: Option<&'static str>,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server does not let us do what we want to.
    #[error("the server does not allow it: HTTP status {status}{}", reason.map_or_else(String::new, |reason| format!(" ({reason})")))]
    Unwelcome {
        /// 401, 403, 405 or 501.
        status: u16,
        /// What that means.
        reason: Option<&'static str>,
    },
    /// The server sends us to where we do not go.
    #[error("the server redirects {whither}")]
    Redirect {
        /// Where that is.
        whither: &'static str,
    },
    /// The server is not who it should be, or nobody vouches for it.
    #[error("the server's certificate is not trusted")]
    Untrusted(#[source] rustls::Error),
    /// There is no connection to the server.
    #[error("cannot connect")]
    Connect(#[source] Reason),
    /// There was no connection to the server in time.
    #[error("there was no connection within {} ms", limit.as_millis())]
    ConnectTimedOut {
        /// How long was waited.
        limit: Duration,
    },
    /// Too little came for too long.
    #[error("the server sent nothing, or almost nothing, for {} ms", limit.as_millis())]
    Stalled {
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke in the midst of an answer.
    #[error("the transfer was interrupted")]
    Interrupted(#[source] Reason),
    /// A small file is none.
    #[error("the file has more than {max_bytes} bytes")]
    TooLong {
        /// How long it may be.
        max_bytes: usize,
    },
    /// The server encoded the file in a way that was not asked for.
    #[error("the server sent the file encoded as '{encoding}'")]
    Encoded {
        /// The way.
        encoding: String,
    },
    /// What came is not encoded as the server says.
    #[error("the file cannot be decoded")]
    Undecodable(#[source] io::Error),
    /// The server did not keep to what HTTP says.
    #[error("the server {what}")]
    Misbehaved {
        /// What it did.
        what: &'static str,
    },
    /// The file is another by now, and the rest of it would not be the rest of what is here.
    #[error("the file's contents changed while it was downloaded")]
    Changed,
    /// The threads that ask caches are about to end.
    #[error("the substituter has stopped")]
    Stopped,
}

/// The innermost cause of an error of the library, whose outer ones say what we know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Reason(String);

impl HttpError {
    /// Takes the error of a request whose connection may take as long as `connect_limit`.
    pub(super) fn from_request(error: &reqwest::Error, connect_limit: Duration) -> Self {
        if let Some(error) = find_tls_error(error) {
            return if let rustls::Error::InvalidCertificate(_) = error {
                Self::Untrusted(error.clone())
            } else {
                Self::Connect(Reason::new(error.to_string()))
            };
        }
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Self::ConnectTimedOut {
                limit: connect_limit,
            },
            (true, false) => Self::Connect(Reason::of(error)),
            (false, _) => Self::Interrupted(Reason::of(error)),
        }
    }

    /// Takes the error of reading a body.
    pub(super) fn from_body(error: &reqwest::Error) -> Self {
        Self::Interrupted(Reason::of(error))
    }

    /// Returns whether the server may give next time what it did not give now.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            // 408: we were too slow; 429: there are too many of us. 501, 505 and 511: it will not
            // learn to, or it is a hotel's network that wants somebody to log in.
            Self::Status { status, .. } => match status {
                408 | 429 => true,
                501 | 505 | 511 => false,
                status => *status >= 500,
            },
            Self::Connect(_)
            | Self::ConnectTimedOut { .. }
            | Self::Stalled { .. }
            | Self::Interrupted(_) => true,
            Self::Address { .. }
            | Self::NoCertificates
            | Self::Unusable { .. }
            | Self::Missing { .. }
            | Self::Unwelcome { .. }
            | Self::Redirect { .. }
            | Self::Untrusted(_)
            | Self::TooLong { .. }
            | Self::Encoded { .. }
            | Self::Undecodable(_)
            | Self::Misbehaved { .. }
            | Self::Changed
            | Self::Stopped => false,
        }
    }

    /// Returns when the server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Self::Status { retry_after, .. } = self {
            *retry_after
        } else {
            None
        }
    }

    /// Says which file it was for.
    pub(crate) fn at(self, address: String) -> TransportError {
        if let Self::Missing { .. } = self {
            return TransportError::Missing { address };
        }
        if self.is_passing() {
            return TransportError::NoAnswer {
                address,
                retry_after: self.retry_after(),
                source: Box::new(self),
            };
        }
        TransportError::Broken {
            address,
            source: Box::new(self),
        }
    }
}

impl Reason {
    /// Takes a cause as text.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn of(error: &reqwest::Error) -> Self {
        let mut innermost: &dyn StdError = error;
        while let Some(cause) = innermost.source() {
            innermost = cause;
        }
        // The library's own errors are said to have no address; the outermost one has.
        if let Some(error) = innermost.downcast_ref::<reqwest::Error>() {
            let kind = if error.is_body() { "body" } else { "request" };
            return Self::new(format!("bad {kind}"));
        }
        Self::new(innermost.to_string())
    }
}

/// Finds the TLS library's word on it. An I/O error hides what it wraps from those who ask for its
/// cause.
fn find_tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        let wrapped = error.downcast_ref::<io::Error>();
        if let Some(wrapped) = wrapped.and_then(|error| error.get_ref()) {
            next = Some(wrapped);
        } else {
            next = error.source();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_not_change_is_not_asked_for_again() {
        let is_passing = |status| {
            HttpError::Status {
                status,
                reason: None,
                retry_after: None,
            }
            .is_passing()
        };
        for status in [300, 304, 400, 401, 407, 451, 501, 505, 511] {
            assert!(!is_passing(status), "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(is_passing(status), "{status}");
        }
    }

    #[test]
    fn an_error_at_a_file_keeps_when_to_come_back() {
        let error = HttpError::Status {
            status: 429,
            reason: Some("Too Many Requests"),
            retry_after: Some(Duration::from_hours(1)),
        };
        assert_eq!(error.to_string(), "HTTP status 429 (Too Many Requests)");
        let TransportError::NoAnswer { retry_after, .. } = error.at("http://h/x".to_owned()) else {
            panic!("it may give it later");
        };
        assert_eq!(retry_after, Some(Duration::from_hours(1)));
        let error = HttpError::Missing { status: 410 }.at("http://h/x".to_owned());
        assert!(matches!(error, TransportError::Missing { .. }));
        let error = HttpError::Changed.at("http://h/x".to_owned());
        assert!(matches!(error, TransportError::Broken { .. }));
    }
}
