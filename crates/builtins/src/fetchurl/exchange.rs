//! One request to a server, and to those that it redirects to.

use std::sync::Arc;

use bstr::ByteSlice as _;
use rustls::crypto::CryptoProvider;
use store_model::netrc::{self, Login};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::url::{Scheme, Url};
use super::{Provisions, TransferError};

/// As many as Nix follows.
const MAX_REDIRECTS: usize = 10;

/// Some servers refuse whoever does not say who it is.
const USER_AGENT: &str = concat!("goalctl/", env!("CARGO_PKG_VERSION"));

/// What every request of one download shares.
#[derive(Debug)]
pub(super) struct Client<'a> {
    pub(super) provisions: &'a Provisions,
    crypto: Arc<CryptoProvider>,
    roots: RootCerts,
    n_roots: usize,
}

/// What a server has answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// Which part of a file is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    /// How many bytes are here already.
    pub(super) position: u64,
    /// What the server called the version that they are of.
    pub(super) version: Option<&'a str>,
}

impl<'a> Client<'a> {
    pub(super) fn new(provisions: &'a Provisions) -> Self {
        let certificates: Vec<Certificate<'static>> =
            ureq::tls::parse_pem(&provisions.certificates)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    // One that is damaged vouches for nobody; the others still do.
                    Ok(_) | Err(_) => None,
                })
                .collect();
        Self {
            provisions,
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
            n_roots: certificates.len(),
            roots: RootCerts::new_with_certs(&certificates),
        }
    }

    /// Asks for a file, or the rest of it.
    ///
    /// # Errors
    /// No server answers, or one answers that it does not give the file.
    pub(super) fn get(&self, url: &Url, from: From<'_>) -> Result<Answer, TransferError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get_once(&url, from)?;
            let status = response.status();
            let (parts, body) = response.into_parts();
            if status.is_success() {
                return Ok(Answer {
                    status,
                    headers: parts.headers,
                    body,
                });
            }
            let location = parts.headers.get(header::LOCATION);
            match (status.as_u16(), location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    url = url.join(&location.as_bytes().to_str_lossy())?;
                }
                (status, _) => {
                    return Err(TransferError::Status {
                        status,
                        reason: parts.status.canonical_reason(),
                    });
                }
            }
        }
        Err(TransferError::TooManyRedirects)
    }

    fn get_once(&self, url: &Url, from: From<'_>) -> Result<Response<Body>, TransferError> {
        let agent = self.agent(url)?;
        // A file comes as it is kept: its hash is that of what is kept.
        let mut request = agent
            .get(url.to_string())
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(login) = self.login(url) {
            request = request.header(header::AUTHORIZATION, login.to_basic());
        }
        if from.position > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", from.position));
            if let Some(version) = from.version {
                request = request.header(header::IF_RANGE, version);
            }
        }
        request.call().map_err(TransferError::from_exchange)
    }

    fn agent(&self, url: &Url) -> Result<Agent, TransferError> {
        let proxies = &self.provisions.proxies;
        let proxy = proxies.proxy_for(&url.scheme.to_string(), &url.host);
        let needs_tls = |address: &str| address.starts_with("https:");
        if (url.scheme == Scheme::Https || proxy.is_some_and(needs_tls)) && self.n_roots == 0 {
            return Err(TransferError::NoCertificates);
        }
        let unusable = |_| TransferError::Unusable { what: "the proxy" };
        let proxy = proxy.map(Proxy::new).transpose().map_err(unusable)?;
        let tls = TlsConfig::builder()
            .root_certs(self.roots.clone())
            .unversioned_rustls_crypto_provider(Arc::clone(&self.crypto))
            .build();
        let config = Agent::config_builder()
            // Whoever is redirected to gets a request of its own.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(USER_AGENT)
            .timeout_connect(self.provisions.connect_limit)
            .timeout_per_read(self.provisions.stall_limit)
            .timeout_per_write(self.provisions.stall_limit)
            .tls_config(tls)
            .proxy(proxy)
            .build();
        Ok(config.new_agent())
    }

    /// Returns the name and password for a server: those of the address, which everybody can read,
    /// or the user's own, which only the server that they are for is told.
    fn login(&self, url: &Url) -> Option<Login> {
        let (name, password) = match &url.user {
            Some((name, Some(password))) => {
                return Some(Login {
                    name: name.clone(),
                    password: password.clone(),
                });
            }
            Some((name, None)) => (Some(name.clone()), String::new()),
            None => (None, String::new()),
        };
        let known = (url.scheme == Scheme::Https)
            .then(|| netrc::find(self.provisions.netrc.as_bstr(), &url.host, name.as_deref()))
            .flatten();
        known.or_else(|| name.map(|name| Login { name, password }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_users_passwords_are_for_their_host_and_for_nobody_who_may_listen() {
        let provisions = Provisions {
            netrc: "machine h login me password secret".into(),
            ..Provisions::default()
        };
        let client = Client::new(&provisions);
        let login = |url: &str| {
            let login = client.login(&url.parse().unwrap());
            login.map(|login| format!("{}:{}", login.name, login.password))
        };
        assert_eq!(login("https://h/x").as_deref(), Some("me:secret"));
        assert_eq!(login("https://me@h:8443/x").as_deref(), Some("me:secret"));
        assert_eq!(login("https://other@h/x").as_deref(), Some("other:"));
        assert_eq!(login("https://you:own@h/x").as_deref(), Some("you:own"));
        assert_eq!(login("http://you:own@h/x").as_deref(), Some("you:own"));
        for url in ["http://h/x", "https://other/x", "https://h.other/x"] {
            assert_eq!(login(url), None, "{url}");
        }
    }

    #[test]
    fn without_certificates_no_server_is_asked_that_has_to_be_verified() {
        let provisions = Provisions::default();
        let client = Client::new(&provisions);
        let asked = client.agent(&"https://h/".parse().unwrap());
        assert!(matches!(asked, Err(TransferError::NoCertificates)));
        assert!(client.agent(&"http://h/".parse().unwrap()).is_ok());
    }
}
