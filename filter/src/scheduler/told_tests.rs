//! What a scheduler tells its caller and its observer, and that it leaves the store alone where nothing is due.

use super::*;
use crate::models::ModelName;
use crate::pace::Verdict;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Counts what it is told.
#[derive(Default)]
struct Told {
    configured: u32,
    adopted: u32,
    retreats: Vec<Transition>,
}

impl Observer for Told {
    fn rules_configured(&mut self, _: LimitId, _: &Snapshot, _: &Rules) {
        self.configured += 1;
    }
    fn rules_adopted(&mut self, _: LimitId, _: &Snapshot, _: &Rules) {
        self.adopted += 1;
    }
    fn retreat_changed(&mut self, _: LimitId, transition: Transition) {
        self.retreats.push(transition);
    }
}

/// Counts how often it is read.
#[derive(Default)]
struct Counted(MemoryStore, u32);

impl Store for Counted {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.1 += 1;
        self.0.load(key)
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        self.0.swap(key, value, version)
    }
}

#[test]
fn a_configuration_is_told_once_for_all_workers_and_again_when_it_changes() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (mut store, mut told) = (MemoryStore::default(), Told::default());
    let limit = a.configure("nvidia", rules(60, 1), at(0), &mut store, &mut told);
    assert_eq!((told.configured, a.name(limit), a.name(LimitId(9))), (1, "nvidia", ""));
    b.configure("nvidia", rules(60, 1), at(0), &mut store, &mut told);
    assert_eq!(told.configured, 1);
    for scheduler in [&mut a, &mut b] {
        scheduler.configure("nvidia", rules(40, 1), at(1), &mut store, &mut told);
    }
    assert_eq!((told.configured, told.adopted), (2, 0));
}

#[test]
fn who_waits_is_left_alone_until_something_is_due() {
    let (mut scheduler, mut store) = (Scheduler::default(), Counted::default());
    let limit = scheduler.configure("nvidia", rules(60, 1), at(0), &mut store, &mut ());
    let from = origin(rules(60, 1));
    for id in 1..=2 {
        let request = RequestId(id);
        scheduler.arrive(limit, request, Priority::High, ModelKey::NONE, &from, A, at(0), &mut store, &mut ());
    }
    let before = store.1;
    assert_eq!(scheduler.wake(false, A, at(500), &mut store, &mut ()), []);
    assert_eq!(store.1, before, "the token comes in half a second");
    scheduler.wake(true, A, at(500), &mut store, &mut ());
    assert_eq!(store.1, before + 1, "another worker says that something has changed");
    assert_eq!(resumed(&scheduler.wake(false, A, at(1_000), &mut store, &mut ())), [2]);
    let after = store.1;
    scheduler.wake(true, A, at(1_001), &mut store, &mut ());
    assert_eq!(store.1, after, "nobody waits");
}

#[test]
fn an_answer_is_told_with_its_retries_and_what_it_does_to_the_pace() {
    let (mut scheduler, mut store, mut told) = (Scheduler::default(), MemoryStore::default(), Told::default());
    let limit = scheduler.configure("nvidia", rules(60, 4), at(0), &mut store, &mut told);
    let model = (ModelKey::NONE, ModelName::NONE);
    let served = Answer { granted_at: at(0), verdict: Verdict::Served, retry_after: None, model };
    let (snapshot, _) = scheduler.answer(limit, served, 0, at(0), &mut store, &mut told);
    let before = snapshot.expect("the store works").available;
    let (snapshot, _) = scheduler.answer(limit, served, 2, at(0), &mut store, &mut told);
    assert_eq!(snapshot.map(|snapshot| snapshot.available), Some(before.saturating_sub(2)));
    assert!(told.retreats.is_empty());
    let refused = Answer { verdict: Verdict::Throttled, ..served };
    let (snapshot, _) = scheduler.answer(limit, refused, 0, at(1), &mut store, &mut told);
    assert!(snapshot.is_some_and(|snapshot| snapshot.rate < MilliRpm::from_rpm(60)));
    assert_eq!(told.retreats.len(), 1);
    assert_eq!(scheduler.answer(LimitId(9), served, 0, at(1), &mut store, &mut told), (None, None));
}

#[test]
fn a_new_pace_wakes_whose_turn_is_next_and_is_told_once() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let (mut store, mut told) = (MemoryStore::default(), Told::default());
    let limit = a.configure("nvidia", rules(60, 1), at(0), &mut store, &mut told);
    b.configure("nvidia", rules(60, 1), at(0), &mut store, &mut told);
    let from = origin(rules(60, 1));
    for id in 1..=2 {
        let request = RequestId(id);
        a.arrive(limit, request, Priority::High, ModelKey::NONE, &from, A, at(0), &mut store, &mut told);
    }
    let model = (ModelKey::NONE, ModelName::NONE);
    let served = Answer { granted_at: at(0), verdict: Verdict::Served, retry_after: None, model };
    assert_eq!(b.answer(limit, served, 0, at(1), &mut store, &mut told).1, None);
    let refused = Answer { verdict: Verdict::Throttled, ..served };
    let (snapshot, wake) = b.answer(limit, refused, 0, at(2), &mut store, &mut told);
    assert_eq!((wake, told.retreats.len()), (Some(Action::Wake(A)), 1));
    let due = snapshot.and_then(|snapshot| snapshot.retreat_due_at).expect("it does not stay so for ever");
    for _ in 0..2 {
        b.look(limit, due, &mut store, &mut told);
        assert_eq!(told.retreats.len(), 2, "one step, told and written by who saw it first");
    }
}

#[test]
fn clients_that_are_refused_together_do_not_come_back_together() {
    for (wait, longest) in [(0, 2), (1, 2), (10, 12), (100, 111), (300, 300), (10_000, 300)] {
        let told = |request| retry_after_s(Micros::from_secs(wait), RequestId(request), at(5));
        let mut seconds: Vec<u64> = (0..200).map(told).collect();
        seconds.sort_unstable();
        seconds.dedup();
        let shortest = wait.clamp(1, 300);
        assert_eq!(seconds, (shortest..=longest).collect::<Vec<_>>(), "after a wait of {wait} s");
    }
}
