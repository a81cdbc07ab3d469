//! Takes requests, records them, applies the limit and answers.

use crate::behaviour::{Behaviour, Misbehaviour};
use crate::control::{self, Config};
use crate::limiter::Limiter;
use crate::openai;
use crate::record::{Entry, Handle, Record};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response};
use serde_json::Value;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Everything that all connections share.
#[derive(Debug)]
pub struct Server {
    pub started: Instant,
    pub verbose: bool,
    pub record: Record,
    pub state: Mutex<State>,
}

/// What a control request may change.
#[derive(Debug, Default)]
pub struct State {
    pub config: Config,
    pub limiter: Limiter,
}

/// Why a connection is broken off on purpose.
#[derive(Debug)]
pub struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off as asked")
    }
}

impl std::error::Error for BrokenOff {}

/// Marks the request as aborted unless its answer was completed.
struct Completion {
    server: Arc<Server>,
    handle: Handle,
    complete: bool,
}

impl Drop for Completion {
    fn drop(&mut self) {
        if !self.complete {
            self.server
                .record
                .update(self.handle, |entry| entry.aborted = true);
        }
    }
}

/// A body whose pieces come through a channel; an error in it breaks the connection off.
pub struct Pieces {
    pieces: mpsc::Receiver<Result<Bytes, BrokenOff>>,
    completion: Option<Completion>,
    /// The bytes that the whole body will have, where known.
    size: Option<u64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        this.pieces.poll_recv(cx).map(|piece| {
            // Of a body of known size nothing is asked for behind its one piece.
            let ends = piece.is_none() || this.size.is_some();
            if let (Some(completion), true) = (&mut this.completion, ends) {
                completion.complete = true;
            }
            piece.map(|piece| piece.map(Frame::data))
        })
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.size
            .map_or_else(Default::default, hyper::body::SizeHint::with_exact)
    }
}

/// The body of an answer that is complete at once.
pub fn whole(body: impl Into<Bytes>) -> Pieces {
    let body: Bytes = body.into();
    let (sender, pieces) = mpsc::channel(1);
    let size = Some(body.len() as u64);
    let _ = sender.try_send(Ok(body));
    Pieces {
        pieces,
        completion: None,
        size,
    }
}

impl Server {
    /// Answers one request, or breaks its connection off.
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Pieces>, BrokenOff> {
        let at_us = self.now_us();
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        if let Some(what) = path.strip_prefix("/_fake/") {
            let body = Limited::new(body, 1 << 20)
                .collect()
                .await
                .map_err(|_| BrokenOff)?
                .to_bytes();
            return Ok(control::answer(&self, &head.method, what, &body));
        }
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let handle = self.record.begin(Entry {
            seq: 0,
            at_us,
            method: head.method.to_string(),
            path: head
                .uri
                .path_and_query()
                .map_or(path.clone(), ToString::to_string),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect(),
            body_len: 0,
            body_sha256: None,
            body_base64: None,
            model: None,
            status: None,
            aborted: false,
        });
        let mut completion = Completion {
            server: Arc::clone(&self),
            handle,
            complete: false,
        };
        let refused = openai::is_metered(head.method.as_str(), &path)
            .then(|| self.admit(at_us))
            .flatten();
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| BrokenOff)?
            .to_bytes();
        self.record.update(handle, |entry| entry.set_body(&body));
        let mut behaviour = Behaviour::of(&head.headers);
        let latency_ms = behaviour
            .latency_ms
            .unwrap_or_else(|| self.lock().config.latency_ms);
        let status = refused.or(behaviour.status);
        if status == Some(429)
            && let Some(secs) = self.lock().config.retry_after.clone()
        {
            behaviour.headers.push(("retry-after".to_owned(), secs));
        }
        self.say(&head.headers, &body, status.unwrap_or(200), at_us);
        match behaviour.misbehaviour {
            Misbehaviour::Hang => std::future::pending::<()>().await,
            Misbehaviour::Reset => {
                completion.complete = true;
                return Err(BrokenOff);
            }
            _ => {}
        }
        if latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(latency_ms)).await;
        }
        let request: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let seq = at_us;
        let streams = request.get("stream").and_then(Value::as_bool) == Some(true)
            || matches!(
                behaviour.misbehaviour,
                Misbehaviour::ResetMidStream | Misbehaviour::SlowStream
            );
        let mut response = Response::builder().status(status.unwrap_or(200));
        for (name, value) in &behaviour.headers {
            response = response.header(name, value);
        }
        self.record
            .update(handle, |entry| entry.status = Some(status.unwrap_or(200)));
        let body = if status.is_none() && streams {
            response = response.header("content-type", "text/event-stream");
            stream(
                openai::events(&request, seq, behaviour.chunks),
                &behaviour,
                completion,
            )
        } else {
            let answer = match status {
                Some(status) if status >= 400 => openai::error(status),
                _ => openai::answer(head.method.as_str(), &path, &request, seq).unwrap_or_else(|| {
                    serde_json::json!({"echo": {"method": head.method.as_str(), "path": path, "bytes": body.len()}})
                }),
            };
            response = response.header("content-type", "application/json");
            let mut body = whole(answer.to_string());
            body.completion = Some(completion);
            body
        };
        response.body(body).map_err(|_| BrokenOff)
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The state, for a moment.
    pub fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status with which the limit, or an ordered fault, refuses a request; `None` if it is let in.
    fn admit(&self, at_us: u64) -> Option<u16> {
        let mut state = self.lock();
        let State { config, limiter } = &mut *state;
        if config.throttle_next > 0 {
            config.throttle_next -= 1;
            return Some(429);
        }
        if config.error_burst.count > 0 {
            config.error_burst.count -= 1;
            return Some(config.error_burst.status);
        }
        (!limiter.admit(config.limits(), at_us)).then_some(429)
    }

    fn say(&self, headers: &hyper::HeaderMap, body: &[u8], status: u16, at_us: u64) {
        if self.verbose {
            let text = |name: &str| {
                headers
                    .get(name)
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or("-")
                    .to_owned()
            };
            let model = serde_json::from_slice::<Value>(body)
                .ok()
                .and_then(|body| Some(body.get("model")?.as_str()?.to_owned()))
                .unwrap_or_else(|| "-".to_owned());
            println!(
                "{:9.3} s  {status}  {:<7} {model}",
                at_us as f64 / 1e6,
                text("x-priority"),
            );
        }
    }
}

/// The body of a streamed answer.
fn stream(events: Vec<String>, behaviour: &Behaviour, completion: Completion) -> Pieces {
    let (sender, pieces) = mpsc::channel(1);
    let (gap, breaks_off) = (
        Duration::from_millis(behaviour.gap_ms),
        behaviour.misbehaviour == Misbehaviour::ResetMidStream,
    );
    tokio::spawn(async move {
        for (at, event) in events.into_iter().enumerate() {
            if at > 0 {
                tokio::time::sleep(gap).await;
            }
            let broken = sender.send(Ok(Bytes::from(event))).await.is_err();
            if broken || breaks_off {
                tokio::time::sleep(gap).await;
                let _ = sender.send(Err(BrokenOff)).await;
                return;
            }
        }
    });
    Pieces {
        pieces,
        completion: Some(completion),
        size: None,
    }
}

/// The largest body that is taken.
const BODY_BYTES_MAX: usize = 64 << 20;
