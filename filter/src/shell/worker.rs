//! The state of one VM: the scheduler, the streams it holds, its timer and its wake-up queue.
//!
//! A VM has several root contexts: one for each listener's configuration, and while Envoy drains, those of old
//! configurations too. All share one worker, so that the order among them is exact.
//!
//! The first of them is the *home*: it has the timer and the wake-up queue, and stays until the last of the others is
//! gone, even when its own configuration is. For Envoy delivers a wake-up to whatever context has the number that the
//! queue was registered with, and if the VM has crashed and been started anew, that number may be another's. The first
//! root context of every VM has the same number, so there it is always one that can take it.
//!
//! The worker makes itself known to the others (a number, a queue) with its first metered request. The main thread's VM
//! and the throw-away VM in which Envoy tries a configuration never have one, so they never count as workers.

use super::host;
use super::logging::{event, host_refused};
use super::metrics::Metrics;
use super::shared_data::{SharedData, next_number};
use super::stream::{BodyView, Plugin, State, Stream};
use crate::classify::{Classified, Verdict};
use crate::console::registry::Registry;
use crate::ledger::{Rules, Snapshot, VERSION};
use crate::messages::told_headers;
use crate::outcome::Outcome;
use crate::pace::Answer;
use crate::scheduler::{Action, Scheduler};
use crate::units::{Instant, LimitId, Micros, RequestId, WorkerId};
use hashbrown::HashMap;
use std::cell::{LazyCell, RefCell};
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
    scheduler: Scheduler,
    /// The metrics of this worker.
    pub metrics: Metrics,
    /// How the other workers know this one.
    me: Option<WorkerId>,
    home: Home,
    armed_for: Option<Instant>,
    /// The configurations that are in use, and some that were.
    plugins: Vec<Weak<Plugin>>,
    held: HashMap<RequestId, Rc<Stream>>,
    watched: HashMap<RequestId, Watched>,
}

/// The root contexts of this VM.
#[derive(Default)]
struct Home {
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
        config: crate::config::Config,
        make: impl FnOnce(crate::config::Config, Vec<LimitId>) -> Plugin,
    ) -> Rc<Plugin> {
        let now = host::now();
        let limits = config
            .limits
            .iter()
            .map(|limit| {
                let id = self.scheduler.next_id(&limit.name);
                self.metrics.name_limit(id, &limit.name);
                self.metrics.show_limit(id);
                self.scheduler.configure(&limit.name, limit.rules, now, &mut SharedData, &mut self.metrics)
            })
            .collect();
        let names = config.limits.iter().map(|limit| limit.name.as_str());
        if Registry::add(&mut SharedData, &names, now).is_err() {
            host_refused("set shared data", None);
        }
        let plugin = Rc::new(make(config, limits));
        self.plugins.retain(|plugin| plugin.strong_count() > 0);
        self.plugins.push(Rc::downgrade(&plugin));
        self.arm(plugin.context);
        plugin
    }

    /// Whether a configuration that is in use names a limit. A VM without any (the console may run in one of its own)
    /// can't tell, and takes all limits to be.
    pub fn is_configured(&self, limit: &str) -> bool {
        let mut in_use = self.plugins.iter().filter_map(Weak::upgrade).peekable();
        in_use.peek().is_none() || in_use.any(|plugin| plugin.config.limits.iter().any(|known| known.name == limit))
    }

    /// There is a new root context.
    pub fn settle_in(&mut self, context: u32) {
        if self.home.first == 0 {
            self.home.first = context;
            self.home.is_used = true;
        } else {
            self.home.others = self.home.others.saturating_add(1);
        }
    }

    /// The configuration of a root context is not used any more. Answers whether the context may go; home may not while
    /// there are others, and goes with the last of them.
    pub fn move_out(&mut self, context: u32) -> bool {
        if context == self.home.first {
            self.home.is_used = false;
            return self.home.others == 0;
        }
        self.home.others = self.home.others.saturating_sub(1);
        if self.home.others == 0 && !self.home.is_used {
            let _ = host::on_behalf_of(self.home.first, context, host::done);
        }
        true
    }

    /// A request is complete: asks for a token of the limit with number `at` in its configuration.
    pub fn arrive(&mut self, stream: &Rc<Stream>, at: usize, current: u32) {
        let Some(limit) = stream.limit(at) else {
            return;
        };
        let me = self.introduce(current);
        let origin = host::on_behalf_of(stream.id, current, || stream.origin(at)).ok().flatten();
        let Some(origin) = origin else {
            return;
        };
        stream.become_(State::Waiting(at));
        self.held.insert(stream.request(), Rc::clone(stream));
        let actions = self.scheduler.arrive(
            limit,
            stream.request(),
            stream.priority.get(),
            stream.model_for_pace().0,
            &origin,
            me,
            host::now(),
            &mut SharedData,
            &mut self.metrics,
        );
        self.carry_out(actions, current);
        if stream.waits_for().is_some() {
            let _ = host::on_behalf_of(stream.id, current, || stream.note(Some(at), Outcome::ClientLeft, None));
        }
        self.arm(current);
    }

    /// The timer fired, or another worker woke this one.
    pub fn wake(&mut self, woken: bool, current: u32) {
        if !woken {
            // The timer repeats; what it was armed for is over, so that it is armed anew or switched off below.
            self.armed_for = Some(Instant::ZERO);
        }
        let now = host::now();
        if let Some(me) = self.me {
            let actions = self.scheduler.wake(woken, me, now, &mut SharedData, &mut self.metrics);
            self.carry_out(actions, current);
        }
        self.check_watched(now, current);
        self.arm(current);
    }

    /// The stream is gone. Answers how it ended, if it was metered.
    pub fn gone(&mut self, stream: &Stream, current: u32) {
        self.watched.remove(&stream.request());
        let (limit, outcome) = match stream.become_(State::Over) {
            State::Waiting(at) => (Some(at), Outcome::ClientLeft),
            State::Granted(granted) => (Some(granted.limit), Outcome::Forwarded),
            State::Answered(limit, outcome) => (limit, outcome),
            State::New | State::Passed | State::Reading(..) | State::Over => return,
        };
        let limit = limit.and_then(|at| stream.limit(at));
        self.metrics.ended(limit, stream.priority.get(), outcome);
        if self.held.remove(&stream.request()).is_some()
            && let Some(limit) = limit
        {
            self.scheduler.leave(limit, stream.request(), host::now());
            self.arm(current);
        }
    }

    /// Envoy answered a request that still waited: it leaves the queue.
    pub fn dismiss(&mut self, stream: &Stream, at: usize, current: u32) {
        if self.held.remove(&stream.request()).is_some()
            && let Some(limit) = stream.limit(at)
        {
            self.scheduler.leave(limit, stream.request(), host::now());
            self.arm(current);
        }
    }

    /// The upstream answered at `now`, in one of the stream's callbacks.
    pub fn answered(
        &mut self,
        stream: &Stream,
        limit: LimitId,
        answer: Answer,
        retries: u32,
        now: Instant,
    ) -> Option<Snapshot> {
        self.metrics.retried(limit, retries);
        let (snapshot, action) = self.scheduler.answer(limit, answer, retries, now, &mut SharedData, &mut self.metrics);
        self.carry_out(action, stream.id);
        self.arm(stream.id);
        snapshot
    }

    /// Counts an answer of the upstream that came so long after its request was granted.
    pub fn count_answer(&mut self, stream: &Stream, limit: LimitId, status: u16, latency: Micros) {
        self.metrics.answered(limit, stream.model.borrow().as_deref(), status, latency);
    }

    /// Envoy answered in place of the upstream, in one of the stream's callbacks. Returns a picture of the limit's
    /// ledger, for the response's headers.
    pub fn failed(&mut self, stream: &Stream, limit: LimitId, outcome: Outcome, now: Instant) -> Option<Snapshot> {
        self.metrics.failed(limit, stream.model.borrow().as_deref(), outcome);
        self.look(stream, limit, now)
    }

    /// A picture of a limit's ledger, for the headers of a response.
    pub fn look(&mut self, stream: &Stream, limit: LimitId, now: Instant) -> Option<Snapshot> {
        let (snapshot, action) = self.scheduler.look(limit, now, &mut SharedData, &mut self.metrics);
        self.carry_out(action, stream.id);
        snapshot
    }

    /// Whether a 503 with `Retry-After` counts as a 429 for a limit.
    pub fn obeys_503(&self, limit: LimitId) -> bool {
        self.scheduler.rules(limit).is_some_and(|rules| rules.retreat.obey_503)
    }

    /// The rules in force for a limit of a stream's configuration.
    pub fn rules(&self, stream: &Stream, at: Option<usize>) -> Option<Rules> {
        self.scheduler.rules(stream.limit(at?)?).copied()
    }

    /// A body was announced and has not been shown yet. As long as it is not known whether this host shows bodies at
    /// all, such streams are watched.
    pub fn watch(&mut self, stream: &Rc<Stream>, size_of_head: u64, current: u32) {
        let watched = Watched { stream: Rc::clone(stream), since: host::now(), size_of_head };
        self.watched.insert(stream.request(), watched);
        self.arm(current);
    }

    /// The host showed a body: streams of that configuration need not be watched any more.
    pub fn body_shown(&mut self, plugin: &Plugin) {
        if plugin.body_view.replace(BodyView::Shown) != BodyView::Shown {
            self.watched.retain(|_, watched| watched.stream.plugin.context != plugin.context);
        }
    }

    /// Looks whether bytes of a watched stream's body have reached Envoy without being shown here. A slow client's have
    /// not, so it is not mistaken for such a host.
    fn check_watched(&mut self, now: Instant, current: u32) {
        let hidden: Vec<Rc<Plugin>> = self
            .watched
            .values()
            .filter(|watched| now.since(watched.since) >= WATCH_PATIENCE)
            .filter(|watched| {
                let size = host::on_behalf_of(watched.stream.id, current, || host::property_u64("request\0total_size"));
                matches!(size, Ok(Some(size)) if size > watched.size_of_head)
            })
            .map(|watched| Rc::clone(&watched.stream.plugin))
            .collect();
        for plugin in hidden {
            if plugin.body_view.replace(BodyView::Hidden) == BodyView::Hidden {
                continue;
            }
            event!(
                warn,
                "pause_ignored",
                "message": "this Envoy shows no body while a request is held at its headers, so requests can't be \
                            classified by model; they follow on_unclassifiable. Set allow_on_headers_stop_iteration: \
                            true in the Wasm plugin's configuration (Envoy 1.35 and later), or hold_at: body with \
                            Envoy's buffer filter behind nimgate, or match by hosts or clusters and set models: []",
            );
            let mut given_up = Vec::new();
            self.watched.retain(|_, watched| {
                let ours = watched.stream.plugin.context == plugin.context;
                if ours {
                    given_up.push(Rc::clone(&watched.stream));
                }
                !ours
            });
            for stream in given_up {
                self.give_up(&stream, current);
            }
        }
    }

    /// Decides about a stream whose body will never be seen, on its behalf.
    fn give_up(&mut self, stream: &Rc<Stream>, current: u32) {
        let classified = match &mut *stream.state.borrow_mut() {
            State::Reading(reader, _) => reader.give_up(&stream.plugin.config),
            _ => return,
        };
        self.metrics.pause_ignored();
        let passes = self.settle(stream, classified, current);
        if passes {
            let _ = host::on_behalf_of(stream.id, current, host::resume_request);
        }
    }

    /// Acts on a verdict; answers whether the stream may go on at once. The caller lets it: from one of the stream's own
    /// callbacks by what it returns, from elsewhere by resuming it.
    pub fn settle(&mut self, stream: &Rc<Stream>, classified: Classified, current: u32) -> bool {
        self.metrics.classified(classified.unclassifiable, classified.occurrence);
        match classified.verdict {
            Verdict::Pass => {
                self.metrics.passed();
                stream.become_(State::Passed);
                true
            }
            Verdict::Reject(reason) => {
                let _ = host::on_behalf_of(stream.id, current, || {
                    stream.refuse(&stream.failed(Outcome::Unreadable, Some(reason), None, None), &[], None);
                });
                false
            }
            Verdict::Meter(at) => {
                self.arrive(stream, at, current);
                stream.id == current && matches!(*stream.state.borrow(), State::Granted(_))
            }
        }
    }

    /// Carries out what the core decided. A stream in one of whose callbacks this happens is not resumed here: its
    /// callback lets it go on. Nor is one whose body is kept: it goes on when the body ends. The clock is read only if there
    /// is something to do, since that is a host call.
    fn carry_out(&mut self, actions: impl IntoIterator<Item = Action>, current: u32) {
        let now = LazyCell::new(host::now);
        for action in actions {
            match action {
                Action::Resume { request, waited } => {
                    let Some(stream) = self.held.remove(&request) else {
                        continue;
                    };
                    let resumed = host::on_behalf_of(stream.id, current, || {
                        stream.go(waited, *now);
                        if stream.id == current || stream.keeps_body.get() { Ok(()) } else { host::resume_request() }
                    });
                    if !matches!(resumed, Ok(Ok(()))) {
                        host_refused("resume request", None);
                    }
                }
                Action::Reply { request, lane, outcome, retry_after_s, waited, snapshot } => {
                    let Some(stream) = self.held.remove(&request) else {
                        continue;
                    };
                    let rules = self.rules(&stream, stream.waits_for());
                    let _ = host::on_behalf_of(stream.id, current, || {
                        let mut headers = told_headers(waited, snapshot.as_ref(), *now);
                        headers.push(("retry-after", retry_after_s.to_string()));
                        let failed = stream.failed(outcome, None, Some(lane), rules.as_ref());
                        stream.refuse(&failed, &headers, Some(waited));
                    });
                }
                // A worker that can't be woken finds out by its own timer, a grace later.
                Action::Wake(worker) => {
                    let _ = host::enqueue(worker.0);
                }
            }
        }
    }

    /// Arms the timer for the next thing due, or switches it off.
    fn arm(&mut self, current: u32) {
        let watch = self.watched.values().map(|watched| watched.since.after(WATCH_PATIENCE)).min();
        let now = LazyCell::new(host::now);
        // What stays watched past its time is looked at again after a while.
        let watch = watch.map(|at| if at > *now { at } else { now.after(WATCH_PATIENCE) });
        // A VM that has never held a request has nothing to do for any, nor for the gauges.
        let next = self.me.and_then(|_| self.scheduler.next_wakeup()).into_iter().chain(watch).min();
        if next == self.armed_for {
            return;
        }
        let period = match next {
            Some(at) => at.since(*now).max(Micros::from_millis(1)),
            None => Micros::ZERO,
        };
        match host::on_behalf_of(self.home.first, current, || host::set_timer(period)) {
            Ok(Ok(())) => self.armed_for = next,
            _ => host_refused("set timer", None),
        }
    }

    /// Makes this worker known to the others, if it is not yet.
    fn introduce(&mut self, current: u32) -> WorkerId {
        if let Some(me) = self.me {
            return me;
        }
        let number = next_number(&format!("nimgate/{VERSION}/workers")).unwrap_or(0);
        let queue_name = format!("nimgate/{VERSION}/wake/{number}");
        let registered = host::on_behalf_of(self.home.first, current, || host::register_queue(&queue_name));
        let id = match registered {
            Ok(Ok(token)) => WorkerId(token),
            // It can't be woken then, but it must still not be taken for another worker.
            _ => WorkerId(number | UNWAKEABLE),
        };
        self.me = Some(id);
        id
    }
}

/// How long a body may be on its way before it is looked into whether the host hides it.
const WATCH_PATIENCE: Micros = Micros::from_secs(1);

/// Marks the number of a worker that has no queue. The host counts queues from 1, so no token reaches it.
const UNWAKEABLE: u32 = 0x8000_0000;
