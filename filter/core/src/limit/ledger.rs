//! The ledger: all that the workers of a process must agree on for one limit, as one value that is replaced atomically.
//!
//! It holds the active rules, the budgets (token bucket, sliding window, requests in flight), the rate controller, and a
//! line for each worker with what waits there. Every change is a pure function of the ledger, the time and what one worker
//! has waiting, so it can be decided again on the fresh value when another worker was quicker. Over-granting is thereby
//! impossible by construction, and the order of service is one for the whole process: a worker takes a token only if its
//! own head of line is the best of all.
//!
//! Nobody waits for a worker that does not come. If another worker's request is the best and a token has been due to it
//! for [`GRACE`], it is passed over, and stays so until it writes again.

use super::form::{Form, known_to_version_1};
use super::in_use::InUse;
pub use super::record::VERSION;
use super::rules::Rules;
use crate::control::answer::Answer;
use crate::control::controller::RateController;
use crate::control::rate::{Estimate, Phase, Retreat, RetreatRules, Transition};
use crate::control::scope::Models;
use crate::event::{Event, Shown};
use crate::model::ModelKey;
use crate::order::key::OrderRule;
use crate::order::peers::{self, Best, Load, Peers};
use crate::order::queue::{InOrder, Queue};
use crate::priority::{LANES, Lane, Priority};
use crate::request::Request;
use crate::supply::bucket::{Bucket, Flow};
use crate::supply::budget::Ready;
use crate::supply::reservation::{RecentGrants, Reservation};
use crate::supply::window::WindowGuard;
use crate::units::{Instant, Micros, MilliRpm, WorkerId};

/// Whose request is the best of all, and since when it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// The worker that holds it.
    pub worker: WorkerId,
    /// Since when its request is the best.
    pub since: Instant,
}

/// The shared record of one limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ledger {
    pub(super) form: Form,
    pub(super) in_use: InUse,
    pub(super) bucket: Bucket,
    pub(super) guard: WindowGuard,
    /// Tokens that were spent before there was one, by retries of Envoy's router. The next ones go there.
    pub(super) owed: u32,
    pub(super) recent: RecentGrants,
    pub(super) controller: RateController,
    pub(super) due: Option<Due>,
    /// When something last made room that no clock tells of: the end of a stream, a request that was never sent, new rules.
    pub(super) freed_at: Instant,
    pub(super) served: [Served; Priority::ALL.len()],
    pub(super) shown: Option<Shown>,
    pub(super) peers: Peers,
}

/// Tokens that have been granted to requests of one level, and how long those waited for them, all together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Served {
    /// How many requests got their token.
    pub count: u64,
    /// The sum of their times in the queue.
    pub waited: Micros,
}

/// What becomes of an arrival that was not granted at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It waits in the queue.
    Queued,
    /// It waits outside the queue, in this lane.
    Fallback(Lane),
    /// Nothing is free: it must be refused.
    Refused,
}

/// What one worker may do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// The requests that got a token, in the order in which they are to go, and what they hold.
    pub granted: Vec<(Request, Reservation)>,
    /// What becomes of the arrival, if there was one and it is not among the granted.
    pub admission: Admission,
    /// Another worker to wake: its request is the best, and it may not know.
    pub wake: Option<WorkerId>,
    /// When this worker should look again; `None` when it has nothing.
    pub look_again_at: Option<Instant>,
}

/// What requests of one worker hold that have had their token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// How many are on their way, and count against a cap.
    pub in_flight: u32,
    /// Whether any was [taken back](Ledger::take_back) in this decision, which makes room for others.
    pub taken_back: bool,
}

impl Ledger {
    /// A new ledger with `tokens` tokens in its bucket.
    pub fn new(rules: Rules, tokens: u32, now: Instant) -> Self {
        Self {
            form: Form::Two,
            in_use: InUse::new(rules),
            bucket: Bucket::with_tokens(tokens.min(rules.capacity), now),
            guard: WindowGuard::new(rules.window_rules(), now),
            owed: 0,
            recent: RecentGrants::default(),
            controller: RateController::new(rules.retreat),
            due: None,
            freed_at: Instant::ZERO,
            served: Default::default(),
            shown: None,
            peers: Peers::default(),
        }
    }

    /// This ledger with the time of `other`'s last refill, as if the time since were still to be credited: a bug to plant.
    #[cfg(feature = "testing")]
    pub fn with_refill_of(mut self, other: &Self) -> Self {
        self.bucket.set_updated_at(other.bucket.parts().1);
        self
    }

    /// This ledger with one slot more freed, of the first worker that holds any: a bug to plant.
    #[cfg(feature = "testing")]
    pub fn with_slot_freed(mut self) -> Self {
        self.peers.free_slot();
        self
    }

    /// The active rules.
    pub fn rules(&self) -> &Rules {
        &self.in_use.rules
    }

    /// The rules of the configuration, which an operator may have overridden.
    pub fn configured(&self) -> &Rules {
        self.in_use.configured()
    }

    /// Whether these are the rules of the configuration, as far as this form of the ledger can tell.
    pub fn is_configured_with(&self, rules: &Rules) -> bool {
        match self.form {
            Form::One => *self.configured() == known_to_version_1(rules),
            Form::Two => self.configured() == rules,
        }
    }

    /// Who shares it.
    pub fn form(&self) -> Form {
        self.form
    }

    /// How many times rules have become active.
    pub fn epoch(&self) -> u32 {
        self.in_use.epoch()
    }

    /// What has been granted so far, by level.
    pub fn served(&self) -> &[Served; Priority::ALL.len()] {
        &self.served
    }

    /// What the workers have waiting and in flight.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The account's rate controller.
    pub fn retreat(&self) -> &Retreat {
        &self.controller.account
    }

    /// The models that go slower than the account.
    pub fn models(&self) -> &Models {
        &self.controller.models
    }

    /// The token bucket, as of the last [`Ledger::advance`].
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// What the gauges show, as far as the workers of this version wrote them; `None` at first.
    pub fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// Takes note of what the gauges are about to show.
    pub fn show(&mut self, shown: Shown) {
        self.shown = Some(shown);
    }

    /// Makes the rules of a configuration active. The bucket keeps its level, as far as it fits, and the rate controller
    /// its state.
    pub fn adopt(&mut self, rules: Rules, now: Instant, events: &mut Vec<Event>) {
        self.replace_rules(now, events, |in_use| in_use.adopt(rules));
    }

    /// Overrides the rules of the configuration, in the same way.
    pub fn override_rules(&mut self, rules: Rules, now: Instant, events: &mut Vec<Event>) {
        self.replace_rules(now, events, |in_use| in_use.override_with(rules));
    }

    fn replace_rules(&mut self, now: Instant, events: &mut Vec<Event>, replace: impl FnOnce(&mut InUse)) {
        self.refill(now);
        replace(&mut self.in_use);
        self.freed_at = now;
        self.control(now, events, |controller, rules, changes| controller.advance(rules, now, changes));
        self.refill(now);
        self.guard.advance(self.rules().window_rules(), now);
    }

    /// Lets time pass: refills the bucket at the rate that held until now, then lets the rate controller take its next
    /// step. What changes is added to `events`.
    pub fn advance(&mut self, now: Instant, events: &mut Vec<Event>) {
        self.refill(now);
        self.guard.advance(self.rules().window_rules(), now);
        self.control(now, events, |controller, rules, changes| controller.advance(rules, now, changes));
    }

    /// Takes in an answer of the upstream. What changes is added to `events`.
    pub fn answer(&mut self, answer: Answer, now: Instant, events: &mut Vec<Event>) {
        self.advance(now, events);
        self.control(now, events, |controller, rules, changes| controller.answer(rules, now, answer, changes));
    }

    fn control(
        &mut self,
        now: Instant,
        events: &mut Vec<Event>,
        step: impl FnOnce(&mut RateController, RetreatRules, &mut Vec<Transition>),
    ) {
        let mut changes = Vec::new();
        let (gate, openings) = (self.retreat().closed_until(), self.models().openings());
        step(&mut self.controller, self.in_use.rules.retreat, &mut changes);
        let is_sooner = |before: Instant, after: Instant| before > now && after < before;
        if is_sooner(gate, self.retreat().closed_until())
            || openings.iter().any(|(model, at)| is_sooner(*at, self.models().open_at(*model)))
        {
            // Who may go sooner than was thought has not been late since then.
            self.freed_at = now;
        }
        events.extend(changes.into_iter().map(Event::RateChanged));
    }

    /// What is owed is paid out of what came, before the rest is cut to what the bucket holds: otherwise a debt that nobody
    /// looked at while the bucket filled would be paid with tokens that had room.
    fn refill(&mut self, now: Instant) {
        self.owed = self.bucket.refill_and_pay(self.flow(), now, self.owed);
        self.recent.refilled(&self.bucket);
    }

    /// Charges `n` requests that the upstream got without a token. They count in the window, and what tokens are there
    /// and the next ones go to them. No more stay owed than the bucket holds, or than were owed when it held more: an
    /// upstream that forges the count must not stop us.
    pub fn charge(&mut self, n: u32) {
        self.guard.count(n);
        let most = self.owed.max(self.rules().capacity);
        self.owed = self.owed.saturating_add(n);
        self.pay();
        self.owed = self.owed.min(most);
    }

    /// Settles a reservation whose request was never sent: the window does not count it, and its token goes back where
    /// that is safe. Says whether it did.
    pub fn take_back(&mut self, reservation: &Reservation, now: Instant) -> bool {
        self.freed_at = now;
        self.guard.uncount(reservation.granted_at);
        let flow = self.flow();
        let returned = self.recent.give_back(reservation.ticket, &mut self.bucket, flow);
        self.pay();
        returned
    }

    fn pay(&mut self) {
        while self.owed > 0 && self.bucket.take(self.flow()).is_ok() {
            self.owed = self.owed.saturating_sub(1);
        }
    }

    /// Decides what `worker`, with `queue` waiting and `held` on their way, may do now, and writes it onto the ledger. Call [`Ledger::advance`] first. Says too whether anything was changed that others must
    /// see.
    pub fn turn(
        &mut self,
        worker: WorkerId,
        queue: &Queue,
        held: Held,
        arrival: Option<&Request>,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> (Turn, bool) {
        let order = self.order(now);
        let mut in_flight = if self.cap().is_some() { held.in_flight } else { 0 };
        let mut made_room = held.taken_back;
        let were_full = self.cap().is_some_and(|cap| self.peers.in_flight(None) >= cap);
        let mut changed = self.expire(Some(worker), now, events);
        if were_full && self.ready(worker, in_flight, now) != Ready::OnEvent {
            self.freed_at = now;
            made_room = true;
        }
        let mut mine = queue.in_order(order, |model| self.is_open(model, now));
        let mut granted: Vec<(Request, Reservation)> = Vec::new();
        while self.ready(worker, in_flight, now).is_now() {
            let Some(own) = mine.peek() else { break };
            let best = self.peers.best_except(Some(worker), order, |model| self.is_open(model, now));
            if let Some(best) = best
                && best.key < own
            {
                if now < self.due_since(&best, now).after(GRACE) {
                    break;
                }
                self.peers.pass_over(best.worker);
                events.push(Event::PassedOver(best.worker));
                changed = true;
                continue;
            }
            if self.bucket.take(self.flow()).is_err() {
                break;
            }
            self.guard.count(1);
            let ticket = self.recent.granted(&self.bucket);
            changed = true;
            let Some(request) = mine.advance() else { break };
            in_flight = in_flight.saturating_add(u32::from(self.cap().is_some()));
            self.controller.granted(self.in_use.rules.retreat, now, request.model);
            if !self.is_open(request.model, now) {
                mine.close(request.model);
            }
            self.count_served(request.lane.priority(), now.since(request.arrived));
            granted.push((request, Reservation { ticket, granted_at: now, model: request.model }));
        }
        let arrival = arrival.filter(|arrival| granted.iter().all(|(request, _)| request.id != arrival.id));
        let admission = arrival.map_or(Admission::Queued, |arrival| self.admit(worker, &mut mine, arrival));
        changed |= self.peers.publish(worker, self.load(&mine, in_flight), now);
        let (wake, due_changed) = self.hand_over(worker, made_room, now);
        changed |= due_changed;
        // A worker that holds slots of a cap looks now and then too, so that its line stays.
        let look_again_at = (!mine.is_empty() || in_flight > 0).then(|| self.look_again_at(worker, &mine, now));
        (Turn { granted, admission, wake, look_again_at }, changed)
    }

    /// Removes the lines of workers that have been silent for too long, and says whether there were any.
    pub fn expire(&mut self, except: Option<WorkerId>, now: Instant, events: &mut Vec<Event>) -> bool {
        let expired = self.peers.expire(now, except);
        let any = !expired.is_empty();
        events.extend(expired.into_iter().map(|line| Event::WorkerExpired {
            worker: line.worker,
            waiting: line.load.counts.iter().fold(0, |sum, count| sum.saturating_add(*count)),
            in_flight: line.load.in_flight,
        }));
        any
    }

    /// What a worker publishes of those that it has not gone past.
    fn load(&self, mine: &InOrder<'_>, in_flight: u32) -> Load {
        let heads = match self.form {
            Form::One => mine.lane_heads(),
            Form::Two => mine.class_heads(),
        };
        Load { counts: mine.counts(), heads, in_flight }
    }

    fn count_served(&mut self, priority: Priority, waited: Micros) {
        if let Some(served) = self.served.get_mut(priority as usize) {
            served.count = served.count.saturating_add(1);
            served.waited = served.waited.plus(waited);
        }
    }

    /// Finds a place for an arrival that got no token, and moves it there or takes it out.
    fn admit(&self, worker: WorkerId, mine: &mut InOrder<'_>, arrival: &Request) -> Admission {
        let queue_max = u64::from(self.in_use.rules.queue_max);
        let total = |mine: &InOrder<'_>, queued| {
            peers::waiting(&mine.counts(), queued).saturating_add(self.peers.waiting(queued, worker))
        };
        if total(mine, true) <= queue_max {
            return Admission::Queued;
        }
        mine.drop_newest(arrival);
        if !self.in_use.rules.may_fall_back || total(mine, false) >= queue_max {
            return Admission::Refused;
        }
        let lane = Lane::Fallback(arrival.lane.priority());
        mine.add_newest(&Request { lane, ..*arrival });
        Admission::Fallback(lane)
    }

    /// Takes note of whose request is now the best. If that is another worker, says whether to wake it: it may sleep until
    /// its grace is over because it was not the best before, or a token may be there for it already, or room was made just
    /// now, so that it may have a token earlier than it knows.
    fn hand_over(&mut self, worker: WorkerId, made_room: bool, now: Instant) -> (Option<WorkerId>, bool) {
        let best = self.best(now).map(|best| best.worker);
        let changed = best != self.due.map(|due| due.worker);
        if changed {
            self.due = best.map(|worker| Due { worker, since: now });
        }
        let wakes = |ready: Ready| changed || ready.is_now() || (made_room && ready != Ready::OnEvent);
        let wake = best.filter(|whose| *whose != worker && wakes(self.ready_for(*whose, now)));
        (wake, changed)
    }

    /// The best request of all workers that may go as far as its model is concerned.
    fn best(&self, now: Instant) -> Option<Best> {
        self.peers.best_except(None, self.order(now), |model| self.is_open(model, now))
    }

    /// When `worker`, with someone waiting, should look again: when a token is there, if its request is the best; a
    /// grace later if another's is. Those whose model may not go yet are looked at when it may.
    fn look_again_at(&self, worker: WorkerId, mine: &InOrder<'_>, now: Instant) -> Instant {
        let openings = mine.closed().map(|model| self.controller.models.open_at(model)).filter(|at| *at > now);
        let token = mine.peek().and_then(|_| self.look_for_token_at(worker, now));
        openings.chain(token).min().unwrap_or(Instant::from_micros(u64::MAX))
    }

    /// `None` where only an event can tell.
    fn look_for_token_at(&self, worker: WorkerId, now: Instant) -> Option<Instant> {
        let best = self.best(now).filter(|best| best.worker != worker);
        let ready = match best {
            Some(best) => self.ready_for(best.worker, now),
            None => self.ready_for(worker, now),
        };
        match (ready, best) {
            (Ready::OnEvent, _) => None,
            (Ready::At(at), None) => Some(at),
            (Ready::Now, None) => Some(now),
            (Ready::At(at), Some(best)) => Some(at.max(self.due_since(&best, now)).after(GRACE)),
            // A token that is there already has been due for a while, and only the rest of the grace is left.
            (Ready::Now, Some(best)) => Some(self.due_since(&best, now).after(GRACE)),
        }
    }

    /// Since when a token has been due to the best of the others.
    fn due_since(&self, best: &Best, now: Instant) -> Instant {
        let best_since = self.due.filter(|due| due.worker == best.worker).map_or(now, |due| due.since);
        best_since
            .max(self.bucket.ready_since())
            .max(self.guard.open_since(self.rules().window_rules(), now))
            .max(self.retreat().closed_until())
            .max(self.controller.models.open_at(best.class))
            .max(self.freed_at)
    }

    /// Whether requests for a model may go now, as far as the model is concerned.
    fn is_open(&self, model: ModelKey, now: Instant) -> bool {
        self.controller.models.open_at(model) <= now
    }

    /// How requests are ordered.
    fn order(&self, now: Instant) -> OrderRule {
        let aging = self.rules().aging;
        match self.form {
            Form::One => OrderRule::Stepped { aging, now },
            Form::Two => OrderRule::Static { aging },
        }
    }

    /// The most requests in flight, if that is limited.
    fn cap(&self) -> Option<u32> {
        self.rules().max_in_flight.filter(|_| self.form == Form::Two && !self.rules().shadow)
    }

    /// Whether all budgets that requests share have enough for one of `worker`, which has so many in flight.
    fn ready(&self, worker: WorkerId, in_flight: u32, now: Instant) -> Ready {
        let slots = match self.cap() {
            Some(cap) if self.peers.in_flight(Some(worker)).saturating_add(in_flight) >= cap => Ready::OnEvent,
            Some(_) | None => Ready::Now,
        };
        let is_there = now >= self.retreat().closed_until()
            && self.bucket.is_ready()
            && self.guard.room(self.rules().window_rules(), now) > 0;
        slots.and(if is_there { Ready::Now } else { Ready::At(self.token_at(1, now)) })
    }

    /// The same, from what the workers have published.
    fn ready_for(&self, worker: WorkerId, now: Instant) -> Ready {
        let lines = self.peers.lines().iter();
        let own = lines.filter(|line| line.worker == worker).map(|line| line.load.in_flight).next();
        self.ready(worker, own.unwrap_or(0), now)
    }

    /// When the `n`-th token from now is there, if all before it are taken as they come.
    fn token_at(&self, n: u32, now: Instant) -> Instant {
        let guard_opens = self.guard.opens_at(self.rules().window_rules(), now, n);
        self.bucket.nth_at(self.flow(), n.saturating_add(self.owed)).max(guard_opens).max(self.retreat().closed_until())
    }

    /// What decides when the next token is there, besides the bucket's level: the flow, and until when the gate is closed.
    pub fn flow_and_gate(&self) -> (Flow, Instant) {
        (self.flow(), self.retreat().closed_until())
    }

    /// The workers that must learn that requests of a model may go at another time than by the `openings` of before: earlier,
    /// since they sleep until then; or later while they wait for a slot, since a slot that comes free wakes only who may
    /// take it, and nobody else would tell them when that is.
    pub fn holders_to_tell(&self, openings: &[(ModelKey, Instant)], now: Instant) -> Vec<WorkerId> {
        let may_wait_for_slots = self.cap().is_some();
        let differs = |class: ModelKey| {
            let before = openings.iter().find(|(model, _)| *model == class).map_or(Instant::ZERO, |(_, at)| *at);
            let after = self.models().open_at(class);
            after < before || (may_wait_for_slots && before <= now && now < after)
        };
        let lines = self.peers.lines().iter();
        lines.filter(|line| line.load.heads.iter().any(|head| differs(head.class))).map(|line| line.worker).collect()
    }

    /// The worker whose request is the best.
    pub fn due_worker(&self) -> Option<WorkerId> {
        self.due.map(|due| due.worker)
    }

    fn flow(&self) -> Flow {
        let rules = self.rules();
        Flow { rate: self.controller.rate(), capacity: self.retreat().burst(rules.retreat, rules.capacity) }
    }
}

/// What an operator or a client may be told of the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Whole tokens in the bucket.
    pub available: u32,
    /// The most it holds.
    pub capacity: u32,
    /// The configured rate.
    pub base: MilliRpm,
    /// The present rate.
    pub rate: MilliRpm,
    /// When the next token is there.
    pub token_at: Instant,
    /// The most that can ever be available: the capacity, or the window's quota if that is less.
    pub full: u32,
    /// When that is, if nothing is taken.
    pub full_at: Instant,
    /// The rate controller's state.
    pub phase: Phase,
    /// When time alone changes it next.
    pub retreat_due_at: Option<Instant>,
    /// What is believed of the upstream's real limit.
    pub estimate: Option<Estimate>,
    /// How many models go slower than the limit.
    pub models_slowed: u32,
    /// The share of 429s, in thousandths.
    pub throttled_permille: u32,
    /// How many wait in each lane, over all workers.
    pub waiting: [u32; LANES],
    /// How many times rules have become active.
    pub epoch: u32,
    /// Requests in flight that count against a cap, over all workers, and the cap.
    pub in_flight: Option<(u32, u32)>,
}

impl Snapshot {
    /// What the gauges should show.
    pub fn shown(&self) -> Shown {
        Shown {
            available: self.available,
            phase: self.phase,
            effective_rpm: self.rate.as_rpm(),
            estimated_rpm: self.estimate.map_or(0, |estimate| estimate.rate.as_rpm()),
            models_slowed: self.models_slowed,
            refused_permille: self.throttled_permille,
            epoch: self.epoch,
        }
    }
}

impl Ledger {
    /// A snapshot of the ledger. Call [`Ledger::advance`] first.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let flow = self.flow();
        let window = self.rules().window_rules();
        let most = if window.window == Micros::ZERO { flow.capacity } else { flow.capacity.min(window.quota) };
        Snapshot {
            available: self.bucket.available().min(self.guard.room(window, now)),
            capacity: self.in_use.rules.capacity,
            base: self.in_use.rules.retreat.base,
            rate: flow.rate,
            token_at: self.token_at(1, now),
            full: most,
            full_at: self
                .bucket
                .nth_at(flow, flow.capacity.saturating_add(self.owed))
                .max(self.guard.opens_at(window, now, most)),
            phase: self.retreat().phase(),
            retreat_due_at: self.controller.due_at(now),
            estimate: self.retreat().estimate(self.rules().retreat, now),
            models_slowed: u32::try_from(self.models().slowed().len()).unwrap_or(u32::MAX),
            throttled_permille: self.retreat().throttled_permille(now),
            waiting: self.peers.totals(),
            epoch: self.epoch(),
            in_flight: self.cap().map(|cap| (self.peers.in_flight(None), cap)),
        }
    }

    /// When a request that comes now would get its token, if it had to wait for everyone in its lane and before it.
    pub fn turn_estimate(&self, lane: Lane, now: Instant) -> Instant {
        let ahead = self.peers.totals().into_iter().take(lane.index().saturating_add(1)).fold(0, u32::saturating_add);
        self.token_at(ahead.saturating_add(1), now)
    }
}

/// How long a token may be due to a worker before another takes it: longer than a wake-up takes on a busy machine,
/// shorter than anyone notices.
pub const GRACE: Micros = Micros::from_millis(30);

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
