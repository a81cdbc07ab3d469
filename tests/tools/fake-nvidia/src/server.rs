//! Serving: connections in, each request through record, body, gate and behaviour to its answer.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::Answer;
use crate::behaviour::{Behaviour, Course};
use crate::connection::{Cut, Line, Socket};
use crate::control;
use crate::gate::{Config, Gate, Verdict};
use crate::openai::{self, Ask, Reply};
use crate::record::{Journal, Ticket, lock};

const LONGEST_BODY: usize = 64 << 20;
const STREAM_GAP: Duration = Duration::from_millis(20);
const SLOW_STREAM_GAP: Duration = Duration::from_millis(100);
/// What requests in progress get to end by themselves when the fake has to stop; those that hang never would.
const FAREWELL: Duration = Duration::from_secs(1);

pub struct App {
    pub journal: Arc<Journal>,
    pub gate: Mutex<Gate>,
}

impl App {
    pub fn new(config: Config, verbose: bool) -> Self {
        let journal = Journal::new(verbose);
        let gate = Gate::new(config, journal.now_us());
        Self { journal: Arc::new(journal), gate: Mutex::new(gate) }
    }
}

/// Serves until `stop` is done, then lets what is in progress end.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let (signal, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(Arc::clone(&app), stream, stopped.clone()));
                }
                // Out of file descriptors, most likely: they come back as connections end, and until then
                // trying again without a pause would only burn the processor.
                Err(error) => {
                    eprintln!("fake-nvidia: accept: {error}");
                    sleep(Duration::from_millis(20)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let _ = signal.send(true);
    let _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(app: Arc<App>, stream: TcpStream, mut stopped: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let line = Arc::new(Line::default());
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&line)));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Requests with very many headers are among what the tests send.
    builder.http1().max_headers(1000);
    builder.http2().max_concurrent_streams(10_000);
    let service = service_fn(|request| handle(Arc::clone(&app), Arc::clone(&line), request));
    let serving = builder.serve_connection(socket, service);
    tokio::pin!(serving);
    let mut stopping = false;
    loop {
        tokio::select! {
            // Errors are the peer's going away; the record has them.
            _ = &mut serving => return,
            () = line.until_cut() => return,
            _ = stopped.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn handle(app: Arc<App>, line: Arc<Line>, request: Request<Incoming>) -> Result<Response<Answer>, hyper::Error> {
    if request.uri().path().starts_with("/_fake/") {
        return control::answer(&app, request).await;
    }
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let metered = openai::is_metered(&parts.method, path);
    let mut ticket = app.journal.open(&parts, metered);
    let decide = |model: Option<&str>| {
        let mut gate = lock(&app.gate);
        let verdict = if metered { gate.decide(ticket.at_us(), model) } else { Verdict::Pass };
        let config = gate.config();
        (verdict, config.latency_ms, config.retry_after.clone())
    };
    let asks_for_model = lock(&app.gate).asks_for_model();
    let before = (!asks_for_model).then(|| decide(None));
    let (length, ask) = receive(body, &ticket).await?;
    let (verdict, latency_ms, retry_after) = before.unwrap_or_else(|| decide(ask.model.as_deref()));

    let (behaviour, bad) = match Behaviour::read(&parts.headers) {
        Ok(behaviour) => (behaviour, None),
        Err(why) => (Behaviour::default(), Some(why)),
    };
    // A refusal comes at once, as from a gateway in front of the models; only a latency asked for slows it down.
    let latency = match verdict {
        _ if behaviour.latency.is_some() => behaviour.latency,
        Verdict::Throttle => None,
        Verdict::Pass | Verdict::Fail(_) => Some(Duration::from_millis(latency_ms)),
    };
    if let Some(latency) = latency.filter(|latency| !latency.is_zero()) {
        sleep(latency).await;
    }

    let ordinary = || openai::answer(&parts.method, path, length, &ask, behaviour.chunks);
    let course = match verdict {
        Verdict::Pass => behaviour.course,
        Verdict::Throttle | Verdict::Fail(_) => Course::Answer,
    };
    let mut cut = None;
    let mut gap = behaviour.gap.unwrap_or(STREAM_GAP);
    let mut reply = match (verdict, course) {
        _ if bad.is_some() => bad_request(bad.as_deref().unwrap_or_default()),
        _ if length > LONGEST_BODY as u64 => openai::with_status(StatusCode::PAYLOAD_TOO_LARGE, ordinary),
        (Verdict::Throttle, _) => openai::with_status(StatusCode::TOO_MANY_REQUESTS, ordinary),
        (Verdict::Fail(status), _) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            openai::with_status(status, ordinary)
        }
        (Verdict::Pass, Course::Hang) => return std::future::pending().await,
        (Verdict::Pass, Course::Reset) => return vanish(&line, Cut::Reset, &mut ticket).await,
        (Verdict::Pass, Course::CloseBeforeHeaders) => {
            return vanish(&line, Cut::Close, &mut ticket).await;
        }
        (Verdict::Pass, Course::ResetMidStream) => {
            cut = Some(line);
            openai::stream(path, &ask, behaviour.chunks)
        }
        (Verdict::Pass, Course::SlowStream) => {
            gap = behaviour.gap.unwrap_or(SLOW_STREAM_GAP);
            openai::stream(path, &ask, behaviour.chunks)
        }
        (Verdict::Pass, Course::Answer) => match behaviour.status {
            Some(status) => openai::with_status(status, ordinary),
            None => ordinary(),
        },
    };
    if reply.stream {
        reply.status = behaviour.status.unwrap_or(reply.status);
    }
    Ok(respond(Outgoing { reply, behaviour, retry_after, cut, gap, head: parts.method == Method::HEAD, ticket }))
}

struct Outgoing {
    reply: Reply,
    behaviour: Behaviour,
    retry_after: Option<String>,
    cut: Option<Arc<Line>>,
    gap: Duration,
    head: bool,
    ticket: Ticket,
}

fn respond(outgoing: Outgoing) -> Response<Answer> {
    let Outgoing { reply, behaviour, retry_after, cut, gap, head, ticket } = outgoing;
    ticket.answered(reply.status.as_u16());
    let answer = if head {
        Answer::whole(Bytes::new(), Some(ticket))
    } else if let Some(line) = cut {
        let first = reply.pieces.into_iter().next().unwrap_or_default();
        // With no gap at all the close could overtake the piece.
        Answer::broken_off(first, gap.max(STREAM_GAP), line, ticket)
    } else if reply.stream {
        Answer::stream(reply.pieces, gap, ticket)
    } else {
        let body = reply.pieces.into_iter().next().unwrap_or_default();
        Answer::whole(body, Some(ticket))
    };
    let mut response = Response::new(answer);
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    for (name, value) in reply.headers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !behaviour.retry_after.is_empty() {
        for value in behaviour.retry_after {
            headers.append(RETRY_AFTER, value);
        }
    } else if reply.status == StatusCode::TOO_MANY_REQUESTS
        && let Some(Ok(value)) = retry_after.map(HeaderValue::try_from)
    {
        headers.insert(RETRY_AFTER, value);
    }
    // A header asked for takes the place of our own of that name; one asked for several times is sent several times.
    for (name, _) in &behaviour.headers {
        headers.remove(name);
    }
    for (name, value) in behaviour.headers {
        headers.append(name, value);
    }
    response
}

/// Reads the whole body, hashing all of it and keeping what is within the limit.
async fn receive(mut body: Incoming, ticket: &Ticket) -> Result<(u64, Ask), hyper::Error> {
    let mut hash = Sha256::new();
    let mut kept = BytesMut::new();
    let mut length = 0u64;
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => {
                ticket.partial_body(length);
                return Err(error);
            }
        };
        hash.update(&data);
        length += data.len() as u64;
        if length <= LONGEST_BODY as u64 {
            kept.extend_from_slice(&data);
        } else {
            kept = BytesMut::new();
        }
    }
    let kept = (length <= LONGEST_BODY as u64).then(|| kept.freeze());
    let ask = kept.as_deref().map(Ask::read).unwrap_or_default();
    ticket.body(length, hash.finalize().into(), kept.as_ref(), ask.model.as_deref());
    Ok((length, ask))
}

/// Ends the connection without an answer. Never returns: the connection's task drops the request.
async fn vanish<T>(line: &Line, how: Cut, ticket: &mut Ticket) -> T {
    ticket.cut();
    line.cut(how);
    std::future::pending().await
}

fn bad_request(why: &str) -> Reply {
    let body = serde_json::json!({"status": 400, "title": "Bad Request", "detail": why});
    Reply::json(StatusCode::BAD_REQUEST, &body)
}

/// The listening socket; port 0 takes any free one.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
