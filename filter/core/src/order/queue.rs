//! What waits in this worker.
//!
//! A stream can be resumed only by the VM that holds it, so each worker keeps its own requests; what the other workers
//! must know of them, how many and the heads of line, is published in the ledger. Requests are kept by class and lane:
//! a class is a model whose own rate decides when its requests may go, or all other models together. So a decision goes
//! past any number of requests of a model that may not go in one step. Every operation costs O(log n).

use super::key::{OrderKey, OrderRule};
use super::peers::Head;
use crate::limit::rules::Timeouts;
use crate::model::ModelKey;
use crate::priority::{LANES, Lane};
use crate::request::Request;
use crate::units::{Instant, Micros, RequestId};
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet, btree_map};

/// The requests of one lane, by arrival.
type LaneRequests = BTreeMap<Seat, Request>;

/// A request's place in its lane: its arrival, and a number that settles ties.
type Seat = (Instant, u64);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Class {
    model: ModelKey,
    lanes: [LaneRequests; LANES],
}

impl Class {
    fn new(model: ModelKey) -> Self {
        Self { model, lanes: Default::default() }
    }
}

/// The waiting requests of one worker for one limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue {
    /// All models that are in no class of their own.
    free: Class,
    governed: Vec<Class>,
    seats: HashMap<RequestId, (Lane, Seat, ModelKey, Instant)>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    timeouts: Timeouts,
    next_seat: u64,
    newest: Instant,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(Timeouts { low: Micros::MAX, others: Micros::MAX, ..Timeouts::DEFAULT })
    }
}

impl Queue {
    pub fn new(timeouts: Timeouts) -> Self {
        Self {
            free: Class::new(ModelKey::NONE),
            governed: Vec::new(),
            seats: HashMap::new(),
            deadlines: BTreeSet::new(),
            timeouts,
            next_seat: 0,
            newest: Instant::ZERO,
        }
    }

    /// Puts a request at the end of its lane and returns it as it waits there, with its arrival and its deadline.
    ///
    /// The arrival is moved forward to the latest one seen if the clock stepped back, so that the order in a lane and the
    /// order of arrival are always the same. A request that waits already is first taken out.
    pub fn push(&mut self, request: Request, now: Instant) -> Request {
        self.remove(request.id);
        self.newest = self.newest.max(now);
        self.insert(Request { arrived: self.newest, ..request })
    }

    /// Moves a request to another lane; it keeps its time of arrival.
    pub fn shift(&mut self, id: RequestId, lane: Lane) {
        if let Some(request) = self.remove(id) {
            self.insert(Request { lane, ..request });
        }
    }

    /// Takes a request out, wherever it stands.
    pub fn remove(&mut self, id: RequestId) -> Option<Request> {
        let (lane, seat, model, deadline) = self.seats.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        self.class_of(model).lanes.get_mut(lane.index())?.remove(&seat)
    }

    /// Takes up the rules' timeouts, for those who wait too.
    pub(crate) fn set_timeouts(&mut self, timeouts: Timeouts) {
        if self.timeouts == timeouts {
            return;
        }
        self.timeouts = timeouts;
        self.deadlines.clear();
        let classes = core::iter::once(&mut self.free).chain(&mut self.governed);
        for request in classes.flat_map(|class| &mut class.lanes).flat_map(BTreeMap::values_mut) {
            request.deadline = deadline(timeouts, request);
            self.deadlines.insert((request.deadline, request.id));
            if let Some(seat) = self.seats.get_mut(&request.id) {
                seat.3 = request.deadline;
            }
        }
    }

    /// When the next wait ends without a token.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes out those whose deadline has come, the earliest first.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Request> {
        let mut expired = Vec::new();
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            // The set is the only place that names it if `remove` finds nothing, which never happens.
            self.deadlines.remove(&(at, id));
            expired.extend(self.remove(id));
        }
        expired
    }

    /// Gives these models, and no others, a class of their own. It costs something only when the models have changed.
    pub fn set_governed(&mut self, models: impl Iterator<Item = ModelKey> + Clone) {
        if models.clone().eq(self.governed.iter().map(|class| class.model)) {
            return;
        }
        for class in core::mem::take(&mut self.governed) {
            for (to, from) in self.free.lanes.iter_mut().zip(class.lanes) {
                to.extend(from);
            }
        }
        for model in models {
            let mut class = Class::new(model);
            for (to, from) in class.lanes.iter_mut().zip(&mut self.free.lanes) {
                let theirs: Vec<Seat> =
                    from.iter().filter(|(_, request)| request.model == model).map(|(seat, _)| *seat).collect();
                to.extend(theirs.into_iter().filter_map(|seat| Some((seat, from.remove(&seat)?))));
            }
            self.governed.push(class);
        }
    }

    /// The requests from the first to be served to the last. Of the models with a class of their own, only those that
    /// are `open` are among them.
    pub fn in_order(&self, rule: OrderRule, open: impl Fn(ModelKey) -> bool) -> InOrder<'_> {
        let governed = self.governed.iter().map(|class| Cursor { open: open(class.model), ..Cursor::new(class) });
        let classes = core::iter::once(Cursor::new(&self.free)).chain(governed).collect();
        InOrder { classes, rule }
    }

    /// All of them, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Request> {
        core::iter::once(&self.free).chain(&self.governed).flat_map(|class| &class.lanes).flat_map(BTreeMap::values)
    }

    /// A request as it waits; `None` if it does not.
    pub fn get(&self, id: RequestId) -> Option<&Request> {
        let (lane, seat, model, _) = self.seats.get(&id)?;
        let governed = self.governed.iter().find(|class| class.model == *model);
        governed.unwrap_or(&self.free).lanes.get(lane.index())?.get(seat)
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    fn insert(&mut self, request: Request) -> Request {
        let request = Request { deadline: deadline(self.timeouts, &request), ..request };
        let seat = (request.arrived, self.next_seat);
        self.next_seat = self.next_seat.saturating_add(1);
        if let Some(lane) = self.class_of(request.model).lanes.get_mut(request.lane.index()) {
            lane.insert(seat, request);
            self.seats.insert(request.id, (request.lane, seat, request.model, request.deadline));
            self.deadlines.insert((request.deadline, request.id));
        }
        request
    }

    fn class_of(&mut self, model: ModelKey) -> &mut Class {
        match self.governed.iter().position(|class| class.model == model).and_then(|at| self.governed.get_mut(at)) {
            Some(class) => class,
            None => &mut self.free,
        }
    }
}

/// When a request's wait ends: the lane's timeout or the request's own, whichever is shorter.
fn deadline(timeouts: Timeouts, request: &Request) -> Instant {
    request.arrived.after(timeouts.of(request.lane).min(request.max_wait))
}

/// The waiting requests in the order of service, without taking them out: a decision can look ahead, and be made again
/// on a fresh ledger, before anything is changed.
pub struct InOrder<'a> {
    classes: Vec<Cursor<'a>>,
    rule: OrderRule,
}

/// How far a decision has gone in one class.
struct Cursor<'a> {
    model: ModelKey,
    open: bool,
    lanes: [btree_map::Values<'a, Seat, Request>; LANES],
    counts: [u32; LANES],
    heads: [Option<Instant>; LANES],
}

impl<'a> Cursor<'a> {
    fn new(class: &'a Class) -> Self {
        Self {
            model: class.model,
            open: true,
            lanes: class.lanes.each_ref().map(BTreeMap::values),
            counts: class.lanes.each_ref().map(|lane| u32::try_from(lane.len()).unwrap_or(u32::MAX)),
            heads: class.lanes.each_ref().map(|lane| lane.first_key_value().map(|((arrived, _), _)| *arrived)),
        }
    }

    /// The best head of line of the class.
    fn best(&self, rule: OrderRule) -> Option<(OrderKey, Lane, Instant)> {
        let heads = Lane::ALL.into_iter().zip(self.heads);
        heads
            .filter_map(|(lane, head)| head.map(|arrived| (rule.key(lane, arrived), lane, arrived)))
            .min_by_key(|head| head.0)
    }

    fn advance(&mut self, lane: Lane) -> Option<Request> {
        let values = self.lanes.get_mut(lane.index())?;
        let passed = values.next().copied()?;
        if let Some(head) = self.heads.get_mut(lane.index()) {
            *head = values.clone().next().map(|request| request.arrived);
        }
        if let Some(count) = self.counts.get_mut(lane.index()) {
            *count = count.saturating_sub(1);
        }
        Some(passed)
    }
}

impl InOrder<'_> {
    /// The place of the next request.
    pub fn peek(&self) -> Option<OrderKey> {
        self.classes
            .iter()
            .filter(|class| class.open)
            .filter_map(|class| class.best(self.rule))
            .map(|head| head.0)
            .min()
    }

    /// Goes past the next request and returns it.
    pub fn advance(&mut self) -> Option<Request> {
        let rule = self.rule;
        let open = self.classes.iter_mut().filter(|class| class.open);
        let (_, lane, class) = open
            .filter_map(|class| class.best(rule).map(|(key, lane, _)| (key, lane, class)))
            .min_by_key(|(key, ..)| *key)?;
        class.advance(lane)
    }

    /// Leaves the rest of a model's requests out: it may not go any more.
    pub fn close(&mut self, model: ModelKey) {
        for class in self.classes.iter_mut().filter(|class| class.model == model && model != ModelKey::NONE) {
            class.open = false;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.counts.iter().all(|count| *count == 0))
    }

    /// The models that may not go and of which someone is left.
    pub fn closed(&self) -> impl Iterator<Item = ModelKey> {
        let closed = self.classes.iter().filter(|class| !class.open);
        closed.filter(|class| class.counts.iter().any(|count| *count > 0)).map(|class| class.model)
    }

    /// Leaves out the newest request of all, which is the last of its lane.
    pub(crate) fn drop_newest(&mut self, request: &Request) {
        if let Some((count, head)) = self.end_of_lane(request) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                *head = None;
            }
        }
    }

    /// Adds a request that is newer than all others at the end of its lane. [`InOrder::advance`] never comes to it.
    pub(crate) fn add_newest(&mut self, request: &Request) {
        if let Some((count, head)) = self.end_of_lane(request) {
            *count = count.saturating_add(1);
            head.get_or_insert(request.arrived);
        }
    }

    fn end_of_lane(&mut self, request: &Request) -> Option<(&mut u32, &mut Option<Instant>)> {
        let at = self.classes.iter().position(|class| class.model == request.model).unwrap_or(0);
        let (class, lane) = (self.classes.get_mut(at)?, request.lane.index());
        Some((class.counts.get_mut(lane)?, class.heads.get_mut(lane)?))
    }

    /// How many are in each lane, of those not yet gone past.
    pub fn counts(&self) -> [u32; LANES] {
        let mut counts = [0u32; LANES];
        for class in &self.classes {
            for (sum, count) in counts.iter_mut().zip(class.counts) {
                *sum = sum.saturating_add(count);
            }
        }
        counts
    }

    /// The best head of line of each class, whether it may go now or not: who may go is for whoever reads to say.
    pub(crate) fn class_heads(&self) -> Vec<Head> {
        let best = |class: &Cursor<'_>| {
            class.best(self.rule).map(|(_, lane, arrived)| Head { class: class.model, lane, arrived })
        };
        self.classes.iter().filter_map(best).collect()
    }

    /// The head of line of each lane among those that may go now: what version 1 publishes.
    pub(crate) fn lane_heads(&self) -> Vec<Head> {
        let of = |lane: Lane| {
            let open = self.classes.iter().filter(|class| class.open);
            let arrived = open.filter_map(|class| class.heads.get(lane.index()).copied().flatten()).min()?;
            Some(Head { class: ModelKey::NONE, lane, arrived })
        };
        Lane::ALL.into_iter().filter_map(of).collect()
    }
}

#[cfg(test)]
#[path = "queue/tests.rs"]
mod tests;
