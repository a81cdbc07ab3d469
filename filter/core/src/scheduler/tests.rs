//! The scheduler of several workers on one memory store, in virtual time.

use super::*;
use crate::control::answer::Signal;
use crate::control::rate::RetreatRules;
use crate::limit::home::QUIET;
use crate::limit::rules::Timeouts;
use crate::model::{ModelKey, ModelName};
use crate::priority::Priority;
use crate::store::{MemoryStore, Swap, Version};
use crate::units::MilliRpm;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[path = "lost_tests.rs"]
mod lost;

#[path = "told_tests.rs"]
mod told;

const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn rules(rpm: u32, capacity: u32) -> Rules {
    Rules {
        capacity,
        queue_max: 10,
        window: Micros::ZERO,
        retreat: RetreatRules { base: MilliRpm::from_rpm(rpm), ..RetreatRules::DEFAULT },
        ..Rules::DEFAULT
    }
}

fn request(id: u32, priority: Priority) -> Request {
    Request::new(RequestId(id), Lane::Queued(priority), ModelKey::NONE)
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

/// Keeps a running total of what was reported, as a gauge would.
#[derive(Default)]
struct Gauge([i64; LANES]);

impl Gauge {
    fn read(&mut self, events: &[Happened]) {
        for (_, event) in events {
            match event {
                Event::QueueChanged(differences) => {
                    for (total, difference) in self.0.iter_mut().zip(differences) {
                        *total += difference;
                    }
                }
                Event::QueueCounted(waiting) => self.0 = waiting.map(i64::from),
                _ => {}
            }
        }
    }
}

fn resumed(actions: &[Action]) -> Vec<u32> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Resume { request, .. } => Some(request.0),
            _ => None,
        })
        .collect()
}

fn refused(actions: &[Action]) -> Vec<(u32, Outcome)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Reply { request, outcome, .. } => Some((request.0, *outcome)),
            _ => None,
        })
        .collect()
}

struct One {
    scheduler: Scheduler,
    store: MemoryStore,
    gauge: Gauge,
    limit: LimitId,
}

impl One {
    fn new(rules: Rules) -> Self {
        let mut one = Self {
            scheduler: Scheduler::default(),
            store: MemoryStore::default(),
            gauge: Gauge::default(),
            limit: LimitId(0),
        };
        one.configure(rules, at(0));
        one
    }

    fn configure(&mut self, rules: Rules, now: Instant) {
        self.store.now = now;
        let (limit, events) = self.scheduler.configure("nvidia", rules, &mut self.store);
        self.limit = limit;
        self.gauge.read(&events);
    }

    fn arrive(&mut self, id: u32, priority: Priority, now: Instant) -> Vec<Action> {
        self.store.now = now;
        let output = self.scheduler.arrive(self.limit, request(id, priority), A, &mut self.store);
        self.gauge.read(&output.events);
        output.actions
    }

    fn wake(&mut self, now: Instant) -> Vec<Action> {
        self.store.now = now;
        let output = self.scheduler.wake(false, A, &mut self.store);
        self.gauge.read(&output.events);
        output.actions
    }

    /// Ends a granted request, and lets the worker look if it must.
    fn end(&mut self, id: u32, was_sent: bool, now: Instant) -> Output {
        self.store.now = now;
        let output = end(&mut self.scheduler, self.limit, id, was_sent, A, &mut self.store);
        self.gauge.read(&output.events);
        output
    }
}

/// Ends a granted request, and lets its worker look if it must.
fn end(
    scheduler: &mut Scheduler,
    limit: LimitId,
    id: u32,
    was_sent: bool,
    me: WorkerId,
    store: &mut MemoryStore,
) -> Output {
    if scheduler.end(limit, RequestId(id), was_sent) { scheduler.wake(false, me, store) } else { Output::default() }
}

#[test]
fn served_by_priority_as_tokens_come() {
    let mut one = One::new(rules(60, 1));
    assert_eq!(resumed(&one.arrive(1, Priority::Normal, at(0))), [1]);
    for (id, priority) in [(2, Priority::Low), (3, Priority::Normal), (4, Priority::Urgent), (5, Priority::High)] {
        assert!(resumed(&one.arrive(id, priority, at(0))).is_empty());
    }
    let mut order = Vec::new();
    while let Some(next) = one.scheduler.next_wakeup()
        && order.len() < 4
    {
        order.extend(resumed(&one.wake(next)).into_iter().map(|id| (id, next)));
    }
    assert_eq!(order, [(4, at(1_000)), (5, at(2_000)), (3, at(3_000)), (2, at(4_000))]);
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn nothing_is_due_once_everything_is_at_rest() {
    let mut one = One::new(rules(60, 2));
    one.arrive(1, Priority::Normal, at(0));
    assert_eq!(one.scheduler.next_wakeup(), Some(at(1_000)), "to show the full bucket");
    one.wake(at(1_000));
    assert_eq!(one.scheduler.next_wakeup(), None);
}

#[test]
fn a_level_may_have_a_longest_wait_of_its_own() {
    let timeouts =
        Timeouts { own_high: Some(Micros::from_secs(5)), own_low: Some(Micros::from_secs(9)), ..Timeouts::DEFAULT };
    let mut one = One::new(Rules { timeouts, ..rules(1, 1) });
    for (id, priority) in [(1, Priority::Normal), (2, Priority::Low), (3, Priority::High), (4, Priority::Normal)] {
        one.arrive(id, priority, at(0));
    }
    assert!(refused(&one.wake(at(4_999))).is_empty());
    assert_eq!(refused(&one.wake(at(5_000))), [(3, Outcome::RateLimited)]);
    assert_eq!(refused(&one.wake(at(9_000))), [(2, Outcome::RateLimited)]);
    assert_eq!(resumed(&one.wake(at(60_000))), [4]);
}

#[test]
fn each_level_has_its_own_timeout() {
    let mut one = One::new(rules(1, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Low, at(0));
    one.arrive(3, Priority::High, at(0));
    assert!(refused(&one.wake(at(29_999))).is_empty());
    assert_eq!(refused(&one.wake(at(30_000))), [(2, Outcome::RateLimited)]);
    assert_eq!(resumed(&one.wake(at(60_000))), [3]);
    assert_eq!(one.scheduler.waiting(one.limit), 0);
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn a_token_never_goes_to_someone_whose_timeout_is_over() {
    let mut one = One::new(rules(2, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Low, at(0));
    // Token and deadline come at the same moment.
    let actions = one.wake(at(30_000));
    assert_eq!(refused(&actions), [(2, Outcome::RateLimited)]);
    assert!(resumed(&actions).is_empty());
}

#[test]
fn who_leaves_costs_nothing_and_a_crowd_leaves_together() {
    let mut one = One::new(rules(60, 1));
    one.arrive(1, Priority::Normal, at(0));
    for id in 2..=5 {
        one.arrive(id, Priority::Normal, at(0));
    }
    for id in 2..=4 {
        one.scheduler.leave(one.limit, RequestId(id));
    }
    assert!(one.scheduler.next_wakeup() <= Some(at(1_000)), "at once");
    assert_eq!(resumed(&one.wake(at(1_000))), [5]);
    assert_eq!(one.gauge.0, [0; LANES]);
    one.scheduler.leave(one.limit, RequestId(5));
    assert_eq!(one.scheduler.waiting(one.limit), 0);
}

#[test]
fn the_last_to_leave_is_taken_off_the_board() {
    let mut one = One::new(rules(1, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Normal, at(0));
    one.scheduler.leave(one.limit, RequestId(2));
    one.wake(at(10));
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_come_back() {
    let mut one = One::new(rules(60, 1));
    for id in 0..=10 {
        one.arrive(id, Priority::Normal, at(0));
    }
    let actions = one.arrive(11, Priority::Normal, at(0));
    let [Action::Reply { outcome, retry_after_s, waited, snapshot, .. }] = actions[..] else {
        panic!("one reply, got {actions:?}")
    };
    assert_eq!((outcome, waited), (Outcome::QueueFull, Micros::ZERO));
    assert_eq!(snapshot.map(|(snapshot, _)| snapshot.available), Some(0));
    assert!((11..=14).contains(&retry_after_s), "eleven are ahead, got {retry_after_s}");
}

#[test]
fn new_settings_hold_for_those_who_wait() {
    let mut one = One::new(rules(1, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Normal, at(0));
    let mut shorter = rules(1, 1);
    shorter.timeouts.others = Micros::from_secs(5);
    one.configure(shorter, at(1_000));
    assert!(one.scheduler.next_wakeup() <= Some(at(1_000)), "to look at them again");
    assert!(refused(&one.wake(at(1_000))).is_empty());
    assert_eq!(refused(&one.wake(at(5_000))), [(2, Outcome::RateLimited)]);
    one.configure(rules(60_000, 10), at(6_000));
    assert!(resumed(&one.arrive(3, Priority::Normal, at(6_010))).len() == 1);
}

#[test]
fn two_workers_keep_one_order_and_one_bucket() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (mut store, mut gauge) = (MemoryStore::at(at(0)), Gauge::default());
    let (limit, _) = a.configure("nvidia", rules(60, 1), &mut store);
    b.configure("nvidia", rules(60, 1), &mut store);
    let mut order = Vec::new();
    for id in 0..8u32 {
        let (scheduler, worker) = if id % 2 == 0 { (&mut a, A) } else { (&mut b, B) };
        let priority = Priority::ALL[(3 - id / 2) as usize];
        store.now = at(u64::from(id));
        let output = scheduler.arrive(limit, request(id, priority), worker, &mut store);
        gauge.read(&output.events);
        order.extend(resumed(&output.actions));
    }
    for _ in 0..100 {
        let next = [a.next_wakeup(), b.next_wakeup()].into_iter().flatten().min();
        let Some(now) = next else { break };
        store.now = now;
        for (scheduler, worker) in [(&mut a, A), (&mut b, B)] {
            if scheduler.next_wakeup() == Some(now) {
                let output = scheduler.wake(false, worker, &mut store);
                gauge.read(&output.events);
                order.extend(resumed(&output.actions));
            }
        }
    }
    // The first took the token that was there; after it by level, and within a level by arrival.
    assert_eq!(order, [0, 6, 7, 4, 5, 2, 3, 1]);
    assert_eq!(gauge.0, [0; LANES]);
}

/// A store that loses every race, or refuses, until told otherwise.
struct Broken {
    inner: MemoryStore,
    broken: bool,
}

impl Store for Broken {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.inner.load(key)
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        if self.broken { Ok(Swap::Lost) } else { self.inner.swap(key, value, version) }
    }
    fn now(&mut self) -> Instant {
        self.inner.now
    }
}

#[test]
fn a_store_that_fails_grants_nothing_and_loses_nothing() {
    let mut store = Broken { inner: MemoryStore::at(at(0)), broken: true };
    let mut scheduler = Scheduler::default();
    let (limit, _) = scheduler.configure("nvidia", rules(60, 1), &mut store);
    let output = scheduler.arrive(limit, request(1, Priority::Normal), A, &mut store);
    assert!(output.actions.is_empty());
    assert_eq!(output.events, [(limit, Event::StoreFailed)]);
    assert_eq!(scheduler.look(limit, &mut store).events, [(limit, Event::StoreFailed)], "a failed look is told too");
    assert_eq!((scheduler.waiting(limit), scheduler.next_wakeup()), (1, Some(at(1))));
    store.broken = false;
    store.inner.now = at(1);
    assert_eq!(resumed(&scheduler.wake(false, A, &mut store).actions), [1]);
}

/// A store of which each reading of the clock but the last of a callback is old: its worker was held up in between.
struct HeldUp(MemoryStore, Option<Instant>);

impl Store for HeldUp {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.1 = None;
        self.0.load(key)
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        self.0.swap(key, value, version)
    }
    fn now(&mut self) -> Instant {
        self.1.unwrap_or(self.0.now)
    }
}

#[test]
fn a_worker_with_an_old_time_does_not_make_time_pass_twice() {
    let mut store = HeldUp(MemoryStore::at(at(0)), None);
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (limit, _) = a.configure("nvidia", rules(60, 1), &mut store);
    b.configure("nvidia", rules(60, 1), &mut store);
    let mut granted = Vec::new();
    for (id, second) in (1..=4).zip([0, 3, 3, 3]) {
        store.0.now = at(second * 1_000);
        store.1 = None;
        granted.extend(resumed(&a.arrive(limit, request(id, Priority::Normal), A, &mut store).actions));
        // The other worker read its clock at the very start and comes only now.
        store.1 = Some(at(0));
        granted.extend(resumed(&b.arrive(limit, request(id + 10, Priority::Low), B, &mut store).actions));
    }
    assert_eq!(granted, [1, 2], "one token was there and one came in three seconds, for there is room for one");
}

#[test]
fn a_record_that_can_not_be_read_is_begun_anew_and_empty() {
    let mut one = One::new(rules(60, 5));
    let key = "nimgate/2/ledger/nvidia";
    let (_, version) = one.store.load(key).unwrap().unwrap();
    one.store.swap(key, b"rubbish", Some(version)).unwrap();
    assert!(resumed(&one.arrive(1, Priority::Normal, at(0))).is_empty());
    assert_eq!(resumed(&one.wake(at(1_000))), [1]);
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn gauges_are_right_again_after_a_record_was_lost() {
    let mut one = One::new(rules(1, 1));
    for id in 1..=4 {
        one.arrive(id, Priority::Normal, at(0));
    }
    assert_eq!(one.gauge.0.iter().sum::<i64>(), 3);
    let key = "nimgate/2/ledger/nvidia";
    let (_, version) = one.store.load(key).unwrap().unwrap();
    one.store.swap(key, b"rubbish", Some(version)).unwrap();
    one.wake(at(2_000));
    assert_eq!(one.gauge.0.iter().sum::<i64>(), 3, "counted once, not twice");
    for id in 2..=4 {
        one.scheduler.leave(one.limit, RequestId(id));
    }
    one.wake(at(2_001));
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn other_workers_take_up_new_rules_when_they_look() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let mut store = MemoryStore::at(at(0));
    let slow = Rules {
        timeouts: Timeouts { low: Micros::from_secs(1), others: Micros::from_secs(9), ..Timeouts::DEFAULT },
        ..rules(1, 1)
    };
    let (limit, _) = a.configure("nvidia", slow, &mut store);
    b.configure("nvidia", slow, &mut store);
    a.configure("nvidia", rules(60_000, 10), &mut store);
    assert_eq!(b.rules(limit), Some(&slow));
    b.look(limit, &mut store);
    assert_eq!(b.rules(limit), Some(&rules(60_000, 10)));
    // A worker that comes late with the rules that are configured already changes nothing.
    let (_, events) = b.configure("nvidia", rules(60_000, 10), &mut store);
    assert_eq!(events, []);
}

fn shadows(events: &[Happened]) -> Vec<(Priority, Outcome)> {
    let of = |(_, event): &Happened| match event {
        Event::Shadowed { level, outcome, .. } => Some((*level, *outcome)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn in_shadow_mode_everyone_goes_at_once_and_what_would_have_been_is_told() {
    let mut store = MemoryStore::at(at(0));
    let mut scheduler = Scheduler::default();
    let rules = Rules { shadow: true, queue_max: 2, ..rules(1, 1) };
    let (limit, _) = scheduler.configure("nvidia", rules, &mut store);
    let (mut resumed_ids, mut told) = (Vec::new(), Vec::new());
    for (id, priority) in [(1, Priority::Low), (2, Priority::Low), (3, Priority::Normal), (4, Priority::High)] {
        store.now = at(u64::from(id));
        let output = scheduler.arrive(limit, request(id, priority), A, &mut store);
        assert!(refused(&output.actions).is_empty());
        resumed_ids.extend(resumed(&output.actions));
        told.extend(shadows(&output.events));
    }
    assert_eq!(resumed_ids, [1, 2, 3, 4]);
    assert_eq!(told, [(Priority::Low, Outcome::Forwarded), (Priority::High, Outcome::QueueFull)]);
    assert_eq!(scheduler.in_flight(limit), 0, "what was let go without a token holds nothing");
    let (mut later, mut told) = (Vec::new(), Vec::new());
    while scheduler.waiting(limit) > 0 {
        store.now = scheduler.next_wakeup().expect("someone waits").max(store.now);
        let output = scheduler.wake(false, A, &mut store);
        later.extend(output.actions);
        told.extend(shadows(&output.events));
    }
    assert!(resumed(&later).is_empty() && refused(&later).is_empty());
    assert_eq!(told, [(Priority::Low, Outcome::RateLimited), (Priority::Normal, Outcome::Forwarded)]);
}

#[test]
fn switching_shadow_mode_frees_who_waits_and_then_makes_room() {
    let mut one = One::new(rules(1, 1));
    assert_eq!(resumed(&one.arrive(1, Priority::Normal, at(0))), [1]);
    assert!(resumed(&one.arrive(2, Priority::Normal, at(1))).is_empty());
    one.configure(Rules { shadow: true, ..rules(1, 1) }, at(2));
    assert_eq!(resumed(&one.wake(at(2))), [2]);
    assert_eq!(resumed(&one.arrive(3, Priority::Normal, at(3))), [3]);
    assert_eq!(one.gauge.0.iter().sum::<i64>(), 2, "both would wait");
    one.configure(rules(1, 1), at(4));
    one.wake(at(4));
    one.wake(at(4));
    assert_eq!((one.scheduler.waiting(one.limit), one.gauge.0), (0, [0; LANES]));
    assert!(resumed(&one.arrive(4, Priority::Normal, at(5))).is_empty());
    assert_eq!(resumed(&one.wake(at(60_000))), [4], "those who were let go took none of its tokens");
}

#[test]
fn a_request_that_was_never_sent_gives_its_token_back_once() {
    let mut one = One::new(rules(1, 2));
    assert_eq!(resumed(&one.arrive(0, Priority::Normal, at(0))), [0]);
    assert_eq!(resumed(&one.arrive(1, Priority::Normal, at(0))), [1]);
    assert!(resumed(&one.arrive(2, Priority::Normal, at(1))).is_empty());
    let output = one.end(1, false, at(2));
    assert!(output.events.contains(&(one.limit, Event::Unused { returned: true })), "{:?}", output.events);
    assert_eq!(resumed(&output.actions), [2], "and the next one gets it at once");
    assert_eq!(one.end(1, false, at(3)), Output::default(), "a reservation is settled once");
    assert!(resumed(&one.arrive(3, Priority::Normal, at(4))).is_empty());
    assert_eq!(one.end(2, true, at(5)), Output::default(), "what was sent is spent");
    assert_eq!((one.scheduler.in_flight(one.limit), one.scheduler.waiting(one.limit)), (1, 1));
}

/// A connection closes with a stream that has its token and one that waits: the first one's token is not for the second.
#[test]
fn what_a_stream_frees_is_not_granted_to_one_that_ends_with_it() {
    let mut one = One::new(rules(1, 1));
    assert_eq!(resumed(&one.arrive(1, Priority::Normal, at(0))), [1]);
    for id in [2, 3] {
        assert!(resumed(&one.arrive(id, Priority::Normal, at(0))).is_empty());
    }
    assert!(one.scheduler.end(one.limit, RequestId(1), false));
    assert!(one.scheduler.leave(one.limit, RequestId(2)));
    assert_eq!(one.scheduler.next_wakeup(), Some(Instant::ZERO), "the rest is due at once");
    assert_eq!(resumed(&one.wake(at(0))), [3]);
}

#[test]
fn what_was_not_used_comes_back_when_the_store_can_be_had_again() {
    let mut store = Broken { inner: MemoryStore::at(at(0)), broken: false };
    let mut scheduler = Scheduler::default();
    let (limit, _) = scheduler.configure("nvidia", rules(1, 2), &mut store);
    for id in [1, 2] {
        assert_eq!(resumed(&scheduler.arrive(limit, request(id, Priority::Normal), A, &mut store).actions), [id]);
    }
    assert!(scheduler.end(limit, RequestId(1), false));
    store.broken = true;
    scheduler.wake(false, A, &mut store);
    store.broken = false;
    assert_eq!(resumed(&scheduler.arrive(limit, request(3, Priority::Normal), A, &mut store).actions), [3]);
    let next = scheduler.arrive(limit, request(4, Priority::Normal), A, &mut store).actions;
    assert!(resumed(&next).is_empty(), "and it comes back once");
}

#[test]
fn the_end_of_a_stream_frees_its_slot_for_the_best_of_all_workers() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let rules = Rules { max_in_flight: Some(1), ..rules(6_000, 10) };
    let (limit, _) = a.configure("nvidia", rules, &mut store);
    b.configure("nvidia", rules, &mut store);
    assert_eq!(resumed(&a.arrive(limit, request(1, Priority::Low), A, &mut store).actions), [1]);
    assert!(resumed(&a.arrive(limit, request(2, Priority::Low), A, &mut store).actions).is_empty());
    assert!(resumed(&b.arrive(limit, request(3, Priority::High), B, &mut store).actions).is_empty());
    store.now = at(500);
    assert!(resumed(&b.wake(true, B, &mut store).actions).is_empty(), "tokens are there, the slot is not");
    assert!(
        b.next_wakeup() <= Some(at(500).after(HEARTBEAT)),
        "only an event frees it, and a heartbeat is the backstop"
    );
    let ended = end(&mut a, limit, 1, true, A, &mut store);
    assert_eq!(ended.actions, [Action::Wake(B)]);
    assert_eq!(resumed(&b.wake(true, B, &mut store).actions), [3]);
    let ended = end(&mut b, limit, 3, true, B, &mut store);
    assert_eq!(ended.actions, [Action::Wake(A)]);
    assert_eq!(resumed(&a.wake(true, A, &mut store).actions), [2]);
}

#[test]
fn the_end_of_a_stream_wakes_who_is_next_although_its_token_is_not_there_yet() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let rules = Rules { max_in_flight: Some(1), ..rules(60, 1) };
    let (limit, _) = a.configure("nvidia", rules, &mut store);
    b.configure("nvidia", rules, &mut store);
    assert_eq!(resumed(&a.arrive(limit, request(1, Priority::Low), A, &mut store).actions), [1]);
    assert!(resumed(&b.arrive(limit, request(2, Priority::High), B, &mut store).actions).is_empty());
    store.now = at(500);
    assert_eq!(end(&mut a, limit, 1, true, A, &mut store).actions, [Action::Wake(B)]);
    assert!(resumed(&b.wake(true, B, &mut store).actions).is_empty());
    store.now = at(1_000);
    assert_eq!(resumed(&b.wake(false, B, &mut store).actions), [2], "it looks when the token is there");
}

#[test]
fn a_worker_that_holds_slots_keeps_its_line_when_a_configuration_comes() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let without = rules(6_000, 10);
    let with = Rules { max_in_flight: Some(1), ..without };
    let (limit, _) = a.configure("nvidia", without, &mut store);
    assert_eq!(resumed(&a.arrive(limit, request(1, Priority::Low), A, &mut store).actions), [1]);
    // A cap that comes counts what is in flight already, and coming again changes nothing.
    for after in [0, 1_000] {
        store.now = at(after);
        for worker in [&mut a, &mut b] {
            worker.configure("nvidia", with, &mut store);
        }
        assert!(a.next_wakeup().is_some_and(|next| next <= store.now), "it says that it holds a slot");
        a.wake(false, A, &mut store);
    }
    while store.now < at(15_000) {
        store.now = a.next_wakeup().expect("it looks now and then");
        a.wake(false, A, &mut store);
    }
    assert!(resumed(&b.arrive(limit, request(2, Priority::High), B, &mut store).actions).is_empty());
}

/// Where the window holds all back, whoever frees a place in it may not take it for one that has been there for long.
#[test]
fn a_request_that_was_never_sent_makes_room_in_the_window_for_the_best_of_all_workers() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let window = Micros::from_secs(60);
    let rules = Rules { window, ..rules(2, 4) };
    let (limit, _) = a.configure("nvidia", rules, &mut store);
    b.configure("nvidia", rules, &mut store);
    for id in [1, 2] {
        assert_eq!(resumed(&a.arrive(limit, request(id, Priority::Low), A, &mut store).actions), [id]);
    }
    assert!(resumed(&b.arrive(limit, request(3, Priority::High), B, &mut store).actions).is_empty());
    assert!(resumed(&a.arrive(limit, request(4, Priority::Low), A, &mut store).actions).is_empty());
    store.now = at(1_000);
    let ended = end(&mut a, limit, 2, false, A, &mut store);
    assert_eq!(ended.actions, [Action::Wake(B)]);
    assert_eq!(resumed(&b.wake(true, B, &mut store).actions), [3]);
}

/// A model is tried with one request at a time until one is served; who waits for it sleeps until the next try.
#[test]
fn an_answer_that_opens_a_model_wakes_who_waits_for_it() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (limit, _) = a.configure("nvidia", rules(6_000, 100), &mut store);
    b.configure("nvidia", rules(6_000, 100), &mut store);
    let model = (ModelKey::of("weak"), ModelName::new("weak"));
    let of_model = |id| Request::new(RequestId(id), Lane::Queued(Priority::High), model.0);
    for id in 0..60 {
        a.arrive(limit, of_model(id), A, &mut store);
    }
    let answer = |signal, granted_at| Answer { granted_at, signal, retry_after: None, model };
    a.answer(limit, answer(Signal::WorkersFull, at(0)), 0, &mut store);
    store.now = at(10_000);
    assert_eq!(resumed(&a.arrive(limit, of_model(61), A, &mut store).actions), [61], "a try");
    assert!(resumed(&b.arrive(limit, of_model(62), B, &mut store).actions).is_empty());
    store.now = at(11_500);
    assert_eq!(a.answer(limit, answer(Signal::Served, at(10_000)), 0, &mut store).actions, [Action::Wake(B)]);
    assert_eq!(resumed(&b.wake(true, B, &mut store).actions), [62]);
}

/// The ledger as it lies in the store.
fn ledger_in(store: &mut MemoryStore) -> Ledger {
    Home::read("nvidia", store).ok().flatten().expect("a record")
}

/// Who waits for a slot has no timer. If the slot's next user closes the model for a while, nobody else would say so.
#[test]
fn a_grant_that_closes_a_model_is_told_to_those_who_wait_for_a_slot_with_it() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let rules = Rules { max_in_flight: Some(2), ..rules(6_000, 100) };
    let (limit, _) = a.configure("nvidia", rules, &mut store);
    b.configure("nvidia", rules, &mut store);
    let model = (ModelKey::of("weak"), ModelName::new("weak"));
    let of_model = |id| Request::new(RequestId(id), Lane::Queued(Priority::High), model.0);
    a.arrive(limit, of_model(1), A, &mut store);
    let full = Answer { granted_at: at(0), signal: Signal::WorkersFull, retry_after: None, model };
    a.answer(limit, full, 0, &mut store);
    end(&mut a, limit, 1, true, A, &mut store);
    store.now = at(10_000);
    for id in [2, 3] {
        assert_eq!(resumed(&a.arrive(limit, request(id, Priority::High), A, &mut store).actions), [id]);
    }
    store.now = at(10_001);
    assert!(resumed(&a.arrive(limit, of_model(4), A, &mut store).actions).is_empty());
    assert!(resumed(&b.arrive(limit, of_model(5), B, &mut store).actions).is_empty());
    let ended = end(&mut a, limit, 2, true, A, &mut store);
    assert_eq!(resumed(&ended.actions), [4], "a try, and the next is later");
    assert!(ended.actions.contains(&Action::Wake(B)), "{:?}", ended.actions);
    assert!(resumed(&b.wake(true, B, &mut store).actions).is_empty());
    end(&mut a, limit, 3, true, A, &mut store);
    let opens = ledger_in(&mut store).models().open_at(model.0);
    assert!(opens > store.now);
    while store.now < opens {
        store.now = b.next_wakeup().expect("it waits");
        assert!(store.now <= opens, "its next look, {:?}, is after its model opens, {opens:?}", store.now);
        let granted = resumed(&b.wake(false, B, &mut store).actions);
        assert_eq!(granted.is_empty(), store.now < opens);
    }
}

/// A ledger stays new until a worker takes note of it, and workers may know of an override by then.
#[test]
fn an_override_is_not_put_back_over_rules_that_came_since() {
    let mut store = MemoryStore::at(at(0));
    let mut workers = [(); 2].map(|()| Scheduler::among(Company::Mixed(QUIET)));
    let (configured, slow) = (rules(60, 4), rules(1, 4));
    for worker in &mut workers {
        worker.configure("nvidia", configured, &mut store);
    }
    let mut home = Home::new("nvidia", Company::Mixed(QUIET));
    let overridden = home.decide(None, configured, &mut store, |mut ledger, _, now| {
        ledger.override_rules(slow, now, &mut Vec::new());
        (Some(ledger), ())
    });
    overridden.expect("the store works");
    for worker in &mut workers {
        worker.look(LimitId(0), &mut store);
        assert_eq!(worker.rules(LimitId(0)), Some(&slow));
    }
    let new = Rules { queue_max: 3, ..configured };
    for worker in &mut workers {
        worker.configure("nvidia", new, &mut store);
        assert_eq!(worker.rules(LimitId(0)), Some(&new));
    }
}
