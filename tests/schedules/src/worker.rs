//! One worker: the filter's scheduler, and what became of the requests that it was given.

use crate::Bug;
use nimgate::ledger::{Origin, Rules};
use nimgate::models::ModelKey;
use nimgate::observe::Observer;
use nimgate::priority::{LANES, Lane, Priority};
use nimgate::queue::Patience;
use nimgate::retreat::RetreatRules;
use nimgate::scheduler::{Action, Scheduler};
use nimgate::store::{MemoryStore, Store};
use nimgate::units::{Instant, LimitId, Micros, MilliRpm, RequestId, WorkerId};
use std::hash::{Hash, Hasher};

/// The key of the ledger's limit.
const LIMIT: &str = "l";

/// The rules of all cases: a token comes each second, nobody's patience ends, there is room for all, and no window
/// is guarded besides.
pub fn rules(capacity: u32) -> Rules {
    Rules {
        capacity,
        window: Micros::ZERO,
        queue_max: 100,
        aging: None,
        patience: Patience { low: Micros::from_secs(1_000), others: Micros::from_secs(1_000) },
        may_fall_back: false,
        shadow: false,
        retreat: RetreatRules {
            enabled: true,
            base: MilliRpm::from_rpm(60),
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
            window: Micros::from_secs(60),
        },
    }
}

/// The time between two tokens under [`rules`].
pub const TOKEN_EVERY: Micros = Micros::from_secs(1);

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

/// One worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Worker {
    scheduler: Scheduler,
    id: WorkerId,
    limit: LimitId,
    /// Where all requests come from: one configuration, and a host that does not tell connections.
    origin: Origin,
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
    /// Those that wait, in the order in which they came.
    pub waiting: Vec<Request>,
    /// Whether the board says what waits here: not after someone has left, until the next turn.
    pub is_told: bool,
}

/// Two workers that are equal hash alike; that others do too costs only time.
impl Hash for Worker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id, self.tried, self.arrived, self.granted, self.left, self.next_wakeup()).hash(state);
    }
}

/// What was reported to the observer, as a gauge would show it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Reports {
    gauges: [i64; LANES],
    failures: u32,
}

impl Observer for Reports {
    fn queue_changed(&mut self, _: LimitId, differences: [i64; LANES]) {
        for (total, difference) in self.gauges.iter_mut().zip(differences) {
            *total += difference;
        }
    }

    fn store_failed(&mut self, _: LimitId) {
        self.failures += 1;
    }
}

impl Worker {
    /// A worker that knows the limit and has not looked at the shared ledger yet: nor has anyone, so that the first
    /// requests race for the first write.
    pub fn new(number: u32, capacity: u32, bug: Bug) -> Self {
        let mut scheduler = Scheduler::default();
        let mut apart = MemoryStore::default();
        let limit = scheduler.configure(LIMIT, rules(capacity), at_ms(0), &mut apart, &mut ());
        Self {
            scheduler,
            id: WorkerId(number),
            limit,
            origin: Origin { rules: rules(capacity), connection: 0 },
            bug,
            reports: Reports::default(),
            tried: 0,
            arrived: 0,
            granted: 0,
            left: 0,
            waiting: Vec::new(),
            is_told: true,
        }
    }

    /// A request comes. Answers whom to wake.
    pub fn arrive(&mut self, priority: Priority, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        let id = RequestId(self.arrived);
        self.tried += 1;
        self.arrived += 1;
        self.waiting.push(Request { id, priority, arrived: now });
        let origin = self.origin;
        self.turn(|scheduler, limit, worker, reports| {
            scheduler.arrive(limit, id, priority, ModelKey::NONE, &origin, worker, now, store, reports)
        })
    }

    /// The timer fires, or another worker wakes this one. Answers whom to wake.
    pub fn wake(&mut self, woken: bool, now: Instant, store: &mut impl Store) -> Vec<WorkerId> {
        self.turn(|scheduler, _, worker, reports| scheduler.wake(woken, worker, now, store, reports))
    }

    /// The client of the request that came last leaves, if it still waits.
    pub fn leave(&mut self, now: Instant) {
        self.tried += 1;
        if let Some(request) = self.waiting.pop() {
            self.scheduler.leave(self.limit, request.id, now);
            self.left += 1;
            self.is_told = false;
        }
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

    fn turn(
        &mut self,
        act: impl FnOnce(&mut Scheduler, LimitId, WorkerId, &mut Reports) -> Vec<Action>,
    ) -> Vec<WorkerId> {
        let failures = self.reports.failures;
        let actions = act(&mut self.scheduler, self.limit, self.id, &mut self.reports);
        self.is_told = self.reports.failures == failures;
        let mut wakes = Vec::new();
        for action in actions {
            match action {
                Action::Resume { request, .. } => {
                    let at = self.waiting.iter().position(|waiting| waiting.id == request);
                    self.waiting.remove(at.unwrap_or_else(|| panic!("{request:?} is resumed and does not wait")));
                    self.granted += 1;
                }
                Action::Reply { request, .. } => panic!("{request:?} is refused though there is room and time"),
                Action::Wake(worker) => wakes.push(worker),
            }
        }
        assert_eq!(self.scheduler.waiting(self.limit), self.waiting.len(), "the queue holds those who wait");
        if self.bug == Bug::ForgottenWake { Vec::new() } else { wakes }
    }
}
