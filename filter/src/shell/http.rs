//! A stream's callbacks.

use super::host::{self, Buffer, Map};
use super::logging::host_refused;
use super::stream::{BodyView, Granted, State, Stream};
use super::{headers, worker};
use crate::attempts;
use crate::classify::{self, AtHead, Head};
use crate::config::HoldAt;
use crate::ledger::Snapshot;
use crate::messages::told_headers;
use crate::outcome::Outcome;
use crate::pace::{Answer, Verdict};
use crate::priority::Priority;
use crate::retry_after;
use crate::units::{Instant, LimitId, Micros};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use std::rc::Rc;

/// The SDK's context of a stream.
pub struct Http {
    /// `None` only if the stream's root context was never configured; it then passes through.
    stream: Option<Rc<Stream>>,
    /// The body to put in place of the one that Envoy's own reply brings.
    new_body: Option<Vec<u8>>,
    /// A 503 of the upstream, until its body has told what it means.
    unjudged: Option<Unjudged>,
}

struct Unjudged {
    limit: LimitId,
    retries: u32,
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
                Vec::new()
            }
        };
        let config = &stream.plugin.config;
        let mut head = Head { ends_here, ..Head::default() };
        let mut asked: Option<Option<Priority>> = None;
        let mut size_of_head = 0usize;
        for (name, value) in headers::pairs(&map) {
            size_of_head = size_of_head.saturating_add(name.len()).saturating_add(value.len());
            match name {
                b":method" => head.method = value,
                b":path" => head.path = value,
                b"upgrade" => head.upgrades = true,
                b":authority" => head.authority = value,
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
                    size_of_head = size_of_head.saturating_sub(name.len()).saturating_sub(value.len());
                    let _ = host::remove_header(Map::Request, name);
                }
                _ => {}
            }
        }
        let priority = asked.flatten().unwrap_or(config.priority.default);
        stream.priority.set(priority.capped(config.priority.ceiling));
        let by_cluster = config.limits.iter().any(|limit| !limit.clusters.is_empty());
        let cluster = by_cluster.then(|| host::property("xds\0cluster_name")).flatten();
        head.cluster = cluster.as_deref();
        match classify::at_head(config, &head) {
            AtHead::Decided(classified) => {
                let goes_on = worker::with(|worker| worker.settle(stream, classified, stream.id));
                action(goes_on.unwrap_or(true))
            }
            AtHead::Read(reader) if config.hold_at == HoldAt::Body => {
                stream.become_(State::Reading(reader, 0));
                stream.headers_are_gone.set(true);
                Action::Continue
            }
            AtHead::Read(mut reader) if stream.plugin.body_view.get() == BodyView::Hidden => {
                let classified = reader.give_up(config);
                let goes_on = worker::with(|worker| {
                    worker.metrics.pause_ignored();
                    worker.settle(stream, classified, stream.id)
                });
                action(goes_on.unwrap_or(true))
            }
            AtHead::Read(reader) => {
                stream.become_(State::Reading(reader, 0));
                if stream.plugin.body_view.get() == BodyView::Unknown {
                    let size = u64::try_from(size_of_head).unwrap_or(u64::MAX);
                    worker::with(|worker| worker.watch(stream, size, stream.id));
                }
                Action::Pause
            }
        }
    }

    /// Reads what has come of the body since the last time.
    fn body(stream: &Rc<Stream>, size: usize, ends_here: bool) -> Action {
        // Only while the request is held does a body's being shown say anything about the host.
        let held = matches!(&*stream.state.borrow(), State::Reading(..) | State::Waiting(_));
        if held && stream.plugin.body_view.get() != BodyView::Shown {
            worker::with(|worker| worker.body_shown(&stream.plugin));
        }
        let passes = match &mut *stream.state.borrow_mut() {
            State::Reading(reader, seen) => {
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
                reader.feed(&stream.plugin.config, &piece)
            }
            State::Waiting(_) => {
                stream.keeps_body.set(!ends_here);
                return Action::Pause;
            }
            State::Granted(_) if stream.keeps_body.get() => {
                stream.keeps_body.set(!ends_here);
                return action(ends_here);
            }
            State::Answered(..) => return Action::Pause,
            State::New | State::Passed | State::Granted(_) | State::Over => return Action::Continue,
        };
        if passes {
            stream.become_(State::Passed);
            worker::with(|worker| worker.metrics.passed());
            return Action::Continue;
        }
        if ends_here { Self::body_complete(stream) } else { Action::Pause }
    }

    fn body_complete(stream: &Rc<Stream>) -> Action {
        let classified = match &mut *stream.state.borrow_mut() {
            State::Reading(reader, _) => {
                let classified = reader.finish(&stream.plugin.config);
                if matches!(classified.verdict, classify::Verdict::Meter(_)) {
                    stream.model.replace(reader.model().map(str::to_owned));
                }
                classified
            }
            State::Answered(..) => return Action::Pause,
            state => {
                stream.keeps_body.set(false);
                return action(!matches!(state, State::Waiting(_)));
            }
        };
        let goes_on = worker::with(|worker| worker.settle(stream, classified, stream.id));
        action(goes_on.unwrap_or(true))
    }

    /// A response begins: the upstream's, or one that Envoy made by itself.
    fn response(&mut self, stream: &Rc<Stream>, ends_here: bool) {
        #[derive(Clone, Copy)]
        enum Whose {
            Held(Option<usize>),
            Sent(Granted),
        }
        let whose = match &*stream.state.borrow() {
            State::Granted(granted) if !granted.answered => Whose::Sent(*granted),
            State::Reading(..) => Whose::Held(None),
            State::Waiting(at) => Whose::Held(Some(*at)),
            _ => return,
        };
        let details = host::property("response\0code_details").unwrap_or_default();
        let (limit, sent) = match whose {
            Whose::Sent(granted) => (Some(granted.limit), true),
            Whose::Held(limit) => (limit, false),
        };
        let Ok(map) = host::header_map(Map::Response) else {
            return;
        };
        let status = headers::pairs(&map)
            .find(|(name, _)| *name == b":status")
            .and_then(|(_, value)| core::str::from_utf8(value).ok()?.parse().ok())
            .unwrap_or(0);
        if let (Whose::Sent(granted), true) = (whose, details.starts_with(b"via_upstream")) {
            self.upstream_answered(stream, granted, status, &map, ends_here);
            return;
        }
        if let Some(outcome) = Outcome::of_local_reply(status, &details, sent) {
            if let (Some(at), false) = (limit, sent) {
                worker::with(|worker| worker.dismiss(stream, at, stream.id));
            }
            if let Whose::Sent(granted) = whose {
                let limit = stream.limit(granted.limit);
                let now = host::now();
                let snapshot =
                    limit.and_then(|limit| worker::with(|worker| worker.failed(stream, limit, outcome, now)));
                Self::tell(granted.waited, snapshot.flatten(), now);
            }
            self.reword(stream, limit, outcome, ends_here);
            stream.note(limit, outcome, None);
            stream.become_(State::Answered(limit, outcome));
        }
    }

    /// Takes in the upstream's answer and adds to its headers what the client may want to know.
    fn upstream_answered(&mut self, stream: &Rc<Stream>, granted: Granted, status: u16, map: &[u8], ends_here: bool) {
        stream.become_(State::Granted(Granted { answered: true, ..granted }));
        let now = host::now();
        let mut pause = None;
        let mut retries = 0;
        let mut has_ratelimit = false;
        for (name, value) in headers::pairs(map) {
            match name {
                b"retry-after" => pause = pause.max(retry_after::parse(value, host::wall_clock_s())),
                b"x-envoy-attempt-count" => retries = attempts::retries(value),
                name if name.starts_with(b"x-nimgate-") => {
                    let _ = host::remove_header(Map::Response, name);
                }
                name if name.starts_with(b"x-ratelimit-") && name.ends_with(b"-requests") => has_ratelimit = true,
                _ => {}
            }
        }
        let Some(limit) = stream.limit(granted.limit) else { return };
        let obey_503 = worker::with(|worker| worker.obeys_503(limit)).unwrap_or(false);
        let verdict = Outcome::verdict(status, pause.is_some(), obey_503);
        let answer =
            |verdict| Answer { granted_at: granted.at, verdict, retry_after: pause, model: stream.model_for_pace() };
        let snapshot = match verdict {
            None if !ends_here => {
                self.unjudged = Some(Unjudged { limit, retries, answer: answer(Verdict::Served), body: Vec::new() });
                worker::with(|worker| worker.look(stream, limit, now)).flatten()
            }
            verdict => {
                let answer = answer(verdict.unwrap_or(Verdict::Served));
                worker::with(|worker| worker.answered(stream, limit, answer, retries, now)).flatten()
            }
        };
        worker::with(|worker| worker.count_answer(stream, limit, status, now.since(granted.at)));
        Self::tell(granted.waited, snapshot.filter(|_| !has_ratelimit), now);
    }

    /// Reads the beginning of a 503's body as it passes by, until it is known what it says.
    fn judge(&mut self, size: usize, ends_here: bool) {
        let (Some(unjudged), Some(stream)) = (&mut self.unjudged, &self.stream) else { return };
        let wanted = JUDGED_BYTES.saturating_sub(unjudged.body.len()).min(size);
        unjudged.body.extend(host::buffer(Buffer::ResponseBody, 0, wanted).unwrap_or_default());
        let verdict = Outcome::verdict_of_503(&unjudged.body);
        if verdict == Verdict::Served && !ends_here && unjudged.body.len() < JUDGED_BYTES {
            return;
        }
        let Unjudged { limit, retries, answer, .. } = *unjudged;
        self.unjudged = None;
        worker::with(|worker| worker.answered(stream, limit, Answer { verdict, ..answer }, retries, host::now()));
    }

    /// Adds the headers of a metered response.
    fn tell(waited: Micros, snapshot: Option<Snapshot>, now: Instant) {
        for (name, value) in told_headers(waited, snapshot.as_ref(), now) {
            let _ = host::set_header(Map::Response, name, value.as_bytes());
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
            worker::with(|worker| worker.gone(stream, stream.id));
        }
        true
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        self.stream.as_ref().map_or(Action::Continue, |stream| Self::head(stream, ends_here))
    }

    fn on_http_request_body(&mut self, size: usize, ends_here: bool) -> Action {
        self.stream.as_ref().map_or(Action::Continue, |stream| Self::body(stream, size, ends_here))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.stream.as_ref().map_or(Action::Continue, Self::body_complete)
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
