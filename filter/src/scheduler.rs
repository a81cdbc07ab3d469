//! The heart of one worker: inputs in, actions out, and when to look again.
//!
//! For each limit it joins the worker's own queue to the shared ledger. It reads no clock and calls no host: the time
//! and the store come in with each call. Every decision is made inside [`Store::measure_and_replace`] and only then
//! carried out on the queue, so a lost race leaves no trace here.

use crate::ledger::{Arrival, Ledger, Origin, Place, Rules, Snapshot};
use crate::models::ModelKey;
use crate::observe::Observer;
use crate::outcome::Outcome;
use crate::pace::Answer;
use crate::priority::{LANES, Lane, Priority};
use crate::queue::{Queue, Waiting};
use crate::retreat::Transition;
use crate::store::{Store, StoreError};
use crate::units::{Instant, LimitId, Micros, RequestId, WorkerId};
use shadow::Shadow;

mod shadow;

/// What the shell must do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Let a request go on to the upstream: it has its token.
    Resume {
        /// Which.
        request: RequestId,
        /// How long it waited.
        waited: Micros,
    },
    /// Answer a request: it gets no token.
    Reply {
        /// Which.
        request: RequestId,
        /// Where it waited.
        lane: Lane,
        /// How it ends.
        outcome: Outcome,
        /// When to try again, in whole seconds, at least 1.
        retry_after_s: u64,
        /// How long it waited.
        waited: Micros,
        /// The ledger after the decision; `None` if there was no way to look at it.
        snapshot: Option<Snapshot>,
    },
    /// Wake another worker.
    Wake(WorkerId),
}

/// The scheduler of one worker.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scheduler {
    limits: Vec<Limit>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Limit {
    name: String,
    key: String,
    /// The rules in force, as of the last look at the ledger.
    rules: Rules,
    queue: Queue,
    shadow: Shadow,
    /// When to look at the ledger again because someone waits here, or has just left.
    look_again_at: Option<Instant>,
    /// When to look at it once more so that the gauges show its state at rest.
    refresh_at: Option<Instant>,
}

impl Scheduler {
    /// Puts the rules of the limit called `name` in force, for all workers, and returns its number here. Who waits keeps
    /// waiting, under the new rules. The last configuration that names a limit wins; see [`Ledger::claim`] for one that
    /// comes back into use without being configured again.
    pub fn configure<S: Store>(
        &mut self,
        name: &str,
        rules: Rules,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> LimitId {
        let id = self.next_id(name);
        if id.0 == self.limits.len() {
            self.limits.push(Limit::new(name, rules));
        }
        if let Some(limit) = self.limits.get_mut(id.0) {
            limit.look_again_at = (!limit.queue.is_empty()).then_some(now);
            // The workers get the configuration one after the other, and look again by themselves.
            let adopted = limit.transact(id, now, store, observer, |ledger, fresh, now| {
                let changed = *ledger.configured() != rules;
                let transition = if changed { ledger.adopt(rules, now) } else { None };
                (changed || fresh, changed || fresh, transition)
            });
            match adopted {
                Ok((true, snapshot, _)) => observer.rules_configured(id, &snapshot, &limit.rules),
                Ok((false, ..)) => {}
                Err(_) => {
                    limit.rules = rules;
                    observer.store_failed(id);
                }
            }
        }
        id
    }

    /// The number that the limit called `name` has, or will have once it is configured.
    pub fn next_id(&self, name: &str) -> LimitId {
        let known = self.limits.iter().position(|limit| limit.name == name);
        LimitId(known.unwrap_or(self.limits.len()))
    }

    /// The name of a limit.
    pub fn name(&self, id: LimitId) -> &str {
        self.limits.get(id.0).map_or("", |limit| &limit.name)
    }

    /// The rules of a limit that were in force when this worker last looked.
    pub fn rules(&self, id: LimitId) -> Option<&Rules> {
        self.limits.get(id.0).map(|limit| &limit.rules)
    }

    /// How many requests of a limit wait in this worker.
    pub fn waiting(&self, id: LimitId) -> usize {
        self.limits.get(id.0).map_or(0, |limit| limit.queue.len())
    }

    /// A request is complete and asks for a token. `origin` says under which rules it came.
    #[expect(clippy::too_many_arguments, reason = "one argument for each thing the caller alone knows")]
    pub fn arrive<S: Store>(
        &mut self,
        id: LimitId,
        request: RequestId,
        priority: Priority,
        model: ModelKey,
        origin: &Origin,
        worker: WorkerId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> Vec<Action> {
        let Some(limit) = self.limits.get_mut(id.0) else {
            return Vec::new();
        };
        let waiting = limit.queue.push(request, Lane::Queued(priority), model, now);
        limit.turn(id, Some((waiting, origin)), worker, now, store, observer)
    }

    /// The stream of a request is gone. If the request still waited, it leaves the queue and costs nothing.
    ///
    /// The ledger learns of it at the next wake-up, which is due at once: streams often go in crowds (a connection with
    /// a hundred of them closes), and none of the crowd must get a token because another of it has just left.
    pub fn leave(&mut self, id: LimitId, request: RequestId, now: Instant) {
        if let Some(limit) = self.limits.get_mut(id.0)
            && limit.queue.remove(request).is_some()
        {
            limit.look_again_at = Some(now);
        }
    }

    /// A timer fired or another worker woke this one: do for every limit what is due. `woken` looks at every limit with
    /// someone waiting, whatever the time.
    pub fn wake<S: Store>(
        &mut self,
        woken: bool,
        worker: WorkerId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, limit) in self.limits.iter_mut().enumerate() {
            let due = limit.due_at().is_some_and(|due| due <= now);
            if due || (woken && !limit.queue.is_empty()) {
                actions.extend(limit.turn(LimitId(at), None, worker, now, store, observer));
            } else if limit.refresh_at.is_some_and(|due| due <= now) {
                actions.extend(limit.refresh(LimitId(at), now, store, observer));
            }
        }
        actions
    }

    /// The upstream answered a request, after so many `retries` by Envoy's router. Returns a picture of the ledger after
    /// that, for the response's headers, and what there is to do.
    pub fn answer<S: Store>(
        &mut self,
        id: LimitId,
        answer: Answer,
        retries: u32,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> (Option<Snapshot>, Option<Action>) {
        let Some(limit) = self.limits.get_mut(id.0) else {
            return (None, None);
        };
        let answered = limit.transact(id, now, store, observer, |ledger, _, now| {
            let transition = ledger.answer(answer, now);
            ledger.charge(retries);
            ((), true, transition)
        });
        match answered {
            Ok(((), snapshot, stirred)) => (Some(snapshot), stirred.map(Action::Wake)),
            Err(_) => {
                observer.store_failed(id);
                (None, None)
            }
        }
    }

    /// A picture of a limit's ledger as it is now, `None` if there was no way to look at it; and what there is to do.
    pub fn look<S: Store>(
        &mut self,
        id: LimitId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> (Option<Snapshot>, Option<Action>) {
        let looked = self.limits.get_mut(id.0).map(|limit| limit.look(id, now, store, observer));
        match looked {
            Some(Ok((snapshot, wake))) => (Some(snapshot), wake),
            Some(Err(_)) | None => (None, None),
        }
    }

    /// When [`Scheduler::wake`] must be called next; `None` when there is nothing to do.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.limits.iter().flat_map(|limit| [limit.due_at(), limit.refresh_at]).flatten().min()
    }
}

impl Limit {
    fn new(name: &str, rules: Rules) -> Self {
        Self {
            name: name.to_owned(),
            key: Ledger::key(name),
            rules,
            queue: Queue::default(),
            shadow: Shadow::default(),
            look_again_at: None,
            refresh_at: None,
        }
    }

    /// When something is due: a look at the ledger, or the end of someone's patience.
    fn due_at(&self) -> Option<Instant> {
        let deadlines = Lane::ALL.into_iter().filter_map(|lane| {
            let front = self.queue.front(lane)?;
            Some(front.arrived.after(self.rules.patience.of(lane)))
        });
        deadlines.chain(self.look_again_at).min()
    }

    /// One decision: ends what has waited too long, grants what may be granted, places the arrival, tells the board.
    fn turn<S: Store>(
        &mut self,
        id: LimitId,
        arrival: Option<(Waiting, &Origin)>,
        worker: WorkerId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> Vec<Action> {
        let expired = self.expire(now);
        let origin = arrival.map(|(_, origin)| origin);
        let arrival = arrival.map(|(waiting, _)| Arrival::from(waiting));
        // The queue is lent to the decision while the rest of the limit runs the transaction.
        let mut queue = core::mem::take(&mut self.queue);
        let decided = self.transact(id, now, store, observer, |ledger, _, now| {
            let (noted, adopted) = origin.map_or((false, None), |origin| ledger.claim(origin, now));
            queue.set_apart(ledger.models().slowed().iter().map(|slowed| slowed.key));
            let (turn, changed) = ledger.turn(worker, &queue, arrival, now);
            let estimates = Lane::ALL.map(|lane| ledger.turn_estimate(lane, now));
            let transition = adopted.and_then(|adopted| adopted.transition);
            ((turn, estimates, adopted.is_some(), now), changed || noted, transition)
        });
        let mut actions = Vec::new();
        match decided {
            Ok(((turn, estimates, adopted, now), snapshot, stirred)) => {
                if adopted {
                    observer.rules_adopted(id, &snapshot, &self.rules);
                }
                let refuse = |request, lane: Lane, arrived, outcome| {
                    let at = estimates.get(lane.index()).copied().unwrap_or(now);
                    Action::Reply {
                        request,
                        lane,
                        outcome,
                        retry_after_s: retry_after_s(at.since(now), request, now),
                        waited: now.since(arrived),
                        snapshot: Some(snapshot),
                    }
                };
                actions.extend(expired.iter().map(|w| refuse(w.request, w.lane, w.arrived, Outcome::RateLimited)));
                actions.extend(grant(&mut queue, &turn.granted, now, id, observer));
                if let Some(arrival) = arrival {
                    match turn.place {
                        Place::Queued => {}
                        Place::Fallback(lane) => {
                            queue.shift(arrival.request, lane);
                            observer.fell_back(id);
                        }
                        Place::Refused => {
                            queue.remove(arrival.request);
                            actions.push(refuse(arrival.request, arrival.lane, arrival.arrived, Outcome::QueueFull));
                        }
                    }
                }
                actions.extend(turn.wake.or(stirred).filter(|whose| *whose != worker).map(Action::Wake));
                self.look_again_at = turn.look_again_at.map(|at| at.min(now.after(HEARTBEAT)));
            }
            Err(_) => {
                // Nothing was decided: who waits keeps waiting, an arrival among them, and it is tried again at once.
                observer.store_failed(id);
                actions.extend(expired.iter().map(|w| Action::Reply {
                    request: w.request,
                    lane: w.lane,
                    outcome: Outcome::RateLimited,
                    retry_after_s: 1,
                    waited: now.since(w.arrived),
                    snapshot: None,
                }));
                self.look_again_at = Some(now.after(TRY_AGAIN));
            }
        }
        let on = self.rules.shadow;
        let before = queue.len();
        let actions = self.shadow.cast(on, arrival, &mut queue, actions, id, observer);
        if queue.len() < before {
            // The board still counts those who were taken out.
            self.look_again_at = Some(now);
        }
        self.queue = queue;
        actions
    }

    /// Takes out those whose patience is over. In each lane the foremost is the first to expire.
    fn expire(&mut self, now: Instant) -> Vec<Waiting> {
        let mut expired = Vec::new();
        for lane in Lane::ALL {
            let patience = self.rules.patience.of(lane);
            while let Some(front) = self.queue.front(lane).copied()
                && front.arrived.after(patience) <= now
            {
                self.queue.remove(front.request);
                expired.push(front);
            }
        }
        expired
    }

    /// Looks at the ledger for the gauges' sake, without changing anything but what time alone changes.
    fn refresh<S: Store>(
        &mut self,
        id: LimitId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> Option<Action> {
        match self.look(id, now, store, observer) {
            Ok((_, wake)) => wake,
            Err(_) => {
                observer.store_failed(id);
                self.refresh_at = Some(now.after(HEARTBEAT));
                None
            }
        }
    }

    fn look<S: Store>(
        &mut self,
        id: LimitId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
    ) -> Result<(Snapshot, Option<Action>), StoreError> {
        let ((), snapshot, stirred) = self.transact(id, now, store, observer, |_, _, _| ((), false, None))?;
        Ok((snapshot, stirred.map(Action::Wake)))
    }

    /// Runs one decision on the ledger and reports what changed. `decide` gets the ledger, advanced to the time of the
    /// decision, whether it is new, and that time; it answers its decision, whether the ledger changed, and a transition
    /// of the retreat. The time is the store's own, read after the ledger, and `now` only where the store has none.
    ///
    /// Returns the decision, a picture of the ledger, and the worker to wake because the pace has changed: it holds the
    /// best request, and sleeps until the time at which the old pace would have brought a token.
    fn transact<S: Store, T>(
        &mut self,
        id: LimitId,
        now: Instant,
        store: &mut S,
        observer: &mut impl Observer,
        mut decide: impl FnMut(&mut Ledger, bool, Instant) -> (T, bool, Option<Transition>),
    ) -> Result<(T, Snapshot, Option<WorkerId>), StoreError> {
        let rules = self.rules;
        let (decision, snapshot, differences, transition, corrupt, rules, stirred) =
            store.measure_and_replace(&self.key, |present, clock| {
                let now = clock.unwrap_or(now);
                let stored = present.map(Ledger::decode);
                let corrupt = matches!(stored, Some(None));
                // Nothing is known of the past of a record that can't be read, so it starts with an empty bucket.
                let tokens = if corrupt { 0 } else { rules.capacity };
                let fresh = !matches!(stored, Some(Some(_)));
                let mut ledger = stored.flatten().unwrap_or_else(|| Ledger::new(rules, tokens, now));
                let before = ledger.board().totals();
                let pace = ledger.pace();
                let passed = ledger.advance(now);
                let (decision, changed, transition) = decide(&mut ledger, fresh, now);
                let snapshot = ledger.snapshot(now);
                let transition = transition.or(passed);
                let write = changed || fresh || transition.is_some();
                let differences = differences(before, snapshot.waiting);
                let value = write.then(|| ledger.encode());
                let stirred = (ledger.pace() != pace).then(|| ledger.due_worker()).flatten();
                (value, (decision, snapshot, differences, transition, corrupt, *ledger.rules(), stirred))
            })?;
        self.rules = rules;
        if corrupt {
            observer.ledger_corrupt(id);
            // The board that was lost is still in the gauges; the workers put their lines on the new one again.
            observer.queue_is(id, snapshot.waiting);
        } else if differences != [0; LANES] {
            observer.queue_changed(id, differences);
        }
        if let Some(transition) = transition {
            observer.retreat_changed(id, transition);
        }
        observer.looked(id, &snapshot, &rules);
        let full_at = (snapshot.available < snapshot.full).then_some(snapshot.full_at);
        // The way back has many small steps, and nobody waits for them.
        let next_step = snapshot.retreat_due_at.map(|at| at.max(now.after(rules.retreat.window.quarter())));
        self.refresh_at = full_at.into_iter().chain(next_step).min();
        Ok((decision, snapshot, stirred))
    }
}

/// Takes the granted requests out of the queue, in the order in which the decision saw them.
fn grant(
    queue: &mut Queue,
    granted: &[Waiting],
    now: Instant,
    id: LimitId,
    observer: &mut impl Observer,
) -> Vec<Action> {
    granted
        .iter()
        .map(|waiting| {
            queue.remove(waiting.request);
            let waited = now.since(waiting.arrived);
            observer.granted(id, waiting.lane.priority(), waited);
            Action::Resume { request: waiting.request, waited }
        })
        .collect()
}

fn differences(before: [u32; LANES], after: [u32; LANES]) -> [i64; LANES] {
    let mut differences = [0; LANES];
    for (difference, (before, after)) in differences.iter_mut().zip(before.into_iter().zip(after)) {
        *difference = i64::from(after).saturating_sub(i64::from(before));
    }
    differences
}

/// Seconds for `Retry-After`: the expected wait, and up to a tenth more, so that clients that were refused together
/// don't come back together.
fn retry_after_s(wait: Micros, request: RequestId, now: Instant) -> u64 {
    let secs = wait.as_secs_ceil().clamp(1, RETRY_AFTER_MAX_S);
    let spread = (secs / 10).saturating_add(2);
    // Fibonacci hashing spreads neighbouring request numbers and times well enough for a jitter.
    let mixed = (now.as_micros() ^ u64::from(request.0)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    secs.saturating_add(mixed.checked_rem(spread).unwrap_or(0)).min(RETRY_AFTER_MAX_S)
}

/// The longest time between two looks at the ledger while someone waits: it keeps the worker's line on the board alive
/// and takes up a rate that rises.
pub const HEARTBEAT: Micros = Micros::from_secs(2);

/// When to try again after a decision that could not be made.
const TRY_AGAIN: Micros = Micros::from_millis(1);

/// The longest `Retry-After` given to a client.
const RETRY_AFTER_MAX_S: u64 = 300;

#[cfg(test)]
#[path = "scheduler/tests.rs"]
mod tests;
