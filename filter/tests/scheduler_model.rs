//! The schedulers of several workers on one store, in virtual time, against one naive list for the whole process.
//!
//! The model knows nothing of workers, boards and wake-ups: it is a list of requests, a bucket, and the rule that
//! tokens go to the first in order. As long as all workers do what they are told at once, all of them together must do
//! exactly what the model does, to the microsecond. When some of them stall, the others must still get what is left
//! after a grace for each that stalls, and nobody may be lost.

use nimgate::bucket::TOKEN;
use nimgate::ledger::{GRACE, Ledger, Origin, Rules};
use nimgate::models::ModelKey;
use nimgate::observe::Observer;
use nimgate::outcome::Outcome;
use nimgate::priority::{LANES, Lane, Priority};
use nimgate::queue::Patience;
use nimgate::retreat::RetreatRules;
use nimgate::scheduler::{Action, Scheduler};
use nimgate::store::{MemoryStore, Store};
use nimgate::units::{Instant, LimitId, Micros, MilliRpm, RequestId, WorkerId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const WORKERS: usize = 4;
const START: Instant = Instant::from_micros(1_000_000_000);

/// What is configured.
#[derive(Clone, Copy, Debug)]
struct Setup {
    rpm: u32,
    capacity: u32,
    queue_max: u32,
    aging: Option<Micros>,
    patience: Patience,
    may_fall_back: bool,
}

impl Setup {
    fn rate(self) -> u128 {
        u128::from(self.rpm) * 1_000
    }

    fn rules(self) -> Rules {
        let retreat = RetreatRules {
            enabled: true,
            base: MilliRpm::from_rpm(self.rpm),
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
            window: Micros::from_secs(60),
        };
        let Self { capacity, queue_max, aging, patience, may_fall_back, .. } = self;
        Rules { capacity, window: Micros::ZERO, queue_max, aging, patience, may_fall_back, shadow: false, retreat }
    }
}

fn setups() -> impl Strategy<Value = Setup> {
    let aging = prop::option::of((100u64..5_000).prop_map(Micros::from_millis));
    let patience = (50u64..20_000, 50u64..20_000)
        .prop_map(|(low, others)| Patience { low: Micros::from_millis(low), others: Micros::from_millis(others) });
    let numbers = (1u32..6_000, 1u32..5, 0u32..12);
    (numbers, aging, patience, any::<bool>()).prop_map(|(numbers, aging, patience, may_fall_back)| {
        let (rpm, capacity, queue_max) = numbers;
        Setup { rpm, capacity, queue_max, aging, patience, may_fall_back }
    })
}

/// Something that happens, after some time.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request comes to a worker.
    Arrive(usize, Priority),
    /// One of those that wait leaves: the so-manieth, counted round.
    Leave(usize),
    /// A worker stalls for so long.
    Stall(usize, Micros),
    /// Nothing.
    Nothing,
}

/// Events and the time before each. Times are longer than nothing, so that no two requests come at the same moment:
/// among those, who is first is nobody's business.
fn events(with_stalls: bool) -> impl Strategy<Value = Vec<(Micros, Event)>> {
    let wait = prop_oneof![4 => 1u64..20_000, 2 => 1u64..1_000_000, 1 => 1u64..8_000_000].prop_map(Micros::new);
    let arrive = (0..WORKERS, 0usize..4).prop_map(|(worker, level)| Event::Arrive(worker, Priority::ALL[level]));
    let stall = (0..WORKERS, 1u64..3_000).prop_map(move |(worker, millis)| {
        if with_stalls { Event::Stall(worker, Micros::from_millis(millis)) } else { Event::Nothing }
    });
    let event = prop_oneof![6 => arrive, 2 => any::<usize>().prop_map(Event::Leave), 1 => stall];
    prop::collection::vec((wait, event), 1..100)
}

/// How a request ended, and when.
type Ends = BTreeMap<u32, (Instant, End)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Granted,
    Expired,
    Full,
    Left,
}

/// The naive model.
struct Model {
    setup: Setup,
    level: u128,
    now: Instant,
    waiting: Vec<(u32, Lane, Instant)>,
    ends: Ends,
}

impl Model {
    fn new(setup: Setup) -> Self {
        let level = u128::from(setup.capacity) * u128::from(TOKEN);
        Self { setup, level, now: START, waiting: Vec::new(), ends: Ends::new() }
    }

    /// Lets time pass, from one thing that happens to the next.
    fn pass_to(&mut self, then: Instant) {
        while let Some(next) = self.next().filter(|next| *next <= then) {
            self.refill(next);
            self.settle();
        }
        self.refill(then);
    }

    fn arrive(&mut self, id: u32, priority: Priority) {
        self.waiting.push((id, Lane::Queued(priority), self.now));
        self.settle();
        if self.ends.contains_key(&id) {
            return;
        }
        let waits = |queued: bool| self.waiting.iter().filter(|(_, lane, _)| lane.is_queued() == queued).count();
        let room = self.setup.queue_max as usize;
        if waits(true) <= room {
            return;
        }
        if self.setup.may_fall_back && waits(false) < room {
            self.waiting.last_mut().unwrap().1 = Lane::Fallback(priority);
        } else {
            self.end(id, End::Full);
        }
    }

    fn end(&mut self, id: u32, how: End) {
        self.waiting.retain(|(waiting, ..)| *waiting != id);
        assert!(self.ends.insert(id, (self.now, how)).is_none());
    }

    fn refill(&mut self, then: Instant) {
        let full = u128::from(self.setup.capacity) * u128::from(TOKEN);
        self.level = (self.level + u128::from(then.since(self.now).get()) * self.setup.rate()).min(full);
        self.now = then;
    }

    fn deadline(&self, lane: Lane, arrived: Instant) -> Instant {
        arrived.after(self.setup.patience.of(lane))
    }

    /// When the next token is there for someone, or someone's patience ends.
    fn next(&self) -> Option<Instant> {
        let missing = u128::from(TOKEN).saturating_sub(self.level).div_ceil(self.setup.rate());
        let token_at = self.now.after(Micros::new(missing as u64));
        let deadlines = self.waiting.iter().map(|(_, lane, arrived)| self.deadline(*lane, *arrived));
        deadlines.min().map(|deadline| deadline.min(token_at))
    }

    /// Does what is due now: first those whose patience is over, then tokens to the first in order.
    fn settle(&mut self) {
        let over = |(_, lane, arrived): &&(u32, Lane, Instant)| self.deadline(*lane, *arrived) <= self.now;
        let expired: Vec<u32> = self.waiting.iter().filter(over).map(|(id, ..)| *id).collect();
        expired.into_iter().for_each(|id| self.end(id, End::Expired));
        while self.level >= u128::from(TOKEN)
            && let Some((id, ..)) = self.waiting.iter().min_by_key(|(_, lane, arrived)| self.place(*lane, *arrived))
        {
            self.level -= u128::from(TOKEN);
            self.end(*id, End::Granted);
        }
    }

    /// The order of service: by level, one up for each step of aging, and within a level by arrival; those outside the
    /// queue last.
    fn place(&self, lane: Lane, arrived: Instant) -> (bool, u64, Instant) {
        let steps =
            self.setup.aging.filter(|_| lane.is_queued()).map_or(0, |step| self.now.since(arrived).get() / step.get());
        (!lane.is_queued(), (lane.priority() as u64).saturating_sub(steps), arrived)
    }

    fn lanes(&self) -> [i64; LANES] {
        Lane::ALL.map(|lane| self.waiting.iter().filter(|(_, in_lane, _)| *in_lane == lane).count() as i64)
    }
}

/// What was reported, as gauges would show it.
#[derive(Default)]
struct Gauges([i64; LANES]);

impl Observer for Gauges {
    fn queue_changed(&mut self, _: LimitId, differences: [i64; LANES]) {
        for (total, difference) in self.0.iter_mut().zip(differences) {
            *total += difference;
        }
    }
}

/// The workers, on one store.
struct Fleet {
    setup: Setup,
    workers: [Scheduler; WORKERS],
    stalled_until: [Instant; WORKERS],
    /// Wake-ups on their way to workers that stall.
    woken: [bool; WORKERS],
    store: MemoryStore,
    gauges: Gauges,
    now: Instant,
    /// Where each request waits, and since when.
    waiting: BTreeMap<u32, (usize, Instant)>,
    ends: Ends,
}

const LIMIT: LimitId = LimitId(0);
const KEY: &str = "nimgate/1/ledger/l";

impl Fleet {
    fn new(setup: Setup) -> Self {
        let mut fleet = Self {
            setup,
            workers: Default::default(),
            stalled_until: [START; WORKERS],
            woken: [false; WORKERS],
            store: MemoryStore::default(),
            gauges: Gauges::default(),
            now: START,
            waiting: BTreeMap::new(),
            ends: Ends::new(),
        };
        for worker in &mut fleet.workers {
            worker.configure("l", setup.rules(), START, &mut fleet.store, &mut fleet.gauges);
        }
        fleet
    }

    /// When worker `at` does something next by itself.
    fn next(&self, at: usize) -> Option<Instant> {
        let woken = self.woken[at].then_some(self.now);
        self.workers[at].next_wakeup().into_iter().chain(woken).min().map(|due| due.max(self.stalled_until[at]))
    }

    /// Lets time pass, from one thing that is due to the next.
    fn pass_to(&mut self, then: Instant) {
        let mut at_once = 0;
        while let Some((due, at)) = (0..WORKERS).filter_map(|at| Some((self.next(at)?, at))).min()
            && due <= then
        {
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 1_000, "the workers run in circles");
            self.now = self.now.max(due);
            self.wake(at);
            self.no_token_idles();
        }
        self.now = then;
        self.no_token_idles();
    }

    fn wake(&mut self, at: usize) {
        let woken = std::mem::take(&mut self.woken[at]);
        let id = WorkerId(at as u32 + 1);
        let actions = self.workers[at].wake(woken, id, self.now, &mut self.store, &mut self.gauges);
        self.carry_out(actions);
    }

    fn arrive(&mut self, at: usize, id: u32, priority: Priority) {
        self.waiting.insert(id, (at, self.now));
        let (request, worker, now) = (RequestId(id), WorkerId(at as u32 + 1), self.now);
        let origin = Origin { rules: self.setup.rules(), connection: 0 };
        let (store, gauges) = (&mut self.store, &mut self.gauges);
        let actions =
            self.workers[at].arrive(LIMIT, request, priority, ModelKey::NONE, &origin, worker, now, store, gauges);
        self.carry_out(actions);
        self.pass_to(self.now);
    }

    fn leave(&mut self, id: u32) {
        let (at, _) = self.waiting[&id];
        self.workers[at].leave(LIMIT, RequestId(id), self.now);
        self.end(id, End::Left);
        self.pass_to(self.now);
    }

    fn end(&mut self, id: u32, how: End) {
        assert!(self.waiting.remove(&id).is_some(), "{id} ends as {how:?} and does not wait");
        self.ends.insert(id, (self.now, how));
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Resume { request, .. } => self.end(request.0, End::Granted),
                Action::Reply { request, outcome: Outcome::RateLimited, .. } => self.end(request.0, End::Expired),
                Action::Reply { request, outcome: Outcome::QueueFull, .. } => self.end(request.0, End::Full),
                Action::Reply { outcome, .. } => panic!("a scheduler does not answer {outcome:?}"),
                Action::Wake(worker) => self.woken[worker.0 as usize - 1] = true,
            }
        }
    }

    /// Checks that no token is there for longer than a grace for each worker that stalls while someone waits elsewhere.
    fn no_token_idles(&mut self) {
        let (bytes, _) = self.store.load(KEY).ok().flatten().expect("a record");
        let mut ledger = Ledger::decode(&bytes).expect("a record that can be read");
        ledger.advance(self.now);
        if !ledger.bucket().is_ready() {
            return;
        }
        for (id, (at, since)) in &self.waiting {
            let start = ledger.bucket().ready_since().max(*since).max(self.stalled_until[*at]);
            let waited = self.now.since(start);
            let others_stall = self.stalled_until.iter().filter(|until| until.after(GRACE) >= start).count() as u64;
            let awake = self.stalled_until[*at] < self.now && self.next(*at).is_none_or(|due| due > self.now);
            assert!(!awake || waited <= GRACE.times(others_stall), "{id} waits {waited:?} for a token that is there");
        }
    }

    /// Lets time pass until nothing is left to do.
    fn come_to_rest(&mut self) {
        for _ in 0..100_000 {
            let Some(next) = (0..WORKERS).filter_map(|at| self.next(at)).min() else { return };
            self.pass_to(next.max(self.now));
        }
        panic!("the workers never come to rest: {:?}", self.setup);
    }
}

proptest! {
    // Not a fixed number of cases, so that `PROPTEST_CASES` counts.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Workers that are awake do together what one list would do: the same requests get the same end at the same time.
    #[test]
    fn workers_together_are_one_list(setup in setups(), events in events(false)) {
        let (mut model, mut fleet) = (Model::new(setup), Fleet::new(setup));
        for (id, (wait, event)) in events.into_iter().enumerate() {
            let (id, then) = (id as u32, model.now.after(wait));
            model.pass_to(then);
            fleet.pass_to(then);
            match event {
                Event::Arrive(at, priority) => {
                    model.arrive(id, priority);
                    fleet.arrive(at, id, priority);
                }
                Event::Leave(nth) if !model.waiting.is_empty() => {
                    let (leaves, ..) = model.waiting[nth % model.waiting.len()];
                    model.end(leaves, End::Left);
                    fleet.leave(leaves);
                }
                _ => {}
            }
            prop_assert_eq!(&fleet.ends, &model.ends);
            prop_assert_eq!(fleet.gauges.0, model.lanes());
        }
        fleet.come_to_rest();
        model.pass_to(fleet.now);
        prop_assert_eq!(&fleet.ends, &model.ends);
        prop_assert!(fleet.waiting.is_empty() && model.waiting.is_empty());
        prop_assert_eq!(fleet.gauges.0, [0; LANES]);
    }

    /// Whoever stalls: no token too many, none idle for long while someone who is awake waits for it, and everyone ends
    /// once.
    #[test]
    fn workers_that_stall_cost_the_others_a_grace(setup in setups(), events in events(true)) {
        let setup = Setup { aging: None, ..setup };
        let mut fleet = Fleet::new(setup);
        let mut arrived = 0;
        for (id, (wait, event)) in events.into_iter().enumerate() {
            fleet.pass_to(fleet.now.after(wait));
            match event {
                Event::Arrive(at, priority) if fleet.stalled_until[at] < fleet.now => {
                    arrived += 1;
                    fleet.arrive(at, id as u32, priority);
                }
                Event::Leave(nth) if !fleet.waiting.is_empty() => {
                    let leaves = *fleet.waiting.keys().nth(nth % fleet.waiting.len()).unwrap();
                    fleet.leave(leaves);
                }
                Event::Stall(at, time) => fleet.stalled_until[at] = fleet.now.after(time),
                _ => {}
            }
        }
        fleet.come_to_rest();
        prop_assert_eq!(fleet.ends.len(), arrived);
        prop_assert_eq!(fleet.gauges.0, [0; LANES]);
        let ends = fleet.ends.values().filter(|(_, how)| *how == End::Granted);
        let mut granted: Vec<Instant> = ends.map(|(at, _)| *at).collect();
        granted.sort();
        for (first, from) in granted.iter().enumerate() {
            for (last, to) in granted.iter().enumerate().skip(first) {
                let paid = u128::from(to.since(*from).get()) * setup.rate();
                let given = (last - first + 1) as u128 * u128::from(TOKEN);
                prop_assert!(given <= u128::from(setup.capacity) * u128::from(TOKEN) + paid);
            }
        }
    }
}
