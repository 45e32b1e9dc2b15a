//! `flow serve` as a child, and a client that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A server; it ends with the value.
pub struct Served {
    child: Child,
    pub address: SocketAddr,
}

/// What came.
#[derive(Debug)]
pub struct Heard {
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    pub body: String,
}

impl Heard {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")))
    }

    /// The data of a stream's events.
    pub fn events(&self) -> Vec<String> {
        self.body.lines().filter_map(|l| l.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    /// The chunks of a stream that ended well.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

impl Served {
    /// Serves a model on a free port.
    pub fn start(model: &str, args: &[&str]) -> Self {
        Self::start_with(model, args, &[])
    }

    pub fn start_with(model: &str, args: &[&str], vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(["serve", model, "--port", "0"]).args(args).env("FLOW_DEVICE", "cpu").envs(vars.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://").and_then(|(_, rest)| rest.strip_suffix("/v1"));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).parse().unwrap();
        Self { child, address }
    }

    pub fn get(&self, path: &str) -> Heard {
        self.ask("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Heard {
        self.ask("POST", path, &[], &body.to_string())
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Heard {
        let mut stream = self.send(method, path, headers, body);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        heard(&bytes)
    }

    /// Sends a request, and leaves the answer to be read.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            text += &format!("host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        text += "\r\n";
        text += body;
        self.raw(text.as_bytes())
    }

    /// Sends bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A server that has heard enough may close before the rest is sent.
        let _ = stream.write_all(bytes);
        stream
    }

    /// The value of a line of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn terminate(&self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end; the exit code, and how long it took.
    pub fn wait(mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        (self.child.wait().unwrap().code(), began.elapsed())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer from its bytes.
pub fn heard(bytes: &[u8]) -> Heard {
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase().replace("\r\n", "\n");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
    let rest = &bytes[at + 4..];
    let body = if head.contains("transfer-encoding: chunked") { joined(rest) } else { rest.to_vec() };
    Heard { status, body: String::from_utf8_lossy(&body).into_owned(), head }
}

/// The content of chunks; of one that broke off what came.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16).unwrap();
        let from = end + 2;
        all.extend_from_slice(&rest[from..(from + size).min(rest.len())]);
        if size == 0 || rest.len() < from + size + 2 {
            break;
        }
        rest = &rest[from + size + 2..];
    }
    all
}
