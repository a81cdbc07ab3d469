//! A fake of our own for each test, and a client that speaks HTTP/1.1 by hand: what is tested here happens on the
//! wire, and a real client would hide it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Only a fake that is broken takes this long; no test passes or fails by a shorter time.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub struct Fake {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    pub address: String,
}

pub fn start(options: &[&str]) -> Fake {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fake-nvidia"))
        .args(["--listen", "127.0.0.1:0", "--latency-ms", "0"])
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the fake starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a first line");
    let address = line.strip_prefix("fake-nvidia listening on ").expect("the announced line").trim_end().to_owned();
    Fake { child, output, address }
}

impl Fake {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream
    }

    /// Sends a request on a connection of its own and leaves the answer unread.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&request(method, path, headers, body)).expect("the request leaves");
        stream
    }

    /// Sends a request and reads its whole answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let (bytes, end) = drain(&mut self.send(method, path, headers, body));
        assert_eq!(end, End::Closed);
        Reply::parse(&bytes)
    }

    pub fn chat(&self, headers: &[(&str, &str)]) -> Reply {
        let body = br#"{"model": "nvidia/x", "messages": []}"#;
        self.ask("POST", "/v1/chat/completions", headers, body)
    }

    pub fn configure(&self, json: &str) {
        let reply = self.ask("PUT", "/_fake/config", &[], json.as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    pub fn records(&self) -> Vec<Value> {
        let reply = self.ask("GET", "/_fake/requests", &[], b"");
        match &reply.json()["requests"] {
            Value::Array(records) => records.clone(),
            other => panic!("not a list: {other}"),
        }
    }

    /// Waits until the record number `seq` is as wanted.
    pub fn record_when(&self, seq: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let records = self.records();
            if let Some(record) = records.get(seq).filter(|record| wanted(record)) {
                return record.clone();
            }
            assert!(start.elapsed() < TIMEOUT, "never came: {records:?}");
            std::thread::yield_now();
        }
    }

    /// Sends a signal, and returns the exit code and the rest of the output.
    pub fn end_by(&mut self, signal: &str) -> (Option<i32>, String) {
        let killed = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("UTF-8");
        (self.child.wait().expect("an end").code(), rest)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: fake\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
    bytes.extend(body);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

/// Everything up to the connection's end, and how it ended.
pub fn drain(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Closed),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => (bytes, End::Reset),
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in UTF-8");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            status: status.and_then(|text| text.parse().ok()).expect("a status"),
            headers,
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter();
        lines.filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The body; of a chunked one with the chunks' sizes still in it, which does no harm to a search.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}
