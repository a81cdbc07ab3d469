//! What waits in this worker: one first-in-first-out line for each lane.
//!
//! A stream can be resumed only by the VM that holds it, so each worker keeps its own requests; what the other workers
//! must know of them, counts and the foremost of each lane, goes onto the ledger's board. All requests of a lane have
//! the same patience, so the foremost of a lane is also the first to expire, and no second structure is needed for
//! deadlines. Every operation costs O(log n).

use crate::priority::{LANES, Lane, Priority};
use crate::units::{Instant, Micros, RequestId};
use hashbrown::HashMap;
use std::collections::{BTreeMap, btree_map};

/// A request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Whose it is.
    pub request: RequestId,
    /// When it was complete and asked for a token.
    pub arrived: Instant,
    /// Where it waits.
    pub lane: Lane,
}

/// What the board says of one lane of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneHead {
    /// How many wait.
    pub count: u32,
    /// Since when the foremost waits; meaningless when `count` is 0.
    pub since: Instant,
}

/// The place of a request in the order of the whole process. Lower goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OrderKey {
    rank: u8,
    arrived: Instant,
}

impl OrderKey {
    /// The place of a request that has waited in `lane` since `arrived`. With `aging`, a queued request moves up one
    /// level for each such span it has waited; it stays behind no one of that level who came later.
    pub fn new(lane: Lane, arrived: Instant, now: Instant, aging: Option<Micros>) -> Self {
        let base = lane.index() as u64;
        let climbed = match aging {
            Some(step) if lane.is_queued() => now.since(arrived).get().checked_div(step.get()).unwrap_or(0),
            _ => 0,
        };
        Self { rank: u8::try_from(base.saturating_sub(climbed)).unwrap_or(u8::MAX), arrived }
    }
}

/// The waiting requests of one worker for one limit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    lanes: [BTreeMap<u64, Waiting>; LANES],
    places: HashMap<RequestId, (Lane, u64)>,
    next_place: u64,
    newest: Instant,
}

impl Queue {
    /// Puts a request at the end of its lane and returns it as it waits there.
    ///
    /// The time of arrival is moved forward to the latest one seen if the clock stepped back, so that order in the lane
    /// and order of arrival are always the same. A request that waits already is first taken out.
    pub fn push(&mut self, request: RequestId, lane: Lane, now: Instant) -> Waiting {
        self.remove(request);
        self.newest = self.newest.max(now);
        self.insert(Waiting { request, arrived: self.newest, lane })
    }

    /// Moves a request to the end of another lane; it keeps its time of arrival.
    pub fn shift(&mut self, request: RequestId, lane: Lane) {
        if let Some(waiting) = self.remove(request) {
            self.insert(Waiting { lane, ..waiting });
        }
    }

    /// Takes a request out, wherever it stands.
    pub fn remove(&mut self, request: RequestId) -> Option<Waiting> {
        let (lane, place) = self.places.remove(&request)?;
        self.lanes.get_mut(lane.index())?.remove(&place)
    }

    /// The requests from the first to be served to the last, as the order is at `now`.
    pub fn in_order(&self, now: Instant, aging: Option<Micros>) -> InOrder<'_> {
        InOrder { lanes: self.lanes.each_ref().map(|lane| lane.values()), heads: self.heads(), now, aging }
    }

    /// The foremost request of a lane.
    pub fn front(&self, lane: Lane) -> Option<&Waiting> {
        self.lanes.get(lane.index())?.values().next()
    }

    /// What the board is to say of this worker.
    pub fn heads(&self) -> [LaneHead; LANES] {
        self.lanes.each_ref().map(|lane| LaneHead {
            count: u32::try_from(lane.len()).unwrap_or(u32::MAX),
            since: lane.values().next().map(|w| w.arrived).unwrap_or_default(),
        })
    }

    /// All of them, lane by lane.
    pub fn all(&self) -> impl Iterator<Item = &Waiting> {
        self.lanes.iter().flat_map(BTreeMap::values)
    }

    /// A request as it waits; `None` if it does not.
    pub fn get(&self, request: RequestId) -> Option<&Waiting> {
        let (lane, place) = self.places.get(&request)?;
        self.lanes.get(lane.index())?.get(place)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn insert(&mut self, waiting: Waiting) -> Waiting {
        let place = self.next_place;
        self.next_place = self.next_place.saturating_add(1);
        if let Some(lane) = self.lanes.get_mut(waiting.lane.index()) {
            lane.insert(place, waiting);
            self.places.insert(waiting.request, (waiting.lane, place));
        }
        waiting
    }
}

/// The waiting requests in the order of service, without taking them out: a decision can look ahead, and be made again
/// on a fresh ledger, before anything is changed.
pub struct InOrder<'a> {
    lanes: [btree_map::Values<'a, u64, Waiting>; LANES],
    heads: [LaneHead; LANES],
    now: Instant,
    aging: Option<Micros>,
}

impl InOrder<'_> {
    /// The place of the next request.
    pub fn peek(&self) -> Option<OrderKey> {
        best(&self.heads, self.now, self.aging).map(|(key, _)| key)
    }

    /// Goes past the next request and returns it.
    pub fn advance(&mut self) -> Option<Waiting> {
        let (_, lane) = best(&self.heads, self.now, self.aging)?;
        let values = self.lanes.get_mut(lane.index())?;
        let head = self.heads.get_mut(lane.index())?;
        let passed = values.next().copied()?;
        head.count = head.count.saturating_sub(1);
        head.since = values.clone().next().map(|w| w.arrived).unwrap_or_default();
        Some(passed)
    }

    /// What the board is to say of those not yet gone past.
    pub fn heads(&self) -> [LaneHead; LANES] {
        self.heads
    }
}

/// The best of the foremost requests of all lanes, and its lane.
pub fn best(heads: &[LaneHead; LANES], now: Instant, aging: Option<Micros>) -> Option<(OrderKey, Lane)> {
    Lane::ALL
        .into_iter()
        .zip(heads)
        .filter(|(_, head)| head.count > 0)
        .map(|(lane, head)| (OrderKey::new(lane, head.since, now, aging), lane))
        .min_by_key(|(key, _)| *key)
}

/// How long a request may wait in each lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For `low`, in and outside the queue.
    pub low: Micros,
    /// For the other levels in the queue.
    pub others: Micros,
}

impl Patience {
    /// The longest wait in `lane`.
    pub fn of(&self, lane: Lane) -> Micros {
        match lane {
            Lane::Queued(Priority::Low) | Lane::Fallback(Priority::Low) => self.low,
            Lane::Queued(_) => self.others,
            Lane::Fallback(_) => FALLBACK_WAIT_MAX,
        }
    }
}

/// How long requests other than `low` wait outside a full queue, as in the Python sidecar.
pub const FALLBACK_WAIT_MAX: Micros = Micros::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const NORMAL: Lane = Lane::Queued(Priority::Normal);
    const LOW: Lane = Lane::Queued(Priority::Low);

    fn at(secs: u64) -> Instant {
        Instant::ZERO.after(Micros::from_secs(secs))
    }

    fn order(queue: &Queue, now: Instant, aging: Option<Micros>) -> Vec<u32> {
        let mut cursor = queue.in_order(now, aging);
        core::iter::from_fn(|| cursor.advance()).map(|w| w.request.0).collect()
    }

    #[test]
    fn by_level_then_by_arrival_and_fallback_last() {
        let mut queue = Queue::default();
        queue.push(RequestId(1), LOW, at(0));
        queue.push(RequestId(2), Lane::Fallback(Priority::Urgent), at(0));
        queue.push(RequestId(3), NORMAL, at(1));
        queue.push(RequestId(4), NORMAL, at(2));
        queue.push(RequestId(5), Lane::Queued(Priority::Urgent), at(3));
        assert_eq!(order(&queue, at(4), None), [5, 3, 4, 1, 2]);
    }

    #[test]
    fn aging_moves_up_one_level_a_step() {
        let mut queue = Queue::default();
        queue.push(RequestId(1), LOW, at(0));
        queue.push(RequestId(2), NORMAL, at(5));
        let aging = Some(Micros::from_secs(10));
        assert_eq!(order(&queue, at(9), aging), [2, 1]);
        assert_eq!(order(&queue, at(10), aging), [1, 2]);
    }

    #[test]
    fn a_step_back_of_the_clock_keeps_the_order() {
        let mut queue = Queue::default();
        queue.push(RequestId(1), NORMAL, at(5));
        let second = queue.push(RequestId(2), NORMAL, at(1));
        assert_eq!(second.arrived, at(5));
        assert_eq!(order(&queue, at(5), None), [1, 2]);
    }

    #[test]
    fn leaving_from_the_middle_and_twice() {
        let mut queue = Queue::default();
        for id in 1..=3 {
            queue.push(RequestId(id), NORMAL, at(u64::from(id)));
        }
        assert!(queue.remove(RequestId(2)).is_some());
        assert!(queue.remove(RequestId(2)).is_none());
        assert_eq!(order(&queue, at(9), None), [1, 3]);
        assert_eq!(queue.heads()[NORMAL.index()], LaneHead { count: 2, since: at(1) });
    }

    #[test]
    fn looking_ahead_tells_what_remains() {
        let mut queue = Queue::default();
        queue.push(RequestId(1), NORMAL, at(1));
        queue.push(RequestId(2), NORMAL, at(2));
        let mut cursor = queue.in_order(at(3), None);
        cursor.advance();
        assert_eq!(cursor.heads()[NORMAL.index()], LaneHead { count: 1, since: at(2) });
        assert_eq!(queue.len(), 2);
    }
}
