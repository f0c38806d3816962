//! A web server of a test's own, which does exactly what it is told: also what no server should.

mod answer;
mod authority;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::{ServerConnection, StreamOwned};

pub use self::answer::Answer;
pub use self::authority::{Authority, Flaw};

/// A server on this machine, which ends with the value.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Seen>,
    /// As long as this is here, connections are taken, unless the server dies.
    open: Arc<()>,
}

/// What the server was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, `PUT`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Where the client wanted to be connected to before, if it took the server for a proxy.
    pub tunnel: Option<String>,
    /// By name in small letters.
    pub headers: BTreeMap<String, String>,
    /// What came with it, over a connection that is not encrypted. It is not remembered.
    pub body: Vec<u8>,
    /// How many requests for this path came before.
    pub n_before: usize,
}

/// What has happened so far.
#[derive(Debug)]
struct Seen {
    requests: Mutex<Vec<Request>>,
    n_connections: AtomicUsize,
    /// How many requests it lives to answer.
    n_most: AtomicUsize,
    sockets: Sockets,
}

/// What is open: where connections are taken, and those that were.
#[derive(Debug)]
struct Sockets {
    listener: TcpListener,
    connections: Mutex<Vec<Weak<TcpStream>>>,
}

impl Sockets {
    /// Lets nobody in any more, which also ends the wait for the next one.
    fn stop_listening(&self) {
        let both = rustix::net::Shutdown::Both;
        let _did_listen = rustix::net::shutdown(&self.listener, both);
    }

    /// Closes everything, as the end of a process does.
    fn close(&self) {
        self.stop_listening();
        let connections = self.connections.lock();
        let mut connections = connections.unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..).filter_map(|open| open.upgrade()) {
            // Its other end may have closed it already.
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

impl WebServer {
    /// Starts a server that speaks plain HTTP.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen("http", answer, |connection, serve| {
            let mut from = BufReader::new(&connection);
            while serve(&mut from, &mut &connection)?.is_continue() {}
            Ok(())
        })
    }

    /// Starts a server that `authority` vouches for as `localhost`.
    pub fn start_with_tls(
        authority: &Authority,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with_certificate(authority, Flaw::None, answer)
    }

    /// Starts a server that `authority` vouches for, with something wrong about it.
    pub fn start_with_certificate(
        authority: &Authority,
        flaw: Flaw,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let config = Arc::new(authority.server_config(flaw));
        Self::listen("https", answer, move |connection, serve| {
            let session = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(session, connection);
            loop {
                let mut request = Vec::new();
                let mut byte = [0];
                // One that does not trust us hangs up instead.
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
                    request.push(byte[0]);
                }
                if serve(&mut request.as_slice(), &mut stream)?.is_break() {
                    stream.conn.send_close_notify();
                    return stream.flush();
                }
            }
        })
    }

    fn listen(
        scheme: &'static str,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        talk: impl Fn(TcpStream, Serve<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            n_connections: AtomicUsize::default(),
            n_most: AtomicUsize::new(usize::MAX),
            sockets: Sockets {
                listener,
                connections: Mutex::default(),
            },
        });
        let (answer, talk, known) = (Arc::new(answer), Arc::new(talk), Arc::clone(&seen));
        let open = Arc::new(());
        let is_open = Arc::downgrade(&open);
        std::thread::spawn(move || {
            // Ends with an error when the server dies.
            for connection in known.sockets.listener.incoming().map_while(Result::ok) {
                // The test's own way to say that it is done.
                if is_open.strong_count() == 0 {
                    break;
                }
                let seen = Arc::clone(&known);
                seen.n_connections.fetch_add(1, Ordering::SeqCst);
                let (answer, talk) = (Arc::clone(&answer), Arc::clone(&talk));
                std::thread::spawn(move || {
                    let silent = connection.try_clone().expect("a socket can be cloned");
                    let silent = Arc::new(silent);
                    let connections = seen.sockets.connections.lock();
                    connections
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Arc::downgrade(&silent));
                    let serve = |from: &mut dyn BufRead, to: &mut dyn Write| {
                        serve(from, to, &silent, &seen, &*answer)
                    };
                    // A client that has gone gets nothing.
                    drop(talk(connection, &serve));
                    // One that is to be broken would end in order otherwise.
                    if let Ok(None) = rustix::net::sockopt::socket_linger(&*silent) {
                        drop(silent.shutdown(Shutdown::Both));
                    }
                });
            }
            // Those who are still served keep the socket.
            known.sockets.stop_listening();
        });
        Self {
            address,
            scheme,
            seen,
            open,
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
        let requests = self.seen.requests.lock();
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

    /// Has the server die after it has answered so many requests: everybody who is connected loses the
    /// connection, and nobody can connect any more.
    pub fn die_after(&self, n_requests: usize) {
        self.seen.n_most.store(n_requests, Ordering::SeqCst);
    }

    /// Returns how often somebody connected so far.
    #[must_use]
    pub fn n_connections(&self) -> usize {
        self.seen.n_connections.load(Ordering::SeqCst)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.open = Arc::default();
        // Wakes the listener, which then sees that nobody is left.
        drop(TcpStream::connect(self.address));
    }
}

/// Reads one request and answers it; breaks if there was none, or there can be no other.
type Serve<'a> = &'a dyn Fn(&mut dyn BufRead, &mut dyn Write) -> io::Result<ControlFlow<()>>;

fn serve(
    from: &mut dyn BufRead,
    to: &mut dyn Write,
    connection: &TcpStream,
    seen: &Seen,
    answer: &dyn Fn(&Request) -> Answer,
) -> io::Result<ControlFlow<()>> {
    let Some(mut request) = read_request(from)? else {
        return Ok(ControlFlow::Break(()));
    };
    if request.method == "CONNECT" {
        // A proxy that plays whomever it is to connect to.
        let tunnel = request.path;
        to.write_all(b"HTTP/1.1 200 So\r\n\r\n")?;
        to.flush()?;
        let Some(inner) = read_request(from)? else {
            return Ok(ControlFlow::Break(()));
        };
        request = inner;
        request.tunnel = Some(tunnel);
    }
    {
        let requests = seen.requests.lock();
        let mut requests = requests.unwrap_or_else(PoisonError::into_inner);
        let before = requests
            .iter()
            .filter(|earlier| earlier.path == request.path);
        request.n_before = before.count();
        requests.push(request.clone());
        if requests.len() > seen.n_most.load(Ordering::SeqCst) {
            seen.sockets.close();
            return Ok(ControlFlow::Break(()));
        }
    }
    request.body = read_body(&request, from, to)?;
    let answer = answer(&request);
    let answer = if request.method == "HEAD" {
        answer.without_body()
    } else {
        answer
    };
    answer.send(to, connection)
}

/// Reads what comes with a request, if anything does.
fn read_body(request: &Request, from: &mut dyn BufRead, to: &mut dyn Write) -> io::Result<Vec<u8>> {
    let length = request.headers.get("content-length");
    let Some(n_bytes) = length.and_then(|length| length.parse::<u64>().ok()) else {
        return Ok(Vec::new());
    };
    if request.headers.contains_key("expect") {
        to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        to.flush()?;
    }
    let mut body = Vec::new();
    from.take(n_bytes).read_to_end(&mut body)?;
    if (body.len() as u64) < n_bytes {
        // A client that breaks off has sent nothing.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}

fn read_request(from: &mut dyn BufRead) -> io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let Some((first, fields)) = lines.split_first() else {
        return Ok(None);
    };
    let mut words = first.split(' ').map(str::to_owned);
    let headers = fields
        .iter()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Ok(Some(Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        tunnel: None,
        headers,
        body: Vec::new(),
        n_before: 0,
    }))
}
