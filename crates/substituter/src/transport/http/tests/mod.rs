//! The transport against servers that are well, and that are not.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod http2;
mod small_files;
mod transfers;
mod trust;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::{HttpTransport, OpenRequest, Provisions, Transport, TransportError, Web};
use crate::error::chain;
use crate::testing::server::Server;

/// More than a test of something that happens at once ever takes.
const SOON: Duration = Duration::from_secs(20);

/// A user of one cache.
struct User {
    runtime: Runtime,
    transport: HttpTransport,
}

/// Limits that a sound exchange on this machine keeps to, and a test does not wait long for.
fn provisions() -> Provisions {
    Provisions {
        certificates: Vec::new(),
        netrc: Vec::new(),
        proxies: store_model::ProxyVariables::default(),
        user_agent_suffix: String::new(),
        http2: true,
        n_attempts: 3,
        connect_limit: SOON,
        stall_limit: Some(SOON),
        answer_limit: None,
    }
}

/// The same, with a server that may be silent for a moment only.
fn impatient() -> Provisions {
    Provisions {
        stall_limit: Some(Duration::from_secs(1)),
        ..provisions()
    }
}

impl User {
    fn of(address: &str, provisions: Provisions) -> Self {
        let web = Web::new(provisions).unwrap();
        Self {
            runtime: Runtime::new().unwrap(),
            transport: HttpTransport::new(Arc::new(web), address).unwrap(),
        }
    }

    fn at(server: &Server) -> Self {
        Self::of(&server.url("/"), provisions())
    }

    /// Reads a small file of at most 1,000 bytes.
    fn read(&self, file: &str) -> Result<Option<Bytes>, TransportError> {
        let file = file.parse().unwrap();
        let read = self.transport.read_small(&file, 1000);
        self.runtime.block_on(read)
    }

    /// Reads one and returns what kept it from coming, with all causes.
    fn read_failing(&self, file: &str) -> String {
        chain(&self.read(file).unwrap_err())
    }

    fn open(
        &self,
        file: &str,
    ) -> Result<(Box<dyn Read + Send>, oneshot::Sender<()>), TransportError> {
        let (guard, ended) = oneshot::channel();
        let request = OpenRequest { ended };
        let file = file.parse().unwrap();
        let open = self.transport.open(&file, request);
        let body = self.runtime.block_on(open)?;
        Ok((body, guard))
    }

    /// Downloads a file wholly; what keeps it from coming is told with all causes.
    fn download(&self, file: &str) -> Result<Vec<u8>, String> {
        let (mut body, _guard) = self.open(file).map_err(|error| chain(&error))?;
        let mut contents = Vec::new();
        match body.read_to_end(&mut contents) {
            Ok(_) => Ok(contents),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Asserts that something does not take long, and returns what it returns.
#[track_caller]
fn within<T>(limit: Duration, act: impl FnOnce() -> T) -> T {
    let begun = tokio::time::Instant::now();
    let result = act();
    let took = begun.elapsed();
    assert!(took < limit, "it took {took:?}");
    result
}
