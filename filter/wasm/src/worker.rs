//! The state of one VM: the scheduler, the streams it holds, its timer and its wake-up queue.
//!
//! A VM has several root contexts: one for each listener's configuration, and while Envoy drains, those of old
//! configurations too. All share one worker, so that the order among them is exact.
//!
//! The first of them has the timer and the wake-up queue, and stays until the last of the others is
//! gone, even when its own configuration is. For Envoy delivers a wake-up to whatever context has the number that the
//! queue was registered with, and if the VM has crashed and been started again, that number may be another's. The first
//! root context of every VM has the same number, so there it is always one that can take it.
//!
//! The worker makes itself known to the others (a number, a queue) with its first metered request. The main thread's VM
//! and the throw-away VM in which Envoy tries a configuration never have one, so they never count as workers.

use super::holding::{Excess, Holding};
use super::host::{self, ContextRef};
use super::logging::{event, host_refused};
use super::metrics::Metrics;
use super::shared_data::{SharedData, next_number};
use super::stream::{BodyView, Plugin, Stream, StreamState, TRY_AGAIN_AFTER};
use hashbrown::HashMap;
use nimgate_classify::{Classified, Decision};
use nimgate_console::registry::Registry;
use nimgate_core::control::answer::Answer;
use nimgate_core::limit::home::{Company, QUIET};
use nimgate_core::limit::ledger::{Snapshot, VERSION};
use nimgate_core::limit::rules::Rules;
use nimgate_core::messages::{Failed, response_headers};
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::Lane;
use nimgate_core::request::Request;
use nimgate_core::scheduler::{Action, Output, Scheduler};
use nimgate_core::units::{Instant, LimitId, Micros, RequestId, WorkerId};
use std::cell::RefCell;
use std::rc::{Rc, Weak};

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::default());
}

/// Runs `work` on the worker of this VM. Callbacks of one VM never overlap, so it is always free; were it not, `work`
/// would not run rather than trap.
pub fn with<T>(work: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| worker.try_borrow_mut().ok().map(|mut worker| work(&mut worker)))
}

/// The state of one VM.
#[derive(Default)]
pub struct Worker {
    /// Who may be at the ledgers; `None` before the first configuration.
    company: Option<Company>,
    scheduler: Scheduler,
    /// The metrics of this worker.
    pub metrics: Metrics,
    /// How the other workers know this one.
    me: Option<WorkerId>,
    /// Workers that were in this place before their VM crashed: the host delivers to this one what wakes them.
    predecessors: Vec<WorkerId>,
    roots: RootContexts,
    armed_for: Option<Instant>,
    /// Whether the timer has fired since it was armed. It repeats, so it must be armed again or switched off.
    has_fired: bool,
    /// When requests that passed through since the last time are counted; `None` if there are none.
    count_at: Option<Instant>,
    /// The configurations that are in use, and some that were.
    plugins: Vec<Weak<Plugin>>,
    held: HashMap<RequestId, Rc<Stream>>,
    watched: HashMap<RequestId, Watched>,
    /// Streams that have their token and are resumed a moment later, and when.
    resuming: HashMap<RequestId, Rc<Stream>>,
    resume_at: Option<Instant>,
    holding: Holding,
}

/// The root contexts of this VM.
#[derive(Default)]
struct RootContexts {
    /// The first; 0 before there is one.
    first: u32,
    /// Whether its configuration is in use.
    is_used: bool,
    /// How many others there are.
    others: usize,
}

/// A stream whose body was announced and not shown yet, in a VM where none has ever been.
struct Watched {
    stream: Rc<Stream>,
    since: Instant,
    /// What `request.total_size` says when no byte of the body has come.
    size_of_head: u64,
}

impl Worker {
    /// Takes up a plugin configuration; `plugin` makes it, given the numbers of its limits.
    pub fn configure(
        &mut self,
        config: nimgate_config::Config,
        make: impl FnOnce(nimgate_config::Config, Vec<LimitId>) -> Plugin,
    ) -> Rc<Plugin> {
        if self.company.is_none() {
            let company = company();
            self.company = Some(company);
            self.scheduler = Scheduler::among(company);
        }
        let limits = config
            .limits
            .iter()
            .map(|limit| {
                let id = self.scheduler.next_id(&limit.name);
                self.metrics.name_limit(id, &limit.name);
                self.metrics.show_limit(id);
                let (id, events) = self.scheduler.configure(&limit.name, limit.rules, &mut SharedData);
                self.metrics.read(&events);
                id
            })
            .collect();
        let names = config.limits.iter().map(|limit| limit.name.as_str());
        if Registry::add(&mut SharedData, &names).is_err() {
            host_refused("set shared data", None);
        }
        let plugin = Rc::new(make(config, limits));
        self.plugins.retain(|plugin| plugin.strong_count() > 0);
        self.plugins.push(Rc::downgrade(&plugin));
        self.arm(host::begin(plugin.context));
        plugin
    }

    /// Whether a configuration that is in use names a limit. A VM without any (the console may run in one of its own)
    /// can't tell, and takes all limits to be.
    pub fn is_configured(&self, limit: &str) -> bool {
        let mut in_use = self.plugins.iter().filter_map(Weak::upgrade).peekable();
        in_use.peek().is_none() || in_use.any(|plugin| plugin.config.limits.iter().any(|known| known.name == limit))
    }

    /// There is a new root context.
    pub fn root_created(&mut self, context: u32) {
        if self.roots.first == 0 {
            self.roots.first = context;
            self.roots.is_used = true;
        } else {
            self.roots.others = self.roots.others.saturating_add(1);
        }
    }

    /// The configuration of a root context is not used any more. Answers whether the context may go; the first may not while
    /// there are others, and goes with the last of them.
    pub fn root_done(&mut self, context: u32) -> bool {
        self.count_passed();
        if context == self.roots.first {
            self.roots.is_used = false;
            if self.roots.others == 0 {
                self.scheduler.release(&mut SharedData);
            }
            return self.roots.others == 0;
        }
        self.roots.others = self.roots.others.saturating_sub(1);
        if self.roots.others == 0 && !self.roots.is_used {
            self.scheduler.release(&mut SharedData);
            let first = ContextRef { context: self.roots.first, root: self.roots.first };
            let _ = host::on_behalf_of(first, host::begin(context), host::done);
        }
        true
    }

    /// A message came that was meant for a worker: this one, or one whose VM has crashed. It must not wake the latter
    /// itself, for as long as the ledger has a line of it: each message would be answered with others, to itself.
    pub fn woken_as(&mut self, worker: WorkerId) {
        if self.me != Some(worker) && !self.predecessors.contains(&worker) {
            if self.predecessors.len() >= PREDECESSORS_MAX {
                self.predecessors.remove(0);
            }
            self.predecessors.push(worker);
        }
    }

    /// A module of an older version woke this worker: see whether it needs a ledger.
    pub fn suspect(&mut self) {
        self.scheduler.suspect();
    }

    /// A request is complete: asks for a token of the limit with number `at` in its configuration. Where the
    /// configuration has no such limit, which is a fault of the filter's, the request is refused.
    fn arrive(&mut self, stream: &Rc<Stream>, at: usize, running: ContextRef) {
        let Some(limit) = stream.limit(at) else {
            let _ = host::on_behalf_of(stream.context(), running, || stream.refuse_unserved());
            return;
        };
        let me = self.identity(stream.context(), running);
        stream.set_state(StreamState::Waiting(at));
        self.held.insert(stream.request(), Rc::clone(stream));
        let lane = Lane::Queued(stream.priority.get());
        let request = Request::new(stream.request(), lane, stream.model_for_pace().0);
        let output = self.scheduler.arrive(limit, request, me, &mut SharedData);
        self.execute(output, running);
        if stream.waits_for().is_some() {
            let _ = host::on_behalf_of(stream.context(), running, || stream.note(Some(at), Outcome::ClientLeft, None));
        }
        self.arm(running);
    }

    /// The timer fired, or another worker woke this one.
    pub fn wake(&mut self, woken: bool, running: ContextRef) {
        self.has_fired |= !woken;
        let over = self.armed_for.filter(|_| !woken);
        if let Some(me) = self.me {
            let output = match over {
                Some(at) if at > Instant::ZERO => self.scheduler.fired(at, me, &mut SharedData),
                _ => self.scheduler.wake(woken, me, &mut SharedData),
            };
            self.execute(output, running);
        }
        if !self.watched.is_empty() {
            self.check_watched(host::now(), running);
        }
        self.resume_all(running);
        self.count_passed();
        self.arm(running);
    }

    /// Envoy holds so many bytes of a stream's body now, in one of the stream's callbacks. Refuses whoever holds too much.
    pub fn hold(&mut self, stream: &Rc<Stream>, size: usize) {
        let running = stream.context();
        self.holding.hold(stream, u64::try_from(size).unwrap_or(u64::MAX));
        let Some(excess) = self.holding.excess(stream, stream.plugin.config.bodies, running) else { return };
        let Excess { stream, full, alone } = excess;
        let outcome = if alone { Outcome::PayloadTooLarge } else { Outcome::QueueFull };
        let waited_for = stream.waits_for();
        if let Some(at) = waited_for {
            self.dismiss(&stream, at, running);
        }
        self.let_go(&stream);
        let rules = self.rules(&stream, waited_for);
        let _ = host::on_behalf_of(stream.context(), running, || {
            let failed = Failed { full: Some(full), ..stream.failed(outcome, None, None, rules.as_ref()) };
            let headers = [("retry-after", "1".to_owned())];
            stream.refuse(&failed, if alone { &[] } else { &headers }, None);
        });
    }

    /// Envoy holds nothing of a stream's body any more.
    pub fn let_go(&mut self, stream: &Stream) {
        self.holding.let_go(stream.request());
    }

    /// Resumes a stream that has its token as soon as the timer can fire, unless its next piece comes before.
    pub fn resume_soon(&mut self, stream: &Rc<Stream>) {
        self.resuming.insert(stream.request(), Rc::clone(stream));
        self.resume_at.get_or_insert_with(|| host::now().after(RESUME_TIME));
        self.arm(stream.context());
    }

    /// The stream has gone on by itself, or is gone.
    pub fn needs_no_resume(&mut self, stream: &Stream) {
        if !self.resuming.is_empty() {
            self.resuming.remove(&stream.request());
        }
    }

    fn resume_all(&mut self, running: ContextRef) {
        self.resume_at = None;
        for (_, stream) in core::mem::take(&mut self.resuming) {
            let _ = host::on_behalf_of(stream.context(), running, || stream.resume());
        }
    }

    /// A request passes through, in one of its callbacks or on its behalf. It is counted together with those that come in
    /// the next second.
    pub fn passed(&mut self, running: ContextRef) {
        self.metrics.passed();
        if self.count_at.is_some() {
            return;
        }
        let at = host::now().after(COUNT_TIME);
        self.count_at = Some(at);
        self.arm(running);
        if self.armed_for.is_none_or(|armed| armed > at) {
            // The host refused the timer.
            self.count_passed();
        }
    }

    fn count_passed(&mut self) {
        self.count_at = None;
        self.metrics.count_passed();
    }

    /// The stream is gone. Answers how it ended, if it was metered.
    pub fn gone(&mut self, stream: &Stream, running: ContextRef) {
        self.watched.remove(&stream.request());
        self.needs_no_resume(stream);
        self.let_go(stream);
        let (limit, outcome) = match stream.set_state(StreamState::Over) {
            StreamState::Waiting(at) => (Some(at), Outcome::ClientLeft),
            StreamState::Granted(granted) => (Some(granted.limit), Outcome::Forwarded),
            StreamState::Answered(limit, outcome) => (limit, outcome),
            StreamState::New
            | StreamState::Passed
            | StreamState::Announced(_)
            | StreamState::Reading(..)
            | StreamState::Unserved
            | StreamState::Over => return,
        };
        let limit = limit.and_then(|at| stream.limit(at));
        self.metrics.ended(limit, stream.priority.get(), outcome);
        let Some(limit) = limit else { return };
        if self.held.remove(&stream.request()).is_some() {
            self.scheduler.leave(limit, stream.request());
            self.arm(running);
        } else {
            self.settle_grant(stream, limit, true, running);
        }
    }

    /// Settles what a granted request holds, when its stream is over or it is known that it was never sent.
    fn settle_grant(&mut self, stream: &Stream, limit: LimitId, was_sent: bool, running: ContextRef) {
        if self.scheduler.end(limit, stream.request(), was_sent) {
            self.arm(running);
        }
    }

    /// Envoy answered a request that still waited: it leaves the queue.
    pub fn dismiss(&mut self, stream: &Stream, at: usize, running: ContextRef) {
        self.let_go(stream);
        if self.held.remove(&stream.request()).is_some()
            && let Some(limit) = stream.limit(at)
        {
            self.scheduler.leave(limit, stream.request());
            self.arm(running);
        }
    }

    /// The upstream answered, in one of the stream's callbacks. Returns the limit's ledger after that, and its time.
    pub fn answered(
        &mut self,
        stream: &Stream,
        limit: LimitId,
        answer: Answer,
        retries: u32,
    ) -> Option<(Snapshot, Instant)> {
        self.metrics.retried(limit, retries);
        let output = self.scheduler.answer(limit, answer, retries, &mut SharedData);
        let snapshot = output.snapshot;
        self.execute(output, stream.context());
        self.arm(stream.context());
        snapshot
    }

    /// Charges the attempts of Envoy's router before an answer whose meaning only its body will tell. Returns the limit's
    /// ledger after that, and its time.
    pub fn retried(&mut self, stream: &Stream, limit: LimitId, retries: u32) -> Option<(Snapshot, Instant)> {
        if retries == 0 {
            return self.look(stream, limit);
        }
        self.metrics.retried(limit, retries);
        let output = self.scheduler.charge(limit, retries, &mut SharedData);
        let snapshot = output.snapshot;
        self.execute(output, stream.context());
        self.arm(stream.context());
        snapshot
    }

    /// Counts an answer of the upstream that came so long after its request was granted.
    pub fn count_answer(&mut self, stream: &Stream, limit: LimitId, status: u16, latency: Micros) {
        self.metrics.answered(limit, stream.model.borrow().as_deref(), status, latency);
    }

    /// Envoy answered in place of the upstream, in one of the stream's callbacks. Returns a snapshot of the limit's
    /// ledger and its time, for the response's headers.
    pub fn failed(
        &mut self,
        stream: &Stream,
        limit: LimitId,
        outcome: Outcome,
        retries: u32,
    ) -> Option<(Snapshot, Instant)> {
        if stream.is_recognised.get() {
            self.metrics.failed(limit, stream.model.borrow().as_deref(), outcome);
        }
        if outcome == Outcome::PayloadTooLarge {
            self.settle_grant(stream, limit, false, stream.context());
        }
        self.retried(stream, limit, retries)
    }

    /// A snapshot of a limit's ledger and its time, for the headers of a response.
    pub fn look(&mut self, stream: &Stream, limit: LimitId) -> Option<(Snapshot, Instant)> {
        let output = self.scheduler.look(limit, &mut SharedData);
        let snapshot = output.snapshot;
        self.execute(output, stream.context());
        self.arm(stream.context());
        snapshot
    }

    /// Whether a 503 with `Retry-After` counts as a 429 for a limit.
    pub fn obeys_503(&self, limit: LimitId) -> bool {
        self.scheduler.rules(limit).is_some_and(|rules| rules.retreat.obey_503)
    }

    /// The active rules for a limit of a stream's configuration.
    pub fn rules(&self, stream: &Stream, at: Option<usize>) -> Option<Rules> {
        self.scheduler.rules(stream.limit(at?)?).copied()
    }

    /// A body was announced and has not been shown yet. As long as it is not known whether this host shows bodies at
    /// all, such streams are watched.
    pub fn watch(&mut self, stream: &Rc<Stream>, size_of_head: u64, running: ContextRef) {
        let watched = Watched { stream: Rc::clone(stream), since: host::now(), size_of_head };
        self.watched.insert(stream.request(), watched);
        self.arm(running);
    }

    /// The host showed a body: streams of that configuration need not be watched any more.
    pub fn body_shown(&mut self, plugin: &Plugin) {
        if plugin.body_view.replace(BodyView::Shown) != BodyView::Shown {
            self.watched.retain(|_, watched| watched.stream.plugin.context != plugin.context);
        }
    }

    /// Looks whether bytes of a watched stream's body have reached Envoy without being shown here. A slow client's have
    /// not, so it is not mistaken for such a host.
    fn check_watched(&mut self, now: Instant, running: ContextRef) {
        let hidden: Vec<Rc<Plugin>> = self
            .watched
            .values()
            .filter(|watched| now.since(watched.since) >= WATCH_TIME)
            .filter(|watched| {
                let size =
                    host::on_behalf_of(watched.stream.context(), running, || host::property_u64("request\0total_size"));
                matches!(size, Ok(Some(size)) if size > watched.size_of_head)
            })
            .map(|watched| Rc::clone(&watched.stream.plugin))
            .collect();
        for plugin in hidden {
            plugin.try_again_at.set(now.after(TRY_AGAIN_AFTER));
            if plugin.body_view.replace(BodyView::Hidden) != BodyView::Hidden {
                event!(
                    warn,
                    "pause_ignored",
                    "message": "this Envoy shows no body while a request is held at its headers, or a filter before \
                                nimgate keeps bodies back, so requests can't be classified by model; they follow \
                                on_unclassifiable. Set allow_on_headers_stop_iteration: true in the Wasm plugin's \
                                configuration (Envoy 1.35 and later), or hold_at: body with Envoy's buffer filter after \
                                nimgate, or match by hosts or clusters and set models: []. One request tries again every \
                                5 s",
                );
            }
            let mut given_up = Vec::new();
            self.watched.retain(|_, watched| {
                let ours = watched.stream.plugin.context == plugin.context;
                if ours {
                    given_up.push(Rc::clone(&watched.stream));
                }
                !ours
            });
            for stream in given_up {
                self.give_up(&stream, running);
            }
        }
    }

    /// Decides about a stream whose body will never be seen, on its behalf.
    fn give_up(&mut self, stream: &Rc<Stream>, running: ContextRef) {
        let classified = match &mut *stream.state.borrow_mut() {
            StreamState::Reading(reader, _) => reader.give_up(&stream.plugin.config),
            _ => return,
        };
        self.metrics.pause_ignored();
        let passes = self.settle(stream, classified, running);
        if passes {
            self.let_go(stream);
            let _ = host::on_behalf_of(stream.context(), running, || stream.resume());
        }
    }

    /// Acts on a decision; answers whether the stream may go on at once. The caller lets it: from one of the stream's own
    /// callbacks by what it returns, from elsewhere by resuming it.
    pub fn settle(&mut self, stream: &Rc<Stream>, classified: Classified, running: ContextRef) -> bool {
        self.metrics.classified(classified.unclassifiable, classified.occurrence);
        match classified.decision {
            Decision::Pass => {
                self.passed(running);
                stream.set_state(StreamState::Passed);
                true
            }
            Decision::Reject(reason) => {
                let _ = host::on_behalf_of(stream.context(), running, || {
                    stream.refuse(&stream.failed(Outcome::Unreadable, Some(reason), None, None), &[], None);
                });
                false
            }
            Decision::Meter(at) | Decision::MeterUnrecognised(at) => {
                stream.is_recognised.set(matches!(classified.decision, Decision::Meter(_)));
                self.arrive(stream, at, running);
                stream.id == running.context && matches!(*stream.state.borrow(), StreamState::Granted(_))
            }
        }
    }

    /// Carries out what the core decided. A stream in one of whose callbacks this happens is not resumed here: its
    /// callback lets it go on.
    fn execute(&mut self, output: Output, running: ContextRef) {
        self.metrics.read(&output.events);
        for action in output.actions {
            match action {
                Action::Resume { request, waited, granted_at } => {
                    let Some(stream) = self.held.remove(&request) else {
                        continue;
                    };
                    self.let_go(&stream);
                    let is_elsewhere = stream.id != running.context;
                    let resumed = host::on_behalf_of(stream.context(), running, || {
                        stream.go(waited, granted_at);
                        if is_elsewhere { stream.resume() } else { Ok(()) }
                    });
                    if !matches!(resumed, Ok(Ok(()))) {
                        host_refused("resume request", None);
                    }
                }
                Action::Reply { request, lane, outcome, retry_after_s, waited, snapshot } => {
                    let Some(stream) = self.held.remove(&request) else {
                        continue;
                    };
                    self.let_go(&stream);
                    let rules = self.rules(&stream, stream.waits_for());
                    let _ = host::on_behalf_of(stream.context(), running, || {
                        let mut headers = response_headers(waited, snapshot.as_ref());
                        headers.push(("retry-after", retry_after_s.to_string()));
                        let failed = stream.failed(outcome, None, Some(lane), rules.as_ref());
                        stream.refuse(&failed, &headers, Some(waited));
                    });
                }
                // A worker that can't be woken finds out by its own timer, a grace later.
                Action::Wake(worker) if self.predecessors.contains(&worker) => {}
                Action::Wake(worker) => {
                    let _ = host::enqueue(worker.0);
                }
            }
        }
    }

    /// Arms the timer for the next thing due, or switches it off. The callback has read the clock.
    fn arm(&mut self, running: ContextRef) {
        let now = host::latest();
        let watch = self.watched.values().map(|watched| watched.since.after(WATCH_TIME)).min();
        // What stays watched past its time is looked at again after a while.
        let watch = watch.map(|at| if at > now { at } else { now.after(WATCH_TIME) });
        // A VM that has never held a request has nothing to do for any, nor for the gauges.
        let next = self.me.and_then(|_| self.scheduler.next_wakeup()).into_iter().chain(watch).chain(self.count_at);
        let next = next.chain(self.resume_at).min();
        if next == self.armed_for && !self.has_fired {
            return;
        }
        let period = match next {
            Some(at) => at.since(now).max(Micros::from_millis(1)),
            None => Micros::ZERO,
        };
        match host::set_timer(self.roots.first, running, period) {
            Ok(()) => (self.armed_for, self.has_fired) = (next, false),
            Err(refused) => host_refused("set timer", Some(refused)),
        }
    }

    /// How the other workers know this one. It makes itself known with its first metered request, which came on
    /// `connection`. A worker that got no queue then can't be woken, and tries again as soon as it has nobody waiting: an
    /// identity must not change while a line of the ledger bears it.
    fn identity(&mut self, stream: ContextRef, running: ContextRef) -> WorkerId {
        if let Some(me) = self.me
            && (me.0 & UNWAKEABLE == 0 || self.has_line())
        {
            return me;
        }
        let connection = host::on_behalf_of(stream, running, || host::property_u64("connection_id")).ok().flatten();
        let unique = Unique::find(connection);
        let name = unique.queue_name();
        let first = ContextRef { context: self.roots.first, root: self.roots.first };
        let registered = host::on_behalf_of(first, running, || host::register_queue(&name));
        let me = match registered {
            Ok(Ok(token)) => WorkerId(token),
            refused => {
                host_refused("register shared queue", refused.and_then(|inner| inner).err());
                self.me.unwrap_or_else(|| unique.unwakeable())
            }
        };
        self.me = Some(me);
        me
    }

    /// Whether a ledger may have a line of this worker: someone waits here or is in flight, or the ledger has not been
    /// told yet that nobody is any more.
    fn has_line(&self) -> bool {
        let now = host::latest();
        let holds = |at| self.scheduler.waiting(LimitId(at)) > 0 || self.scheduler.in_flight(LimitId(at)) > 0;
        (0..self.metrics.limits()).any(holds) || self.scheduler.next_wakeup().is_some_and(|at| at <= now)
    }
}

/// What no other worker of the process has.
#[derive(Clone, Copy)]
enum Unique {
    /// A number from a counter in shared data.
    Number(u32),
    /// Where the host refuses that: a connection, since Envoy numbers them for the whole process and each belongs to one
    /// worker.
    Connection(u64),
    /// Where it does not tell that either: the time in nanoseconds.
    Time(u64),
}

impl Unique {
    fn find(connection: Option<u64>) -> Self {
        match (next_number(&format!("nimgate/{VERSION}/workers")), connection) {
            (Ok(number), _) => Self::Number(number),
            (Err(_), Some(connection)) => Self::Connection(connection),
            (Err(_), None) => Self::Time(host::now_nanos()),
        }
    }

    fn queue_name(self) -> String {
        match self {
            Self::Number(number) => format!("nimgate/{VERSION}/wake/{number}"),
            Self::Connection(number) => format!("nimgate/{VERSION}/wake/connection/{number}"),
            Self::Time(number) => format!("nimgate/{VERSION}/wake/time/{number}"),
        }
    }

    /// The identity of a worker without a queue. The kinds have ranges of their own, of half a thousand million each.
    fn unwakeable(self) -> WorkerId {
        const KIND: u64 = 0x2000_0000;
        let (kind, number) = match self {
            Self::Number(number) => (0, u64::from(number)),
            Self::Connection(number) => (KIND, number),
            Self::Time(number) => (KIND | KIND << 1, number),
        };
        WorkerId(UNWAKEABLE | u32::try_from(kind | (number % KIND)).unwrap_or(0))
    }
}

/// A test may not wait for as long as a drain takes.
fn company() -> Company {
    let said = host::environment("NIMGATE_VERSION_1_QUIET_S").and_then(|value| value.trim().parse().ok());
    Company::Mixed(said.map_or(QUIET, Micros::from_secs))
}

/// How many workers are remembered that were in this place before.
const PREDECESSORS_MAX: usize = 16;

/// How long a body may be on its way before it is looked into whether the host hides it.
const WATCH_TIME: Micros = Micros::from_secs(1);

/// How long a request that passed through may be missing in Envoy's stats.
const COUNT_TIME: Micros = Micros::from_secs(1);

/// After how long a stream is resumed whose next piece did not come: as soon as the host's timer can fire.
const RESUME_TIME: Micros = Micros::from_millis(1);

/// Marks the number of a worker that has no queue. The host counts queues from 1, so no token reaches it.
const UNWAKEABLE: u32 = 0x8000_0000;
