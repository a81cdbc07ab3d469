//! One HTTP stream as the worker sees it: which configuration it came under, and how far it is.
//!
//! A stream is resumed or answered from a timer as often as from its own callbacks, so what both need lies here, behind
//! a shared pointer, and not in the SDK's context.

use super::host::{self, ContextRef, Map, Refused};
use super::kept_body::KeptBody;
use super::logging::{event, event_once, host_refused};
use nimgate_classify::{BodyReader, Classified, Unclassifiable};
use nimgate_config::Config;
use nimgate_core::limit::rules::Rules;
use nimgate_core::messages::{Failed, Hidden, Unread};
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::outcome::{Failure, Outcome};
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::units::{Instant, LimitId, Micros, RequestId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// One plugin configuration in this VM: a root context, and what it was configured with.
pub struct Plugin {
    /// The root context's number.
    pub context: u32,
    /// The configuration.
    pub config: Config,
    /// For each limit of the configuration, its number in the scheduler.
    pub limits: Vec<LimitId>,
    /// For each limit, the upstream's key if one is configured.
    pub keys: Vec<Option<String>>,
    /// Whether the host shows bodies of requests that are held at their headers.
    pub body_view: Cell<BodyView>,
    /// If it does not: when one request tries again.
    pub try_again_at: Cell<Instant>,
}

/// Whether the host shows bodies of requests that are held at their headers
/// (`allow_on_headers_stop_iteration: true`, Envoy 1.35 and later).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyView {
    /// No body has been announced and shown, or failed to be, yet.
    Unknown,
    /// It does.
    Shown,
    /// It seems not to: such a request would wait for ever. It may have been another filter before this one that kept a
    /// body back, so now and then one request tries again.
    Hidden,
}

impl Plugin {
    /// Whether a request that comes now may be held at its headers until its body is shown.
    pub fn may_hold(&self) -> bool {
        if self.body_view.get() != BodyView::Hidden {
            return true;
        }
        let now = host::now();
        let is_due = now >= self.try_again_at.get();
        if is_due {
            self.try_again_at.set(now.after(TRY_AGAIN_AFTER));
        }
        is_due
    }
}

/// How often one request tries whether bodies are shown after all. Where they are not, it waits a second in vain.
pub const TRY_AGAIN_AFTER: Micros = Micros::from_secs(5);

/// How far a stream is.
pub enum StreamState {
    /// Nothing is decided.
    New,
    /// It passes through.
    Passed,
    /// This is decided about it, and it does not ask for a token before its body begins.
    Announced(Classified),
    /// Its body is being read; so many bytes have been.
    Reading(Box<BodyReader>, usize),
    /// It waits for a token of the configuration's limit with this number.
    Waiting(usize),
    /// It has its token and is on its way.
    Granted(Granted),
    /// It is answered, by the filter or with the filter's words.
    Answered(Option<usize>, Outcome),
    /// It is answered 503, because a fault of the filter's kept it from a decision.
    Unserved,
    /// It is over and counted.
    Over,
}

/// A request on its way to the upstream.
#[derive(Clone, Copy)]
pub struct Granted {
    /// The number of its limit in the configuration.
    pub limit: usize,
    /// When it got its token.
    pub at: Instant,
    /// How long it waited.
    pub waited: Micros,
    /// Whether the upstream's answer has been taken in.
    pub answered: bool,
}

/// A stream.
pub struct Stream {
    /// Its context's number.
    pub id: u32,
    /// The configuration it came under.
    pub plugin: Rc<Plugin>,
    /// How far it is.
    pub state: RefCell<StreamState>,
    /// The level at which it is served.
    pub priority: Cell<Priority>,
    /// The model that its body names, if that was read and the request is metered.
    pub model: RefCell<Option<String>>,
    /// Whether the client sent `authorization`.
    pub has_authorization: Cell<bool>,
    /// Whether it is known to be for a limit's upstream, and not only metered for want of knowing better.
    pub is_recognised: Cell<bool>,
    /// Whether its headers have gone on to the next filter, so that they can't be changed any more.
    pub headers_are_gone: Cell<bool>,
    /// What Envoy keeps of its body on this filter's behalf.
    pub kept: KeptBody,
    /// Whether the access log knows limit and priority.
    is_noted: Cell<bool>,
}

impl Stream {
    /// A stream of which nothing is known yet.
    pub fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        Self {
            id,
            priority: Cell::new(plugin.config.priority.default),
            plugin,
            state: RefCell::new(StreamState::New),
            model: RefCell::new(None),
            has_authorization: Cell::new(false),
            is_recognised: Cell::new(false),
            headers_are_gone: Cell::new(false),
            kept: KeptBody::default(),
            is_noted: Cell::new(false),
        }
    }

    /// The stream's context and root context.
    pub fn context(&self) -> ContextRef {
        ContextRef { context: self.id, root: self.plugin.context }
    }

    /// The stream's identity for the core.
    pub fn request(&self) -> RequestId {
        RequestId(self.id)
    }

    /// The model for the core: by its key, and by a name to show.
    pub fn model_for_pace(&self) -> (ModelKey, ModelName) {
        let model = self.model.borrow();
        model.as_deref().map_or((ModelKey::NONE, ModelName::NONE), |name| (ModelKey::of(name), ModelName::new(name)))
    }

    /// The scheduler's number for a limit of the configuration.
    pub fn limit(&self, at: usize) -> Option<LimitId> {
        self.plugin.limits.get(at).copied()
    }

    /// The name of a limit of the configuration; empty for none.
    pub fn limit_name(&self, at: Option<usize>) -> &str {
        at.and_then(|at| self.plugin.config.limits.get(at)).map_or("", |limit| &limit.name)
    }

    /// Moves to another state and returns the one before.
    pub fn set_state(&self, next: StreamState) -> StreamState {
        self.state.replace(next)
    }

    /// Whether its body has to come to its end, or to its beginning, before anything is decided.
    pub fn is_arriving(&self) -> bool {
        matches!(*self.state.borrow(), StreamState::Reading(..) | StreamState::Announced(_))
    }

    /// The limit of the configuration for whose token it waits.
    pub fn waits_for(&self) -> Option<usize> {
        match *self.state.borrow() {
            StreamState::Waiting(at) => Some(at),
            _ => None,
        }
    }

    /// Tells Envoy's access log, through the stream's filter state, how the request stands with this limit. Said when it
    /// begins to wait, with what is true if it is never said again: its client left. The stream's own context must be in
    /// effect.
    pub fn note(&self, limit: Option<usize>, outcome: Outcome, waited: Option<Micros>) {
        let mut said = vec![("nimgate.outcome", outcome.label().to_owned())];
        if let Some(waited) = waited {
            said.push(("nimgate.queue_ms", waited.as_millis().to_string()));
        }
        if !self.is_noted.replace(true) {
            said.push(("nimgate.limit", self.limit_name(limit).to_owned()));
            said.push(("nimgate.priority", self.priority.get().name().to_owned()));
        }
        for (path, value) in said {
            // A log line without it is no reason to treat the request differently.
            let _ = host::set_property(path, value.as_bytes());
        }
    }

    /// Prepares the request for the upstream of its limit. The stream's own context must be in effect.
    pub fn go(&self, waited: Micros, now: Instant) {
        let StreamState::Waiting(limit) = *self.state.borrow() else {
            return;
        };
        if self.headers_are_gone.get() {
            warn_if_sent();
        } else if self.is_recognised.get() {
            self.set_headers(limit);
        }
        self.note(Some(limit), Outcome::Forwarded, Some(waited));
        self.set_state(StreamState::Granted(Granted { limit, at: now, waited, answered: false }));
    }

    /// Resumes the request from outside its callbacks. The stream's own context must be in effect.
    ///
    /// # Errors
    ///
    /// The host refuses.
    pub fn resume(&self) -> Result<(), Refused> {
        self.kept.resumed();
        host::resume_request()
    }

    /// Sets what the upstream of a limit, and the routes to it, are to see.
    fn set_headers(&self, limit: usize) {
        let name = self.limit_name(Some(limit));
        let mut set = vec![("x-nimgate-limit", name.as_bytes().to_vec())];
        match self.plugin.keys.get(limit) {
            Some(Some(key)) => set.push(("authorization", format!("Bearer {key}").into_bytes())),
            _ if !self.has_authorization.get() => set.push(("authorization", b"Bearer nvidia".to_vec())),
            _ => {}
        }
        for (header, value) in set {
            if let Err(refused) = host::set_header(Map::Request, header, &value) {
                host_refused("set request header", Some(refused));
            }
        }
    }

    /// Answers the request with the words for how it failed, and these headers. The stream's own context must be in
    /// effect.
    pub fn refuse(&self, failed: &Failed<'_>, headers: &[(&'static str, String)], waited: Option<Micros>) {
        let Some(failure) = failed.outcome.failure() else { return };
        let limit = self.waits_for();
        let body = failure.body(&failed.message());
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        self.note(limit, failed.outcome, waited);
        let details = format!("nimgate_{}", failure.code);
        if let Err(refused) = host::reply(failure.status, &details, &all, &body) {
            host_refused("local reply", Some(refused));
        }
        self.set_state(StreamState::Answered(limit, failed.outcome));
    }

    /// Answers 503 to a request that nothing could be decided about, so that none goes unmetered. The stream's own context
    /// must be in effect.
    pub fn refuse_unserved(&self) {
        self.set_state(StreamState::Unserved);
        refuse_unserved();
    }

    /// How this request failed: what its sentence is made of. `rules` are the active ones of its limit, `lane` is where
    /// its wait ran out.
    pub fn failed<'a>(
        &'a self,
        outcome: Outcome,
        reason: Option<Unclassifiable>,
        lane: Option<Lane>,
        rules: Option<&'a Rules>,
    ) -> Failed<'a> {
        let limit = match *self.state.borrow() {
            StreamState::Waiting(at) | StreamState::Granted(Granted { limit: at, .. }) => Some(at),
            _ => None,
        };
        let unread = reason.map(|reason| {
            let hidden = match reason {
                Unclassifiable::BodyHidden => Hidden::Body,
                Unclassifiable::HeadersHidden => Hidden::Headers,
                Unclassifiable::Compressed | Unclassifiable::Body(_) => Hidden::Nothing,
            };
            Unread { label: reason.label(), hidden }
        });
        Failed {
            outcome,
            limit: self.limit_name(limit),
            rules,
            priority: self.priority.get(),
            unread,
            lane,
            full: None,
        }
    }
}

/// Answers 503 for the stream in effect, and says so in the log.
pub fn refuse_unserved() {
    event!(
        error,
        "request_unserved",
        "message": "a request was answered 503, since a fault in nimgate kept it from a decision. Report it, with the lines \
                    before this one",
    );
    let failure = Failure { status: 503, kind: "ServiceUnavailable", code: "unavailable" };
    let body = failure.body(
        "nimgate, not the upstream, refused this request: it could not decide about it, which is a fault of nimgate's. \
         Retry.",
    );
    let headers = [("content-type", "application/json"), ("retry-after", "1")];
    if let Err(refused) = host::reply(failure.status, "nimgate_unavailable", &headers, &body) {
        host_refused("local reply", Some(refused));
    }
}

/// Says so if the stream in effect, whose body alone was held, has a connection to its upstream already: nothing after
/// this filter kept its headers back.
fn warn_if_sent() {
    if host::property("upstream\0address").is_none_or(|address| address.is_empty()) {
        return;
    }
    event_once!(
        warn,
        "headers_not_held",
        "message": "hold_at is body, but the headers of a request went to the upstream while its body waited: nothing \
                    after nimgate holds them. Put envoy.filters.http.buffer between nimgate and the router",
    );
}
