//! Order, looking ahead, and models set apart.

use super::*;
use crate::limit::rules::FALLBACK_WAIT_MAX;
use crate::priority::Priority;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const NORMAL: Lane = Lane::Queued(Priority::Normal);
const LOW: Lane = Lane::Queued(Priority::Low);

fn at(secs: u64) -> Instant {
    Instant::ZERO.after(Micros::from_secs(secs))
}

const BY_LEVEL: OrderRule = OrderRule::Static { aging: None };

fn request(id: u32, lane: Lane, model: ModelKey) -> Request {
    Request::new(RequestId(id), lane, model)
}

fn order(queue: &Queue, rule: OrderRule) -> Vec<u32> {
    let mut cursor = queue.in_order(rule, |_| true);
    core::iter::from_fn(|| cursor.advance()).map(|request| request.id.0).collect()
}

#[test]
fn by_level_then_by_arrival_and_fallback_last() {
    let mut queue = Queue::default();
    queue.push(request(1, LOW, ModelKey::NONE), at(0));
    queue.push(request(2, Lane::Fallback(Priority::Urgent), ModelKey::NONE), at(0));
    queue.push(request(3, NORMAL, ModelKey::NONE), at(1));
    queue.push(request(4, NORMAL, ModelKey::NONE), at(2));
    queue.push(request(5, Lane::Queued(Priority::Urgent), ModelKey::NONE), at(3));
    assert_eq!(order(&queue, BY_LEVEL), [5, 3, 4, 1, 2]);
}

#[test]
fn aging_gives_older_requests_a_lead() {
    let mut queue = Queue::default();
    queue.push(request(1, LOW, ModelKey::NONE), at(0));
    queue.push(request(2, NORMAL, ModelKey::NONE), at(9));
    queue.push(request(3, NORMAL, ModelKey::NONE), at(11));
    assert_eq!(order(&queue, OrderRule::Static { aging: Some(Micros::from_secs(10)) }), [2, 1, 3]);
    assert_eq!(order(&queue, OrderRule::Stepped { aging: Some(Micros::from_secs(10)), now: at(12) }), [1, 2, 3]);
}

#[test]
fn a_step_back_of_the_clock_keeps_the_order() {
    let mut queue = Queue::default();
    queue.push(request(1, NORMAL, ModelKey::NONE), at(5));
    let second = queue.push(request(2, NORMAL, ModelKey::NONE), at(1));
    assert_eq!(second.arrived, at(5));
    assert_eq!(order(&queue, BY_LEVEL), [1, 2]);
}

#[test]
fn leaving_from_the_middle_and_twice() {
    let mut queue = Queue::default();
    for id in 1..=3 {
        queue.push(request(id, NORMAL, ModelKey::NONE), at(u64::from(id)));
    }
    assert!(queue.remove(RequestId(2)).is_some());
    assert!(queue.remove(RequestId(2)).is_none());
    assert_eq!(order(&queue, BY_LEVEL), [1, 3]);
    assert_eq!(queue.in_order(BY_LEVEL, |_| true).counts()[NORMAL.index()], 2);
}

#[test]
fn looking_ahead_tells_what_remains() {
    let mut queue = Queue::default();
    queue.push(request(1, NORMAL, ModelKey::NONE), at(1));
    queue.push(request(2, NORMAL, ModelKey::NONE), at(2));
    let mut cursor = queue.in_order(BY_LEVEL, |_| true);
    cursor.advance();
    assert_eq!(cursor.counts()[NORMAL.index()], 1);
    assert_eq!(cursor.class_heads(), [Head { class: ModelKey::NONE, lane: NORMAL, arrived: at(2) }]);
    assert_eq!(queue.len(), 2);
}

#[test]
fn a_model_that_may_not_go_is_gone_past_and_still_counted() {
    const SLOW: ModelKey = ModelKey(7);
    let mut queue = Queue::default();
    queue.push(request(1, NORMAL, SLOW), at(1));
    queue.push(request(2, NORMAL, ModelKey(8)), at(2));
    queue.push(request(3, LOW, SLOW), at(3));
    queue.set_governed([SLOW].into_iter());
    let mut closed = queue.in_order(BY_LEVEL, |_| false);
    assert_eq!((closed.counts()[NORMAL.index()], closed.counts()[LOW.index()]), (2, 1));
    let head = |class, lane, arrived| Head { class, lane, arrived };
    assert_eq!(closed.class_heads(), [head(ModelKey::NONE, NORMAL, at(2)), head(SLOW, NORMAL, at(1))]);
    assert_eq!(closed.lane_heads(), [head(ModelKey::NONE, NORMAL, at(2))], "version 1 hears of those that may go");
    assert_eq!(closed.closed().collect::<Vec<_>>(), [SLOW]);
    assert_eq!(closed.advance().map(|request| request.id), Some(RequestId(2)));
    assert_eq!((closed.peek(), closed.advance()), (None, None));
    let mut open = queue.in_order(BY_LEVEL, |_| true);
    assert_eq!(open.lane_heads()[0], head(ModelKey::NONE, NORMAL, at(1)));
    assert_eq!(open.advance().map(|request| request.id), Some(RequestId(1)));
    open.close(SLOW);
    assert_eq!(open.advance().map(|request| request.id), Some(RequestId(2)));
    assert_eq!(open.advance(), None);
    queue.push(request(4, NORMAL, SLOW), at(5));
    queue.set_governed([].into_iter());
    assert_eq!(order(&queue, BY_LEVEL), [1, 2, 4, 3]);
}

#[test]
fn an_arrival_that_finds_no_place_is_taken_out_of_what_is_published() {
    const SLOW: ModelKey = ModelKey(7);
    let mut queue = Queue::default();
    queue.push(request(1, NORMAL, ModelKey(8)), at(1));
    queue.set_governed([SLOW].into_iter());
    let arrival = queue.push(request(2, NORMAL, SLOW), at(2));
    let mut cursor = queue.in_order(BY_LEVEL, |_| true);
    cursor.drop_newest(&arrival);
    let head = |class, lane, arrived| Head { class, lane, arrived };
    assert_eq!(cursor.class_heads(), [head(ModelKey::NONE, NORMAL, at(1))]);
    let outside = Lane::Fallback(Priority::Normal);
    cursor.add_newest(&Request { lane: outside, ..arrival });
    assert_eq!(cursor.class_heads(), [head(ModelKey::NONE, NORMAL, at(1)), head(SLOW, outside, at(2))]);
    assert_eq!((cursor.counts()[NORMAL.index()], cursor.counts()[outside.index()]), (1, 1));
}

#[test]
fn deadlines_are_the_shorter_of_the_rules_and_the_requests_own() {
    let timeouts = Timeouts { low: Micros::from_secs(30), others: Micros::from_secs(60), ..Timeouts::DEFAULT };
    let mut queue = Queue::new(timeouts);
    queue.push(request(1, NORMAL, ModelKey::NONE), at(0));
    queue.push(Request { max_wait: Micros::from_secs(7), ..request(2, NORMAL, ModelKey::NONE) }, at(1));
    queue.push(request(3, LOW, ModelKey::NONE), at(2));
    assert_eq!(queue.next_deadline(), Some(at(8)));
    assert_eq!(queue.take_expired(at(8)).iter().map(|request| request.id.0).collect::<Vec<_>>(), [2]);
    queue.set_timeouts(Timeouts { low: Micros::from_secs(5), ..timeouts });
    assert_eq!(queue.next_deadline(), Some(at(7)));
    queue.shift(RequestId(3), Lane::Fallback(Priority::High));
    assert_eq!(queue.next_deadline(), Some(at(2).after(FALLBACK_WAIT_MAX)));
    assert!(queue.remove(RequestId(3)).is_some());
    assert_eq!(queue.next_deadline(), Some(at(60)));
    assert_eq!((queue.take_expired(at(60)).len(), queue.is_empty(), queue.next_deadline()), (1, true, None));
}
