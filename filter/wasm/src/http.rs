//! A stream's callbacks.

use super::host::{self, Buffer, Map};
use super::kept_body::Piece;
use super::logging::host_refused;
use super::stream::{BodyView, Granted, Stream, StreamState, refuse_unserved};
use super::{headers, worker};
use nimgate_classify::{AtHead, Classified, Decision, RequestHead, body_comes_first};
use nimgate_config::HoldAt;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::control::attempts;
use nimgate_core::control::retry_after;
use nimgate_core::messages::response_headers;
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::Priority;
use nimgate_core::units::LimitId;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use std::rc::Rc;

/// The SDK's context of a stream.
pub struct Http {
    /// `None` only if the stream's root context has no configuration. Nothing says then which requests are metered, so all
    /// are refused.
    stream: Option<Rc<Stream>>,
    /// The body to put in place of the one that Envoy's own reply brings.
    new_body: Option<Vec<u8>>,
    /// A 503 of the upstream, until its body says what it means.
    unjudged: Option<Unjudged>,
}

struct Unjudged {
    limit: LimitId,
    answer: Answer,
    body: Vec<u8>,
}

/// As much of a 503's body as is read.
const JUDGED_BYTES: usize = 4_096;

impl Http {
    /// The context of `stream`.
    pub fn new(stream: Option<Rc<Stream>>) -> Self {
        Self { stream, new_body: None, unjudged: None }
    }

    /// Reads the request's headers, and decides what they alone can decide.
    fn head(stream: &Rc<Stream>, ends_here: bool) -> Action {
        let map = match host::header_map(Map::Request) {
            Ok(map) => map,
            Err(refused) => {
                host_refused("get request headers", Some(refused));
                return Self::without_head(stream);
            }
        };
        let config = &stream.plugin.config;
        let mut head = RequestHead { ends_here, ..RequestHead::default() };
        let mut asked: Option<Option<Priority>> = None;
        let mut size_of_head = 0usize;
        for (name, value) in headers::pairs(&map) {
            size_of_head = size_of_head.saturating_add(name.len()).saturating_add(value.len());
            match name {
                b":method" => head.method = value,
                b":path" => head.path = value,
                b"upgrade" => head.upgrades = true,
                b":authority" => head.authority = value,
                b"content-length" => head.content_length = Some(value),
                b"expect" => head.expects_word = true,
                b"content-type" => head.content_type = Some(head.content_type.map_or(value, |_| b"application/json")),
                b"content-encoding" => {
                    head.content_encoding = Some(head.content_encoding.map_or(value, |_| b"several"))
                }
                b"authorization" => stream.has_authorization.set(true),
                name if name == config.priority.header.as_bytes() => {
                    // Asked twice is as good as asked nonsense.
                    asked = Some(if asked.is_none() { Priority::parse(value) } else { None });
                }
                name if name.starts_with(b"x-nimgate-") => {
                    head.may_have_chosen_route = true;
                    size_of_head = size_of_head.saturating_sub(name.len()).saturating_sub(value.len());
                    if let Err(refused) = host::remove_header(Map::Request, name) {
                        // It may choose a route to an upstream whose requests are metered.
                        host_refused("remove request header", Some(refused));
                        return Self::without_head(stream);
                    }
                }
                _ => {}
            }
        }
        let priority = asked.flatten().unwrap_or(config.priority.default);
        stream.priority.set(priority.capped(config.priority.ceiling));
        let by_cluster = config.limits.iter().any(|limit| !limit.clusters.is_empty());
        let cluster = by_cluster.then(|| host::property("xds\0cluster_name")).flatten();
        head.cluster = cluster.as_deref();
        match nimgate_classify::at_head(config, &head) {
            AtHead::Decided(classified) if Self::waits_for_body(stream, &head, classified) => {
                stream.set_state(StreamState::Announced(classified));
                Action::Pause
            }
            AtHead::Decided(classified) => Self::settle(stream, classified),
            AtHead::Read(reader) if config.hold_at == HoldAt::Body => {
                stream.set_state(StreamState::Reading(reader, 0));
                stream.headers_are_gone.set(true);
                Action::Continue
            }
            AtHead::Read(mut reader) if !stream.plugin.may_hold() => {
                let classified = reader.give_up(config);
                worker::with(|worker| worker.metrics.pause_ignored());
                Self::settle(stream, classified)
            }
            AtHead::Read(reader) => {
                stream.set_state(StreamState::Reading(reader, 0));
                if stream.plugin.body_view.get() != BodyView::Shown {
                    let size = u64::try_from(size_of_head).unwrap_or(u64::MAX);
                    if worker::with(|worker| worker.watch(stream, size, stream.context())).is_none() {
                        // Should no body ever be shown, nobody would notice, and the request would wait for ever.
                        stream.refuse_unserved();
                    }
                }
                Action::Pause
            }
        }
    }

    /// Whether a metered request asks for its token only when its body begins, so that heads alone, which cost a client
    /// nothing, take none from others. Only where the host is known to show the body of a request that is held.
    fn waits_for_body(stream: &Stream, head: &RequestHead<'_>, classified: Classified) -> bool {
        let plugin = &stream.plugin;
        matches!(classified.decision, Decision::Meter(_) | Decision::MeterUnrecognised(_))
            && plugin.config.hold_at == HoldAt::Headers
            && plugin.body_view.get() == BodyView::Shown
            && body_comes_first(head)
    }

    /// Decides about a request whose headers can't be had, or can't be relied on.
    fn without_head(stream: &Rc<Stream>) -> Action {
        let priority = &stream.plugin.config.priority;
        stream.priority.set(priority.default.capped(priority.ceiling));
        // The client may have sent one, and what it sent stays.
        stream.has_authorization.set(true);
        Self::settle(stream, nimgate_classify::without_head(&stream.plugin.config))
    }

    /// Acts on a decision in one of the stream's own callbacks. What can't be decided is refused, unless it passes anyway.
    fn settle(stream: &Rc<Stream>, classified: Classified) -> Action {
        match worker::with(|worker| worker.settle(stream, classified, stream.context())) {
            Some(goes_on) => action(goes_on),
            None if classified.decision == Decision::Pass => {
                stream.set_state(StreamState::Passed);
                Action::Continue
            }
            None => {
                stream.refuse_unserved();
                Action::Pause
            }
        }
    }

    /// Reads what has come of the body since the last time.
    fn body(stream: &Rc<Stream>, size: usize, ends_here: bool) -> Action {
        // Only while the request is held does a body's being shown say anything about the host.
        let held = matches!(&*stream.state.borrow(), StreamState::Reading(..) | StreamState::Waiting(_));
        if held && stream.plugin.body_view.get() != BodyView::Shown {
            worker::with(|worker| worker.body_shown(&stream.plugin));
        }
        let announced = match &*stream.state.borrow() {
            StreamState::Announced(classified) if size > 0 || ends_here => Some(*classified),
            _ => None,
        };
        if let Some(classified) = announced {
            return Self::settle_at_piece(stream, classified, size, ends_here);
        }
        // Whether the piece is kept for a request that waits, and whether it is its last.
        let mut keeps = None;
        let (passes, is_complete) = match &mut *stream.state.borrow_mut() {
            StreamState::Reading(reader, seen) => {
                let new = size.saturating_sub(*seen);
                let piece = match new {
                    0 => Vec::new(),
                    new => host::buffer(Buffer::RequestBody, *seen, new).unwrap_or_default(),
                };
                if piece.len() != new {
                    host_refused("get request body", None);
                    reader.spoil();
                }
                *seen = size;
                (reader.feed(&stream.plugin.config, &piece), ends_here || reader.is_complete())
            }
            StreamState::Waiting(_) | StreamState::Announced(_) => {
                keeps = Some(ends_here);
                (false, false)
            }
            StreamState::Granted(_) => {
                return match stream.kept.piece(ends_here) {
                    Piece::Passes => Action::Continue,
                    Piece::PassesWithKept => {
                        worker::with(|worker| worker.needs_no_resume(stream));
                        Action::Continue
                    }
                    Piece::Pauses => {
                        worker::with(|worker| worker.resume_soon(stream));
                        Action::Pause
                    }
                };
            }
            StreamState::Answered(..) | StreamState::Unserved => return Action::Pause,
            StreamState::New | StreamState::Passed | StreamState::Over => return Action::Continue,
        };
        if passes {
            stream.set_state(StreamState::Passed);
            worker::with(|worker| {
                worker.let_go(stream);
                worker.passed(stream.context());
            });
            return Action::Continue;
        }
        if is_complete {
            return Self::body_complete(stream, size, ends_here);
        }
        Self::keep(stream, size, keeps.unwrap_or(false))
    }

    /// Lets Envoy keep what has come of the body, unless too much is held.
    fn keep(stream: &Rc<Stream>, size: usize, ends_here: bool) -> Action {
        stream.kept.pause(ends_here);
        worker::with(|worker| worker.hold(stream, size));
        Action::Pause
    }

    /// Acts on a decision in a callback with a piece of the body, of which Envoy keeps what is not let pass.
    fn settle_at_piece(stream: &Rc<Stream>, classified: Classified, size: usize, ends_here: bool) -> Action {
        stream.kept.pause(ends_here);
        if Self::settle(stream, classified) == Action::Continue {
            stream.kept.pass();
            worker::with(|worker| worker.let_go(stream));
            return Action::Continue;
        }
        if stream.waits_for().is_some() {
            worker::with(|worker| worker.hold(stream, size));
        }
        Action::Pause
    }

    /// Trailers came, and with them the end of the body.
    fn trailers(stream: &Rc<Stream>) -> Action {
        let announced = match &*stream.state.borrow() {
            StreamState::Announced(classified) => Some(*classified),
            _ => None,
        };
        if let Some(classified) = announced {
            return Self::settle_at_piece(stream, classified, 0, true);
        }
        let seen = match &*stream.state.borrow() {
            StreamState::Reading(_, seen) => *seen,
            StreamState::Answered(..) | StreamState::Unserved => return Action::Pause,
            StreamState::Waiting(_) => {
                stream.kept.pause(true);
                return Action::Pause;
            }
            _ => {
                stream.kept.pass();
                worker::with(|worker| worker.needs_no_resume(stream));
                return Action::Continue;
            }
        };
        Self::body_complete(stream, seen, true)
    }

    /// All has been read that the decision needs.
    fn body_complete(stream: &Rc<Stream>, size: usize, ends_here: bool) -> Action {
        let classified = match &mut *stream.state.borrow_mut() {
            StreamState::Reading(reader, _) => {
                let classified = reader.finish(&stream.plugin.config);
                if matches!(classified.decision, Decision::Meter(_)) {
                    stream.model.replace(reader.model().map(str::to_owned));
                }
                classified
            }
            _ => return Action::Pause,
        };
        Self::settle_at_piece(stream, classified, size, ends_here)
    }

    /// A response begins: the upstream's, or one that Envoy made by itself.
    fn response(&mut self, stream: &Rc<Stream>, ends_here: bool) {
        #[derive(Clone, Copy)]
        enum Whose {
            Held(Option<usize>),
            Sent(Granted),
        }
        let whose = match &*stream.state.borrow() {
            StreamState::Granted(granted) if !granted.answered => Whose::Sent(*granted),
            StreamState::Reading(..) | StreamState::Announced(_) => Whose::Held(None),
            StreamState::Waiting(at) => Whose::Held(Some(*at)),
            _ => return,
        };
        let (limit, sent) = match whose {
            Whose::Sent(granted) => (Some(granted.limit), true),
            Whose::Held(limit) => (limit, false),
        };
        let map = match host::header_map(Map::Response) {
            Ok(map) => map,
            Err(refused) => {
                host_refused("get response headers", Some(refused));
                return;
            }
        };
        let status = headers::pairs(&map)
            .find(|(name, _)| *name == b":status")
            .and_then(|(_, value)| core::str::from_utf8(value).ok()?.parse().ok())
            .unwrap_or(0);
        // Envoy's router adds this one to what an upstream has answered, unless suppress_envoy_headers is set, and to nothing else.
        let is_upstreams = headers::pairs(&map).any(|(name, _)| name == b"x-envoy-upstream-service-time");
        let details = match whose {
            Whose::Sent(_) if is_upstreams => b"via_upstream".to_vec(),
            _ => host::property("response\0code_details").unwrap_or_default(),
        };
        if let (Whose::Sent(granted), true) = (whose, details.starts_with(b"via_upstream")) {
            self.upstream_answered(stream, granted, status, &map, ends_here);
            return;
        }
        if let Some(outcome) = Outcome::of_local_reply(status, &details, sent) {
            if let (Some(at), false) = (limit, sent) {
                worker::with(|worker| worker.dismiss(stream, at, stream.context()));
            }
            if let Whose::Sent(granted) = whose {
                let limit = stream.limit(granted.limit);
                let attempts = headers::pairs(&map).find(|(name, _)| *name == b"x-envoy-attempt-count");
                let retries = attempts.map_or(0, |(_, value)| attempts::retries(value));
                let snapshot =
                    limit.and_then(|limit| worker::with(|worker| worker.failed(stream, limit, outcome, retries)));
                for (name, value) in response_headers(granted.waited, snapshot.flatten().as_ref()) {
                    let _ = host::set_header(Map::Response, name, value.as_bytes());
                }
            }
            self.reword(stream, limit, outcome, ends_here);
            stream.note(limit, outcome, None);
            stream.set_state(StreamState::Answered(limit, outcome));
        }
    }

    /// Takes in the upstream's answer and adds to its headers what the client may want to know.
    fn upstream_answered(&mut self, stream: &Rc<Stream>, granted: Granted, status: u16, map: &[u8], ends_here: bool) {
        stream.set_state(StreamState::Granted(Granted { answered: true, ..granted }));
        let mut pause = None;
        let mut retries = 0;
        let mut has_ratelimit = false;
        for (name, value) in headers::pairs(map) {
            match name {
                b"retry-after" => pause = pause.max(retry_after::parse(value, host::wall_clock_s())),
                b"x-envoy-attempt-count" => retries = attempts::retries(value),
                name if name.starts_with(b"x-ratelimit-") && name.ends_with(b"-requests") => has_ratelimit = true,
                _ => {}
            }
        }
        let Some(limit) = stream.limit(granted.limit) else { return };
        if !stream.is_recognised.get() {
            // It kept its own route, so whose answer this is, and what it says of the limit's upstream, is not known.
            let snapshot = worker::with(|worker| worker.retried(stream, limit, retries)).flatten();
            let snapshot = snapshot.filter(|_| !has_ratelimit);
            Self::add_headers(map, &response_headers(granted.waited, snapshot.as_ref()));
            return;
        }
        let obey_503 = worker::with(|worker| worker.obeys_503(limit)).unwrap_or(false);
        let signal = Signal::of_status(status, pause.is_some(), obey_503);
        let answer =
            |signal| Answer { granted_at: granted.at, signal, retry_after: pause, model: stream.model_for_pace() };
        let snapshot = match signal {
            None if !ends_here => {
                self.unjudged = Some(Unjudged { limit, answer: answer(Signal::Served), body: Vec::new() });
                worker::with(|worker| worker.retried(stream, limit, retries)).flatten()
            }
            signal => {
                let answer = answer(signal.unwrap_or(Signal::Served));
                worker::with(|worker| worker.answered(stream, limit, answer, retries)).flatten()
            }
        };
        // A decision that could be made has read the clock.
        let now = snapshot.map_or_else(host::now, |(_, now)| now);
        worker::with(|worker| worker.count_answer(stream, limit, status, now.since(granted.at)));
        let snapshot = snapshot.filter(|_| !has_ratelimit);
        Self::add_headers(map, &response_headers(granted.waited, snapshot.as_ref()));
    }

    /// Reads the beginning of a 503's body as it passes by, until it is known what it says.
    fn judge(&mut self, size: usize, ends_here: bool) {
        let (Some(unjudged), Some(stream)) = (&mut self.unjudged, &self.stream) else { return };
        let wanted = JUDGED_BYTES.saturating_sub(unjudged.body.len()).min(size);
        unjudged.body.extend(host::buffer(Buffer::ResponseBody, 0, wanted).unwrap_or_default());
        let signal = Signal::of_body(&unjudged.body);
        if signal == Signal::Served && !ends_here && unjudged.body.len() < JUDGED_BYTES {
            return;
        }
        let Unjudged { limit, answer, .. } = *unjudged;
        self.unjudged = None;
        worker::with(|worker| worker.answered(stream, limit, Answer { signal, ..answer }, 0));
    }

    /// Adds headers to a metered response, whose own are `map`, in one host call. Those that only nimgate may set are left
    /// out, whoever sent them.
    fn add_headers(map: &[u8], new: &[(&'static str, String)]) {
        let own = headers::pairs(map).filter(|(name, _)| !name.starts_with(b"x-nimgate-"));
        let added = new.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let all: Vec<_> = own.chain(added).collect();
        if let Err(refused) = host::set_header_map(Map::Response, &headers::serialise(&all)) {
            host_refused("set response headers", Some(refused));
        }
    }

    /// Puts the filter's words in place of Envoy's in a reply that Envoy made by itself. Nothing is held for that: the
    /// length is known, and the body is exchanged as it comes by.
    fn reword(&mut self, stream: &Stream, limit: Option<usize>, outcome: Outcome, ends_here: bool) {
        let Some(failure) = outcome.failure() else {
            return;
        };
        let status = failure.status.to_string();
        let _ = host::set_header(Map::Response, ":status", status.as_bytes());
        if outcome == Outcome::RateLimited {
            let _ = host::set_header(Map::Response, "retry-after", b"1");
        }
        if ends_here {
            return;
        }
        let rules = worker::with(|worker| worker.rules(stream, limit)).flatten();
        let body = failure.body(&stream.failed(outcome, None, None, rules.as_ref()).message());
        let _ = host::set_header(Map::Response, "content-type", b"application/json");
        let _ = host::set_header(Map::Response, "content-length", body.len().to_string().as_bytes());
        self.new_body = Some(body);
    }
}

fn action(goes_on: bool) -> Action {
    if goes_on { Action::Continue } else { Action::Pause }
}

impl Context for Http {
    fn on_done(&mut self) -> bool {
        self.judge(0, true);
        if let Some(stream) = &self.stream {
            worker::with(|worker| worker.gone(stream, stream.context()));
        }
        true
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        match &self.stream {
            Some(stream) => Self::head(stream, ends_here),
            None => {
                refuse_unserved();
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, ends_here: bool) -> Action {
        self.stream.as_ref().map_or(Action::Pause, |stream| Self::body(stream, size, ends_here))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.stream.as_ref().map_or(Action::Pause, Self::trailers)
    }

    fn on_http_response_headers(&mut self, _: usize, ends_here: bool) -> Action {
        if let Some(stream) = self.stream.clone() {
            self.response(&stream, ends_here);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, ends_here: bool) -> Action {
        self.judge(size, ends_here);
        if let Some(body) = &mut self.new_body {
            // The whole new body goes with the first piece of the old one, and nothing with the others.
            let _ = host::replace_buffer(Buffer::ResponseBody, size, body);
            body.clear();
        }
        Action::Continue
    }
}
