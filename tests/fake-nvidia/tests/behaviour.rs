//! The fake upstream as a client sees it: each behaviour once, over a plain socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

struct Fake {
    process: Child,
    address: String,
    _stdout: BufReader<ChildStdout>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Fake {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fake-nvidia"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self {
            process,
            address,
            _stdout: stdout,
        }
    }

    /// Sends a request and returns all that comes until the connection closes.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: fake\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn chat(&self, headers: &str) -> String {
        self.send(
            "POST",
            "/v1/chat/completions",
            headers,
            r#"{"model":"nvidia/x"}"#,
        )
    }

    fn requests(&self) -> serde_json::Value {
        let answer = self.send("GET", "/_fake/requests", "", "");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<serde_json::Value>(body).unwrap()["requests"].clone()
    }
}

#[test]
fn answers_and_records() {
    let fake = Fake::start(&[]);
    let answer = fake.chat("X-Odd: One\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(r#""model":"nvidia/x""#),
        "{answer}"
    );
    assert!(
        fake.send("GET", "/v1/models", "", "")
            .contains("meta/llama")
    );
    assert!(
        fake.send("POST", "/v1/embeddings", "", r#"{"input":["a","b"]}"#)
            .contains(r#""index":1"#)
    );
    assert!(
        fake.send("PUT", "/elsewhere", "", "abc")
            .contains(r#""bytes":3"#)
    );
    let requests = fake.requests();
    assert_eq!(requests.as_array().unwrap().len(), 4);
    assert_eq!(requests[0]["model"], "nvidia/x");
    assert_eq!(requests[0]["body_base64"], "eyJtb2RlbCI6Im52aWRpYS94In0=");
    assert_eq!(requests[0]["status"], 200);
    assert_eq!(requests[0]["aborted"], false);
    assert!(
        requests[0]["headers"]
            .as_array()
            .unwrap()
            .contains(&serde_json::json!(["x-odd", "One"]))
    );
    assert!(requests[0]["at_us"].as_u64().unwrap() < requests[3]["at_us"].as_u64().unwrap());
    fake.send("DELETE", "/_fake/requests", "", "");
    assert_eq!(fake.requests(), serde_json::json!([]));
}

#[test]
fn refuses_past_its_limit_in_nvidias_manner() {
    let fake = Fake::start(&["--limiter", "sliding-window", "--rpm", "2"]);
    assert!(fake.chat("").starts_with("HTTP/1.1 200"));
    assert!(fake.chat("").starts_with("HTTP/1.1 200"));
    let refused = fake.chat("");
    assert!(
        refused.starts_with("HTTP/1.1 429") && refused.contains(r#""title":"Too Many Requests""#),
        "{refused}"
    );
    assert!(!refused.to_ascii_lowercase().contains("retry-after"));
    assert!(
        fake.send("GET", "/v1/models", "", "")
            .starts_with("HTTP/1.1 200"),
        "only the costly paths count"
    );
    fake.send(
        "PUT",
        "/_fake/config",
        "",
        r#"{"limiter":"none","throttle_next":1,"retry_after":"7"}"#,
    );
    assert!(fake.chat("").contains("retry-after: 7"));
    assert!(fake.chat("").starts_with("HTTP/1.1 200"));
    assert!(
        fake.send("PUT", "/_fake/config", "", r#"{"typo":1}"#)
            .starts_with("HTTP/1.1 400")
    );
}

#[test]
fn does_what_a_request_asks_for() {
    let fake = Fake::start(&[]);
    let odd =
        fake.chat("x-fake-status: 418\r\nx-fake-retry-after: 1|2\r\nx-fake-header: X-Two: b\r\n");
    assert!(odd.starts_with("HTTP/1.1 418"), "{odd}");
    assert!(
        odd.contains("retry-after: 1\r\n")
            && odd.contains("retry-after: 2\r\n")
            && odd.contains("x-two: b")
    );
    assert_eq!(fake.chat("x-fake-behaviour: reset\r\n"), "");
    let stream =
        fake.chat("x-fake-behaviour: slow-stream\r\nx-fake-gap-ms: 1\r\nx-fake-chunks: 2\r\n");
    assert!(
        stream.contains("text/event-stream")
            && stream.contains("word1")
            && stream.contains("[DONE]")
    );
    let broken = fake.chat("x-fake-behaviour: reset-mid-stream\r\nx-fake-gap-ms: 1\r\n");
    assert!(
        broken.contains("assistant") && !broken.contains("[DONE]"),
        "{broken}"
    );
}

#[test]
fn notes_a_peer_that_went_away() {
    let fake = Fake::start(&[]);
    let mut socket = TcpStream::connect(&fake.address).unwrap();
    socket
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: f\r\nx-fake-behaviour: hang\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    while fake.requests()[0]["body_sha256"].is_null() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fake.requests()[0]["aborted"], false);
    drop(socket);
    while fake.requests()[0]["aborted"] != true {
        std::thread::sleep(Duration::from_millis(5));
    }
}
