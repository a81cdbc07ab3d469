//! Order, looking ahead, and models set apart.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const NORMAL: Lane = Lane::Queued(Priority::Normal);
const LOW: Lane = Lane::Queued(Priority::Low);

fn at(secs: u64) -> Instant {
    Instant::ZERO.after(Micros::from_secs(secs))
}

fn order(queue: &Queue, now: Instant, aging: Option<Micros>) -> Vec<u32> {
    let mut cursor = queue.in_order(now, aging, |_| true);
    core::iter::from_fn(|| cursor.advance()).map(|w| w.request.0).collect()
}

#[test]
fn by_level_then_by_arrival_and_fallback_last() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), LOW, ModelKey::NONE, at(0));
    queue.push(RequestId(2), Lane::Fallback(Priority::Urgent), ModelKey::NONE, at(0));
    queue.push(RequestId(3), NORMAL, ModelKey::NONE, at(1));
    queue.push(RequestId(4), NORMAL, ModelKey::NONE, at(2));
    queue.push(RequestId(5), Lane::Queued(Priority::Urgent), ModelKey::NONE, at(3));
    assert_eq!(order(&queue, at(4), None), [5, 3, 4, 1, 2]);
}

#[test]
fn aging_moves_up_one_level_a_step() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), LOW, ModelKey::NONE, at(0));
    queue.push(RequestId(2), NORMAL, ModelKey::NONE, at(5));
    let aging = Some(Micros::from_secs(10));
    assert_eq!(order(&queue, at(9), aging), [2, 1]);
    assert_eq!(order(&queue, at(10), aging), [1, 2]);
}

#[test]
fn a_step_back_of_the_clock_keeps_the_order() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), NORMAL, ModelKey::NONE, at(5));
    let second = queue.push(RequestId(2), NORMAL, ModelKey::NONE, at(1));
    assert_eq!(second.arrived, at(5));
    assert_eq!(order(&queue, at(5), None), [1, 2]);
}

#[test]
fn leaving_from_the_middle_and_twice() {
    let mut queue = Queue::default();
    for id in 1..=3 {
        queue.push(RequestId(id), NORMAL, ModelKey::NONE, at(u64::from(id)));
    }
    assert!(queue.remove(RequestId(2)).is_some());
    assert!(queue.remove(RequestId(2)).is_none());
    assert_eq!(order(&queue, at(9), None), [1, 3]);
    assert_eq!(queue.in_order(at(0), None, |_| true).heads()[NORMAL.index()], LaneHead { count: 2, since: at(1) });
}

#[test]
fn looking_ahead_tells_what_remains() {
    let mut queue = Queue::default();
    queue.push(RequestId(1), NORMAL, ModelKey::NONE, at(1));
    queue.push(RequestId(2), NORMAL, ModelKey::NONE, at(2));
    let mut cursor = queue.in_order(at(3), None, |_| true);
    cursor.advance();
    assert_eq!(cursor.heads()[NORMAL.index()], LaneHead { count: 1, since: at(2) });
    assert_eq!(queue.len(), 2);
}

#[test]
fn a_model_whose_turn_it_is_not_is_gone_past_and_still_counted() {
    const SLOW: ModelKey = ModelKey(7);
    let mut queue = Queue::default();
    queue.push(RequestId(1), NORMAL, SLOW, at(1));
    queue.push(RequestId(2), NORMAL, ModelKey(8), at(2));
    queue.push(RequestId(3), LOW, SLOW, at(3));
    queue.set_apart([SLOW].into_iter());
    let mut closed = queue.in_order(at(4), None, |_| false);
    assert_eq!(closed.heads()[NORMAL.index()], LaneHead { count: 2, since: at(2) });
    assert_eq!(closed.heads()[LOW.index()], LaneHead { count: 1, since: NEVER });
    assert_eq!(closed.advance().map(|w| w.request), Some(RequestId(2)));
    assert_eq!((closed.peek(), closed.advance()), (None, None));
    let mut open = queue.in_order(at(4), None, |_| true);
    assert_eq!(open.advance().map(|w| w.request), Some(RequestId(1)));
    open.close(SLOW);
    assert_eq!(open.advance().map(|w| w.request), Some(RequestId(2)));
    assert_eq!(open.advance(), None);
    assert_eq!(queue.front(NORMAL).map(|w| w.request), Some(RequestId(1)));
    queue.push(RequestId(4), NORMAL, SLOW, at(5));
    assert_eq!(queue.waiting_apart().collect::<Vec<_>>(), [SLOW]);
    queue.set_apart([].into_iter());
    assert_eq!(order(&queue, at(6), None), [1, 2, 4, 3]);
    assert_eq!(queue.waiting_apart().count(), 0);
}

#[test]
fn a_group_says_nothing_of_lanes_in_which_it_has_none() {
    const SLOW: ModelKey = ModelKey(7);
    let mut queue = Queue::default();
    assert!(queue.is_empty());
    queue.set_apart([SLOW].into_iter());
    queue.push(RequestId(1), NORMAL, ModelKey(8), at(2));
    assert!(!queue.is_empty());
    assert_eq!(queue.waiting_apart().count(), 0);
    queue.push(RequestId(2), LOW, SLOW, at(3));
    for open in [false, true] {
        let heads = queue.in_order(at(4), None, |_| open).heads();
        assert_eq!(heads[NORMAL.index()], LaneHead { count: 1, since: at(2) });
    }
}
