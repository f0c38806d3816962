//! A web server of a test's own, which does exactly what it is told: also what no server should.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server on this machine, which ends with the value.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// What the server was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Where the client wanted to be connected to before, if it took the server for a proxy.
    pub tunnel: Option<String>,
    /// By name in small letters.
    pub headers: BTreeMap<String, String>,
    /// How many requests for this path came before.
    pub n_before: usize,
}

/// What the server does about a request.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    conduct: Conduct,
}

/// How the server sends a body.
#[derive(Debug, Clone, Copy)]
enum Conduct {
    /// All of it.
    Honest,
    /// This many bytes of it; then it hangs up.
    HangingUp(usize),
    /// This many bytes of it; then it says nothing until the client goes.
    Stalling(usize),
}

/// Somebody who vouches for servers of this machine.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Answer {
    /// Sends a file.
    #[must_use]
    pub fn file(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
            conduct: Conduct::Honest,
        }
    }

    /// Sends a file, or the part of it that is asked for.
    #[must_use]
    pub fn part(request: &Request, whole: &[u8]) -> Self {
        let start = request.headers.get("range").and_then(|range| {
            let start = range.strip_prefix("bytes=")?.strip_suffix('-')?;
            start.parse::<usize>().ok()
        });
        let Some(start) = start.filter(|start| *start < whole.len()) else {
            return Self::file(whole);
        };
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        Self::range(&range, &whole[start..])
    }

    /// Sends what it says is a part of a file.
    #[must_use]
    pub fn range(range: &str, part: &[u8]) -> Self {
        Self {
            status: 206,
            ..Self::file(part)
        }
        .with("Content-Range", range)
    }

    /// Says that there is something wrong.
    #[must_use]
    pub fn error(status: u16) -> Self {
        Self {
            status,
            ..Self::file("sorry")
        }
    }

    /// Sends the client elsewhere.
    #[must_use]
    pub fn redirect(status: u16, location: &str) -> Self {
        Self {
            status,
            ..Self::file("")
        }
        .with("Location", location)
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Hangs up after so many bytes of the body.
    #[must_use]
    pub fn hanging_up_after(mut self, n_bytes: usize) -> Self {
        self.conduct = Conduct::HangingUp(n_bytes);
        self
    }

    /// Falls silent after so many bytes of the body.
    #[must_use]
    pub fn stalling_after(mut self, n_bytes: usize) -> Self {
        self.conduct = Conduct::Stalling(n_bytes);
        self
    }
}

impl WebServer {
    /// Starts a server that speaks plain HTTP.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen("http", answer, |connection, serve| {
            serve(&mut BufReader::new(&connection), &mut &connection);
        })
    }

    /// Starts a server that `authority` vouches for as `localhost`.
    pub fn start_with_tls(
        authority: &Authority,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let config = Arc::new(authority.server_config());
        Self::listen("https", answer, move |connection, serve| {
            let session = ServerConnection::new(Arc::clone(&config)).expect("the config is valid");
            let mut stream = StreamOwned::new(session, connection);
            let mut request = Vec::new();
            let mut byte = [0];
            // One that does not trust us hangs up instead.
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                request.push(byte[0]);
            }
            serve(&mut request.as_slice(), &mut stream);
            stream.conn.send_close_notify();
            drop(stream.flush());
        })
    }

    fn listen(
        scheme: &'static str,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        talk: impl Fn(TcpStream, Serve<'_>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (answer, talk, seen) = (Arc::new(answer), Arc::new(talk), Arc::clone(&requests));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = connection.expect("a connection can be taken");
                // The test's own way to say that it is done.
                if Arc::strong_count(&seen) == 1 {
                    return;
                }
                let (answer, talk, seen) = (answer.clone(), talk.clone(), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let silent = connection.try_clone().expect("a socket can be cloned");
                    let serve = |from: &mut dyn BufRead, to: &mut dyn Write| {
                        serve(from, to, &silent, &seen, &*answer);
                    };
                    talk(connection, &serve);
                    drop(silent.shutdown(Shutdown::Both));
                });
            }
        });
        Self {
            address,
            scheme,
            requests,
        }
    }

    /// Returns the address of a path at this server, which is called `localhost`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port())
    }

    /// Returns the same by the server's number, which makes it another host.
    #[must_use]
    pub fn url_by_number(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Returns what it was asked so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how often it was asked for a path.
    #[must_use]
    pub fn n_requests(&self, path: &str) -> usize {
        let requests = self.requests();
        requests
            .iter()
            .filter(|request| request.path == path)
            .count()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.requests = Arc::default();
        // Wakes the listener, which then sees that nobody is left.
        drop(TcpStream::connect(self.address));
    }
}

impl Authority {
    /// Makes up somebody.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new([]).expect("nothing is wrong with no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
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

    fn server_config(&self) -> ServerConfig {
        let key = KeyPair::generate().expect("a key can be made");
        let params = CertificateParams::new(["localhost".to_owned()]).expect("it is a name");
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

/// Reads one request and answers it.
type Serve<'a> = &'a dyn Fn(&mut dyn BufRead, &mut dyn Write);

fn serve(
    from: &mut dyn BufRead,
    to: &mut dyn Write,
    connection: &TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Answer,
) {
    let Some((method, mut request)) = read_request(from) else {
        return;
    };
    if method == "CONNECT" {
        // A proxy that plays whomever it is to connect to.
        let tunnel = request.path;
        drop(
            to.write_all(b"HTTP/1.1 200 So\r\n\r\n")
                .and_then(|()| to.flush()),
        );
        let Some((_, inner)) = read_request(from) else {
            return;
        };
        request = inner;
        request.tunnel = Some(tunnel);
    }
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.iter().filter(|earlier| earlier.path == request.path);
        request.n_before = before.count();
        seen.push(request.clone());
    }
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} So\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    let length = answer.body.len().to_string();
    head.extend(["Content-Length: ", &length, "\r\n\r\n"]);
    let n_sent = match answer.conduct {
        Conduct::Honest => answer.body.len(),
        Conduct::HangingUp(n_sent) | Conduct::Stalling(n_sent) => n_sent,
    };
    let bytes = [head.as_bytes(), &answer.body[..n_sent]].concat();
    // A client that has gone gets nothing.
    drop(to.write_all(&bytes).and_then(|()| to.flush()));
    if let Conduct::Stalling(_) = answer.conduct {
        let mut rest = connection;
        drop(rest.read_to_end(&mut Vec::new()));
    }
}

/// Reads a request; returns its method too.
fn read_request(from: &mut dyn BufRead) -> Option<(String, Request)> {
    let mut lines = from.lines().map_while(Result::ok);
    let first = lines.next()?;
    let (method, rest) = first.split_once(' ')?;
    let (path, _) = rest.split_once(' ')?;
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let request = Request {
        path: path.to_owned(),
        tunnel: None,
        headers,
        n_before: 0,
    };
    Some((method.to_owned(), request))
}
