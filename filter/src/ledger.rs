//! The ledger: all that the workers of a process must agree on for one limit, as one value that is replaced atomically.
//!
//! It holds the rules in force, the token bucket, the retreat, and the board with what waits at each worker. Every
//! change is a pure function of the ledger, the time and what one worker has waiting, so it can be decided again on the
//! fresh value when another worker was quicker. Over-granting is thereby impossible by construction, and the order of
//! service is one for the whole process: a worker takes a token only if its own foremost request is the best on the
//! board.
//!
//! Nobody waits for a worker that does not come. If another worker's request is the best and a token has been due to it
//! for [`GRACE`], it is passed over, and stays so until it speaks again.

pub mod board;
mod codec;
pub mod in_force;

use crate::bucket::{Bucket, Flow};
use crate::models::{ModelKey, Models};
use crate::pace::{Answer, Pace};
use crate::priority::{LANES, Lane, Priority};
use crate::queue::{LaneHead, NEVER, Patience, Queue, Waiting};
use crate::retreat::{Estimate, Phase, Retreat, RetreatRules, Transition};
use crate::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use crate::window_guard::{WindowGuard, WindowRules};
pub use board::Board;
pub use codec::VERSION;
pub use in_force::Origin;
use in_force::{Claim, InForce};

/// The settings that all workers share. They lie in the ledger so that a new configuration holds for all at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The most tokens the bucket holds, at least 1.
    pub capacity: u32,
    /// The window in which the upstream counts requests; zero if it counts in none.
    pub window: Micros,
    /// The most requests in the queue, and again outside it, over all workers.
    pub queue_max: u32,
    /// After how long a waiting request moves up a level; `None` is never.
    pub aging: Option<Micros>,
    /// How long requests may wait.
    pub patience: Patience,
    /// Whether requests may wait outside a full queue.
    pub may_fall_back: bool,
    /// Whether nothing is held or refused, and what would have been is only reported.
    pub shadow: bool,
    /// The configured rate and how 429s reduce it.
    pub retreat: RetreatRules,
}

impl Rules {
    /// What the window guard holds to: as many grants in each window as the configured rate makes of it, at least 1.
    pub fn window_rules(&self) -> WindowRules {
        const MINUTE: u64 = 60_000_000 * 1_000;
        let milli = self.window.get().saturating_mul(u64::from(self.retreat.base.get()));
        let quota = u32::try_from(milli / MINUTE).unwrap_or(u32::MAX).max(1);
        WindowRules { window: self.window, quota }
    }
}

/// Whose request is the best on the board, and since when it is.
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
    in_force: InForce,
    bucket: Bucket,
    guard: WindowGuard,
    /// Tokens that were spent before there was one, by retries of Envoy's router. The next ones go there.
    owed: u32,
    pace: Pace,
    due: Option<Due>,
    served: [Served; Priority::ALL.len()],
    board: Board,
}

/// Tokens that have been granted to requests of one level, and how long those waited for them, all together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Served {
    /// How many requests got their token.
    pub count: u64,
    /// The sum of their times in the queue.
    pub waited: Micros,
}

/// A request that has just arrived and stands at the end of its lane in the worker's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Whose it is.
    pub request: RequestId,
    /// The lane in which it stands.
    pub lane: Lane,
    /// When it arrived.
    pub arrived: Instant,
    /// The model it asks for.
    pub model: ModelKey,
}

impl From<Waiting> for Arrival {
    fn from(waiting: Waiting) -> Self {
        let Waiting { request, arrived, lane, model } = waiting;
        Self { request, lane, arrived, model }
    }
}

/// What becomes of an arrival that was not granted at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// It waits in the queue.
    Queued,
    /// It waits outside the queue, in this lane.
    Fallback(Lane),
    /// Nothing is free: it must be refused.
    Refused,
}

/// Rules were put in force because requests arrive under them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adopted {
    /// What that did to the retreat.
    pub transition: Option<Transition>,
}

/// What one worker may do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// The requests that got a token, in the order in which they are to go.
    pub granted: Vec<Waiting>,
    /// What becomes of the arrival, if there was one and it is not among the granted.
    pub place: Place,
    /// Another worker to wake: its request is the best, and it may not know.
    pub wake: Option<WorkerId>,
    /// When this worker should look again; `None` when nobody waits here.
    pub look_again_at: Option<Instant>,
}

impl Ledger {
    /// A new ledger with `tokens` tokens in its bucket.
    pub fn new(rules: Rules, tokens: u32, now: Instant) -> Self {
        Self {
            in_force: InForce::new(rules),
            bucket: Bucket::with_tokens(tokens.min(rules.capacity), now),
            guard: WindowGuard::new(rules.window_rules(), now),
            owed: 0,
            pace: Pace::new(rules.retreat),
            due: None,
            served: Default::default(),
            board: Board::default(),
        }
    }

    /// The key under which the ledger of a limit lies in the store.
    pub fn key(limit: &str) -> String {
        format!("nimgate/{VERSION}/ledger/{limit}")
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.in_force.rules
    }

    /// The rules of the configuration, which an operator may have laid others over.
    pub fn configured(&self) -> &Rules {
        self.in_force.configured()
    }

    /// How many times rules have been put in force.
    pub fn epoch(&self) -> u32 {
        self.in_force.epoch()
    }

    /// What has been granted so far, by level.
    pub fn served(&self) -> &[Served; Priority::ALL.len()] {
        &self.served
    }

    /// What waits at the workers.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The state of the account's retreat.
    pub fn retreat(&self) -> &Retreat {
        &self.pace.account
    }

    /// The models that go slower than the account.
    pub fn models(&self) -> &Models {
        &self.pace.models
    }

    /// The token bucket, as of the last [`Ledger::advance`].
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Puts the rules of a configuration in force. The bucket keeps its level, as far as it fits, and the retreat its
    /// state.
    pub fn adopt(&mut self, rules: Rules, now: Instant) -> Option<Transition> {
        self.replace_rules(now, |in_force| in_force.adopt(rules))
    }

    /// Lays other rules over those of the configuration, in the same way.
    pub fn steer(&mut self, rules: Rules, now: Instant) -> Option<Transition> {
        self.replace_rules(now, |in_force| in_force.steer(rules))
    }

    fn replace_rules(&mut self, now: Instant, replace: impl FnOnce(&mut InForce)) -> Option<Transition> {
        self.bucket.refill(self.flow(), now);
        replace(&mut self.in_force);
        let transition = self.pace.advance(self.in_force.rules.retreat, now);
        self.bucket.refill(self.flow(), now);
        self.guard.advance(self.rules().window_rules(), now);
        transition
    }

    /// Takes note of the configuration under which a request arrived, and adopts its rules if it is the one that Envoy
    /// uses now. Says whether anything was noted, and whether the rules were adopted.
    pub fn claim(&mut self, origin: &Origin, now: Instant) -> (bool, Option<Adopted>) {
        match self.in_force.claim(origin, now) {
            Claim::Known => (false, None),
            Claim::Noted => (true, None),
            Claim::Won => (true, Some(Adopted { transition: self.adopt(origin.rules, now) })),
        }
    }

    /// Lets time pass: refills the bucket at the rate that held until now, then lets the retreat take its next step.
    pub fn advance(&mut self, now: Instant) -> Option<Transition> {
        self.bucket.refill(self.flow(), now);
        self.guard.advance(self.rules().window_rules(), now);
        self.pay();
        self.pace.advance(self.in_force.rules.retreat, now)
    }

    /// Takes in an answer of the upstream.
    pub fn answer(&mut self, answer: Answer, now: Instant) -> Option<Transition> {
        let passed = self.advance(now);
        self.pace.answer(self.in_force.rules.retreat, now, answer).or(passed)
    }

    /// Charges `n` requests that the upstream got without a token. They count in the window, and the next tokens go to
    /// them. More than the bucket holds are not remembered: an upstream that forges the count must not stop us.
    pub fn charge(&mut self, n: u32) {
        self.guard.count(n);
        self.owed = self.owed.saturating_add(n).min(self.rules().capacity);
        self.pay();
    }

    fn pay(&mut self) {
        while self.owed > 0 && self.bucket.take(self.flow()).is_ok() {
            self.owed = self.owed.saturating_sub(1);
        }
    }

    /// Decides what `worker`, with `queue` waiting, may do now, and writes it onto the ledger. Call
    /// [`Ledger::advance`] first. Says too whether anything was changed that others must see.
    pub fn turn(&mut self, worker: WorkerId, queue: &Queue, arrival: Option<Arrival>, now: Instant) -> (Turn, bool) {
        let aging = self.in_force.rules.aging;
        let mut changed = self.board.expire(now, worker);
        let mut mine = queue.in_order(now, aging, |model| self.is_open(model, now));
        let mut granted = Vec::new();
        let mut arrival_granted = false;
        while self.token_is_there(now) {
            let Some(own) = mine.peek() else { break };
            if let Some((other, whose)) = self.board.best_except(Some(worker), now, aging)
                && other < own
            {
                if now < self.due_since(whose, now).after(GRACE) {
                    break;
                }
                self.board.pass_over(whose);
                changed = true;
                continue;
            }
            if self.bucket.take(self.flow()).is_err() {
                break;
            }
            self.guard.count(1);
            changed = true;
            let Some(served) = mine.advance() else { break };
            self.pace.granted(self.in_force.rules.retreat, now, served.model);
            if !self.is_open(served.model, now) {
                mine.close(served.model);
            }
            self.count_served(served.lane.priority(), now.since(served.arrived));
            arrival_granted |= Some(served.request) == arrival.map(|a| a.request);
            granted.push(served);
        }
        let mut lanes = mine.heads();
        let place = match arrival {
            Some(arrival) if !arrival_granted => self.place(worker, &mut lanes, arrival, now),
            _ => Place::Queued,
        };
        changed |= self.board.publish(worker, lanes, now);
        let (wake, due_changed) = self.hand_over(worker, now);
        changed |= due_changed;
        let nobody = lanes.iter().all(|head| head.count == 0);
        let look_again_at = (!nobody).then(|| self.look_again_at(worker, queue, &lanes, now));
        (Turn { granted, place, wake, look_again_at }, changed)
    }

    fn count_served(&mut self, priority: Priority, waited: Micros) {
        if let Some(served) = self.served.get_mut(priority as usize) {
            served.count = served.count.saturating_add(1);
            served.waited = served.waited.plus(waited);
        }
    }

    /// Finds a place for an arrival that got no token, and takes it out of the lanes to publish if there is none.
    fn place(&self, worker: WorkerId, lanes: &mut [LaneHead; LANES], arrival: Arrival, now: Instant) -> Place {
        let queue_max = u64::from(self.in_force.rules.queue_max);
        let total = |lanes: &[LaneHead; LANES], queued| {
            board::waiting(lanes, queued).saturating_add(self.board.waiting(queued, worker))
        };
        if total(lanes, true) <= queue_max {
            return Place::Queued;
        }
        // The arrival is the last of its lane, so taking it out changes the lane's count only.
        if let Some(head) = lanes.get_mut(arrival.lane.index()) {
            head.count = head.count.saturating_sub(1);
        }
        if !self.in_force.rules.may_fall_back || total(lanes, false) >= queue_max {
            return Place::Refused;
        }
        let lane = Lane::Fallback(arrival.lane.priority());
        if let Some(head) = lanes.get_mut(lane.index()) {
            if head.count == 0 {
                head.since = if self.is_open(arrival.model, now) { arrival.arrived } else { NEVER };
            }
            head.count = head.count.saturating_add(1);
        }
        Place::Fallback(lane)
    }

    /// Notes whose request is now the best. If that is another worker, says whether to wake it: it may sleep until its
    /// grace is over because it was not the best before, or a token may be there for it already.
    fn hand_over(&mut self, worker: WorkerId, now: Instant) -> (Option<WorkerId>, bool) {
        let best = self.board.best_except(None, now, self.in_force.rules.aging).map(|(_, whose)| whose);
        let changed = best != self.due.map(|due| due.worker);
        if changed {
            self.due = best.map(|worker| Due { worker, since: now });
        }
        let token_there = self.token_is_there(now);
        let wake = best.filter(|whose| *whose != worker && (changed || token_there));
        (wake, changed)
    }

    /// When `worker`, with someone waiting, should look again: when a token is there, if its request is the best; a
    /// grace later if another's is. Those whose model is slowed are looked at when its turn comes.
    fn look_again_at(&self, worker: WorkerId, queue: &Queue, lanes: &[LaneHead; LANES], now: Instant) -> Instant {
        let turns = queue.waiting_apart().map(|model| self.pace.models.open_at(model)).filter(|at| *at > now);
        let others = lanes.iter().any(|head| head.count > 0 && head.since != NEVER);
        let token = others.then(|| self.look_for_token_at(worker, now));
        turns.chain(token).min().unwrap_or(now)
    }

    fn look_for_token_at(&self, worker: WorkerId, now: Instant) -> Instant {
        let token_at = self.token_at(1, now);
        match self.due {
            // A token that is there already has been due for a while, and only the rest of the grace is left.
            Some(due) if due.worker != worker && self.token_is_there(now) => {
                self.due_since(due.worker, now).after(GRACE)
            }
            Some(due) if due.worker != worker => token_at.max(self.due_since(due.worker, now)).after(GRACE),
            _ => token_at,
        }
    }

    /// Since when a token has been due to `whose`, whose request is the best of the others'.
    fn due_since(&self, whose: WorkerId, now: Instant) -> Instant {
        let best_since = self.due.filter(|due| due.worker == whose).map_or(now, |due| due.since);
        best_since
            .max(self.bucket.ready_since())
            .max(self.guard.open_since(self.rules().window_rules(), now))
            .max(self.retreat().closed_until())
    }

    /// Whether requests for a model may go now, as far as the model is concerned.
    fn is_open(&self, model: ModelKey, now: Instant) -> bool {
        self.pace.models.open_at(model) <= now
    }

    fn token_is_there(&self, now: Instant) -> bool {
        now >= self.retreat().closed_until()
            && self.bucket.is_ready()
            && self.guard.room(self.rules().window_rules(), now) > 0
    }

    /// When the `n`-th token from now is there, if all before it are taken as they come.
    fn token_at(&self, n: u32, now: Instant) -> Instant {
        let guard_opens = self.guard.opens_at(self.rules().window_rules(), now, n);
        self.bucket.nth_at(self.flow(), n.saturating_add(self.owed)).max(guard_opens).max(self.retreat().closed_until())
    }

    /// What decides when the next token is there, besides the bucket's level: the flow, and until when the gate is closed.
    pub fn pace(&self) -> (Flow, Instant) {
        (self.flow(), self.retreat().closed_until())
    }

    /// The worker whose request is the best.
    pub fn due_worker(&self) -> Option<WorkerId> {
        self.due.map(|due| due.worker)
    }

    fn flow(&self) -> Flow {
        let rules = self.rules();
        Flow { rate: self.retreat().rate(), capacity: self.retreat().burst(rules.retreat, rules.capacity) }
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
    /// The rate in force.
    pub rate: MilliRpm,
    /// When the next token is there.
    pub token_at: Instant,
    /// The most that can ever be available: the capacity, or the window's quota if that is less.
    pub full: u32,
    /// When that is, if nothing is taken.
    pub full_at: Instant,
    /// The retreat's state.
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
    /// How many times rules have been put in force.
    pub epoch: u32,
}

impl Ledger {
    /// A picture of the ledger. Call [`Ledger::advance`] first.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let flow = self.flow();
        let window = self.rules().window_rules();
        let most = if window.window == Micros::ZERO { flow.capacity } else { flow.capacity.min(window.quota) };
        Snapshot {
            available: self.bucket.available().min(self.guard.room(window, now)),
            capacity: self.in_force.rules.capacity,
            base: self.in_force.rules.retreat.base,
            rate: flow.rate,
            token_at: self.token_at(1, now),
            full: most,
            full_at: self.bucket.full_at(flow).max(self.guard.opens_at(window, now, most)),
            phase: self.retreat().phase(),
            retreat_due_at: self.retreat().due_at(),
            estimate: self.retreat().estimate(self.rules().retreat, now),
            models_slowed: u32::try_from(self.models().slowed().len()).unwrap_or(u32::MAX),
            throttled_permille: self.retreat().throttled_permille(now),
            waiting: self.board.totals(),
            epoch: self.epoch(),
        }
    }

    /// When a request that comes now would get its token, if it had to wait behind everyone in its lane and before it.
    pub fn turn_estimate(&self, lane: Lane, now: Instant) -> Instant {
        let ahead = self.board.totals().into_iter().take(lane.index().saturating_add(1)).fold(0, u32::saturating_add);
        self.token_at(ahead.saturating_add(1), now)
    }
}

/// How long a token may be due to a worker before another takes it: longer than a wake-up takes on a busy machine,
/// shorter than anyone notices.
pub const GRACE: Micros = Micros::from_millis(30);

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
