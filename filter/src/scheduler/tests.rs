//! The scheduler of several workers on one memory store, in virtual time.

use super::*;
use crate::queue::Patience;
use crate::retreat::RetreatRules;
use crate::store::{MemoryStore, Swap, Version};
use crate::units::MilliRpm;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[path = "told_tests.rs"]
mod told;

const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn rules(rpm: u32, capacity: u32) -> Rules {
    Rules {
        capacity,
        queue_max: 10,
        aging: None,
        window: Micros::ZERO,
        retreat: RetreatRules {
            enabled: true,
            base: MilliRpm::from_rpm(rpm),
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
            window: Micros::from_secs(60),
        },
        patience: Patience { low: Micros::from_secs(30), others: Micros::from_secs(120) },
        may_fall_back: false,
        shadow: false,
    }
}

/// A host that numbers no connections.
fn origin(rules: Rules) -> Origin {
    Origin { rules, connection: 0 }
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

/// Keeps a running total of what the observer was told, as a gauge would.
#[derive(Default)]
struct Gauge([i64; LANES]);

impl Observer for Gauge {
    fn queue_changed(&mut self, _: LimitId, differences: [i64; LANES]) {
        for (total, difference) in self.0.iter_mut().zip(differences) {
            *total += difference;
        }
    }

    fn queue_is(&mut self, _: LimitId, waiting: [u32; LANES]) {
        self.0 = waiting.map(i64::from);
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
        self.limit = self.scheduler.configure("nvidia", rules, now, &mut self.store, &mut self.gauge);
    }

    fn arrive(&mut self, id: u32, priority: Priority, now: Instant) -> Vec<Action> {
        let origin = origin(*self.scheduler.rules(self.limit).expect("it is configured"));
        self.scheduler.arrive(
            self.limit,
            RequestId(id),
            priority,
            ModelKey::NONE,
            &origin,
            A,
            now,
            &mut self.store,
            &mut self.gauge,
        )
    }

    fn wake(&mut self, now: Instant) -> Vec<Action> {
        self.scheduler.wake(false, A, now, &mut self.store, &mut self.gauge)
    }
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
fn each_level_has_its_own_patience() {
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
fn a_token_never_goes_to_someone_whose_patience_is_over() {
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
        one.scheduler.leave(one.limit, RequestId(id), at(1_000));
    }
    assert_eq!(one.scheduler.next_wakeup(), Some(at(1_000)));
    assert_eq!(resumed(&one.wake(at(1_000))), [5]);
    assert_eq!(one.gauge.0, [0; LANES]);
    one.scheduler.leave(one.limit, RequestId(5), at(1_000));
    assert_eq!(one.scheduler.waiting(one.limit), 0);
}

#[test]
fn the_last_to_leave_is_taken_off_the_board() {
    let mut one = One::new(rules(1, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Normal, at(0));
    one.scheduler.leave(one.limit, RequestId(2), at(10));
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
    assert_eq!(snapshot.map(|snapshot| snapshot.available), Some(0));
    assert!((11..=14).contains(&retry_after_s), "eleven are ahead, got {retry_after_s}");
}

#[test]
fn new_settings_hold_for_those_who_wait() {
    let mut one = One::new(rules(1, 1));
    one.arrive(1, Priority::Normal, at(0));
    one.arrive(2, Priority::Normal, at(0));
    let mut shorter = rules(1, 1);
    shorter.patience.others = Micros::from_secs(5);
    one.configure(shorter, at(1_000));
    assert_eq!(one.scheduler.next_wakeup(), Some(at(1_000)), "to look at them anew");
    assert!(refused(&one.wake(at(1_000))).is_empty());
    assert_eq!(refused(&one.wake(at(5_000))), [(2, Outcome::RateLimited)]);
    one.configure(rules(60_000, 10), at(6_000));
    assert!(resumed(&one.arrive(3, Priority::Normal, at(6_010))).len() == 1);
}

#[test]
fn two_workers_keep_one_order_and_one_bucket() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (mut store, mut gauge) = (MemoryStore::default(), Gauge::default());
    let rules = rules(60, 1);
    let limit = a.configure("nvidia", rules, at(0), &mut store, &mut gauge);
    b.configure("nvidia", rules, at(0), &mut store, &mut gauge);
    let mut order = Vec::new();
    for id in 0..8u32 {
        let (scheduler, worker) = if id % 2 == 0 { (&mut a, A) } else { (&mut b, B) };
        let priority = Priority::ALL[(3 - id / 2) as usize];
        let actions = scheduler.arrive(
            limit,
            RequestId(id),
            priority,
            ModelKey::NONE,
            &origin(rules),
            worker,
            at(u64::from(id)),
            &mut store,
            &mut gauge,
        );
        order.extend(resumed(&actions));
    }
    for _ in 0..100 {
        let next = [a.next_wakeup(), b.next_wakeup()].into_iter().flatten().min();
        let Some(now) = next else { break };
        for (scheduler, worker) in [(&mut a, A), (&mut b, B)] {
            if scheduler.next_wakeup() == Some(now) {
                let actions = scheduler.wake(false, worker, now, &mut store, &mut gauge);
                order.extend(resumed(&actions));
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
}

#[test]
fn a_store_that_fails_grants_nothing_and_loses_nothing() {
    let mut store = Broken { inner: MemoryStore::default(), broken: true };
    let mut scheduler = Scheduler::default();
    let limit = scheduler.configure("nvidia", rules(60, 1), at(0), &mut store, &mut ());
    let actions = scheduler.arrive(
        limit,
        RequestId(1),
        Priority::Normal,
        ModelKey::NONE,
        &origin(rules(60, 1)),
        A,
        at(0),
        &mut store,
        &mut (),
    );
    assert!(actions.is_empty());
    assert_eq!((scheduler.waiting(limit), scheduler.next_wakeup()), (1, Some(at(1))));
    store.broken = false;
    assert_eq!(resumed(&scheduler.wake(false, A, at(1), &mut store, &mut ())), [1]);
}

/// A store whose clock has gone on while a worker was held up with an old reading of it.
struct Clocked(MemoryStore, Instant);

impl Store for Clocked {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.0.load(key)
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        self.0.swap(key, value, version)
    }
    fn clock(&mut self) -> Option<Instant> {
        Some(self.1)
    }
}

#[test]
fn a_worker_with_an_old_time_does_not_make_time_pass_twice() {
    let mut store = Clocked(MemoryStore::default(), at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let limit = a.configure("nvidia", rules(60, 1), at(0), &mut store, &mut ());
    b.configure("nvidia", rules(60, 1), at(0), &mut store, &mut ());
    let from = origin(rules(60, 1));
    let mut granted = Vec::new();
    for (id, second) in (1..=4).zip([0, 3, 3, 3]) {
        store.1 = at(second * 1_000);
        granted.extend(resumed(&a.arrive(
            limit,
            RequestId(id),
            Priority::Normal,
            ModelKey::NONE,
            &from,
            A,
            store.1,
            &mut store,
            &mut (),
        )));
        // The other worker read its clock at the very start and comes only now.
        granted.extend(resumed(&b.arrive(
            limit,
            RequestId(id + 10),
            Priority::Low,
            ModelKey::NONE,
            &from,
            B,
            at(0),
            &mut store,
            &mut (),
        )));
    }
    assert_eq!(granted, [1, 2], "one token was there and one came in three seconds, for there is room for one");
}

#[test]
fn a_record_that_can_not_be_read_is_begun_anew_and_empty() {
    let mut one = One::new(rules(60, 5));
    let key = "nimgate/1/ledger/nvidia";
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
    let key = "nimgate/1/ledger/nvidia";
    let (_, version) = one.store.load(key).unwrap().unwrap();
    one.store.swap(key, b"rubbish", Some(version)).unwrap();
    one.wake(at(2_000));
    assert_eq!(one.gauge.0.iter().sum::<i64>(), 3, "counted once, not twice");
    for id in 2..=4 {
        one.scheduler.leave(one.limit, RequestId(id), at(2_001));
    }
    one.wake(at(2_001));
    assert_eq!(one.gauge.0, [0; LANES]);
}

#[test]
fn an_earlier_configuration_comes_back_with_its_connections() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let mut store = MemoryStore::default();
    let slow = Rules { patience: Patience { low: Micros::from_secs(1), others: Micros::from_secs(9) }, ..rules(1, 1) };
    let fast = rules(60_000, 10);
    let limit = a.configure("nvidia", slow, at(0), &mut store, &mut ());
    for scheduler in [&mut a, &mut b] {
        scheduler.configure("nvidia", fast, at(1), &mut store, &mut ());
    }
    let mut send = |scheduler: &mut Scheduler, id, connection, now| {
        let origin = Origin { rules: slow, connection };
        scheduler.arrive(limit, RequestId(id), Priority::Normal, ModelKey::NONE, &origin, A, now, &mut store, &mut ())
    };
    send(&mut a, 1, 7, at(2));
    assert_eq!(a.rules(limit), Some(&fast));
    send(&mut a, 2, 8, at(6_000));
    assert_eq!(a.rules(limit), Some(&slow));
    // The other worker learns of it when it next looks.
    b.look(limit, at(6_000), &mut store, &mut ());
    assert_eq!(b.rules(limit), Some(&slow));
}

/// What shadow mode reported.
#[derive(Default)]
struct Shadows(Vec<(Priority, Outcome)>);

impl Observer for Shadows {
    fn shadowed(&mut self, _: LimitId, priority: Priority, outcome: Outcome, _: Micros) {
        self.0.push((priority, outcome));
    }
}

#[test]
fn in_shadow_mode_everyone_goes_at_once_and_what_would_have_been_is_told() {
    let (mut scheduler, mut store, mut shadows) = (Scheduler::default(), MemoryStore::default(), Shadows::default());
    let rules = Rules { shadow: true, queue_max: 2, ..rules(1, 1) };
    let limit = scheduler.configure("nvidia", rules, at(0), &mut store, &mut shadows);
    let from = origin(rules);
    let mut resumed_ids = Vec::new();
    for (id, priority) in [(1, Priority::Low), (2, Priority::Low), (3, Priority::Normal), (4, Priority::High)] {
        let actions = scheduler.arrive(
            limit,
            RequestId(id),
            priority,
            ModelKey::NONE,
            &from,
            A,
            at(u64::from(id)),
            &mut store,
            &mut shadows,
        );
        assert!(refused(&actions).is_empty());
        resumed_ids.extend(resumed(&actions));
    }
    assert_eq!(resumed_ids, [1, 2, 3, 4]);
    assert_eq!(shadows.0, [(Priority::Low, Outcome::Forwarded), (Priority::High, Outcome::QueueFull)]);
    let mut later = Vec::new();
    while scheduler.waiting(limit) > 0 {
        let now = scheduler.next_wakeup().expect("someone waits");
        later.extend(scheduler.wake(false, A, now, &mut store, &mut shadows));
    }
    assert!(resumed(&later).is_empty() && refused(&later).is_empty());
    let low_gave_up = (Priority::Low, Outcome::RateLimited);
    assert_eq!(shadows.0.get(2..), Some(&[low_gave_up, (Priority::Normal, Outcome::Forwarded)][..]));
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
