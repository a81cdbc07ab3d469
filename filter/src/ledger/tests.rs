//! The grant rule, seen from two workers and more.

use super::board::{SLOT_TTL, WORKERS_MAX};
use super::*;
use crate::models::ModelName;
use crate::pace::Verdict;
use crate::priority::Priority;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[path = "slowed_tests.rs"]
mod slowed;

const RULES: Rules = Rules {
    capacity: 2,
    queue_max: 3,
    aging: None,
    window: Micros::ZERO,
    patience: Patience { low: Micros::from_secs(30), others: Micros::from_secs(120) },
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
};
const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

/// Puts a request into a worker's queue and asks for its turn; takes the granted ones out of the queue.
fn arrive(ledger: &mut Ledger, worker: WorkerId, queue: &mut Queue, id: u32, priority: Priority, now: Instant) -> Turn {
    let waiting = queue.push(RequestId(id), Lane::Queued(priority), ModelKey::NONE, now);
    let arrival = Arrival::from(waiting);
    take_turn(ledger, worker, queue, Some(arrival), now)
}

fn take_turn(ledger: &mut Ledger, worker: WorkerId, queue: &mut Queue, arrival: Option<Arrival>, now: Instant) -> Turn {
    ledger.advance(now);
    let (turn, _) = ledger.turn(worker, queue, arrival, now);
    for waiting in &turn.granted {
        queue.remove(waiting.request);
    }
    if let (Some(arrival), Place::Refused) = (arrival, turn.place) {
        queue.remove(arrival.request);
    }
    assert_ne!(turn.wake, Some(worker), "it is awake");
    assert_eq!(Ledger::decode(&ledger.encode()).as_ref(), Some(&*ledger), "the record reads as it was written");
    turn
}

#[test]
fn a_token_that_is_there_goes_at_once() {
    let mut ledger = Ledger::new(RULES, 2, at(0));
    let mut queue = Queue::default();
    for id in 1..=2 {
        assert_eq!(arrive(&mut ledger, A, &mut queue, id, Priority::Low, at(0)).granted.len(), 1);
    }
    let third = arrive(&mut ledger, A, &mut queue, 3, Priority::Urgent, at(0));
    assert_eq!((third.granted.len(), third.place, third.look_again_at), (0, Place::Queued, Some(at(1_000))));
}

#[test]
fn the_best_request_of_all_workers_is_served_first() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    let low = arrive(&mut ledger, A, &mut a, 1, Priority::Low, at(0));
    assert_eq!(low.look_again_at, Some(at(1_000)));
    let urgent = arrive(&mut ledger, B, &mut b, 2, Priority::Urgent, at(10));
    assert_eq!(urgent.look_again_at, Some(at(1_000)), "the best looks when the token is there");
    assert_eq!(ledger.due_worker(), Some(B));
    let early = take_turn(&mut ledger, A, &mut a, None, at(20));
    assert_eq!(early.look_again_at, Some(at(1_000).after(GRACE)), "the others a grace later");

    let too_early = take_turn(&mut ledger, A, &mut a, None, at(1_000));
    assert_eq!((too_early.granted.len(), too_early.wake), (0, Some(B)), "not its turn, but it wakes whose turn it is");
    assert_eq!(too_early.look_again_at, Some(at(1_000).after(GRACE)));

    let due = take_turn(&mut ledger, B, &mut b, None, at(1_001));
    assert_eq!((due.granted.len(), due.wake), (1, Some(A)), "and the next best learns that it is now the best");
    assert_eq!(take_turn(&mut ledger, A, &mut a, None, at(2_000)).granted.len(), 1);
    assert!(ledger.board().slots().is_empty());
}

#[test]
fn within_a_level_who_came_first_goes_first_whichever_worker_holds_it() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    arrive(&mut ledger, B, &mut b, 1, Priority::Normal, at(1));
    arrive(&mut ledger, A, &mut a, 2, Priority::Normal, at(2));
    assert_eq!(take_turn(&mut ledger, A, &mut a, None, at(1_000)).granted.len(), 0);
    assert_eq!(take_turn(&mut ledger, B, &mut b, None, at(1_000)).granted.len(), 1);
}

#[test]
fn a_worker_that_does_not_come_is_passed_over_once_and_then_taken_off() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut dead) = (Queue::default(), Queue::default());
    arrive(&mut ledger, B, &mut dead, 1, Priority::Urgent, at(0));
    for id in 2..=3 {
        arrive(&mut ledger, A, &mut a, id, Priority::Normal, at(0));
    }
    let grace_over = at(1_000).after(GRACE);
    let too_early = take_turn(&mut ledger, A, &mut a, None, at(1_029));
    assert_eq!(
        (too_early.granted.len(), too_early.look_again_at),
        (0, Some(grace_over)),
        "only the rest of the grace is left"
    );
    assert_eq!(take_turn(&mut ledger, A, &mut a, None, grace_over).granted.len(), 1);
    assert_eq!(
        take_turn(&mut ledger, A, &mut a, None, at(2_000)).granted.len(),
        1,
        "the stall costs one grace, not two"
    );
    assert_eq!(ledger.board().totals().iter().sum::<u32>(), 1);
    take_turn(&mut ledger, A, &mut a, None, at(0).after(SLOT_TTL));
    assert_eq!(ledger.board().totals().iter().sum::<u32>(), 0, "a silent worker's requests no longer count");
}

#[test]
fn a_worker_that_was_passed_over_counts_again_as_soon_as_it_speaks() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    arrive(&mut ledger, B, &mut b, 1, Priority::Urgent, at(0));
    arrive(&mut ledger, A, &mut a, 2, Priority::Normal, at(0));
    take_turn(&mut ledger, A, &mut a, None, at(1_050));
    assert_eq!(take_turn(&mut ledger, B, &mut b, None, at(1_060)).granted.len(), 0, "the token is gone");
    arrive(&mut ledger, A, &mut a, 3, Priority::Normal, at(1_500));
    assert_eq!(take_turn(&mut ledger, A, &mut a, None, at(2_000)).wake, Some(B));
    assert_eq!(take_turn(&mut ledger, B, &mut b, None, at(2_000)).granted.len(), 1);
}

#[test]
fn the_bound_counts_all_workers() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    for id in 1..=2 {
        assert_eq!(arrive(&mut ledger, A, &mut a, id, Priority::Low, at(0)).place, Place::Queued);
    }
    assert_eq!(arrive(&mut ledger, B, &mut b, 3, Priority::Urgent, at(0)).place, Place::Queued);
    assert_eq!(arrive(&mut ledger, B, &mut b, 4, Priority::Urgent, at(0)).place, Place::Refused);
    assert_eq!(ledger.board().totals().iter().sum::<u32>(), 3);
}

#[test]
fn outside_a_full_queue_there_is_as_much_room_again() {
    let mut ledger = Ledger::new(Rules { may_fall_back: true, ..RULES }, 0, at(0));
    let mut queue = Queue::default();
    let mut places = Vec::new();
    for id in 1..=7 {
        let waiting = queue.push(RequestId(id), Lane::Queued(Priority::High), ModelKey::NONE, at(0));
        let arrival = Arrival::from(waiting);
        let turn = take_turn(&mut ledger, A, &mut queue, Some(arrival), at(0));
        if let Place::Fallback(lane) = turn.place {
            queue.shift(RequestId(id), lane);
        }
        places.push(turn.place);
    }
    let fallback = Place::Fallback(Lane::Fallback(Priority::High));
    assert_eq!(places[..3], [Place::Queued; 3]);
    assert_eq!(places[3..6], [fallback; 3]);
    assert_eq!(places[6], Place::Refused);
    // A queued request that comes later still goes before those outside.
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(1_000)).granted.len(), 1);
    arrive(&mut ledger, A, &mut queue, 9, Priority::Low, at(1_001));
    let order: Vec<u32> = {
        let mut order = queue.in_order(at(1_001), None, |_| true);
        core::iter::from_fn(|| order.advance()).map(|w| w.request.0).collect()
    };
    assert_eq!(order, [2, 3, 9, 4, 5, 6]);
}

#[test]
fn a_pause_that_the_upstream_asked_for_holds_everyone() {
    let mut ledger = Ledger::new(RULES, 2, at(0));
    let answer = Answer {
        granted_at: at(0),
        verdict: Verdict::Throttled,
        retry_after: Some(Micros::from_secs(7)),
        model: (ModelKey::NONE, ModelName::NONE),
    };
    assert!(ledger.answer(answer, at(0)).is_some());
    let mut queue = Queue::default();
    let turn = arrive(&mut ledger, A, &mut queue, 1, Priority::Urgent, at(1));
    assert_eq!((turn.granted.len(), turn.look_again_at), (0, Some(at(7_000))));
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(7_000)).granted.len(), 1);
}

#[test]
fn new_rules_keep_the_level_as_far_as_it_fits() {
    let mut ledger = Ledger::new(Rules { capacity: 10, ..RULES }, 10, at(0));
    ledger.adopt(Rules { capacity: 4, ..RULES }, at(0));
    assert_eq!(ledger.bucket().available(), 4);
    ledger.adopt(Rules { capacity: 10, ..RULES }, at(0));
    assert_eq!(ledger.bucket().available(), 4, "a larger bucket is not filled for free");
}

#[test]
fn what_is_no_record_is_refused_and_nothing_panics() {
    let mut ledger = Ledger::new(RULES, 1, at(0));
    let mut queue = Queue::default();
    arrive(&mut ledger, A, &mut queue, 1, Priority::Low, at(0));
    arrive(&mut ledger, A, &mut queue, 2, Priority::Low, at(0));
    let bytes = ledger.encode();
    for cut in 0..bytes.len() {
        assert_eq!(Ledger::decode(&bytes[..cut]), None, "cut at {cut}");
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0xff;
        // Whatever this reads as, it must be usable.
        if let Some(mut odd) = Ledger::decode(&flipped) {
            odd.advance(Instant::from_micros(u64::MAX));
            odd.turn(B, &queue, None, Instant::ZERO);
            odd.encode();
        }
    }
    assert_eq!(Ledger::decode(&vec![0xff; 100_000]), None);
}

#[test]
fn more_workers_than_the_board_has_lines_do_no_harm() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    for worker in 0..WORKERS_MAX as u32 + 10 {
        let mut queue = Queue::default();
        arrive(&mut ledger, WorkerId(worker + 1), &mut queue, 1, Priority::Low, at(0));
    }
    assert!(ledger.board().slots().len() <= WORKERS_MAX);
}

#[test]
fn retries_are_paid_with_the_next_tokens() {
    let mut ledger = Ledger::new(RULES, 1, at(0));
    let mut queue = Queue::default();
    ledger.charge(2);
    // One was there, the next is owed, and the one after it is ours.
    assert_eq!(arrive(&mut ledger, A, &mut queue, 1, Priority::Urgent, at(0)).look_again_at, Some(at(2_000)));
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(1_000)).granted.len(), 0);
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(2_000)).granted.len(), 1);
    ledger.charge(1_000);
    let next = arrive(&mut ledger, A, &mut queue, 2, Priority::Urgent, at(2_000)).look_again_at;
    assert_eq!(next, Some(at(5_000)), "no more is owed than the bucket holds");
}

#[test]
fn retries_count_in_the_window() {
    let rules = Rules { window: Micros::from_secs(3), capacity: 3, ..RULES };
    let mut ledger = Ledger::new(rules, 3, at(0));
    let mut queue = Queue::default();
    assert_eq!(arrive(&mut ledger, A, &mut queue, 1, Priority::High, at(0)).granted.len(), 1);
    ledger.charge(2);
    let turn = arrive(&mut ledger, A, &mut queue, 2, Priority::High, at(2_500));
    assert!(turn.granted.is_empty() && turn.look_again_at > Some(at(3_000)));
}

#[test]
fn a_window_holds_what_the_rate_makes_of_it() {
    let quota = |rpm, window| {
        let retreat = RetreatRules { base: MilliRpm::from_rpm(rpm), ..RULES.retreat };
        Rules { window: Micros::from_secs(window), retreat, ..RULES }.window_rules().quota
    };
    assert_eq!([quota(60, 60), quota(60, 3), quota(40, 2), quota(1, 1)], [60, 3, 1, 1]);
}

#[test]
fn one_turn_serves_as_many_as_there_are_tokens() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let mut queue = Queue::default();
    for id in 1..=3 {
        arrive(&mut ledger, A, &mut queue, id, Priority::Normal, at(0));
    }
    let turn = take_turn(&mut ledger, A, &mut queue, None, at(2_000));
    assert_eq!(turn.granted.iter().map(|w| w.request.0).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn of_two_that_came_at_once_neither_waits_for_the_other() {
    let mut ledger = Ledger::new(RULES, 0, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    arrive(&mut ledger, A, &mut a, 1, Priority::Normal, at(0));
    arrive(&mut ledger, B, &mut b, 1, Priority::Normal, at(0));
    assert_eq!(take_turn(&mut ledger, A, &mut a, None, at(1_000)).granted.len(), 1);
    assert_eq!(take_turn(&mut ledger, B, &mut b, None, at(2_000)).granted.len(), 1);
}

#[test]
fn a_smaller_bound_refuses_none_that_waits_and_all_that_come() {
    let mut queue = Queue::default();
    let mut ledger = Ledger::new(RULES, 0, at(0));
    for id in 1..=3 {
        arrive(&mut ledger, A, &mut queue, id, Priority::Normal, at(0));
    }
    ledger.adopt(Rules { queue_max: 1, ..RULES }, at(0));
    // It is served before all of them, so that the queue is too long does not matter to it.
    let urgent = arrive(&mut ledger, A, &mut queue, 4, Priority::Urgent, at(1_000));
    assert_eq!((urgent.granted.len(), urgent.place), (1, Place::Queued));
    assert_eq!(ledger.board().totals().iter().sum::<u32>(), 3);
    // One of them is served, which makes no room for this one.
    let low = arrive(&mut ledger, A, &mut queue, 5, Priority::Low, at(2_000));
    assert_eq!((low.granted.len(), low.place), (1, Place::Refused));
    assert_eq!(ledger.board().totals().iter().sum::<u32>(), 2);
}

#[test]
fn others_see_since_when_a_request_waits_outside_the_queue() {
    let mut ledger = Ledger::new(Rules { queue_max: 2, may_fall_back: true, ..RULES }, 0, at(0));
    let mut queue = Queue::default();
    let lane = Lane::Fallback(Priority::High);
    for (id, place) in [(1, Place::Queued), (2, Place::Queued), (3, Place::Fallback(lane)), (4, Place::Fallback(lane))]
    {
        let turn = arrive(&mut ledger, A, &mut queue, id, Priority::High, at(u64::from(id)));
        assert_eq!(turn.place, place);
        if place != Place::Queued {
            queue.shift(RequestId(id), lane);
            let head = ledger.board().slots()[0].lanes[lane.index()];
            assert_eq!((head.count, head.since), (id - 2, at(3)));
        }
    }
}

#[test]
fn a_record_is_written_into_as_much_memory_as_it_takes() {
    let mut ledger = Ledger::new(RULES, 1, at(0));
    for number in 0..1_000 {
        let model = (ModelKey(number), ModelName::new("nvidia/m"));
        ledger.answer(Answer { granted_at: at(0), verdict: Verdict::Served, retry_after: None, model }, at(0));
    }
    for worker in 1..=3 {
        let record = ledger.encode();
        assert_eq!((ledger.models().slowed().len(), record.capacity()), (0, record.len()));
        arrive(&mut ledger, WorkerId(worker), &mut Queue::default(), 1, Priority::Low, at(0));
    }
}
