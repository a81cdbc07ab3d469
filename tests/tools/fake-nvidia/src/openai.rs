//! The answers: OpenAI's shapes as NVIDIA's API gives them, and NVIDIA's own shape for errors. Deterministic, so that
//! a test can compare bytes.

use std::fmt;

use bytes::Bytes;
use hyper::StatusCode;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

pub const DEFAULT_CHUNKS: usize = 8;
const CREATED: u64 = 1_767_225_600;
const WORDS: [&str; 8] = ["The", " gate", " opens", " at", " its", " own", " steady", " pace."];
const MODELS: [&str; 4] = [
    "meta/llama-3.3-70b-instruct",
    "nvidia/llama-3.3-nemotron-super-49b-v1",
    "nvidia/nv-embedqa-e5-v5",
    "qwen/qwen3-coder-480b-a35b-instruct",
];

/// The calls that NVIDIA counts.
pub fn is_metered(method: &hyper::Method, path: &str) -> bool {
    method == hyper::Method::POST && matches!(path, "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings")
}

/// What the answer needs to know of a request's body. Of equal keys the last one counts, as in Python and in Node;
/// a body that is no JSON object asks for nothing.
#[derive(Debug, Default, PartialEq)]
pub struct Ask {
    pub model: Option<String>,
    pub stream: bool,
    inputs: usize,
}

impl Ask {
    pub fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Ask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Ask;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ask, A::Error> {
                let mut ask = Ask::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "model" => {
                            let value = map.next_value::<Value>()?;
                            ask.model = value.as_str().map(str::to_owned);
                        }
                        "stream" => ask.stream = map.next_value::<Value>()? == Value::Bool(true),
                        "input" => {
                            ask.inputs = match map.next_value::<Value>()? {
                                // A list of numbers is one input, already in tokens.
                                Value::Array(items) if !items.iter().all(Value::is_number) => items.len(),
                                _ => 1,
                            }
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(ask)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// An answer before it is on its way: one piece for a plain one, one per event for a stream.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub pieces: Vec<Bytes>,
    pub stream: bool,
    /// Further headers that belong to this answer.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Reply {
    pub fn json(status: StatusCode, value: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            pieces: vec![Bytes::from(value.to_string())],
            stream: false,
            headers: Vec::new(),
        }
    }

    fn empty(status: StatusCode) -> Self {
        Self { pieces: Vec::new(), ..Self::json(status, &Value::Null) }
    }
}

/// The ordinary answer to a request.
pub fn answer(method: &hyper::Method, path: &str, body_len: u64, ask: &Ask, chunks: Option<usize>) -> Reply {
    let model = &ask.model;
    let value = match path {
        _ if is_metered(method, path) && path != "/v1/embeddings" && ask.stream => {
            return stream(path, ask, chunks);
        }
        "/v1/chat/completions" if is_metered(method, path) => json!({
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": CREATED,
            "model": model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": WORDS.concat()},
                "finish_reason": "stop",
            }],
            "usage": usage(),
        }),
        "/v1/completions" if is_metered(method, path) => json!({
            "id": "cmpl-fake",
            "object": "text_completion",
            "created": CREATED,
            "model": model,
            "choices": [{"index": 0, "text": WORDS.concat(), "logprobs": null, "finish_reason": "stop"}],
            "usage": usage(),
        }),
        "/v1/embeddings" if is_metered(method, path) => {
            let vector = [0.5, -0.5, 0.5, -0.5];
            let data: Vec<Value> = (0..ask.inputs.max(1))
                .map(|index| json!({"object": "embedding", "index": index, "embedding": vector}))
                .collect();
            json!({
                "object": "list",
                "model": model,
                "data": data,
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            })
        }
        "/v1/models" if method == hyper::Method::GET => {
            let data: Vec<Value> = MODELS
                .iter()
                .map(|id| {
                    let vendor = id.split('/').next();
                    json!({"id": id, "object": "model", "created": CREATED, "owned_by": vendor})
                })
                .collect();
            json!({"object": "list", "data": data})
        }
        _ => json!({"echo": {"method": method.as_str(), "path": path, "bytes": body_len}}),
    };
    Reply::json(StatusCode::OK, &value)
}

fn usage() -> Value {
    json!({"prompt_tokens": 8, "completion_tokens": WORDS.len(), "total_tokens": 8 + WORDS.len()})
}

/// A stream of server-sent events: for a chat the role, then the content, the reason it ended, and `[DONE]`.
pub fn stream(path: &str, ask: &Ask, chunks: Option<usize>) -> Reply {
    let chunks = chunks.unwrap_or(DEFAULT_CHUNKS);
    let words = WORDS.iter().cycle().take(chunks);
    let mut events: Vec<Value> = Vec::with_capacity(chunks + 2);
    if path == "/v1/completions" {
        let event = |text: &str, end: Option<&str>| {
            json!({
                "id": "cmpl-fake",
                "object": "text_completion",
                "created": CREATED,
                "model": ask.model,
                "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": end}],
            })
        };
        events.extend(words.map(|word| event(word, None)));
        events.push(event("", Some("stop")));
    } else {
        let event = |delta: Value, end: Option<&str>| {
            json!({
                "id": "chatcmpl-fake",
                "object": "chat.completion.chunk",
                "created": CREATED,
                "model": ask.model,
                "choices": [{"index": 0, "delta": delta, "finish_reason": end}],
            })
        };
        events.push(event(json!({"role": "assistant", "content": ""}), None));
        events.extend(words.map(|word| event(json!({"content": word}), None)));
        events.push(event(json!({}), Some("stop")));
    }
    let mut pieces: Vec<Bytes> = events.iter().map(|event| Bytes::from(format!("data: {event}\n\n"))).collect();
    pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Reply {
        status: StatusCode::OK,
        content_type: "text/event-stream",
        pieces,
        stream: true,
        headers: vec![("cache-control", "no-cache")],
    }
}

/// An answer with a status that was asked for, in the shape NVIDIA gives it where its users have reported one.
/// `ordinary` is the answer of a success.
pub fn with_status(status: StatusCode, ordinary: impl FnOnce() -> Reply) -> Reply {
    let title = status.canonical_reason().unwrap_or("Unknown");
    let detail = match status.as_u16() {
        204 | 205 | 304 => return Reply::empty(status),
        // Accepted, and the client is to poll for the result.
        202 => {
            let mut reply = Reply::empty(status);
            reply.headers =
                vec![("nvcf-reqid", "00000000-0000-4000-8000-000000000202"), ("nvcf-status", "pending-evaluation")];
            return reply;
        }
        200..=299 => {
            return Reply { status, ..ordinary() };
        }
        404 => Some("Function 'fake-function': Not found for account 'fake-account'"),
        503 => Some("ResourceExhausted: Worker local total request limit reached (33/32)"),
        504 => return Reply::empty(status),
        _ => None,
    };
    let mut body = json!({"status": status.as_u16(), "title": title});
    if let Some(detail) = detail {
        body["detail"] = detail.into();
    }
    Reply::json(status, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Method;

    fn body(reply: &Reply) -> Value {
        serde_json::from_slice(&reply.pieces.concat()).expect("JSON")
    }

    #[test]
    fn only_posts_to_the_three_paths_are_metered() {
        assert!(is_metered(&Method::POST, "/v1/chat/completions"));
        assert!(is_metered(&Method::POST, "/v1/completions"));
        assert!(is_metered(&Method::POST, "/v1/embeddings"));
        assert!(!is_metered(&Method::GET, "/v1/chat/completions"));
        assert!(!is_metered(&Method::POST, "/v1/models"));
        assert!(!is_metered(&Method::POST, "/v1/chat/completions/"));
    }

    #[test]
    fn of_equal_keys_the_last_one_counts() {
        let ask = Ask::read(br#"{"model": "a/b", "n": [[{"model": "x"}]], "model": "c/d"}"#);
        assert_eq!(ask.model.as_deref(), Some("c/d"));
        let ask = Ask::read(br#"{"model": "a/b", "model": 5}"#);
        assert_eq!(ask.model, None);
    }

    #[test]
    fn what_is_no_object_asks_for_nothing() {
        for body in ["", "[]", "{\"model\": \"a\"", "{} x", "\u{feff}{}", "\"model\""] {
            assert_eq!(Ask::read(body.as_bytes()), Ask::default(), "{body}");
        }
        let deep = format!(r#"{{"x": {}{}, "model": "a/b"}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Ask::read(deep.as_bytes()).model.as_deref(), Some("a/b"));
    }

    #[test]
    fn a_stream_has_a_role_its_chunks_an_end_and_done() {
        let ask = Ask::read(br#"{"model": "nvidia/x", "stream": true}"#);
        let reply = answer(&Method::POST, "/v1/chat/completions", 0, &ask, None);
        assert_eq!(reply.content_type, "text/event-stream");
        assert_eq!(reply.pieces.len(), 1 + DEFAULT_CHUNKS + 2);
        assert_eq!(reply.pieces.last().unwrap().as_ref(), b"data: [DONE]\n\n");
        let first = reply.pieces[0].strip_prefix(b"data: ").unwrap();
        let first: Value = serde_json::from_slice(first).unwrap();
        assert_eq!(first["model"], "nvidia/x");
        assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(stream("/v1/completions", &ask, Some(3)).pieces.len(), 3 + 2);
    }

    #[test]
    fn embeddings_answer_each_input() {
        for (input, count) in [(r#""a""#, 1), (r#"["a","b"]"#, 2), ("[1,2,3]", 1), ("[[1],[2]]", 2)] {
            let ask = Ask::read(format!(r#"{{"input": {input}}}"#).as_bytes());
            let reply = answer(&Method::POST, "/v1/embeddings", 0, &ask, None);
            assert_eq!(body(&reply)["data"].as_array().unwrap().len(), count, "{input}");
        }
    }

    #[test]
    fn the_429_is_nvidias() {
        let reply = with_status(StatusCode::TOO_MANY_REQUESTS, || unreachable!());
        assert_eq!(body(&reply), json!({"status": 429, "title": "Too Many Requests"}));
        assert_eq!(reply.content_type, "application/json");
        assert!(reply.headers.is_empty());
    }
}
