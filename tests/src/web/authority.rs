//! Somebody who vouches for servers, rightly or not.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// Somebody who vouches for servers of this machine.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: it is for `localhost`, today.
    None,
    /// Its time is over.
    Expired,
    /// It is for another server.
    OtherName,
}

impl Authority {
    /// Makes up somebody.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new([]).expect("nothing is wrong with no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for its own issuer if both have the same name.
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "authority of a test");
        let certificate = params.self_signed(&key).expect("a key signs").pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Returns the certificate that clients have to trust, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(super) fn server_config(&self, flaw: Flaw) -> ServerConfig {
        let key = KeyPair::generate().expect("a key can be made");
        let name = match flaw {
            Flaw::None | Flaw::Expired => "localhost",
            Flaw::OtherName => "other.example",
        };
        let mut params = CertificateParams::new([name.to_owned()]).expect("it is a name");
        if flaw == Flaw::Expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("a key signs");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let crypto = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("the key is the certificate's")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
