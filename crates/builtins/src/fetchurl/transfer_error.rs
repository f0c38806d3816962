//! Why bytes did not come, and whether asking again may help.

use std::io;

/// A failed transfer.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The address is none that can be asked.
    #[error("the URL {why}")]
    Url {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file of a `file:` address cannot be read.
    #[error("reading the file")]
    File(#[source] io::Error),
    /// The server has answered that it does not give the file.
    #[error("HTTP error {status}{}", described(*.reason))]
    Status {
        /// Its number.
        status: u16,
        /// What that means.
        reason: Option<&'static str>,
    },
    /// The server sends from one address to the next.
    #[error("too many redirects")]
    TooManyRedirects,
    /// There is nobody who could vouch for the server.
    #[error(
        "there are no certificates to verify the server with; 'ssl-cert-file' says where they are"
    )]
    NoCertificates,
    /// The certificates, or the proxy, are not usable.
    #[error("{what} cannot be used")]
    Unusable {
        /// What is not.
        what: &'static str,
    },
    /// The server is not who it should be, or nobody vouches for it.
    #[error("the server's certificate is not trusted")]
    Untrusted(#[source] rustls::Error),
    /// It sent something else than what it was asked for.
    #[error("the server {what}")]
    Misbehaved {
        /// What it did.
        what: &'static str,
    },
    /// It has been silent for too long.
    #[error("the server was silent for too long")]
    Stalled,
    /// The network, or the server's end of it, failed.
    #[error(transparent)]
    Exchange(Box<ureq::Error>),
    /// Reading what came failed for another reason.
    #[error(transparent)]
    Io(io::Error),
}

impl TransferError {
    /// Takes the error of a request.
    pub(super) fn from_exchange(error: ureq::Error) -> Self {
        if let ureq::Error::Timeout(_) = error {
            return Self::Stalled;
        }
        if let ureq::Error::Rustls(error) = error {
            return Self::from_tls(error);
        }
        if let ureq::Error::Io(error) = error {
            return Self::from_io(error);
        }
        Self::Exchange(Box::new(error))
    }

    /// Takes the error of reading a body: it hides the one that it is about.
    pub(super) fn from_io(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut || error.kind() == io::ErrorKind::WouldBlock {
            return Self::Stalled;
        }
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => match error.downcast::<ureq::Error>() {
                Ok(error) => Self::from_exchange(error),
                Err(error) => match error.downcast::<rustls::Error>() {
                    Ok(error) => Self::from_tls(error),
                    Err(error) => Self::Io(error),
                },
            },
        }
    }

    fn from_tls(error: rustls::Error) -> Self {
        if let rustls::Error::InvalidCertificate(_) = error {
            return Self::Untrusted(error);
        }
        Self::Exchange(Box::new(ureq::Error::Rustls(error)))
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
            Self::Exchange(error) => !matches!(
                **error,
                ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl
            ),
            Self::Stalled | Self::Io(_) => true,
            Self::Url { .. }
            | Self::File(_)
            | Self::TooManyRedirects
            | Self::NoCertificates
            | Self::Unusable { .. }
            | Self::Untrusted(_)
            | Self::Misbehaved { .. } => false,
        }
    }
}

fn described(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" ('{reason}')"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_not_change_is_not_asked_for_again() {
        let is_passing = |status| {
            let reason = None;
            TransferError::Status { status, reason }.is_passing()
        };
        for status in [400, 401, 403, 404, 407, 410, 501, 505, 511, 300, 304] {
            assert!(!is_passing(status), "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(is_passing(status), "{status}");
        }
        assert!(TransferError::Stalled.is_passing());
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        // As it comes out of a connection.
        let hidden = io::Error::other(untrusted);
        let error = TransferError::from_exchange(ureq::Error::Io(hidden));
        assert!(matches!(error, TransferError::Untrusted(_)), "{error:?}");
        assert!(!error.is_passing());
    }
}
