//! What a server says, and how it says it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::Duration;

use super::Request;

/// What the server does about a request.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    conduct: Conduct,
    delay: Duration,
    /// What it says that the body's length is, if not the truth.
    claimed_bytes: Option<u64>,
}

/// How the server sends a body.
#[derive(Debug, Clone, Copy)]
enum Conduct {
    /// All of it.
    Honest,
    /// This many bytes of it; then it hangs up.
    HangingUp(usize),
    /// This many bytes of it; then it breaks the connection.
    Resetting(usize),
    /// This many bytes of it; then it says nothing until the client goes.
    Stalling(usize),
    /// Nothing at all, not even headers, until the client goes.
    Silent,
    /// Headers and body byte by byte, with so much time after each.
    Dripping(Duration),
    /// All of it, again and again, in chunks.
    Endless,
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
            delay: Duration::ZERO,
            claimed_bytes: None,
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

    /// Says that what was wanted is done.
    #[must_use]
    pub fn done() -> Self {
        Self {
            status: 201,
            ..Self::file("")
        }
    }

    /// Says that there is too much to do, and when to come back.
    #[must_use]
    pub fn busy(status: u16, retry_after: Duration) -> Self {
        Self::error(status).with("Retry-After", &retry_after.as_secs().to_string())
    }

    /// Sends the page of a network that wants somebody to log in.
    #[must_use]
    pub fn welcome_page() -> Self {
        Self::file("<!DOCTYPE html><html><body>Please log in</body></html>")
            .with("Content-Type", "text/html")
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

    /// Says nothing until the client goes.
    #[must_use]
    pub fn silence() -> Self {
        Self {
            conduct: Conduct::Silent,
            ..Self::file("")
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the body to itself, as for whoever only wants to know about it.
    #[must_use]
    pub(super) fn without_body(mut self) -> Self {
        self.claimed_bytes.get_or_insert(self.body.len() as u64);
        self.body.clear();
        self
    }

    /// Makes something else of the body.
    #[must_use]
    pub fn map_body(mut self, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        self.body = change(self.body);
        self
    }

    /// Gives a text such as a narinfo another value of a field, or the field if it has none. What is
    /// not there to be given a value, such as an error, stays as it is.
    #[must_use]
    pub fn with_field(self, field: &str, value: &str) -> Self {
        if self.status != 200 {
            return self;
        }
        self.map_body(|body| {
            let text = String::from_utf8_lossy(&body).into_owned();
            let is_other = |line: &&str| line.split_once(':').is_none_or(|(name, _)| name != field);
            let mut lines: Vec<&str> = text.lines().filter(is_other).collect();
            let line = format!("{field}: {value}");
            lines.push(&line);
            (lines.join("\n") + "\n").into_bytes()
        })
    }

    /// Begins to answer after a while.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Says that the body has so many bytes.
    #[must_use]
    pub fn claiming(mut self, n_bytes: u64) -> Self {
        self.claimed_bytes = Some(n_bytes);
        self
    }

    /// Hangs up after so many bytes of the body.
    #[must_use]
    pub fn hanging_up_after(mut self, n_bytes: usize) -> Self {
        self.conduct = Conduct::HangingUp(n_bytes);
        self
    }

    /// Breaks the connection after so many bytes of the body.
    #[must_use]
    pub fn resetting_after(mut self, n_bytes: usize) -> Self {
        self.conduct = Conduct::Resetting(n_bytes);
        self
    }

    /// Falls silent after so many bytes of the body.
    #[must_use]
    pub fn stalling_after(mut self, n_bytes: usize) -> Self {
        self.conduct = Conduct::Stalling(n_bytes);
        self
    }

    /// Sends one byte after the other, with so much time after each.
    #[must_use]
    pub fn dripping(mut self, pause: Duration) -> Self {
        self.conduct = Conduct::Dripping(pause);
        self
    }

    /// Sends the body again and again, without end.
    #[must_use]
    pub fn endless(mut self) -> Self {
        self.conduct = Conduct::Endless;
        self
    }

    /// Sends it all; breaks if the connection is of no more use.
    ///
    /// # Errors
    /// The client has gone.
    pub(super) fn send(
        &self,
        to: &mut dyn Write,
        connection: &TcpStream,
    ) -> io::Result<ControlFlow<()>> {
        std::thread::sleep(self.delay);
        let head = self.head();
        let begin = |to: &mut dyn Write, n_bytes: usize| {
            let body = &self.body[..n_bytes.min(self.body.len())];
            to.write_all(&[head.as_bytes(), body].concat())?;
            to.flush()
        };
        match self.conduct {
            Conduct::Honest => {
                begin(to, self.body.len())?;
                return Ok(ControlFlow::Continue(()));
            }
            Conduct::HangingUp(n_bytes) => begin(to, n_bytes)?,
            Conduct::Resetting(n_bytes) => {
                begin(to, n_bytes)?;
                rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO))?;
            }
            Conduct::Stalling(n_bytes) => {
                begin(to, n_bytes)?;
                wait_for_end(connection)?;
            }
            Conduct::Silent => wait_for_end(connection)?,
            Conduct::Dripping(pause) => {
                for byte in head.bytes().chain(self.body.iter().copied()) {
                    to.write_all(&[byte])?;
                    to.flush()?;
                    std::thread::sleep(pause);
                }
                return Ok(ControlFlow::Continue(()));
            }
            Conduct::Endless => {
                to.write_all(head.as_bytes())?;
                let mut chunk = format!("{:x}\r\n", self.body.len()).into_bytes();
                chunk.extend(&self.body);
                chunk.extend(b"\r\n");
                loop {
                    to.write_all(&chunk)?;
                }
            }
        }
        Ok(ControlFlow::Break(()))
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} So\r\n", self.status);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if let Conduct::Endless = self.conduct {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        } else {
            let n_bytes = self.claimed_bytes.unwrap_or(self.body.len() as u64);
            head.extend(["Content-Length: ", &n_bytes.to_string(), "\r\n\r\n"]);
        }
        head
    }
}

fn wait_for_end(mut connection: &TcpStream) -> io::Result<()> {
    connection.read_to_end(&mut Vec::new()).map(drop)
}
