//! The HTTP library, set up: whom it believes, how it reaches a server, what it speaks.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, Proxy, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use store_model::ProxyVariables;

use super::{HttpError, Provisions};

/// Some servers refuse whoever does not say who it is.
const USER_AGENT: &str = concat!("goalctl/", env!("CARGO_PKG_VERSION"));

/// How much of one file a server may send before it is read, so that a stream over HTTP/2 is not
/// slowed by the way to the server and back: 20 MB/s at 100 ms.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// The same for all files of a connection: more than as many streams as there are requests by default
/// (25) may fill, or readers who wait would hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// How long a connection over HTTP/2 with requests under way may be silent before the server is asked
/// whether it is still there, and how long it may think about that.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Sets up a client. Whether there is anybody who can vouch for a server comes with it.
///
/// # Errors
/// A setting cannot be used.
pub(super) fn set_up(provisions: &Provisions) -> Result<(Client, HasRoots), HttpError> {
    let unusable = |what| move |_| HttpError::Unusable { what };
    let (tls, has_roots) = tls(provisions)?;
    let builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(user_agent(&provisions.user_agent_suffix)?)
        // A file comes as it is kept: its hash is that of what is kept.
        .default_headers(HeaderMap::from_iter([(
            ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )]))
        // Whoever is redirected to gets a request of its own.
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(provisions.connect_limit)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_INTERVAL)
        // Those of the process's own environment are not ours to read.
        .no_proxy();
    let builder = match proxy(&provisions.proxies)? {
        Some(proxy) => builder.proxy(proxy),
        None => builder,
    };
    let builder = if provisions.http2 {
        builder
    } else {
        builder.http1_only()
    };
    let client = builder.build().map_err(unusable("the HTTP library"))?;
    Ok((client, has_roots))
}

/// Whether there are certificates to verify servers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasRoots {
    Yes,
    No,
}

fn tls(provisions: &Provisions) -> Result<(ClientConfig, HasRoots), HttpError> {
    let mut roots = RootCertStore::empty();
    // One that is damaged vouches for nobody; the others still do.
    let certificates = CertificateDer::pem_slice_iter(&provisions.certificates);
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    let has_roots = if roots.is_empty() {
        HasRoots::No
    } else {
        HasRoots::Yes
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| HttpError::Unusable {
            what: "the TLS library",
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    if provisions.http2 {
        tls.alpn_protocols.insert(0, b"h2".to_vec());
    }
    Ok((tls, has_roots))
}

fn user_agent(suffix: &str) -> Result<HeaderValue, HttpError> {
    let name = format!("{USER_AGENT} {suffix}");
    let value = HeaderValue::from_str(name.trim_end());
    value.map_err(|_| HttpError::Unusable {
        what: "'user-agent-suffix'",
    })
}

/// Returns the way to whatever needs a proxy; `None` if nothing does.
///
/// # Errors
/// A proxy's address cannot be used. Going on would ask servers without it.
fn proxy(variables: &ProxyVariables) -> Result<Option<Proxy>, HttpError> {
    let unusable = HttpError::Unusable { what: "the proxy" };
    let proxies = [&variables.http, &variables.https, &variables.all];
    let mut proxies = proxies.into_iter().flatten().peekable();
    if proxies.peek().is_none() {
        return Ok(None);
    }
    if proxies.any(|proxy| parse_proxy(proxy).is_none()) {
        return Err(unusable);
    }
    let variables = variables.clone();
    Ok(Some(Proxy::custom(move |url| {
        let host = url.host_str()?;
        parse_proxy(variables.proxy_for(url.scheme(), host)?)
    })))
}

/// Reads a proxy's address as curl does: one without a scheme is one that speaks HTTP.
fn parse_proxy(text: &str) -> Option<Url> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = Url::parse(&text).ok()?;
    let is_known = matches!(
        url.scheme(),
        "http" | "https" | "socks4" | "socks4a" | "socks5" | "socks5h"
    );
    (is_known && url.has_host()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_cannot_be_used_is_not_gone_without() {
        let of = |address: &str| {
            proxy(&ProxyVariables {
                all: Some(address.to_owned()),
                ..ProxyVariables::default()
            })
        };
        for good in ["http://p:1", "p:3128", "https://me:own@p", "socks5h://p:1"] {
            assert!(matches!(of(good), Ok(Some(_))), "{good}");
        }
        for bad in ["ftp://p:1", "http://", "http://p:port", "::"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(matches!(proxy(&ProxyVariables::default()), Ok(None)));
    }

    #[test]
    fn servers_are_told_our_name_and_what_the_user_adds() {
        let name = |suffix| user_agent(suffix).map(|name| name.to_str().map(str::to_owned).ok());
        let plain = name("").ok().flatten().unwrap_or_default();
        assert!(
            plain.starts_with("goalctl/") && !plain.ends_with(' '),
            "{plain}"
        );
        let named = name("ci 7").ok().flatten().unwrap_or_default();
        assert!(named.ends_with(" ci 7"), "{named}");
        assert!(name("a\nb").is_err());
    }
}
