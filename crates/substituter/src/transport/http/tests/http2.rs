//! Many requests over one connection, with servers that can do that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::server::SendResponse;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::testing::server::{Authority, Flaw};

/// As many requests as are under way at once.
const N_AT_ONCE: usize = 20;

/// What the server has seen.
#[derive(Default)]
struct Seen {
    n_connections: AtomicUsize,
    n_over_http1: AtomicUsize,
}

/// A server that answers a request at once, but those for `/together` only when all are there.
async fn serve(listener: TcpListener, tls: ServerConfig, seen: Arc<Seen>) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    while let Ok((connection, _)) = listener.accept().await {
        seen.n_connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(converse(connection, acceptor.clone(), Arc::clone(&seen)));
    }
}

async fn converse(connection: TcpStream, acceptor: TlsAcceptor, seen: Arc<Seen>) {
    let stream = acceptor.accept(connection).await.unwrap();
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        seen.n_over_http1.fetch_add(1, Ordering::SeqCst);
        return;
    }
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let together = Arc::new(Barrier::new(N_AT_ONCE));
    while let Some(Ok((request, response))) = connection.accept().await {
        let together = (request.uri().path() == "/together").then(|| Arc::clone(&together));
        tokio::spawn(async move {
            if let Some(together) = together {
                together.wait().await;
            }
            respond(response);
        });
    }
}

fn respond(mut response: SendResponse<Bytes>) {
    // A client that has gone gets nothing.
    let body = response.send_response(http::Response::new(()), false);
    drop(body.and_then(|mut body| body.send_data(Bytes::from_static(b"hello"), true)));
}

/// Starts a server that can speak both, and a user who trusts it.
fn serve_and_use(http2: bool) -> (User, Arc<Seen>) {
    let authority = Authority::new();
    let mut tls = authority.server(Flaw::None);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let provisions = Provisions {
        certificates: authority.certificate.into_bytes(),
        http2,
        n_attempts: 1,
        ..provisions()
    };
    let user = User::of(&format!("https://localhost:{port}/"), provisions);
    let seen = Arc::<Seen>::default();
    let known = Arc::clone(&seen);
    user.runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        serve(listener, tls, known).await;
    });
    (user, seen)
}

#[test]
fn requests_that_are_under_way_together_share_a_connection() {
    let (user, seen) = serve_and_use(true);
    // What the server speaks is only known when there is a connection.
    assert_eq!(user.read("first").unwrap().as_deref(), Some(&b"hello"[..]));
    let file = "together".parse().unwrap();
    let reads = (0..N_AT_ONCE).map(|_| user.transport.read_small(&file, 10));
    let read = user.runtime.block_on(futures_util::future::join_all(reads));
    assert!(
        read.into_iter()
            .all(|file| file.is_ok_and(|file| file.is_some()))
    );
    assert_eq!(user.download("nar").unwrap(), b"hello");
    assert_eq!(seen.n_connections.load(Ordering::SeqCst), 1);
}

#[test]
fn who_does_not_want_it_does_not_get_it() {
    let (user, seen) = serve_and_use(false);
    user.read("x").unwrap_err();
    assert_eq!(seen.n_over_http1.load(Ordering::SeqCst), 1);
}
