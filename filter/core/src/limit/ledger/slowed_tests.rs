//! The grant rule where a model is slowed by itself.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn weak() -> (ModelKey, ModelName) {
    (ModelKey::of("nvidia/weak"), ModelName::new("nvidia/weak"))
}

/// A ledger with `tokens` in the bucket, on which one model is slowed, and when that model's turn is.
fn with_slowed(tokens: u32) -> (Ledger, Instant) {
    let mut ledger = Ledger::new(RULES, tokens, at(0));
    let full = Answer { granted_at: at(0), signal: Signal::WorkersFull, retry_after: None, model: weak() };
    ledger.answer(full, at(0), &mut Vec::new());
    assert_eq!(ledger.models().slowed().iter().map(|slowed| slowed.key).collect::<Vec<_>>(), [weak().0]);
    let opens = ledger.models().open_at(weak().0);
    assert!(opens > at(1_000), "later than the next token");
    (ledger, opens)
}

/// A queue with requests for these models, in this order, as a worker has it that knows which are slowed.
fn queue_of(models: &[ModelKey]) -> Queue {
    let mut queue = Queue::default();
    for (id, model) in (1..).zip(models) {
        queue.push(Request::new(RequestId(id), Lane::Queued(Priority::Normal), *model), at(0));
    }
    queue.set_governed(core::iter::once(weak().0));
    queue
}

#[test]
fn its_requests_go_one_at_a_time_each_when_its_turn_is() {
    let (mut ledger, opens) = with_slowed(2);
    let mut queue = queue_of(&[weak().0, weak().0]);
    let before = take_turn(&mut ledger, A, &mut queue, None, at(0));
    assert_eq!((before.granted.len(), before.look_again_at), (0, Some(opens)), "tokens are there, its turn is not");
    let first = take_turn(&mut ledger, A, &mut queue, None, opens);
    assert_eq!(first.granted.len(), 1, "of two tokens one, since its next turn is later");
    let next = ledger.models().open_at(weak().0);
    assert!(next > opens);
    assert_eq!(first.look_again_at, Some(next));
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, next).granted.len(), 1);
}

#[test]
fn others_go_past_it() {
    let (mut ledger, opens) = with_slowed(0);
    let other = ModelKey::of("nvidia/other");
    let mut queue = queue_of(&[weak().0, other, other]);
    let before = take_turn(&mut ledger, A, &mut queue, None, at(0));
    assert_eq!((before.granted.len(), before.look_again_at), (0, Some(at(1_000))), "the next token is for the others");
    let turn = take_turn(&mut ledger, A, &mut queue, None, at(2_000));
    assert_eq!(turn.granted.iter().map(|(request, _)| request.id.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(turn.look_again_at, Some(opens));
}

#[test]
fn when_its_turn_is_there_it_waits_for_a_token_like_the_others() {
    let (mut ledger, opens) = with_slowed(0);
    ledger.advance(opens, &mut Vec::new());
    while ledger.bucket().is_ready() {
        ledger.charge(1);
    }
    let mut queue = queue_of(&[weak().0]);
    let turn = take_turn(&mut ledger, A, &mut queue, None, opens);
    assert!(turn.granted.is_empty());
    let token_at = turn.look_again_at.unwrap();
    assert!(token_at > opens, "nothing is to be done before");
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, token_at).granted.len(), 1);
}

#[test]
fn when_it_opens_the_best_of_all_workers_goes_first_like_any_other() {
    let (mut ledger, opens) = with_slowed(2);
    let levels = [Priority::High, Priority::Urgent];
    let mut queues: Vec<Queue> = levels
        .iter()
        .map(|level| {
            let mut queue = Queue::default();
            queue.push(Request::new(RequestId(1), Lane::Queued(*level), weak().0), at(0));
            queue.set_governed(core::iter::once(weak().0));
            queue
        })
        .collect();
    for (worker, queue) in [A, B].into_iter().zip(&mut queues) {
        assert_eq!(take_turn(&mut ledger, worker, queue, None, at(0)).granted.len(), 0);
    }
    // Worker A looks first when the model may go again, but the urgent request is at B.
    let first = take_turn(&mut ledger, A, &mut queues[0], None, opens);
    assert_eq!((first.granted.len(), first.wake, first.look_again_at), (0, Some(B), Some(opens.after(GRACE))));
    assert_eq!(take_turn(&mut ledger, B, &mut queues[1], None, opens).granted.len(), 1);
}

#[test]
fn a_request_outside_the_queue_beside_slowed_ones_looks_for_its_own_token() {
    let (mut ledger, opens) = with_slowed(0);
    let mut queue = Queue::default();
    let lane = Lane::Fallback(Priority::Normal);
    queue.push(Request::new(RequestId(1), lane, weak().0), at(0));
    queue.push(Request::new(RequestId(2), lane, ModelKey::of("nvidia/other")), at(0));
    queue.set_governed(core::iter::once(weak().0));
    assert!(opens > at(1_000));
    assert_eq!(take_turn(&mut ledger, A, &mut queue, None, at(0)).look_again_at, Some(at(1_000)));
}
