//! A web server of a test's own, which does exactly what it is told: also what no server should.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server on this machine, which ends with the value.
pub(crate) struct Server {
    port: u16,
    scheme: &'static str,
    seen: Arc<Seen>,
}

/// What the server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// `GET`, `HEAD`, `PUT`.
    pub(crate) method: String,
    /// As it stands in the request: path and query, or an address if a proxy is asked.
    pub(crate) target: String,
    /// By name in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    /// What came with it.
    pub(crate) body: Vec<u8>,
    /// How many requests came before.
    pub(crate) n_before: usize,
}

/// What the server does about a request, one after the other.
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Byte by byte, with so much time between them.
    Drip(Vec<u8>, Duration),
    /// The same bytes for ever.
    Repeat(Vec<u8>),
    /// Says nothing until the client goes.
    Stall,
    /// Ends the connection in order.
    HangUp,
    /// Ends it in disorder.
    Reset,
    /// Does something else.
    Call(Box<dyn Fn(&TcpStream) + Send>),
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Request>>,
    n_connections: AtomicUsize,
}

impl Server {
    /// Starts a server that speaks plain HTTP.
    pub(crate) fn start(script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::listen("http", script, None)
    }

    /// Starts a server that shows a certificate.
    pub(crate) fn start_with_tls(
        tls: ServerConfig,
        script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        Self::listen("https", script, Some(Arc::new(tls)))
    }

    fn listen(
        scheme: &'static str,
        script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        let seen = Arc::<Seen>::default();
        let (script, known) = (Arc::new(script), Arc::downgrade(&seen));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = connection.expect("a connection can be taken");
                // The test's own way to say that it is done.
                let Some(seen) = known.upgrade() else { return };
                seen.n_connections.fetch_add(1, Ordering::SeqCst);
                let (script, tls) = (Arc::clone(&script), tls.clone());
                std::thread::spawn(move || {
                    // Whoever goes is no concern of the server's.
                    drop(converse(&connection, tls, &seen, &*script));
                });
            }
        });
        Self { port, scheme, seen }
    }

    /// Returns an address at this server, which is called `localhost`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.port)
    }

    /// Returns the same by the server's number, which makes it another host.
    pub(crate) fn url_by_number(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let requests = self.seen.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn n_connections(&self) -> usize {
        self.seen.n_connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.seen = Arc::default();
        // Wakes the listener, which then sees that nobody is left.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

/// Answers with a status and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<Step> {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    headers.push(("Content-Length", &length));
    let mut bytes = head(status, &headers);
    bytes.extend(body);
    vec![Step::Send(bytes)]
}

/// Returns what stands before a body.
pub(crate) fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let fields = headers.iter();
    let fields = fields.map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("HTTP/1.1 {status} So\r\n{}\r\n", fields.collect::<String>()).into_bytes()
}

/// Sends a client elsewhere.
pub(crate) fn redirect(location: &str) -> Vec<Step> {
    answer(302, &[("Location", location)], b"elsewhere")
}

/// A host that lets nobody connect, and says so to nobody.
pub(crate) struct BlackHole {
    listener: TcpListener,
    /// They fill the queue that nobody takes connections from.
    _queued: Vec<OwnedFd>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        rustix::net::listen(&listener, 0).expect("it listens already");
        let address = listener.local_addr().expect("it has an address");
        let queued = (0..8).map(|_| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
            let socket = socket.expect("a socket can be made");
            // It is under way, or it has no answer, which is the point.
            let _is_connected = rustix::net::connect(&socket, &address);
            socket
        });
        Self {
            _queued: queued.collect(),
            listener,
        }
    }

    pub(crate) fn url(&self) -> String {
        let address = self.listener.local_addr().expect("it has an address");
        format!("http://{address}/")
    }
}

/// Somebody who vouches for servers.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// In PEM.
    pub(crate) certificate: String,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    OtherName,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new([]).expect("nothing is wrong with no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a key signs").pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Vouches for a server called `localhost`.
    pub(crate) fn server(&self, flaw: Flaw) -> ServerConfig {
        let key = KeyPair::generate().expect("a key can be made");
        let name = match flaw {
            Flaw::OtherName => "other.example",
            Flaw::None | Flaw::Expired => "localhost",
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

fn converse(
    connection: &TcpStream,
    tls: Option<Arc<ServerConfig>>,
    seen: &Seen,
    script: &dyn Fn(&Request) -> Vec<Step>,
) -> io::Result<()> {
    let Some(tls) = tls else {
        return talk(&mut &*connection, connection, seen, script);
    };
    let session = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, connection.try_clone()?);
    let talked = talk(&mut stream, connection, seen, script);
    stream.conn.send_close_notify();
    stream.flush()?;
    talked
}

fn talk(
    stream: &mut (impl Read + Write),
    connection: &TcpStream,
    seen: &Seen,
    script: &dyn Fn(&Request) -> Vec<Step>,
) -> io::Result<()> {
    while let Some(mut request) = read_request(stream)? {
        {
            let mut requests = seen.requests.lock().unwrap_or_else(PoisonError::into_inner);
            request.n_before = requests.len();
            requests.push(request.clone());
        }
        for step in script(&request) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes)?,
                Step::Drip(bytes, pause) => {
                    for byte in bytes {
                        stream.write_all(&[byte])?;
                        std::thread::sleep(pause);
                    }
                }
                Step::Repeat(bytes) => loop {
                    stream.write_all(&bytes)?;
                },
                Step::Stall => {
                    stream.read_to_end(&mut Vec::new())?;
                    return Ok(());
                }
                Step::HangUp => return Ok(()),
                Step::Reset => {
                    rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO))?;
                    return Ok(());
                }
                Step::Call(call) => call(connection),
            }
        }
        stream.flush()?;
    }
    Ok(())
}

fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte)? == 0 {
            return Ok(None);
        }
        bytes.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next(), words.next());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut body)?;
    Ok(Some(Request {
        method: method.unwrap_or_default().to_owned(),
        body,
        target: target.unwrap_or_default().to_owned(),
        headers,
        n_before: 0,
    }))
}
