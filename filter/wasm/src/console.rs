//! The console's callbacks: a request's head in, what the core needs gathered, its answer out.
//!
//! The console has a listener to itself, with routes that only answer, so no request of it goes anywhere. Any worker may
//! be asked, and each tells the same: ledgers and limits lie in shared data, and Envoy's counters are the process's.

use super::host::{self, Buffer, Map};
use super::logging::{event, event_once, host_refused};
use super::metrics::Metrics;
use super::shared_data::SharedData;
use super::{headers, worker};
use nimgate_config::console::{ConsoleConfig, TOKEN_BYTES_MIN};
use nimgate_config::{KeySource, without_quotes};
use nimgate_console::health::{self, Probe, Probed};
use nimgate_console::history::{self, Entry};
use nimgate_console::overrides::{self, Override, Settings};
use nimgate_console::registry::Registry;
use nimgate_console::reply::Reply;
use nimgate_console::request::{Asked, BODY_BYTES_MAX, Console, ConsoleRequest, too_large};
use nimgate_console::status::Gathered;
use nimgate_console::view::{self, LimitView};
use nimgate_core::event::Happened;
use nimgate_core::units::{Instant, LimitId, Micros};
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

    /// Views of all limits. Their numbers here are their places in the list.
    fn views(&self, names: Vec<String>) -> Vec<LimitView> {
        let mut metrics = self.metrics.borrow_mut();
        names
            .into_iter()
            .enumerate()
            .map(|(at, name)| {
                metrics.name_limit(LimitId(at), &name);
                LimitView {
                    is_configured: worker::with(|worker| worker.is_configured(&name)).unwrap_or(true),
                    counters: metrics.counters(LimitId(at)),
                    history: history::read(&name, &mut SharedData),
                    ledger: view::read_ledger(&name, &mut SharedData).ok().flatten(),
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
            limits: self.views(registry.names),
            passthrough: self.metrics.borrow_mut().passthrough(),
            can_change: self.console.can_change(),
            now,
        }
    }

    fn readiness(&self, probed: Option<Probe>) -> Reply {
        let now = host::now();
        let limits = self.views(Self::registry().names);
        let reply = health::readiness(&self.console.config().upstream, probed, &limits, now);
        self.metrics.borrow_mut().healthy(reply.status == 200);
        reply
    }

    fn change(&self, body: &[u8]) -> Reply {
        let names = Self::registry().names;
        match overrides::apply(body, &names, &mut SharedData) {
            Ok(applied) => {
                if applied.is_change() {
                    self.tell(&applied, &names);
                }
                applied.reply()
            }
            Err(refusal) => refusal,
        }
    }

    /// Says in the log and the history what was changed, and wakes who waits.
    fn tell(&self, applied: &Override, names: &[String]) {
        event!(
            info,
            "rules_changed",
            "limit": applied.limit,
            "epoch": applied.epoch,
            "by": "the console's POST /config",
            "before": Settings::from(&applied.before),
            "after": Settings::from(&applied.after),
            "message": "active on all workers until the configuration's settings of the limit change or Envoy restarts",
        );
        let entry =
            Entry::of_rules(applied.epoch, applied.snapshot.rate, "changed through the console", host::wall_clock_s());
        let _ = history::append(&applied.limit, &entry, &mut SharedData);
        let at = LimitId(names.iter().position(|name| *name == applied.limit).unwrap_or(names.len()));
        let mut metrics = self.metrics.borrow_mut();
        metrics.name_limit(at, &applied.limit);
        let events: Vec<Happened> = applied.events.iter().map(|event| (at, event.clone())).collect();
        metrics.read(&events);
        for worker in &applied.waiting_at {
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
            let value = host::environment(name).map(|value| without_quotes(value.trim()).to_owned());
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
    state: VisitState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum VisitState {
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
        Self { panel, state: VisitState::New }
    }

    fn answer(&mut self, reply: &Reply) {
        let headers: Vec<(&str, &str)> = reply.headers.iter().map(|(name, value)| (*name, value.as_ref())).collect();
        if let Err(refused) = host::reply(reply.status, "nimgate_console", &headers, &reply.body) {
            host_refused("local reply", Some(refused));
        }
        self.state = VisitState::Answered;
    }

    fn head(&mut self, ends_here: bool) {
        let map = host::header_map(Map::Request).unwrap_or_default();
        let mut head = ConsoleRequest::default();
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
            Asked::Change => self.state = VisitState::Reading,
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
                self.state = VisitState::Probing;
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
        if self.state == VisitState::Probing {
            self.panel.is_probing.set(false);
        }
        self.state = VisitState::Answered;
    }
}

impl Context for Visit {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        if self.state != VisitState::Probing {
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
        if self.state == VisitState::Reading {
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
        if self.state == VisitState::Reading {
            let body = host::buffer(Buffer::RequestBody, 0, BODY_BYTES_MAX.saturating_add(1)).unwrap_or_default();
            let reply = if body.len() > BODY_BYTES_MAX { too_large() } else { self.panel.change(&body) };
            self.answer(&reply);
        }
        Action::Pause
    }
}

/// How long the log is silent about further tries.
const WARN_EVERY: Micros = Micros::from_secs(10);
