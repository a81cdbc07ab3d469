//! The grant rule, seen from two workers and more.

use super::*;
use crate::control::answer::Signal;
use crate::event::Event;
use crate::model::ModelName;
use crate::order::peers::{Head, LINE_TTL, WORKERS_MAX};
use crate::priority::Priority;
use crate::units::RequestId;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[path = "slowed_tests.rs"]
mod slowed;

const RULES: Rules = Rules {
    capacity: 2,
    queue_max: 3,
    window: Micros::ZERO,
    retreat: RetreatRules { base: MilliRpm::from_rpm(60), ..RetreatRules::DEFAULT },
    ..Rules::DEFAULT
};
const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

/// Puts a request into a worker's queue and asks for its turn; takes the granted ones out of the queue.
fn arrive(ledger: &mut Ledger, worker: WorkerId, queue: &mut Queue, id: u32, priority: Priority, now: Instant) -> Turn {
    let arrival = queue.push(request(id, Lane::Queued(priority)), now);
    take_turn(ledger, worker, queue, Some(arrival), now)
}

fn request(id: u32, lane: Lane) -> Request {
    Request::new(RequestId(id), lane, ModelKey::NONE)
}

fn take_turn(ledger: &mut Ledger, worker: WorkerId, queue: &mut Queue, arrival: Option<Request>, now: Instant) -> Turn {
    ledger.advance(now, &mut Vec::new());
    let (turn, _) = ledger.turn(worker, queue, Held::default(), arrival.as_ref(), now, &mut Vec::new());
    for (request, _) in &turn.granted {
        queue.remove(request.id);
    }
    if let (Some(arrival), Admission::Refused) = (arrival, turn.admission) {
        queue.remove(arrival.id);
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
    assert_eq!((third.granted.len(), third.admission, third.look_again_at), (0, Admission::Queued, Some(at(1_000))));
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
    assert!(ledger.peers().lines().is_empty());
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
    assert_eq!(ledger.peers().totals().iter().sum::<u32>(), 1);
    take_turn(&mut ledger, A, &mut a, None, at(0).after(LINE_TTL));
    assert_eq!(ledger.peers().totals().iter().sum::<u32>(), 0, "a silent worker's requests no longer count");
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
        assert_eq!(arrive(&mut ledger, A, &mut a, id, Priority::Low, at(0)).admission, Admission::Queued);
    }
    assert_eq!(arrive(&mut ledger, B, &mut b, 3, Priority::Urgent, at(0)).admission, Admission::Queued);
    assert_eq!(arrive(&mut ledger, B, &mut b, 4, Priority::Urgent, at(0)).admission, Admission::Refused);
    assert_eq!(ledger.peers().totals().iter().sum::<u32>(), 3);
}

#[test]
fn outside_a_full_queue_there_is_as_much_room_again() {
    let mut ledger = Ledger::new(Rules { may_fall_back: true, ..RULES }, 0, at(0));
    let mut queue = Queue::default();
    let mut admissions = Vec::new();
    for id in 1..=7 {
        let arrival = queue.push(request(id, Lane::Queued(Priority::High)), at(0));
        let turn = take_turn(&mut ledger, A, &mut queue, Some(arrival), at(0));
        if let Admission::Fallback(lane) = turn.admission {
            queue.shift(RequestId(id), lane);
        }
        admissions.push(turn.admission);
    }
    let fallback = Admission::Fallback(Lane::Fallback(Priority::High));
    assert_eq!(admissions[..3], [Admission::Queued; 3]);
    assert_eq!(admissions[3..6], [fallback; 3]);
    assert_eq!(admissions[6], Admission::Refused);
    // A queued request that comes later still goes before those outside.
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(1_000)).granted.len(), 1);
    arrive(&mut ledger, A, &mut queue, 9, Priority::Low, at(1_001));
    let order: Vec<u32> = {
        let mut order = queue.in_order(OrderRule::Static { aging: None }, |_| true);
        core::iter::from_fn(|| order.advance()).map(|request| request.id.0).collect()
    };
    assert_eq!(order, [2, 3, 9, 4, 5, 6]);
}

#[test]
fn a_pause_that_the_upstream_asked_for_holds_everyone() {
    let mut ledger = Ledger::new(RULES, 2, at(0));
    let answer = Answer {
        granted_at: at(0),
        signal: Signal::Throttled,
        retry_after: Some(Micros::from_secs(7)),
        model: (ModelKey::NONE, ModelName::NONE),
    };
    let mut events = Vec::new();
    ledger.answer(answer, at(0), &mut events);
    assert!(matches!(events[..], [Event::RateChanged(_)]));
    let mut queue = Queue::default();
    let turn = arrive(&mut ledger, A, &mut queue, 1, Priority::Urgent, at(1));
    assert_eq!((turn.granted.len(), turn.look_again_at), (0, Some(at(7_000))));
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(7_000)).granted.len(), 1);
}

#[test]
fn new_rules_keep_the_level_as_far_as_it_fits() {
    let mut ledger = Ledger::new(Rules { capacity: 10, ..RULES }, 10, at(0));
    ledger.adopt(Rules { capacity: 4, ..RULES }, at(0), &mut Vec::new());
    assert_eq!(ledger.bucket().available(), 4);
    ledger.adopt(Rules { capacity: 10, ..RULES }, at(0), &mut Vec::new());
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
            odd.advance(Instant::from_micros(u64::MAX), &mut Vec::new());
            odd.turn(B, &queue, Held::default(), None, Instant::ZERO, &mut Vec::new());
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
    assert!(ledger.peers().lines().len() <= WORKERS_MAX);
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

/// However seldom anyone looks: the bucket holds one, and two have come.
#[test]
fn what_is_owed_is_paid_before_the_bucket_is_full() {
    let rules = Rules { capacity: 1, ..RULES };
    for looks in [&[2_000][..], &[500, 1_000, 1_500, 2_000]] {
        let mut ledger = Ledger::new(rules, 0, at(0));
        ledger.charge(1);
        looks.iter().for_each(|millis| ledger.advance(at(*millis), &mut Vec::new()));
        assert_eq!(ledger.snapshot(at(2_000)).available, 1);
    }
}

#[test]
fn retries_count_in_the_window() {
    let window = Micros::from_secs(3);
    let rules = Rules { window, capacity: 3, retreat: RetreatRules { window, ..RULES.retreat }, ..RULES };
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
    assert_eq!(turn.granted.iter().map(|(request, _)| request.id.0).collect::<Vec<_>>(), [1, 2]);
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
    ledger.adopt(Rules { queue_max: 1, ..RULES }, at(0), &mut Vec::new());
    // It is served before all of them, so that the queue is too long does not matter to it.
    let urgent = arrive(&mut ledger, A, &mut queue, 4, Priority::Urgent, at(1_000));
    assert_eq!((urgent.granted.len(), urgent.admission), (1, Admission::Queued));
    assert_eq!(ledger.peers().totals().iter().sum::<u32>(), 3);
    // One of them is served, which makes no room for this one.
    let low = arrive(&mut ledger, A, &mut queue, 5, Priority::Low, at(2_000));
    assert_eq!((low.granted.len(), low.admission), (1, Admission::Refused));
    assert_eq!(ledger.peers().totals().iter().sum::<u32>(), 2);
}

#[test]
fn others_see_since_when_a_request_waits_outside_the_queue() {
    let mut ledger = Ledger::new(Rules { queue_max: 2, may_fall_back: true, ..RULES }, 0, at(0));
    let mut queue = Queue::default();
    let lane = Lane::Fallback(Priority::High);
    for (id, admission) in
        [(1, Admission::Queued), (2, Admission::Queued), (3, Admission::Fallback(lane)), (4, Admission::Fallback(lane))]
    {
        let turn = arrive(&mut ledger, A, &mut queue, id, Priority::High, at(u64::from(id)));
        assert_eq!(turn.admission, admission);
        if admission != Admission::Queued {
            queue.shift(RequestId(id), lane);
            let load = &ledger.peers().lines()[0].load;
            assert_eq!(load.counts[lane.index()], id - 2);
            let head = Head { class: ModelKey::NONE, lane: Lane::Queued(Priority::High), arrived: at(1) };
            assert_eq!(load.heads, [head], "those in the queue are ahead of it");
        }
    }
}

#[test]
fn a_lone_request_outside_the_queue_is_its_workers_head_of_line() {
    let mut ledger = Ledger::new(Rules { queue_max: 0, may_fall_back: true, ..RULES }, 0, at(0));
    let mut queue = Queue::default();
    assert_eq!(arrive(&mut ledger, A, &mut queue, 1, Priority::High, at(0)).admission, Admission::Refused);
    let mut ledger = Ledger::new(Rules { queue_max: 1, may_fall_back: true, ..RULES }, 0, at(0));
    let mut other = Queue::default();
    arrive(&mut ledger, B, &mut other, 1, Priority::Low, at(0));
    let lane = Lane::Fallback(Priority::High);
    assert_eq!(arrive(&mut ledger, A, &mut queue, 2, Priority::High, at(5)).admission, Admission::Fallback(lane));
    let head = Head { class: ModelKey::NONE, lane, arrived: at(5) };
    assert_eq!(ledger.peers().lines()[0].load.heads, [head]);
}

#[test]
fn requests_in_flight_are_limited_over_all_workers() {
    let rules = Rules { max_in_flight: Some(2), capacity: 10, queue_max: 10, ..RULES };
    let mut ledger = Ledger::new(rules, 10, at(0));
    let (mut a, mut b) = (Queue::default(), Queue::default());
    let turn = |ledger: &mut Ledger, worker, queue: &mut Queue, in_flight| {
        ledger.advance(at(1), &mut Vec::new());
        let (turn, changed) =
            ledger.turn(worker, queue, Held { in_flight, ..Held::default() }, None, at(1), &mut Vec::new());
        for (request, _) in &turn.granted {
            queue.remove(request.id);
        }
        (turn.granted.len(), turn.wake, turn.look_again_at.is_some(), changed)
    };
    for id in 1..=3 {
        a.push(request(id, Lane::Queued(Priority::Low)), at(0));
        b.push(request(id, Lane::Queued(Priority::Normal)), at(0));
    }
    assert_eq!(turn(&mut ledger, A, &mut a, 0).0, 2, "two slots, and nobody else is known to wait");
    assert_eq!(turn(&mut ledger, B, &mut b, 0), (0, None, true, true), "no slot is free");
    assert_eq!(ledger.snapshot(at(1)).in_flight, Some((2, 2)));
    let ended = turn(&mut ledger, A, &mut a, 1);
    assert_eq!((ended.0, ended.1), (0, Some(B)), "one ended: the slot is for the best, which is woken");
    assert_eq!(turn(&mut ledger, B, &mut b, 0).0, 1);
    assert_eq!(turn(&mut ledger, B, &mut b, 1).0, 0);
    // A worker that is gone holds its slots until its line expires.
    ledger.advance(at(1).after(LINE_TTL), &mut Vec::new());
    let mut events = Vec::new();
    let (granted, _) =
        ledger.turn(B, &b, Held { in_flight: 1, ..Held::default() }, None, at(1).after(LINE_TTL), &mut events);
    assert!(events.contains(&Event::WorkerExpired { worker: A, waiting: 1, in_flight: 1 }), "{events:?}");
    assert_eq!(granted.granted.len(), 1);
}
