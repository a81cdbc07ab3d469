//! The fake as a whole: the program started on a free port, and each of its behaviours seen from the other end of
//! a socket.

mod support;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use support::{End, drain, request, start};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn answers_echo_the_model() {
    let fake = start(&[]);
    let body = br#"{"model": "meta/y", "input": ["a", "b"]}"#;
    for (path, object) in
        [(CHAT, "chat.completion"), ("/v1/completions", "text_completion"), ("/v1/embeddings", "list")]
    {
        let reply = fake.ask("POST", path, &[], body);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.all("content-type"), ["application/json"]);
        assert_eq!(reply.json()["model"], "meta/y", "{path}");
        assert_eq!(reply.json()["object"], object);
    }
    let models = fake.ask("GET", "/v1/models", &[], b"").json();
    assert!(models["data"].as_array().is_some_and(|list| !list.is_empty()));
    let echo = fake.ask("PATCH", "/elsewhere?a=b", &[], b"12345");
    assert_eq!(echo.json(), json!({"echo": {"method": "PATCH", "path": "/elsewhere", "bytes": 5}}));
}

#[test]
fn streams_come_in_chunks_and_end_with_done() {
    let fake = start(&[]);
    let body = br#"{"model": "nvidia/x", "stream": true}"#;
    let reply = fake.ask("POST", CHAT, &[("x-fake-chunks", "3")], body);
    assert_eq!(reply.all("content-type"), ["text/event-stream"]);
    assert_eq!(reply.all("transfer-encoding"), ["chunked"]);
    assert_eq!(reply.text().matches("data: {").count(), 1 + 3 + 1);
    assert!(reply.text().contains("data: [DONE]\n\n"));
    assert_eq!(fake.records()[0]["aborted"], false);
}

#[test]
fn a_slow_stream_takes_its_gaps() {
    let fake = start(&[]);
    let asked = [("x-fake-behaviour", "slow-stream"), ("x-fake-gap-ms", "30"), ("x-fake-chunks", "2")];
    let begun = Instant::now();
    let reply = fake.chat(&asked);
    // A role, two chunks, an end and `[DONE]` have four gaps between them.
    assert!(begun.elapsed() >= Duration::from_millis(4 * 30));
    assert!(reply.text().contains("[DONE]"));
}

#[test]
fn the_record_holds_what_was_sent() {
    let fake = start(&[]);
    let headers = [("X-Zebra", "1"), ("x-apple", "2"), ("X-Middle", "3")];
    fake.ask("POST", "/v1/completions?q=1", &headers, br#"{"model":"a/b"}"#);
    let record = &fake.records()[0];
    assert_eq!(record["seq"], 0);
    assert_eq!(record["method"], "POST");
    assert_eq!(record["path"], "/v1/completions?q=1");
    assert_eq!(
        record["headers"],
        json!([
            ["host", "fake"],
            ["connection", "close"],
            ["x-zebra", "1"],
            ["x-apple", "2"],
            ["x-middle", "3"],
            ["content-length", "15"]
        ])
    );
    assert_eq!(record["body_len"], 15);
    assert_eq!(record["body_base64"], "eyJtb2RlbCI6ImEvYiJ9");
    // `printf '{"model":"a/b"}' | sha256sum`
    let sha256 = "474cf7f4e481f804dc76d06c905554e02e2b75033a6d88922cc088554418dc76";
    assert_eq!(record["body_sha256"], sha256);
    assert_eq!(record["model"], "a/b");
    assert_eq!(record["status"], 200);
    assert_eq!(record["aborted"], false);

    fake.ask("GET", "/_fake/health", &[], b"");
    assert_eq!(fake.records().len(), 1, "the control API is not on record");
    assert_eq!(fake.ask("DELETE", "/_fake/requests", &[], b"").status, 204);
    assert_eq!(fake.records().len(), 0);
    fake.chat(&[]);
    assert_eq!(fake.records()[0]["seq"], 0);
}

#[test]
fn large_bodies_are_recorded_and_too_large_ones_refused() {
    let fake = start(&[]);
    let mut body = vec![b' '; 64 << 20];
    body[..2].copy_from_slice(b"{}");
    assert_eq!(fake.ask("POST", CHAT, &[], &body).status, 200);
    body.push(b' ');
    assert_eq!(fake.ask("POST", CHAT, &[], &body).status, 413);
    let records = fake.records();
    assert_eq!(records[0]["body_len"], 64 << 20);
    assert_eq!(records[0]["body_base64"], Value::Null);
    assert_eq!(records[1]["body_len"], (64 << 20) + 1);
}

#[test]
fn statuses_and_headers_come_as_asked_for() {
    let fake = start(&[]);
    let reply = fake.chat(&[
        ("x-fake-status", "429"),
        ("x-fake-retry-after", "7|soon"),
        ("x-fake-header", "X-Ratelimit: a:b"),
        ("x-fake-header", "content-type: application/problem+json"),
        ("x-fake-header", "x-ratelimit: c"),
    ]);
    assert_eq!(reply.status, 429);
    assert_eq!(reply.json(), json!({"status": 429, "title": "Too Many Requests"}));
    assert_eq!(reply.all("retry-after"), ["7", "soon"]);
    assert_eq!(reply.all("x-ratelimit"), ["a:b", "c"]);
    assert_eq!(reply.all("content-type"), ["application/problem+json"]);

    assert!(fake.chat(&[("x-fake-status", "429")]).all("retry-after").is_empty());
    let full = fake.chat(&[("x-fake-status", "503")]);
    assert!(full.text().contains("ResourceExhausted"));
    assert_eq!(fake.chat(&[("x-fake-status", "201")]).json()["model"], "nvidia/x");
    assert_eq!(fake.chat(&[("x-fake-status", "504")]).text(), "");
    let misspelt = fake.chat(&[("x-fake-behaviour", "explode")]);
    assert_eq!(misspelt.status, 400);
    assert!(misspelt.text().contains("x-fake-behaviour"));
}

#[test]
fn latency_is_waited_before_the_headers() {
    let fake = start(&[]);
    let begun = Instant::now();
    fake.chat(&[("x-fake-latency-ms", "120")]);
    assert!(begun.elapsed() >= Duration::from_millis(120));
    fake.configure(r#"{"latency_ms": 110}"#);
    let begun = Instant::now();
    fake.chat(&[]);
    assert!(begun.elapsed() >= Duration::from_millis(110));
}

#[test]
fn a_reset_and_a_close_come_before_any_answer() {
    let fake = start(&[]);
    for (behaviour, wanted) in [("reset", End::Reset), ("close-before-headers", End::Closed)] {
        let mut stream = fake.send("POST", CHAT, &[("x-fake-behaviour", behaviour)], b"{}");
        let (bytes, end) = drain(&mut stream);
        assert_eq!((bytes.len(), end), (0, wanted), "{behaviour}");
    }
    for record in fake.records() {
        assert_eq!(record["status"], Value::Null);
        assert_eq!(record["aborted"], false, "it was not the peer who left");
        assert_eq!(record["body_len"], 2);
    }
}

#[test]
fn a_reset_mid_stream_comes_after_the_first_event() {
    let fake = start(&[]);
    let asked = [("x-fake-behaviour", "reset-mid-stream")];
    let (bytes, _) = drain(&mut fake.send("POST", CHAT, &asked, b"{}"));
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert_eq!(text.matches("data: ").count(), 1);
    assert!(!text.ends_with("0\r\n\r\n"), "the end of the body is missing");
    let record = &fake.records()[0];
    assert_eq!((&record["status"], &record["aborted"]), (&json!(200), &json!(false)));
}

#[test]
fn a_hanging_request_is_on_record_and_its_leaving_is_seen() {
    let fake = start(&[]);
    let stream = fake.send("POST", CHAT, &[("x-fake-behaviour", "hang")], b"{}");
    let record = fake.record_when(0, |record| record["body_len"] == 2);
    assert_eq!((&record["status"], &record["aborted"]), (&Value::Null, &json!(false)));
    stream.shutdown(Shutdown::Both).expect("it was open");
    drop(stream);
    let record = fake.record_when(0, |record| record["aborted"] == true);
    assert_eq!(record["status"], Value::Null);
}

#[test]
fn leaving_in_the_midst_of_a_stream_or_of_ones_own_body_is_an_abort() {
    let fake = start(&[]);
    let asked = [("x-fake-behaviour", "slow-stream"), ("x-fake-chunks", "100000")];
    let mut stream = fake.send("POST", CHAT, &asked, b"{}");
    stream.read_exact(&mut [0; 16]).expect("the answer begins");
    drop(stream);
    let record = fake.record_when(0, |record| record["aborted"] == true);
    assert_eq!(record["status"], 200);

    let whole = request("POST", CHAT, &[], b"0123456789");
    let mut stream = fake.connect();
    stream.write_all(&whole[..whole.len() - 4]).expect("some of it leaves");
    fake.record_when(1, |_| true);
    drop(stream);
    let record = fake.record_when(1, |record| record["aborted"] == true);
    assert_eq!(record["status"], Value::Null);
    assert_eq!(record["body_len"], 6);
    assert_eq!(record["body_sha256"], Value::Null);
}

#[test]
fn the_limiter_counts_metered_calls_and_nothing_else() {
    // One a minute never refills within the test on any machine worth testing on, and if it did, on two it would not.
    let options = ["--limiter", "token-bucket", "--rpm", "1", "--burst", "2"];
    let fake = start(&options);
    for _ in 0..5 {
        assert_eq!(fake.ask("GET", "/v1/models", &[], b"").status, 200);
        assert_eq!(fake.ask("POST", "/v1/other", &[], b"").status, 200);
    }
    let statuses: Vec<u16> = (0..2).map(|_| fake.chat(&[]).status).collect();
    assert_eq!(statuses, [200, 200]);
    fake.configure(r#"{"limiter": "fixed-window", "rpm": 1, "window_s": 86400}"#);
    fake.configure(r#"{"limiter": "sliding-window", "rpm": 60, "window_s": 86400, "latency_ms": 0}"#);
    assert_eq!(fake.chat(&[]).status, 200);
    fake.configure(r#"{"limiter": "token-bucket", "rpm": 1, "burst": 1, "retry_after": "9"}"#);
    assert_eq!(fake.chat(&[]).status, 200);
    let refused = fake.chat(&[("x-fake-behaviour", "hang")]);
    assert_eq!(refused.status, 429, "a refusal goes before what else was asked for");
    assert_eq!(refused.all("retry-after"), ["9"]);
    let last = fake.records().pop().expect("a record");
    assert_eq!(last["status"], 429);
}

#[test]
fn faults_are_switched_on_for_so_many_requests() {
    let fake = start(&[]);
    fake.configure(r#"{"throttle_next": 2, "error_burst": {"count": 1, "status": 500}}"#);
    assert_eq!(fake.ask("GET", "/v1/models", &[], b"").status, 200);
    let statuses: Vec<u16> = (0..4).map(|_| fake.chat(&[]).status).collect();
    assert_eq!(statuses, [429, 429, 500, 200]);
}

#[test]
fn the_configuration_is_shown_and_nonsense_refused() {
    let fake = start(&["--rpm", "7", "--retry-after", "3"]);
    assert_eq!(
        fake.ask("GET", "/_fake/config", &[], b"").json(),
        json!({
            "limiter": "none", "rpm": 7, "burst": 4, "window_s": 60, "latency_ms": 0,
            "retry_after": "3", "error_burst": null, "throttle_next": 0, "models": {}, "stray_permille": 0
        })
    );
    for bad in [r#"{"rpm": 0}"#, r#"{"rmp": 1}"#, "rpm", r#"{"limiter": "x"}"#] {
        let reply = fake.ask("PUT", "/_fake/config", &[], bad.as_bytes());
        assert_eq!(reply.status, 400, "{bad}");
    }
    assert_eq!(fake.ask("GET", "/_fake/config", &[], b"").json()["rpm"], 7);
    assert_eq!(fake.ask("POST", "/_fake/config", &[], b"").status, 405);
    assert_eq!(fake.ask("GET", "/_fake/x", &[], b"").status, 404);
    assert_eq!(fake.ask("GET", "/_fake/health", &[], b"").text(), "ok");
}

#[test]
fn the_record_is_exact_under_load() {
    let fake = start(&[]);
    let (clients, each) = (8, 250);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let fake = &fake;
            scope.spawn(move || {
                let mut stream = fake.connect();
                for number in 0..each {
                    let body = format!(r#"{{"model": "c{client}/n{number}"}}"#);
                    let request = request("POST", "/v1/embeddings", &[], body.as_bytes());
                    let request = String::from_utf8(request).expect("ASCII");
                    let kept_open = request.replace("Connection: close\r\n", "");
                    stream.write_all(kept_open.as_bytes()).expect("the request leaves");
                    // One answer at a time: its last bytes are the body's own end.
                    let mut answer = Vec::new();
                    let mut piece = [0; 4096];
                    while !answer.ends_with(br#""total_tokens":8}}"#) {
                        let read = stream.read(&mut piece).expect("an answer");
                        assert_ne!(read, 0, "closed early");
                        answer.extend_from_slice(&piece[..read]);
                    }
                }
            });
        }
    });
    let records = fake.records();
    assert_eq!(records.len(), clients * each);
    let mut models: Vec<&str> = records.iter().filter_map(|r| r["model"].as_str()).collect();
    models.sort_unstable();
    models.dedup();
    assert_eq!(models.len(), clients * each);
    let mut last = 0;
    for (seq, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], seq);
        assert_eq!((&record["status"], &record["aborted"]), (&json!(200), &json!(false)));
        let at = record["at_us"].as_u64().expect("a number");
        assert!(at >= last, "in the order of arrival");
        last = at;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_without_an_upgrade() {
    let fake = start(&[]);
    let stream = tokio::net::TcpStream::connect(&fake.address).await.expect("a connection");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let post = |behaviour: Option<&str>| {
        let mut request = hyper::Request::post(format!("http://nvidia.test{CHAT}"));
        if let Some(behaviour) = behaviour {
            request = request.header("x-fake-behaviour", behaviour);
        }
        let body = Full::new(Bytes::from_static(br#"{"model": "nvidia/x"}"#));
        request.body(body).expect("a request")
    };
    let response = client.send_request(post(None)).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["model"], "nvidia/x");
    assert_eq!(fake.records()[0]["headers"][0], json!(["host", "nvidia.test"]));

    // One stream given up, with the connection left open, is an abort too.
    let mut other = client.clone();
    let hanging = tokio::spawn(other.send_request(post(Some("hang"))));
    fake.record_when(1, |record| record["body_len"] == 21);
    hanging.abort();
    fake.record_when(1, |record| record["aborted"] == true);

    let broken = client.send_request(post(Some("reset"))).await;
    assert!(broken.is_err());
    connection.abort();
}

#[test]
fn a_signal_ends_it_in_good_order() {
    for signal in ["-TERM", "-INT"] {
        let mut fake = start(&[]);
        let _hanging = fake.send("POST", CHAT, &[("x-fake-behaviour", "hang")], b"{}");
        fake.record_when(0, |record| record["body_len"] == 2);
        assert_eq!(fake.end_by(signal), (Some(0), String::new()), "{signal}");
    }
}

#[test]
fn verbose_tells_of_metered_requests_only() {
    let mut fake = start(&["--verbose"]);
    fake.ask("GET", "/v1/models", &[], b"");
    fake.chat(&[("X-Priority", "urgent")]);
    let (_, output) = fake.end_by("-TERM");
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words[1..], ["s", "urgent", "200", "nvidia/x"], "{output}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for options in [&["--rpm", "0"][..], &["--limiter", "x"], &["--nonsense"]] {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_fake-nvidia")).args(options).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
}
