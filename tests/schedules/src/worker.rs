//! One worker: the filter's scheduler, and what became of the requests that it was given.

use crate::Bug;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::control::rate::RetreatRules;
use nimgate_core::event::Event;
use nimgate_core::limit::home::{Company, Home};
use nimgate_core::limit::rules::Rules;
use nimgate_core::limit::rules::Timeouts;
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::priority::{LANES, Lane, Priority};
use nimgate_core::request::Request as Asked;
use nimgate_core::scheduler::{Action, Output, Scheduler};
use nimgate_core::store::{MemoryStore, Store};
use nimgate_core::units::{Instant, LimitId, Micros, MilliRpm, RequestId, WorkerId};
use std::hash::{Hash, Hasher};

/// The keys of the limits' ledgers. Most cases have only the first limit.
const NAMES: [&str; LIMITS] = ["l", "m"];

/// How many limits there are at most.
pub const LIMITS: usize = 2;

/// Which limit has its ledger under this key, which ends with its name.
///
/// # Panics
/// If none has.
pub fn limit_of(key: &str) -> usize {
    NAMES.iter().position(|name| key.ends_with(name)).unwrap_or_else(|| panic!("no limit has the key {key}"))
}

/// The rules of all cases: a token comes each second, no timeout ends, there is room for all, and no window
/// is guarded besides.
pub fn rules(capacity: u32) -> Rules {
    Rules {
        capacity,
        window: Micros::ZERO,
        queue_max: 100,
        timeouts: Timeouts { low: Micros::from_secs(1_000), others: Micros::from_secs(1_000), ..Timeouts::DEFAULT },
        retreat: RetreatRules { base: MilliRpm::from_rpm(60), ..RetreatRules::DEFAULT },
        ..Rules::DEFAULT
    }
}

/// The rules of an account of NVIDIA's as it is: forty a minute, four of them at once.
pub fn account() -> Rules {
    Rules {
        window: Micros::from_secs(60),
        retreat: RetreatRules { base: MilliRpm::from_rpm(40), ..RetreatRules::DEFAULT },
        ..rules(4)
    }
}

/// The time between two tokens.
pub fn token_every(rules: &Rules) -> Micros {
    Micros::new(60_000_000_000 / u64::from(rules.retreat.base.get()))
}

/// A time after the start.
pub const fn at_ms(millis: u64) -> Instant {
    Instant::from_micros(1_000_000_000 + millis * 1_000)
}

/// A request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which.
    pub id: RequestId,
    /// How urgent it is.
    pub priority: Priority,
    /// When it came.
    pub arrived: Instant,
    /// Whether it asks for [`WEAK`].
    pub is_weak: bool,
}

impl Request {
    /// Its place in the order of service; lower goes first.
    pub fn place(&self) -> (usize, Instant) {
        place(self.priority, self.arrived)
    }
}

/// The place of a request in the order of service; lower goes first.
pub fn place(priority: Priority, arrived: Instant) -> (usize, Instant) {
    (Lane::Queued(priority).index(), arrived)
}

/// The model that may be slowed.
pub const WEAK: &str = "weak";

/// One worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Worker {
    scheduler: Scheduler,
    id: WorkerId,
    bug: Bug,
    /// How much of what it has to do this worker has begun.
    pub tried: usize,
    /// How many requests came.
    pub arrived: u32,
    /// What became of those of each limit.
    pub limits: Vec<UnderLimit>,
}

/// What became of a worker's requests under one limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnderLimit {
    id: LimitId,
    /// The sum of the differences of who waits that were reported, as gauges would show it.
    gauges: [i64; LANES],
    /// How many requests came.
    pub arrived: u32,
    /// How many got a token.
    pub granted: u32,
    /// How many left while they waited.
    pub left: u32,
    /// Those that were granted and whose streams have not ended, the oldest first.
    pub streams: Vec<RequestId>,
    /// Those that wait, in the order in which they came.
    pub waiting: Vec<Request>,
    /// Those of them that have gone all the same, in shadow mode.
    pub gone: Vec<RequestId>,
    /// Whether the ledger says what waits here: not after someone has left, until the next turn.
    pub is_told: bool,
}

impl UnderLimit {
    fn new(id: LimitId) -> Self {
        Self {
            id,
            gauges: [0; LANES],
            arrived: 0,
            granted: 0,
            left: 0,
            streams: Vec::new(),
            waiting: Vec::new(),
            gone: Vec::new(),
            is_told: true,
        }
    }

    /// What this worker adds to the gauges of who waits.
    pub fn gauge(&self) -> i64 {
        self.gauges.iter().sum()
    }
}

/// Two workers that are equal hash alike; that others do too costs only time.
impl Hash for Worker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id, self.tried, self.arrived, self.next_wakeup()).hash(state);
        for limit in &self.limits {
            (limit.granted, limit.left, limit.streams.len()).hash(state);
        }
    }
}

impl Worker {
    /// A worker that knows the limit and has not looked at the shared ledger yet: nor has anyone, so that the first
    /// requests race for the first write.
    pub fn new(number: u32, capacity: u32, bug: Bug) -> Self {
        Self::with_rules(number, rules(capacity), bug)
    }

    /// The same with other rules.
    pub fn with_rules(number: u32, rules: Rules, bug: Bug) -> Self {
        Self::with_limits(number, &[rules], bug)
    }

    /// The same with several limits, by their rules.
    pub fn with_limits(number: u32, rules: &[Rules], bug: Bug) -> Self {
        let mut scheduler = Scheduler::default();
        let mut apart = MemoryStore::at(at_ms(0));
        let limits = rules.iter().zip(NAMES).map(|(rules, name)| {
            let rules = if bug == Bug::WindowForgotten { Rules { window: Micros::ZERO, ..*rules } } else { *rules };
            UnderLimit::new(scheduler.configure(name, rules, &mut apart).0)
        });
        let limits = limits.collect();
        Self { scheduler, id: WorkerId(number), bug, tried: 0, arrived: 0, limits }
    }

    /// A request comes under the first limit. Answers whom to wake.
    pub fn arrive(&mut self, priority: Priority, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        self.ask(0, priority, false, now, store)
    }

    /// A request comes under a limit, for [`WEAK`] or for another model. Answers whom to wake.
    pub fn ask(
        &mut self,
        limit: usize,
        priority: Priority,
        is_weak: bool,
        now: Instant,
        store: &mut impl Store,
    ) -> Vec<WorkerId> {
        let id = RequestId(self.arrived);
        self.tried += 1;
        self.arrived += 1;
        let under = &mut self.limits[limit];
        under.arrived += 1;
        under.waiting.push(Request { id, priority, arrived: now, is_weak });
        let is_known = is_weak && self.bug != Bug::ForgottenModel;
        let model = if is_known { ModelKey::of(WEAK) } else { ModelKey::NONE };
        let asked = Asked::new(id, Lane::Queued(priority), model);
        let output = self.scheduler.arrive(under.id, asked, self.id, store);
        // It came when the ledger first knew of it, which is after the callback began.
        let arrived = self.scheduler.request(under.id, id).map(|request| request.arrived);
        if let (Some(last), Some(arrived)) = (under.waiting.last_mut(), arrived) {
            last.arrived = arrived;
        }
        self.carry_out(output, &[limit])
    }

    /// The timer fires, or another worker wakes this one. Answers whom to wake.
    pub fn wake(&mut self, woken: bool, store: &mut impl Store) -> Vec<WorkerId> {
        let output = self.scheduler.wake(woken, self.id, store);
        self.carry_out(output, &[0, 1])
    }

    /// The client of the first limit's request that came last leaves, if it still waits.
    pub fn leave(&mut self) {
        self.tried += 1;
        let first = &mut self.limits[0];
        if let Some(request) = first.waiting.pop() {
            self.scheduler.leave(first.id, request.id);
            first.left += 1;
            first.is_told = false;
        }
    }

    /// The oldest stream of a request that was granted here ends, if there is one. Answers whom to wake.
    pub fn end(&mut self, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let first = &mut self.limits[0];
        if first.streams.is_empty() {
            return Vec::new();
        }
        let id = first.streams.remove(0);
        let matters = self.scheduler.end(first.id, id, true);
        let output = if matters { self.scheduler.wake(false, self.id, store) } else { Output::default() };
        let wakes = self.carry_out(output, &[0, 1]);
        if self.bug == Bug::EndWakesNobody { Vec::new() } else { wakes }
    }

    /// The upstream answers that the workers of [`WEAK`] are full. Answers whom to wake.
    pub fn slow(&mut self, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let model = (ModelKey::of(WEAK), ModelName::new(WEAK));
        let answer = Answer { granted_at: now, signal: Signal::WorkersFull, retry_after: None, model };
        let output = self.scheduler.answer(self.limits[0].id, answer, 0, store);
        self.carry_out(output, &[])
    }

    /// Envoy's router has sent a request so many times more. Answers whom to wake.
    pub fn charge(&mut self, retries: u32, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let charged = if self.bug == Bug::ForgottenRetry { retries - 1 } else { retries };
        let output = self.scheduler.charge(self.limits[0].id, charged, store);
        self.carry_out(output, &[])
    }

    /// A configuration comes.
    pub fn configure(&mut self, rules: Rules, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let (_, events) = self.scheduler.configure(NAMES[0], rules, store);
        self.carry_out(Output { events, ..Output::default() }, &[])
    }

    /// An operator changes the rules through the console. Answers whom to wake: whoever waits.
    pub fn override_rules(&mut self, rules: Rules, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let decided = Home::new(NAMES[0], Company::Alone).decide(None, rules, store, |mut ledger, _, now| {
            let before = *ledger.rules();
            ledger.advance(now, &mut Vec::new());
            ledger.override_rules(rules, now, &mut Vec::new());
            let waiting = ledger.peers().lines().iter().map(|line| line.worker).collect();
            ((before != rules).then_some(ledger), waiting)
        });
        let wakes: Vec<WorkerId> = decided.unwrap_or_default();
        if self.bug == Bug::OverrideWakesNobody { Vec::new() } else { wakes }
    }

    /// Whether this worker knows that shadow mode is on for a limit.
    pub fn is_in_shadow(&self, limit: usize) -> bool {
        self.scheduler.rules(self.limits[limit].id).is_some_and(|rules| rules.shadow)
    }

    /// When the timer is to fire.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.scheduler.next_wakeup()
    }

    /// How this worker is known to the others.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Carries out what came of a turn of the limits `published`, or of something else that tells the others nothing of who
    /// waits here.
    fn carry_out(&mut self, output: Output, published: &[usize]) -> Vec<WorkerId> {
        for limit in published {
            if let Some(under) = self.limits.get_mut(*limit) {
                under.is_told = true;
            }
        }
        let mut resumed: Vec<RequestId> = Vec::new();
        for (limit, event) in &output.events {
            let is_shadow = self.is_in_shadow(limit.0);
            let under = &mut self.limits[limit.0];
            match *event {
                Event::QueueChanged(differences) => {
                    for (total, difference) in under.gauges.iter_mut().zip(differences) {
                        *total += difference;
                    }
                }
                Event::StoreFailed => under.is_told = false,
                Event::Granted { request, .. } => {
                    let at = under.waiting.iter().position(|waiting| waiting.id == request);
                    under.waiting.remove(at.unwrap_or_else(|| panic!("{request:?} is granted and does not wait")));
                    under.granted += 1;
                    match under.gone.iter().position(|gone| *gone == request) {
                        Some(at) => drop(under.gone.remove(at)),
                        None => resumed.push(request),
                    }
                    if !is_shadow {
                        under.streams.push(request);
                    }
                }
                _ => {}
            }
        }
        let mut wakes = Vec::new();
        for action in output.actions {
            match action {
                Action::Resume { request, .. } => match resumed.iter().position(|granted| *granted == request) {
                    Some(at) => drop(resumed.remove(at)),
                    None => self.goes_in_shadow(request),
                },
                Action::Reply { request, .. } => panic!("{request:?} is refused though there is room and time"),
                Action::Wake(worker) => wakes.push(worker),
            }
        }
        assert!(resumed.is_empty() || self.bug == Bug::ShadowHolds, "{resumed:?} are granted and do not go on");
        for under in &self.limits {
            assert_eq!(self.scheduler.waiting(under.id), under.waiting.len(), "the queue holds those who wait");
        }
        if self.bug == Bug::ForgottenWake { Vec::new() } else { wakes }
    }

    /// A request goes on without a token.
    fn goes_in_shadow(&mut self, request: RequestId) {
        let limit = self.limits.iter().position(|under| under.waiting.iter().any(|waiting| waiting.id == request));
        let limit = limit.unwrap_or_else(|| panic!("{request:?} goes on and does not wait"));
        let is_new = !self.limits[limit].gone.contains(&request);
        assert!(self.is_in_shadow(limit) && is_new, "{request:?} goes without a token, or twice");
        if self.bug != Bug::ShadowHolds {
            self.limits[limit].gone.push(request);
        }
    }
}
