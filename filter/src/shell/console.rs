//! The console's callbacks: a request's head in, what the core needs gathered, its answer out.
//!
//! The console has a listener to itself, with routes that only answer, so no request of it goes anywhere. Any worker may
//! be asked, and each tells the same: ledgers and limits lie in shared data, and Envoy's counters are the process's.

use super::host::{self, Buffer, Map};
use super::logging::{event, event_once, host_refused};
use super::metrics::Metrics;
use super::shared_data::SharedData;
use super::{headers, worker};
use crate::config::KeySource;
use crate::config::console::{ConsoleConfig, TOKEN_BYTES_MIN};
use crate::console::health::{self, Probe, Probed};
use crate::console::history::{self, Entry};
use crate::console::picture::{self, Picture};
use crate::console::registry::Registry;
use crate::console::reply::Reply;
use crate::console::request::{Asked, BODY_BYTES_MAX, Console, Head, too_large};
use crate::console::status::Gathered;
use crate::console::steering::{self, Settings, Steered};
use crate::observe::Observer;
use crate::units::{Instant, LimitId, Micros};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The console of one plugin configuration in this VM.
pub struct Panel {
    console: Console,
    metrics: RefCell<Metrics>,
    /// Whether a request to the upstream is under way from here.
    is_probing: Cell<bool>,
    /// When the log last said that someone tried a wrong token.
    warned_at: Cell<Instant>,
}

impl Panel {
    /// The console as configured.
    pub fn new(config: ConsoleConfig) -> Self {
        let token = token(&config.admin_token);
        Self {
            console: Console::new(config, token),
            metrics: RefCell::new(Metrics::default()),
            is_probing: Cell::new(false),
            warned_at: Cell::new(Instant::ZERO),
        }
    }

    fn registry() -> Registry {
        Registry::read(&mut SharedData).unwrap_or_default()
    }

    /// Pictures of all limits. Their numbers here are their places in the list.
    fn pictures(&self, names: Vec<String>, now: Instant) -> Vec<Picture> {
        let mut metrics = self.metrics.borrow_mut();
        names
            .into_iter()
            .enumerate()
            .map(|(at, name)| {
                metrics.name_limit(LimitId(at), &name);
                Picture {
                    is_configured: worker::with(|worker| worker.is_configured(&name)).unwrap_or(true),
                    counters: metrics.counters(LimitId(at)),
                    history: history::read(&name, &mut SharedData),
                    ledger: picture::look(&name, now, &mut SharedData).ok().flatten(),
                    name,
                }
            })
            .collect()
    }

    fn gather(&self) -> Gathered {
        let now = host::now();
        let registry = Self::registry();
        Gathered {
            uptime: if registry.started == Instant::ZERO { Micros::ZERO } else { now.since(registry.started) },
            limits: self.pictures(registry.names, now),
            passthrough: self.metrics.borrow_mut().passthrough(),
            can_change: self.console.can_change(),
            now,
        }
    }

    fn readiness(&self, probed: Option<Probe>) -> Reply {
        let now = host::now();
        let limits = self.pictures(Self::registry().names, now);
        let reply = health::readiness(&self.console.config().upstream, probed, &limits, now);
        self.metrics.borrow_mut().healthy(reply.status == 200);
        reply
    }

    fn change(&self, body: &[u8]) -> Reply {
        let names = Self::registry().names;
        match steering::steer(body, &names, host::now(), &mut SharedData) {
            Ok(steered) => {
                if steered.is_change() {
                    self.tell(&steered, &names);
                }
                steered.reply()
            }
            Err(refusal) => refusal,
        }
    }

    /// Says in the log and the history what was changed, and wakes who waits.
    fn tell(&self, steered: &Steered, names: &[String]) {
        event!(
            info,
            "rules_changed",
            "limit": steered.limit,
            "epoch": steered.epoch,
            "by": "the console's POST /config",
            "before": Settings::from(&steered.before),
            "after": Settings::from(&steered.after),
            "message": "in force on all workers until the configuration's settings of the limit change or Envoy restarts",
        );
        let entry = Entry::of_rules(&steered.snapshot, "changed through the console", host::wall_clock_s());
        let _ = history::append(&steered.limit, &entry, &mut SharedData);
        let at = LimitId(names.iter().position(|name| *name == steered.limit).unwrap_or(names.len()));
        let mut metrics = self.metrics.borrow_mut();
        metrics.name_limit(at, &steered.limit);
        if let Some(transition) = steered.transition {
            metrics.retreat_changed(at, transition);
        }
        metrics.looked(at, &steered.snapshot, &steered.after);
        for worker in &steered.waiting_at {
            let _ = host::enqueue(worker.0);
        }
    }

    /// Says in the log that someone tried to change something without leave, but not for each of a thousand tries.
    fn warn(&self, status: u16) {
        let now = host::now();
        if self.warned_at.get() == Instant::ZERO || now.since(self.warned_at.get()) >= WARN_EVERY {
            self.warned_at.set(now);
            event!(
                warn,
                "console_refused",
                "status": status,
                "message": "someone tried POST /config without the admin token, or from another page; further tries \
                            are not logged for a while",
            );
        }
    }
}

/// The admin token. Without a usable one nothing can be changed, and the log says why.
fn token(source: &KeySource) -> Option<String> {
    match source {
        KeySource::Client => None,
        KeySource::Inline(token) => Some(token.clone()),
        KeySource::Env(name) => {
            let value = host::environment(name).map(|value| value.trim().to_owned());
            let usable = value
                .filter(|value| value.len() >= TOKEN_BYTES_MIN && value.bytes().all(|byte| byte.is_ascii_graphic()));
            if usable.is_none() {
                event_once!(
                    info,
                    "admin_token_missing",
                    "variable": name,
                    "message": "the environment variable of console.admin_token_env is not set, or holds no usable \
                                token (at least 16 visible characters), so limits can't be changed through the \
                                console. Set it for Envoy and list it in vm_config's environment_variables.host_env_keys",
                );
            }
            usable
        }
    }
}

/// A request of the console.
pub struct Visit {
    panel: Rc<Panel>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is answered yet.
    New,
    /// The body of a change is still coming.
    Reading,
    /// The upstream is being asked.
    Probing,
    /// It is answered.
    Answered,
}

impl Visit {
    /// A request of which nothing is known yet.
    pub fn new(panel: Rc<Panel>) -> Self {
        Self { panel, state: State::New }
    }

    fn answer(&mut self, reply: &Reply) {
        let headers: Vec<(&str, &str)> = reply.headers.iter().map(|(name, value)| (*name, value.as_ref())).collect();
        if let Err(refused) = host::reply(reply.status, "nimgate_console", &headers, &reply.body) {
            host_refused("local reply", Some(refused));
        }
        self.state = State::Answered;
    }

    fn head(&mut self, ends_here: bool) {
        let map = host::header_map(Map::Request).unwrap_or_default();
        let mut head = Head::default();
        for (name, value) in headers::pairs(&map) {
            match name {
                b":method" => head.method = value,
                b":path" => head.path = value,
                b":authority" => head.authority = value,
                b"origin" => head.origin = Some(value),
                b"content-type" => head.content_type = Some(value),
                b"content-length" => head.content_length = Some(value),
                b"content-encoding" => head.content_encoding = Some(value),
                b"authorization" => head.authorization = Some(value),
                b"accept-encoding" => head.accept_encoding = Some(value),
                _ => {}
            }
        }
        match self.panel.console.at_head(&head) {
            Asked::Answer(reply) => self.answer(&reply),
            Asked::Intrusion(reply) => {
                self.panel.warn(reply.status);
                self.answer(&reply);
            }
            Asked::Status => self.answer(&self.panel.gather().status()),
            Asked::Events => self.answer(&self.panel.gather().event()),
            Asked::Ready => self.ready(),
            Asked::Change if ends_here => self.answer(&self.panel.change(b"")),
            Asked::Change => self.state = State::Reading,
        }
    }

    /// Answers from what is known of the upstream, or asks it if that is too old and nobody else here is asking.
    fn ready(&mut self) {
        let upstream = &self.panel.console.config().upstream;
        let known = Probe::read(upstream, &mut SharedData).ok().flatten();
        if known.is_some_and(|probe| probe.is_fresh(host::now())) || self.panel.is_probing.get() {
            return self.answer(&self.panel.readiness(known));
        }
        let headers = [
            (":method", "GET"),
            (":path", upstream.path.as_str()),
            (":authority", upstream.host.as_str()),
            ("user-agent", "nimgate"),
            ("accept", "*/*"),
        ];
        match host::call(&upstream.cluster, &headers, upstream.timeout) {
            Ok(()) => {
                self.panel.is_probing.set(true);
                self.state = State::Probing;
            }
            Err(_) => self.probed(Probed::NoCluster),
        }
    }

    fn probed(&mut self, result: Probed) {
        let probe = Probe { at: host::now(), result };
        // If it can't be kept it is asked for again, by whoever comes next.
        let _ = probe.write(&self.panel.console.config().upstream, &mut SharedData);
        self.answer(&self.panel.readiness(Some(probe)));
    }

    /// The request is over, answered or not: if it was asking the upstream, no answer will come any more.
    fn leave(&mut self) {
        if self.state == State::Probing {
            self.panel.is_probing.set(false);
        }
        self.state = State::Answered;
    }
}

impl Context for Visit {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        if self.state != State::Probing {
            return;
        }
        self.leave();
        let map = host::header_map(Map::CallResponse).unwrap_or_default();
        let status = headers::pairs(&map)
            .find(|(name, _)| *name == b":status")
            .and_then(|(_, value)| core::str::from_utf8(value).ok()?.parse().ok());
        self.probed(status.map_or(Probed::Silent, Probed::Answered));
    }

    fn on_done(&mut self) -> bool {
        self.leave();
        true
    }
}

impl HttpContext for Visit {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        self.head(ends_here);
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, ends_here: bool) -> Action {
        if self.state == State::Reading {
            if size > BODY_BYTES_MAX {
                self.answer(&too_large());
            } else if ends_here {
                let reply = match host::buffer(Buffer::RequestBody, 0, size) {
                    Ok(body) => self.panel.change(&body),
                    Err(refused) => {
                        host_refused("get request body", Some(refused));
                        self.panel.change(b"")
                    }
                };
                self.answer(&reply);
            }
        }
        Action::Pause
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if self.state == State::Reading {
            let body = host::buffer(Buffer::RequestBody, 0, BODY_BYTES_MAX.saturating_add(1)).unwrap_or_default();
            let reply = if body.len() > BODY_BYTES_MAX { too_large() } else { self.panel.change(&body) };
            self.answer(&reply);
        }
        Action::Pause
    }
}

/// How long the log is silent about further tries.
const WARN_EVERY: Micros = Micros::from_secs(10);
