//! What waits in this worker: one first-in-first-out line for each lane.
//!
//! A stream can be resumed only by the VM that holds it, so each worker keeps its own requests; what the other workers
//! must know of them, counts and the foremost of each lane, goes onto the ledger's board. All requests of a lane have
//! the same patience, so the foremost of a lane is also the first to expire, and no second structure is needed for
//! deadlines. Every operation costs O(log n).

use crate::models::ModelKey;
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
    /// The model it asks for.
    pub model: ModelKey,
}

/// What the board says of one lane of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneHead {
    /// How many wait.
    pub count: u32,
    /// Since when the foremost waits; [`NEVER`] if none of them may go now; meaningless when `count` is 0.
    pub since: Instant,
}

/// The `since` of a lane in which everybody waits for their model's turn.
pub const NEVER: Instant = Instant::from_micros(u64::MAX);

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

type Lanes = [BTreeMap<u64, Waiting>; LANES];

/// The waiting requests of one worker for one limit.
///
/// Requests for models that are slowed stand apart, so that a decision goes past all of one model in one step, however
/// many they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    lanes: Lanes,
    slowed: Vec<(ModelKey, Lanes)>,
    places: HashMap<RequestId, (Lane, u64, ModelKey)>,
    next_place: u64,
    newest: Instant,
}

impl Queue {
    /// Puts a request at the end of its lane and returns it as it waits there.
    ///
    /// The time of arrival is moved forward to the latest one seen if the clock stepped back, so that order in the lane
    /// and order of arrival are always the same. A request that waits already is first taken out.
    pub fn push(&mut self, request: RequestId, lane: Lane, model: ModelKey, now: Instant) -> Waiting {
        self.remove(request);
        self.newest = self.newest.max(now);
        self.insert(Waiting { request, arrived: self.newest, lane, model })
    }

    /// Moves a request to the end of another lane; it keeps its time of arrival.
    pub fn shift(&mut self, request: RequestId, lane: Lane) {
        if let Some(waiting) = self.remove(request) {
            self.insert(Waiting { lane, ..waiting });
        }
    }

    /// Takes a request out, wherever it stands.
    pub fn remove(&mut self, request: RequestId) -> Option<Waiting> {
        let (lane, place, model) = self.places.remove(&request)?;
        self.group_of(model).get_mut(lane.index())?.remove(&place)
    }

    /// Sets the requests of these models apart, and no others. It costs something only when the models have changed.
    pub fn set_apart(&mut self, models: impl Iterator<Item = ModelKey> + Clone) {
        if models.clone().eq(self.slowed.iter().map(|(model, _)| *model)) {
            return;
        }
        for (_, lanes) in core::mem::take(&mut self.slowed) {
            for (to, from) in self.lanes.iter_mut().zip(lanes) {
                to.extend(from);
            }
        }
        for model in models {
            let mut apart = Lanes::default();
            for (to, from) in apart.iter_mut().zip(&mut self.lanes) {
                let theirs: Vec<u64> =
                    from.iter().filter(|(_, waiting)| waiting.model == model).map(|(place, _)| *place).collect();
                to.extend(theirs.into_iter().filter_map(|place| Some((place, from.remove(&place)?))));
            }
            self.slowed.push((model, apart));
        }
    }

    /// The models set apart of which someone waits here.
    pub fn waiting_apart(&self) -> impl Iterator<Item = ModelKey> {
        self.slowed.iter().filter(|(_, lanes)| lanes.iter().any(|lane| !lane.is_empty())).map(|(model, _)| *model)
    }

    /// The requests from the first to be served to the last, as the order is at `now`. Of the models set apart, only
    /// those that are `open` are in it.
    pub fn in_order(&self, now: Instant, aging: Option<Micros>, open: impl Fn(ModelKey) -> bool) -> InOrder<'_> {
        let slowed: Vec<Group<'_>> = self
            .slowed
            .iter()
            .map(|(model, lanes)| Group { open: open(*model), ..Group::new(*model, lanes) })
            .collect();
        InOrder { rest: Group::new(ModelKey::NONE, &self.lanes), slowed, now, aging }
    }

    /// The foremost request of a lane, whether it may go now or not.
    pub fn front(&self, lane: Lane) -> Option<&Waiting> {
        self.groups()
            .filter_map(|lanes| lanes.get(lane.index())?.iter().next())
            .min_by_key(|(place, _)| **place)
            .map(|(_, waiting)| waiting)
    }

    /// All of them, lane by lane.
    pub fn all(&self) -> impl Iterator<Item = &Waiting> {
        self.groups().flatten().flat_map(BTreeMap::values)
    }

    /// A request as it waits; `None` if it does not.
    pub fn get(&self, request: RequestId) -> Option<&Waiting> {
        let (lane, place, model) = self.places.get(&request)?;
        let apart = self.slowed.iter().find(|(slowed, _)| slowed == model);
        apart.map_or(&self.lanes, |(_, lanes)| lanes).get(lane.index())?.get(place)
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
        if let Some(lane) = self.group_of(waiting.model).get_mut(waiting.lane.index()) {
            lane.insert(place, waiting);
            self.places.insert(waiting.request, (waiting.lane, place, waiting.model));
        }
        waiting
    }

    fn groups(&self) -> impl Iterator<Item = &Lanes> {
        core::iter::once(&self.lanes).chain(self.slowed.iter().map(|(_, lanes)| lanes))
    }

    fn group_of(&mut self, model: ModelKey) -> &mut Lanes {
        match self.slowed.iter().position(|(slowed, _)| *slowed == model).and_then(|at| self.slowed.get_mut(at)) {
            Some((_, lanes)) => lanes,
            None => &mut self.lanes,
        }
    }
}

/// The waiting requests in the order of service, without taking them out: a decision can look ahead, and be made again
/// on a fresh ledger, before anything is changed.
pub struct InOrder<'a> {
    rest: Group<'a>,
    slowed: Vec<Group<'a>>,
    now: Instant,
    aging: Option<Micros>,
}

/// The requests of a model set apart, or of all the others.
struct Group<'a> {
    model: ModelKey,
    open: bool,
    lanes: [btree_map::Values<'a, u64, Waiting>; LANES],
    heads: [LaneHead; LANES],
}

impl<'a> Group<'a> {
    fn new(model: ModelKey, lanes: &'a Lanes) -> Self {
        let heads = lanes.each_ref().map(|lane| LaneHead {
            count: u32::try_from(lane.len()).unwrap_or(u32::MAX),
            since: lane.values().next().map(|w| w.arrived).unwrap_or_default(),
        });
        Self { model, open: true, lanes: lanes.each_ref().map(|lane| lane.values()), heads }
    }

    fn advance(&mut self, lane: Lane) -> Option<Waiting> {
        let values = self.lanes.get_mut(lane.index())?;
        let head = self.heads.get_mut(lane.index())?;
        let passed = values.next().copied()?;
        head.count = head.count.saturating_sub(1);
        head.since = values.clone().next().map(|w| w.arrived).unwrap_or_default();
        Some(passed)
    }
}

impl InOrder<'_> {
    /// The place of the next request.
    pub fn peek(&self) -> Option<OrderKey> {
        let slowed = self.slowed.iter().filter(|group| group.open);
        slowed
            .chain([&self.rest])
            .filter_map(|group| best(&group.heads, self.now, self.aging))
            .map(|(key, _)| key)
            .min()
    }

    /// Goes past the next request and returns it.
    pub fn advance(&mut self) -> Option<Waiting> {
        let (now, aging) = (self.now, self.aging);
        let slowed = self.slowed.iter_mut().filter(|group| group.open);
        let (_, lane, group) = slowed
            .chain([&mut self.rest])
            .filter_map(|group| best(&group.heads, now, aging).map(|(key, lane)| (key, lane, group)))
            .min_by_key(|(key, ..)| *key)?;
        group.advance(lane)
    }

    /// Leaves the rest of a model's requests out: its turn is over.
    pub fn close(&mut self, model: ModelKey) {
        for group in self.slowed.iter_mut().filter(|group| group.model == model) {
            group.open = false;
        }
    }

    /// What the board is to say of those not yet gone past.
    pub fn heads(&self) -> [LaneHead; LANES] {
        let mut heads = self.rest.heads;
        for group in &self.slowed {
            for (sum, head) in heads.iter_mut().zip(&group.heads).filter(|(_, head)| head.count > 0) {
                let theirs = if group.open { head.since } else { NEVER };
                sum.since = if sum.count == 0 { theirs } else { sum.since.min(theirs) };
                sum.count = sum.count.saturating_add(head.count);
            }
        }
        heads
    }
}

/// The best of the foremost requests of all lanes, and its lane.
pub fn best(heads: &[LaneHead; LANES], now: Instant, aging: Option<Micros>) -> Option<(OrderKey, Lane)> {
    Lane::ALL
        .into_iter()
        .zip(heads)
        .filter(|(_, head)| head.count > 0 && head.since != NEVER)
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
#[path = "queue/tests.rs"]
mod tests;
