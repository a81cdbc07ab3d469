//! What a scheduler reports, and that it leaves the store alone where nothing is due.

use super::*;
use crate::control::rate::{Phase, Transition};
use crate::limit::record::tlv;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn configured(events: &[Happened]) -> usize {
    events.iter().filter(|(_, event)| matches!(event, Event::RulesConfigured { .. })).count()
}

fn rate_changes(events: &[Happened]) -> Vec<Transition> {
    let of = |(_, event): &Happened| match event {
        Event::RateChanged(transition) => Some(*transition),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn answer(granted_at: Instant, signal: Signal) -> Answer {
    Answer { granted_at, signal, retry_after: None, model: (ModelKey::NONE, ModelName::NONE) }
}

/// Counts how often it is read, and its clock.
#[derive(Default)]
struct Counted(MemoryStore, u32, u32);

impl Store for Counted {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.1 += 1;
        self.0.load(key)
    }
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        self.0.swap(key, value, version)
    }
    fn now(&mut self) -> Instant {
        self.2 += 1;
        self.0.now
    }
}

#[test]
fn a_configuration_is_told_once_for_all_workers_and_again_when_it_changes() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let mut store = MemoryStore::at(at(0));
    let (limit, events) = a.configure("nvidia", rules(60, 1), &mut store);
    assert_eq!((configured(&events), a.name(limit), a.name(LimitId(9))), (1, "nvidia", ""));
    assert_eq!(configured(&b.configure("nvidia", rules(60, 1), &mut store).1), 0);
    let again: usize = [&mut a, &mut b]
        .into_iter()
        .map(|each| configured(&each.configure("nvidia", rules(40, 1), &mut store).1))
        .sum();
    assert_eq!(again, 1);
}

#[test]
fn who_waits_is_left_alone_until_something_is_due() {
    let (mut scheduler, mut store) = (Scheduler::default(), Counted::default());
    store.0.now = at(0);
    let (limit, _) = scheduler.configure("nvidia", rules(60, 1), &mut store);
    for id in 1..=2 {
        scheduler.arrive(limit, request(id, Priority::High), A, &mut store);
    }
    let before = store.1;
    store.0.now = at(500);
    assert_eq!(scheduler.wake(false, A, &mut store), Output::default());
    assert_eq!(store.1, before, "the token comes in half a second");
    scheduler.wake(true, A, &mut store);
    assert_eq!(store.1, before + 1, "another worker says that something has changed");
    store.0.now = at(1_000);
    assert_eq!(resumed(&scheduler.wake(false, A, &mut store).actions), [2]);
    let after = store.1;
    scheduler.wake(true, A, &mut store);
    assert_eq!(store.1, after, "nobody waits");
}

#[test]
fn a_timer_costs_one_look_at_the_clock_and_may_be_early() {
    let (mut scheduler, mut store) = (Scheduler::default(), Counted::default());
    store.0.now = at(0);
    let (limit, _) = scheduler.configure("nvidia", rules(60, 1), &mut store);
    for id in 1..=2 {
        scheduler.arrive(limit, request(id, Priority::High), A, &mut store);
    }
    let due = scheduler.next_wakeup().expect("somebody waits");
    assert_eq!(due, at(1_000));

    store.0.now = at(999);
    assert_eq!(scheduler.fired(due, A, &mut store).actions, [], "the token is not there yet");
    assert_eq!(scheduler.next_wakeup(), Some(due));

    (store.0.now, store.2) = (due, 0);
    assert_eq!(resumed(&scheduler.fired(due, A, &mut store).actions), [2]);
    assert_eq!(store.2, 1, "looks at the clock");

    // Where nothing is due by then the present has to be known, since it may be later than that.
    store.2 = 0;
    scheduler.fired(at(500), A, &mut store);
    assert_eq!(store.2, 1, "looks at the clock");

    // What becomes due between the first thing and the firing of the timer is done by the same.
    let (other, _) = scheduler.configure("other", rules(600, 1), &mut store);
    for id in 3..=4 {
        scheduler.arrive(other, request(id, Priority::High), A, &mut store);
    }
    store.0.now = at(1_101);
    assert_eq!(resumed(&scheduler.fired(at(1_099), A, &mut store).actions), [4]);
}

/// Whoever arms a timer takes the time that was read last for the present. A refusal was once told from the time for which
/// the timer had been armed, and then the next one was armed too late.
#[test]
fn a_timer_reads_the_clock_even_where_the_store_refuses() {
    struct Refusing(Counted, bool);
    impl Store for Refusing {
        fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
            if self.1 { Err(StoreError::Unavailable) } else { self.0.load(key) }
        }
        fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
            self.0.swap(key, value, version)
        }
        fn now(&mut self) -> Instant {
            self.0.now()
        }
    }
    // A look at the ledger because someone waits, and one for the gauges' sake when nobody does.
    for waiting in [1, 0] {
        let (mut scheduler, mut store) = (Scheduler::default(), Refusing(Counted::default(), false));
        store.0.0.now = at(0);
        let (limit, _) = scheduler.configure("nvidia", rules(60, 1), &mut store);
        for id in 0..=waiting {
            scheduler.arrive(limit, request(id, Priority::High), A, &mut store);
        }
        assert_eq!(scheduler.waiting(limit), waiting as usize);
        let due = scheduler.next_wakeup().expect("the bucket is not full");
        store.1 = true;
        (store.0.0.now, store.0.2) = (due.after(Micros::from_millis(7)), 0);
        let output = scheduler.fired(due, A, &mut store);
        assert_eq!(output.events, [(limit, Event::StoreFailed)]);
        assert!(store.0.2 > 0, "the clock is read, with {waiting} waiting");
    }
}

/// A token comes only each minute. Whoever waits looks all the same: otherwise the others take its line for that of a
/// worker that is gone, and a rate that has risen is not noticed.
#[test]
fn who_waits_looks_at_least_each_heartbeat() {
    let (mut scheduler, mut store) = (Scheduler::default(), Counted::default());
    store.0.now = at(0);
    let (limit, _) = scheduler.configure("nvidia", rules(1, 1), &mut store);
    for id in 1..=2 {
        scheduler.arrive(limit, request(id, Priority::High), A, &mut store);
    }
    while scheduler.waiting(limit) > 0 {
        let (now, next) = (store.0.now, scheduler.next_wakeup().expect("somebody waits"));
        assert!(now < next && next <= now.after(HEARTBEAT), "at {now:?} the next look is at {next:?}");
        let looks = store.1;
        store.0.now = next;
        let actions = scheduler.wake(false, A, &mut store).actions;
        assert!(store.1 > looks, "it wakes and does not look");
        assert_eq!(resumed(&actions).is_empty(), next < at(60_000));
    }
    assert_eq!(store.0.now, at(60_000));
}

/// Nothing is held in shadow mode, but its figures are those of the limit as it would be.
#[test]
fn in_shadow_mode_refusals_slow_down_all_the_same() {
    let (mut scheduler, mut store) = (Scheduler::default(), MemoryStore::at(at(0)));
    let (limit, _) = scheduler.configure("nvidia", Rules { shadow: true, ..rules(60, 2) }, &mut store);
    let refused = Answer { retry_after: Some(Micros::from_secs(20)), ..answer(at(0), Signal::Throttled) };
    let output = scheduler.answer(limit, refused, 0, &mut store);
    let (snapshot, _) = output.snapshot.expect("the store works");
    assert!(snapshot.rate < MilliRpm::from_rpm(60));
    assert_eq!((rate_changes(&output.events).len(), snapshot.token_at), (1, at(20_000)));
    for (id, now) in [(1, 1_000), (2, 19_999)] {
        store.now = at(now);
        let output = scheduler.arrive(limit, request(id, Priority::High), A, &mut store);
        let goes = (resumed(&output.actions), scheduler.waiting(limit));
        assert_eq!(goes, (vec![id], id as usize), "it goes, and would wait");
    }
    store.now = at(20_000);
    scheduler.wake(false, A, &mut store);
    assert_eq!(scheduler.waiting(limit), 1, "the gate is half open: one at a time");
}

#[test]
fn an_answer_is_told_with_its_retries_and_what_it_does_to_the_rate() {
    let (mut scheduler, mut store) = (Scheduler::default(), MemoryStore::at(at(0)));
    let (limit, _) = scheduler.configure("nvidia", rules(60, 4), &mut store);
    let served = answer(at(0), Signal::Served);
    let available = |output: &Output| output.snapshot.map(|(snapshot, _)| snapshot.available);
    let before = available(&scheduler.answer(limit, served, 0, &mut store)).expect("the store works");
    let output = scheduler.answer(limit, served, 2, &mut store);
    assert_eq!(available(&output), Some(before - 2));
    assert_eq!(available(&scheduler.charge(limit, 1, &mut store)), Some(before - 3));
    assert_eq!(scheduler.charge(limit, 0, &mut store), Output::default());
    assert_eq!(rate_changes(&output.events), []);
    store.now = at(1);
    let first = scheduler.answer(limit, answer(at(0), Signal::Throttled), 0, &mut store);
    assert_eq!(rate_changes(&first.events), [], "a single refusal says too little");
    let output = scheduler.answer(limit, answer(at(0), Signal::Throttled), 0, &mut store);
    assert!(output.snapshot.is_some_and(|(snapshot, _)| snapshot.rate < MilliRpm::from_rpm(60)));
    assert_eq!(rate_changes(&output.events).len(), 1);
    assert_eq!(scheduler.answer(LimitId(9), served, 0, &mut store), Output::default());
}

#[test]
fn a_new_rate_wakes_who_is_next_and_is_told_once() {
    let (mut a, mut b) = (Scheduler::default(), Scheduler::default());
    let mut store = MemoryStore::at(at(0));
    let (limit, _) = a.configure("nvidia", rules(60, 1), &mut store);
    b.configure("nvidia", rules(60, 1), &mut store);
    for id in 1..=2 {
        a.arrive(limit, request(id, Priority::High), A, &mut store);
    }
    store.now = at(1);
    assert_eq!(b.answer(limit, answer(at(0), Signal::Served), 0, &mut store).actions, []);
    store.now = at(2);
    assert_eq!(b.answer(limit, answer(at(0), Signal::Throttled), 0, &mut store).actions, []);
    let output = b.answer(limit, answer(at(0), Signal::Throttled), 0, &mut store);
    assert_eq!((&output.actions[..], rate_changes(&output.events).len()), (&[Action::Wake(A)][..], 1));
    let due = output.snapshot.and_then(|(snapshot, _)| snapshot.retreat_due_at).expect("it does not stay so for ever");
    store.now = due;
    let looks: Vec<Transition> = (0..2).flat_map(|_| rate_changes(&b.look(limit, &mut store).events)).collect();
    assert_eq!(looks.len(), 1, "one step, told and written by who saw it first");
}

/// The log has all that changes a state: whatever answers come, following it leads to the state that is there.
#[test]
fn whoever_follows_the_events_knows_the_states() {
    let names = ["nvidia/a", "nvidia/b", "meta/c"].map(|name| (ModelKey::of(name), ModelName::new(name)));
    let many: Vec<(ModelKey, ModelName)> =
        (0..40).map(|number| format!("x/{number}")).map(|name| (ModelKey::of(&name), ModelName::new(&name))).collect();
    let mut seed = 1u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut pardons, mut forgotten) = (0, 0);
    for run in 0..30 {
        let (mut scheduler, mut store) = (Scheduler::default(), MemoryStore::at(at(0)));
        let (limit, _) = scheduler.configure("nvidia", rules(60, 4), &mut store);
        let (mut account, mut slowed) = (Phase::Normal, std::collections::BTreeMap::new());
        for _ in 0..400 {
            store.now = store.now.after(Micros::from_millis(random(4_000)));
            let granted_at = store.now;
            let model = if run % 3 == 0 { many[random(40) as usize] } else { names[random(3) as usize] };
            let signal = match random(10) {
                0..=4 => Signal::Served,
                5..=7 if run % 2 == 0 || model == names[0] => Signal::Throttled,
                8 => Signal::WorkersFull,
                _ => Signal::Served,
            };
            let answer = Answer { granted_at, signal, retry_after: None, model };
            for change in rate_changes(&scheduler.answer(limit, answer, 0, &mut store).events) {
                pardons +=
                    u32::from(change.model.is_none() && change.reason == crate::control::rate::Reason::ModelRefused);
                forgotten += u32::from(change.reason == crate::control::rate::Reason::Forgotten);
                match change.model {
                    None => {
                        assert_eq!(change.from, account);
                        account = change.to;
                    }
                    Some(name) => {
                        let from = slowed.remove(name.as_str()).unwrap_or(Phase::Normal);
                        assert_eq!(change.from, from, "{change:?}");
                        if change.to != Phase::Normal {
                            slowed.insert(name.as_str().to_owned(), change.to);
                        }
                    }
                }
            }
            let (bytes, _) = store.load(&tlv::key("nvidia")).unwrap().unwrap();
            let ledger = Ledger::decode(&bytes).unwrap();
            assert_eq!(ledger.retreat().phase(), account);
            let is: std::collections::BTreeMap<String, Phase> = ledger
                .models()
                .slowed()
                .iter()
                .map(|slowed| (slowed.name.as_str().to_owned(), slowed.retreat.phase()))
                .collect();
            assert_eq!(is, slowed);
        }
    }
    assert!(pardons > 0 && forgotten > 0, "both kinds were played: {pardons}, {forgotten}");
}

#[test]
fn gauges_are_told_only_where_the_record_says_that_they_change() {
    let mut store = MemoryStore::at(at(0));
    let mut scheduler = Scheduler::default();
    let (limit, first) = scheduler.configure("nvidia", rules(60, 2), &mut store);
    let gauges = |events: &[Happened]| -> Vec<(Option<u32>, u32)> {
        let of = |(_, event): &Happened| match event {
            Event::GaugesChanged { before, after, .. } => Some((before.map(|shown| shown.available), after.available)),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    };
    assert_eq!(gauges(&first), [(None, 2)]);
    assert_eq!(gauges(&scheduler.arrive(limit, request(1, Priority::High), A, &mut store).events), [(Some(2), 1)]);
    store.now = at(10);
    assert_eq!(gauges(&scheduler.answer(limit, answer(at(0), Signal::Served), 0, &mut store).events), []);
    store.now = at(1_000);
    assert_eq!(gauges(&scheduler.look(limit, &mut store).events), [], "who only reads writes no gauge");
    store.now = scheduler.next_wakeup().expect("the gauge lags");
    assert_eq!(gauges(&scheduler.wake(false, A, &mut store).events), [(Some(1), 2)], "the bucket at rest is shown");
    assert_eq!(scheduler.next_wakeup(), None);
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
