//! What is lost, and made good: records that others damaged, a store that refuses.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const KEY: &str = "nimgate/2/ledger/nvidia";

fn damage(store: &mut MemoryStore) {
    let (_, version) = store.load(KEY).unwrap().unwrap();
    store.swap(KEY, b"rubbish", Some(version)).unwrap();
}

/// What held a request up went with the record, and the new one does not know of the request.
#[test]
fn who_finds_that_the_record_does_not_know_it_looks_again_at_once() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (limit, _) = a.configure("nvidia", rules(60, 1), &mut store);
    b.configure("nvidia", rules(60, 1), &mut store);
    let pause = Answer {
        granted_at: at(0),
        signal: Signal::Throttled,
        retry_after: Some(Micros::from_secs(20)),
        model: NO_MODEL,
    };
    assert_eq!(resumed(&a.arrive(limit, request(1, Priority::Normal), A, &mut store).actions), [1]);
    a.answer(limit, pause, 0, &mut store);
    store.now = at(10_000);
    assert!(resumed(&a.arrive(limit, request(2, Priority::Normal), A, &mut store).actions).is_empty());
    for finder in ["itself", "another"] {
        damage(&mut store);
        store.now = store.now.after(Micros::from_millis(1));
        if finder == "another" {
            b.look(limit, &mut store);
        }
        a.look(limit, &mut store);
        assert!(a.next_wakeup().is_some_and(|at| at <= store.now), "{finder}");
        a.wake(false, A, &mut store);
        assert!(a.next_wakeup().is_some_and(|at| at > store.now), "once is enough: {finder}");
    }
    store.now = store.now.after(Micros::from_secs(1));
    assert_eq!(resumed(&a.wake(false, A, &mut store).actions), [2], "the pause is forgotten, so its token is the next");
}

const NO_MODEL: (ModelKey, ModelName) = (ModelKey::NONE, ModelName::NONE);

#[test]
fn a_configuration_that_the_store_refused_is_written_with_the_next_decision() {
    let mut store = Broken { inner: MemoryStore::at(at(0)), broken: false };
    let mut scheduler = Scheduler::default();
    let (limit, _) = scheduler.configure("nvidia", rules(60, 1), &mut store);
    for rpm in [120, 180] {
        store.broken = true;
        let (_, events) = scheduler.configure("nvidia", rules(rpm, 1), &mut store);
        assert_eq!(events, [(limit, Event::StoreFailed)]);
    }
    store.broken = false;
    let events = scheduler.look(limit, &mut store).events;
    assert!(events.iter().any(|(_, event)| matches!(event, Event::RulesConfigured { .. })), "{events:?}");
    assert_eq!(scheduler.rules(limit), Some(&rules(180, 1)));
    assert_eq!(ledger_in(&mut store.inner).rules(), &rules(180, 1));
    assert!(scheduler.look(limit, &mut store).events.is_empty(), "once");
}

#[test]
fn a_configuration_that_the_store_refused_is_dropped_if_another_worker_has_written_a_later_one() {
    let mut store = Broken { inner: MemoryStore::at(at(0)), broken: false };
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (limit, _) = a.configure("nvidia", rules(60, 1), &mut store);
    b.configure("nvidia", rules(60, 1), &mut store);
    store.broken = true;
    a.configure("nvidia", rules(120, 1), &mut store);
    store.broken = false;
    b.configure("nvidia", rules(180, 1), &mut store);
    a.look(limit, &mut store);
    assert_eq!(a.rules(limit), Some(&rules(180, 1)));
}

/// A worker that replaces a damaged record sets the gauges to what that says. Another may have changed the record, and the gauges,
/// between the two.
#[test]
fn gauges_that_a_recount_has_spoilt_are_right_when_nobody_has_waited_for_a_while() {
    let mut one = One::new(rules(60, 1));
    for id in 1..=2 {
        one.arrive(id, Priority::Normal, at(0));
    }
    damage(&mut one.store);
    one.wake(at(10));
    one.gauge.0[Lane::Queued(Priority::Normal).index()] -= 1;
    let mut granted = Vec::new();
    for _ in 0..10 {
        let Some(next) = one.scheduler.next_wakeup() else { break };
        granted.extend(resumed(&one.wake(next.max(at(10)))));
    }
    assert_eq!(granted, [2]);
    assert_eq!(one.gauge.0, [0; LANES]);
    assert_eq!(one.scheduler.next_wakeup(), None, "and then there is nothing to do");
}

#[test]
fn a_wait_that_is_over_ends_though_the_store_refuses() {
    let mut store = Refusing { inner: MemoryStore::at(at(0)), refuses: false };
    let mut scheduler = Scheduler::default();
    let limited = Rules { timeouts: Timeouts { others: Micros::from_secs(5), ..Timeouts::DEFAULT }, ..rules(1, 1) };
    let (limit, _) = scheduler.configure("nvidia", limited, &mut store);
    for id in 1..=2 {
        scheduler.arrive(limit, request(id, Priority::Normal), A, &mut store);
    }
    store.refuses = true;
    store.inner.now = at(5_000);
    let output = scheduler.wake(false, A, &mut store);
    assert_eq!(refused(&output.actions), [(2, Outcome::RateLimited)]);
    assert_eq!(scheduler.waiting(limit), 0);
}

/// A store that may refuse to answer.
struct Refusing {
    inner: MemoryStore,
    refuses: bool,
}

impl Store for Refusing {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        if self.refuses { Err(StoreError::Unavailable) } else { self.inner.load(key) }
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        if self.refuses { Err(StoreError::Unavailable) } else { self.inner.swap(key, value, version) }
    }
    fn now(&mut self) -> Instant {
        self.inner.now
    }
}

/// A gate that opens before its time, since a model turns out to be what is refused, opens just then: whose token that brings
/// has not been late since long ago.
#[test]
fn who_may_go_sooner_than_was_thought_is_not_passed_over_at_once() {
    let mut store = MemoryStore::at(at(0));
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (limit, _) = a.configure("nvidia", rules(6_000, 100), &mut store);
    b.configure("nvidia", rules(6_000, 100), &mut store);
    let names = ["weak", "one", "two", "three", "four"];
    for id in 0..60 {
        let model = ModelKey::of(names[id as usize % names.len()]);
        a.arrive(limit, Request::new(RequestId(id), Lane::Queued(Priority::High), model), A, &mut store);
    }
    let mut answer = |name: &str, store: &mut MemoryStore| {
        let signal = if name == "weak" { Signal::Throttled } else { Signal::Served };
        let model = (ModelKey::of(name), ModelName::new(name));
        let retry_after = (name == "weak").then_some(Micros::from_secs(5));
        b.answer(limit, Answer { granted_at: at(0), signal, retry_after, model }, 0, store);
        ledger_in(store).flow_and_gate().1
    };
    store.now = at(100);
    let mut gate = answer("weak", &mut store);
    assert!(gate > at(1_000), "one refusal is the account's until more is known");
    store.now = at(101);
    assert!(resumed(&a.arrive(limit, request(100, Priority::High), A, &mut store).actions).is_empty());
    store.now = at(200);
    for name in names.iter().cycle().skip(1).take(58) {
        if gate <= store.now {
            break;
        }
        gate = answer(name, &mut store);
    }
    assert!(gate <= store.now, "the account is pardoned");
    let mut other = Scheduler::default();
    other.configure("nvidia", rules(6_000, 100), &mut store);
    assert!(resumed(&other.arrive(limit, request(101, Priority::High), B, &mut store).actions).is_empty());
    assert_eq!(resumed(&a.wake(true, A, &mut store).actions), [100]);
}
