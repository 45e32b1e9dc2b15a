//! A small HTTP server for tests: threads, one exchange at a time per connection.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One request.
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|h| h.0 == name).map_or("", |h| h.1.as_str())
    }
    fn read(lines: &mut impl BufRead) -> Option<Self> {
        let mut first = String::new();
        lines.read_line(&mut first).ok().filter(|n| *n > 0)?;
        let mut words = first.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            lines.read_line(&mut line).ok().filter(|n| *n > 0)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let length = headers.iter().find(|h| h.0 == "content-length").map_or(Some(0), |h| h.1.parse().ok())?;
        let mut body = vec![0; length];
        lines.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }
}

/// Whether the connection may be used again.
pub type Goes = bool;
type Handler = Arc<dyn Fn(&Request, &mut TcpStream) -> Goes + Send + Sync>;

/// A server that ends with the value.
pub struct Server {
    pub address: SocketAddr,
    handler: Handler,
    end: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request, &mut TcpStream) -> Goes + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server =
            Self { address: listener.local_addr().unwrap(), handler: Arc::new(handler), end: Arc::default(), open: Arc::default() };
        server.listen(listener);
        server
    }
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
    fn listen(&mut self, listener: TcpListener) {
        self.end = Arc::default();
        let (end, open, handler) = (self.end.clone(), self.open.clone(), self.handler.clone());
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        let _ = stream.set_nodelay(true);
                        open.lock().unwrap().extend(stream.try_clone());
                        let handler = handler.clone();
                        std::thread::spawn(move || serve(stream, &handler));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }
    /// Breaks all connections and refuses new ones.
    pub fn down(&self) {
        self.end.store(true, Ordering::Relaxed);
        // The listener closes when its thread sees it.
        std::thread::sleep(Duration::from_millis(20));
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    /// Listens again at the same address.
    pub fn up(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.listen(listener);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

fn serve(mut stream: TcpStream, handler: &Handler) {
    let Ok(reader) = stream.try_clone() else { return };
    let mut lines = BufReader::new(reader);
    while let Some(request) = Request::read(&mut lines) {
        if !handler(&request, &mut stream) || request.header("connection") == "close" {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Head and body of a response.
pub fn response(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{more}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Sends a response; who asked may be gone.
pub fn reply(stream: &mut TcpStream, status: &str, more: &str, body: &str) -> Goes {
    stream.write_all(&response(status, more, body.as_bytes())).is_ok()
}

/// Passes a request on and gives status line and body of the answer.
pub fn forward(to: SocketAddr, request: &Request) -> std::io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(to)?;
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: {}\r\n",
        request.method,
        request.path,
        request.body.len()
    );
    for (name, value) in request.headers.iter().filter(|h| h.0.starts_with("content-type") || h.0 == "authorization") {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", &request.body].concat())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| std::io::Error::other("no head"))?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned();
    let body = &all[end + 4..];
    Ok((status, if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_vec() }))
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok()).unwrap_or(0);
        if size == 0 || body.len() < end + 2 + size {
            break;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = body.get(end + 2 + size + 2..).unwrap_or_default();
    }
    out
}
