//! One worker: the filter's scheduler, and what became of the requests that it was given.

use crate::Bug;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::control::rate::RetreatRules;
use nimgate_core::event::{Event, Happened};
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

/// The key of the ledger's limit.
const LIMIT: &str = "l";

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
    limit: LimitId,
    bug: Bug,
    reports: Reports,
    /// How much of what it has to do this worker has begun.
    pub tried: usize,
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

/// Two workers that are equal hash alike; that others do too costs only time.
impl Hash for Worker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id, self.tried, self.arrived, self.granted, self.left, self.streams.len(), self.next_wakeup())
            .hash(state);
    }
}

/// What was reported to the observer, as a gauge would show it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Reports {
    gauges: [i64; LANES],
    failures: u32,
}

impl Reports {
    fn read(&mut self, events: &[Happened]) {
        for (_, event) in events {
            match event {
                Event::QueueChanged(differences) => {
                    for (total, difference) in self.gauges.iter_mut().zip(differences) {
                        *total += difference;
                    }
                }
                Event::StoreFailed => self.failures += 1,
                _ => {}
            }
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
        let rules = if bug == Bug::WindowForgotten { Rules { window: Micros::ZERO, ..rules } } else { rules };
        let mut scheduler = Scheduler::default();
        let mut apart = MemoryStore::at(at_ms(0));
        let (limit, _) = scheduler.configure(LIMIT, rules, &mut apart);
        Self {
            scheduler,
            id: WorkerId(number),
            limit,
            bug,
            reports: Reports::default(),
            tried: 0,
            arrived: 0,
            granted: 0,
            left: 0,
            streams: Vec::new(),
            waiting: Vec::new(),
            gone: Vec::new(),
            is_told: true,
        }
    }

    /// A request comes. Answers whom to wake.
    pub fn arrive(&mut self, priority: Priority, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        self.ask(priority, false, now, store)
    }

    /// A request comes, for [`WEAK`] or for another model. Answers whom to wake.
    pub fn ask(&mut self, priority: Priority, is_weak: bool, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        let id = RequestId(self.arrived);
        self.tried += 1;
        self.arrived += 1;
        self.waiting.push(Request { id, priority, arrived: now, is_weak });
        let is_known = is_weak && self.bug != Bug::ForgottenModel;
        let model = if is_known { ModelKey::of(WEAK) } else { ModelKey::NONE };
        let asked = Asked::new(id, Lane::Queued(priority), model);
        let output = self.scheduler.arrive(self.limit, asked, self.id, store);
        // It came when the ledger first knew of it, which is after the callback began.
        let arrived = self.scheduler.request(self.limit, id).map(|request| request.arrived);
        if let (Some(last), Some(arrived)) = (self.waiting.last_mut(), arrived) {
            last.arrived = arrived;
        }
        self.carry_out(output)
    }

    /// The timer fires, or another worker wakes this one. Answers whom to wake.
    pub fn wake(&mut self, woken: bool, store: &mut impl Store) -> Vec<WorkerId> {
        let output = self.scheduler.wake(woken, self.id, store);
        self.carry_out(output)
    }

    /// The client of the request that came last leaves, if it still waits.
    pub fn leave(&mut self) {
        self.tried += 1;
        if let Some(request) = self.waiting.pop() {
            self.scheduler.leave(self.limit, request.id);
            self.left += 1;
            self.is_told = false;
        }
    }

    /// The oldest stream of a request that was granted here ends, if there is one. Answers whom to wake.
    pub fn end(&mut self, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        if self.streams.is_empty() {
            return Vec::new();
        }
        let id = self.streams.remove(0);
        let matters = self.scheduler.end(self.limit, id, true);
        let output = if matters { self.scheduler.wake(false, self.id, store) } else { Output::default() };
        let wakes = self.carry_out(output);
        if self.bug == Bug::EndWakesNobody { Vec::new() } else { wakes }
    }

    /// The upstream answers that the workers of [`WEAK`] are full. Answers whom to wake.
    pub fn slow(&mut self, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let model = (ModelKey::of(WEAK), ModelName::new(WEAK));
        let answer = Answer { granted_at: now, signal: Signal::WorkersFull, retry_after: None, model };
        let output = self.scheduler.answer(self.limit, answer, 0, store);
        self.without_a_turn(|worker| worker.carry_out(output))
    }

    /// Envoy's router has sent a request so many times more. Answers whom to wake.
    pub fn charge(&mut self, retries: u32, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let charged = if self.bug == Bug::ForgottenRetry { retries - 1 } else { retries };
        let output = self.scheduler.charge(self.limit, charged, store);
        self.without_a_turn(|worker| worker.carry_out(output))
    }

    /// A configuration comes.
    pub fn configure(&mut self, rules: Rules, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let (_, events) = self.scheduler.configure(LIMIT, rules, store);
        self.without_a_turn(|worker| worker.carry_out(Output { events, ..Output::default() }))
    }

    /// An operator changes the rules through the console. Answers whom to wake: whoever waits.
    pub fn override_rules(&mut self, rules: Rules, store: &mut impl Store) -> Vec<WorkerId> {
        self.tried += 1;
        let decided = Home::new(LIMIT, Company::Alone).decide(None, rules, store, |mut ledger, _, now| {
            let before = *ledger.rules();
            ledger.advance(now, &mut Vec::new());
            ledger.override_rules(rules, now, &mut Vec::new());
            let waiting = ledger.peers().lines().iter().map(|line| line.worker).collect();
            ((before != rules).then_some(ledger), waiting)
        });
        let wakes: Vec<WorkerId> = decided.unwrap_or_default();
        if self.bug == Bug::OverrideWakesNobody { Vec::new() } else { wakes }
    }

    /// What this does tells the others nothing of who waits here.
    fn without_a_turn<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let was_told = self.is_told;
        let result = work(self);
        self.is_told &= was_told;
        result
    }

    /// Whether this worker knows that shadow mode is on.
    pub fn is_in_shadow(&self) -> bool {
        self.scheduler.rules(self.limit).is_some_and(|rules| rules.shadow)
    }

    /// When the timer is to fire.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.scheduler.next_wakeup()
    }

    /// How this worker is known to the others.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// The sum of the differences that were reported.
    pub fn gauge(&self) -> i64 {
        self.reports.gauges.iter().sum()
    }

    fn carry_out(&mut self, output: Output) -> Vec<WorkerId> {
        let failures = self.reports.failures;
        self.reports.read(&output.events);
        self.is_told = self.reports.failures == failures;
        let is_shadow = self.is_in_shadow();
        let mut resumed: Vec<RequestId> = Vec::new();
        for (_, event) in &output.events {
            if let Event::Granted { request, .. } = *event {
                let at = self.waiting.iter().position(|waiting| waiting.id == request);
                self.waiting.remove(at.unwrap_or_else(|| panic!("{request:?} is granted and does not wait")));
                self.granted += 1;
                match self.gone.iter().position(|gone| *gone == request) {
                    Some(at) => drop(self.gone.remove(at)),
                    None => resumed.push(request),
                }
                if !is_shadow {
                    self.streams.push(request);
                }
            }
        }
        let mut wakes = Vec::new();
        for action in output.actions {
            match action {
                Action::Resume { request, .. } => match resumed.iter().position(|granted| *granted == request) {
                    Some(at) => drop(resumed.remove(at)),
                    None => {
                        assert!(
                            is_shadow && !self.gone.contains(&request),
                            "{request:?} goes without a token, or twice"
                        );
                        if self.bug != Bug::ShadowHolds {
                            self.gone.push(request);
                        }
                    }
                },
                Action::Reply { request, .. } => panic!("{request:?} is refused though there is room and time"),
                Action::Wake(worker) => wakes.push(worker),
            }
        }
        assert!(resumed.is_empty() || self.bug == Bug::ShadowHolds, "{resumed:?} are granted and do not go on");
        assert_eq!(self.scheduler.waiting(self.limit), self.waiting.len(), "the queue holds those who wait");
        if self.bug == Bug::ForgottenWake { Vec::new() } else { wakes }
    }
}
