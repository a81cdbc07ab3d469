//! The heart of one worker: inputs in, actions and events out, and when to look again.
//!
//! For each limit it joins the worker's own queue to the shared ledger. It calls no host: the store comes in with each
//! call, and with it the only clock. Every decision is made inside [`Home::decide`] and only then carried
//! out on the queue, so a lost race leaves no trace here.

use crate::control::answer::Answer;
use crate::event::{Event, Happened};
use crate::limit::form::Form;
use crate::limit::home::{Company, Home, Past};
use crate::limit::ledger::{Admission, Held, Ledger, Snapshot};
use crate::limit::rules::Rules;
use crate::order::queue::Queue;
use crate::outcome::Outcome;
use crate::priority::{LANES, Lane};
use crate::request::Request;
use crate::store::{Store, StoreError};
use crate::supply::reservation::Reservation;
use crate::units::{Instant, LimitId, Micros, RequestId, WorkerId};
use hashbrown::HashMap;
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
        /// When it got the token.
        granted_at: Instant,
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
        /// The ledger after the decision, and its time; `None` if there was no way to look at it.
        snapshot: Option<(Snapshot, Instant)>,
    },
    /// Wake another worker.
    Wake(WorkerId),
}

/// What came of an input.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Output {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What happened.
    pub events: Vec<Happened>,
    /// The ledger after the decision, and its time; `None` if nothing was decided or there was no way to.
    pub snapshot: Option<(Snapshot, Instant)>,
}

/// The scheduler of one worker.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scheduler {
    limits: Vec<Limit>,
    company: Company,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Limit {
    name: String,
    home: Home,
    /// This worker, once it has had a request.
    me: Option<WorkerId>,
    /// The active rules, as of the last look at the ledger, and the configured ones, which a ledger in the form of
    /// version 1 does not know in full.
    rules: Rules,
    configured: Rules,
    /// A configuration that the store refused to take.
    pending: Option<PendingRules>,
    recount: Recount,
    queue: Queue,
    /// What the requests hold that were granted here and whose streams have not ended.
    reservations: HashMap<RequestId, Reservation>,
    /// What requests held that were never sent, until the ledger has taken it back.
    unused: Vec<Reservation>,
    shadow: Shadow,
    /// When to look at the ledger again because someone waits here, or has just left.
    look_again_at: Option<Instant>,
    /// When to look at it once more so that the gauges show its state at rest.
    refresh_at: Option<Instant>,
}

/// Configured rules that the ledger does not know yet, and those that were configured when it should have learnt of them. If
/// it has others by now, another worker has written a later configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PendingRules {
    rules: Rules,
    before: Option<Rules>,
}

impl PendingRules {
    fn is_due(&self, ledger: &Ledger) -> bool {
        !ledger.is_configured_with(&self.rules) && self.before.is_none_or(|before| ledger.is_configured_with(&before))
    }
}

/// A worker that finds a new ledger sets the gauges of who waits to what that says. Another may add to them between the two,
/// so they are set once more when nobody has waited for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Recount {
    /// There is nothing to do.
    Done,
    /// When nobody waits.
    AtRest,
    /// Nobody has been seen waiting since then.
    RestSince(Instant),
}

impl Recount {
    /// Whether nobody has waited for so long that whoever changed that has also changed the gauges.
    fn is_due(self, snapshot: &Snapshot, now: Instant) -> bool {
        let rested = matches!(self, Self::RestSince(since) if now.since(since) >= GAUGES_LAG_MAX);
        rested && snapshot.waiting == [0; LANES]
    }

    /// What is to be done after a look, which may have set the gauges.
    fn after(self, is_counted: bool, is_new: bool, snapshot: &Snapshot, now: Instant) -> Self {
        let is_empty = snapshot.waiting == [0; LANES];
        match self {
            _ if is_counted => {
                if is_new {
                    Self::AtRest
                } else {
                    Self::Done
                }
            }
            Self::Done => Self::Done,
            Self::RestSince(since) if is_empty => Self::RestSince(since),
            _ if is_empty => Self::RestSince(now),
            _ => Self::AtRest,
        }
    }
}

impl Scheduler {
    /// A scheduler whose ledgers other modules may share. The default one is alone.
    pub fn among(company: Company) -> Self {
        Self { limits: Vec::new(), company }
    }

    /// A module of an older version woke this worker: it may wait for the ledger of some limit, so the next
    /// [`Scheduler::wake`] looks at them all.
    pub fn suspect(&mut self) {
        for limit in &mut self.limits {
            limit.home.suspect();
            limit.look_again_at = Some(Instant::ZERO);
        }
    }

    /// This worker goes, and leaves the ledgers to who comes.
    pub fn release<S: Store>(&mut self, store: &mut S) {
        for limit in &mut self.limits {
            // If it fails, whoever comes waits until the lease ends.
            let _ = limit.home.release(store);
        }
    }

    /// Makes the rules of the limit called `name` active, for all workers, and returns its number here. Who waits keeps
    /// waiting, under the new rules. The last configuration that names a limit wins.
    pub fn configure<S: Store>(&mut self, name: &str, rules: Rules, store: &mut S) -> (LimitId, Vec<Happened>) {
        let id = self.next_id(name);
        let is_new = id.0 == self.limits.len();
        if is_new {
            self.limits.push(Limit::new(name, rules, self.company));
        }
        let mut events = Vec::new();
        if let Some(limit) = self.limits.get_mut(id.0) {
            // The workers get the configuration one after the other, and look again by themselves: those that hold slots
            // too, since the others must know of them if there is a cap now.
            let is_idle = limit.queue.is_empty() && limit.reservations.is_empty();
            limit.look_again_at = (!is_idle).then_some(Instant::ZERO);
            // This one comes after one that could not be written.
            let before = match limit.pending.take() {
                Some(pending) => pending.before,
                None => Some(limit.configured).filter(|_| !is_new),
            };
            let adopted = limit.transact(id, store, &mut events, &mut |ledger, fresh, now, events| {
                let changed = !ledger.is_configured_with(&rules);
                if changed {
                    ledger.adopt(rules, now, events);
                }
                if changed || fresh {
                    events.push(Event::RulesConfigured { epoch: ledger.epoch(), rules });
                }
                changed
            });
            limit.configured = rules;
            if adopted.is_err() {
                limit.rules = rules;
                limit.pending = Some(PendingRules { rules, before });
                events.push((id, Event::StoreFailed));
            }
            limit.queue.set_timeouts(limit.rules.timeouts);
        }
        (id, events)
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

    /// The rules of a limit that were active when this worker last looked.
    pub fn rules(&self, id: LimitId) -> Option<&Rules> {
        self.limits.get(id.0).map(|limit| &limit.rules)
    }

    /// How many requests of a limit wait in this worker.
    pub fn waiting(&self, id: LimitId) -> usize {
        self.limits.get(id.0).map_or(0, |limit| limit.queue.len())
    }

    /// A request as it waits here; `None` if it does not.
    #[cfg(feature = "testing")]
    pub fn request(&self, id: LimitId, request: RequestId) -> Option<&Request> {
        self.limits.get(id.0)?.queue.get(request)
    }

    /// How many requests of a limit were granted in this worker and have not ended.
    pub fn in_flight(&self, id: LimitId) -> usize {
        self.limits.get(id.0).map_or(0, |limit| limit.reservations.len())
    }

    /// A request is complete and needs a token.
    pub fn arrive<S: Store>(&mut self, id: LimitId, request: Request, worker: WorkerId, store: &mut S) -> Output {
        let Some(limit) = self.limits.get_mut(id.0) else {
            return Output::default();
        };
        limit.turn(id, Some(request), worker, store)
    }

    /// The stream of a request that may still wait is gone: the request leaves the queue and costs nothing. Says whether
    /// it did wait.
    ///
    /// The ledger learns of it at the next wake-up, which is due at once: streams often go in crowds (a connection with
    /// a hundred of them closes), and none of the crowd must get a token because another of it has just left.
    pub fn leave(&mut self, id: LimitId, request: RequestId) -> bool {
        let Some(limit) = self.limits.get_mut(id.0) else { return false };
        let waited = limit.queue.remove(request).is_some();
        if waited {
            limit.look_again_at = Some(Instant::ZERO);
        }
        waited
    }

    /// The stream of a granted request is over. `was_sent` says whether the upstream may have got any of it; if not, its
    /// token goes back. What the request held is settled by this, once: further calls for it do nothing. Says whether
    /// the ledger must learn of it.
    ///
    /// As with [`Scheduler::leave`], it learns of it at the next wake-up, which is due at once: what a stream frees must
    /// not be granted to one that ends with it.
    pub fn end(&mut self, id: LimitId, request: RequestId, was_sent: bool) -> bool {
        let Some(limit) = self.limits.get_mut(id.0) else { return false };
        let Some(reservation) = limit.reservations.remove(&request) else { return false };
        if !was_sent {
            limit.unused.push(reservation);
        }
        // Where nothing is limited but the rate, the end of a request that was sent changes nothing.
        let matters = !was_sent || limit.rules.max_in_flight.is_some();
        if matters {
            limit.look_again_at = Some(Instant::ZERO);
        }
        matters
    }

    /// Another worker woke this one (`woken`), or a timer fired: do for every limit what is due. `woken` looks at every limit
    /// with someone waiting, whatever the time.
    pub fn wake<S: Store>(&mut self, woken: bool, worker: WorkerId, store: &mut S) -> Output {
        let now = store.now();
        self.catch_up(woken, now, worker, store)
    }

    /// The timer fired that was armed for `at`, a time that [`Scheduler::next_wakeup`] said: do what is due then.
    ///
    /// With one limit the time need not be read to know that: the decision reads it after the ledger, and if the timer was
    /// early it finds nothing to do. With several, what became due a little later is not left for another turn.
    pub fn fired<S: Store>(&mut self, at: Instant, worker: WorkerId, store: &mut S) -> Output {
        let is_due = self.next_wakeup().is_some_and(|due| due <= at);
        let now = if is_due && self.limits.len() == 1 { at } else { store.now() };
        self.catch_up(false, now, worker, store)
    }

    fn catch_up<S: Store>(&mut self, woken: bool, now: Instant, worker: WorkerId, store: &mut S) -> Output {
        let mut output = Output::default();
        for (at, limit) in self.limits.iter_mut().enumerate() {
            let id = LimitId(at);
            let due = limit.due_at().is_some_and(|due| due <= now);
            if due || (woken && !limit.queue.is_empty()) {
                let Output { actions, events, .. } = limit.turn(id, None, worker, store);
                output.actions.extend(actions);
                output.events.extend(events);
            } else if limit.refresh_at.is_some_and(|due| due <= now) {
                output.actions.extend(limit.refresh(id, store, &mut output.events));
            }
        }
        output
    }

    /// The upstream answered a request, after so many `retries` by Envoy's router.
    pub fn answer<S: Store>(&mut self, id: LimitId, answer: Answer, retries: u32, store: &mut S) -> Output {
        self.on_ledger(id, store, |ledger, now, events| {
            ledger.answer(answer, now, events);
            ledger.charge(retries);
            true
        })
    }

    /// Charges `retries` of Envoy's router where no answer of the upstream tells of them.
    pub fn charge<S: Store>(&mut self, id: LimitId, retries: u32, store: &mut S) -> Output {
        if retries == 0 {
            return Output::default();
        }
        self.on_ledger(id, store, |ledger, _, _| {
            ledger.charge(retries);
            true
        })
    }

    /// Looks at a limit's ledger as it is now, without changing anything but what time alone changes.
    pub fn look<S: Store>(&mut self, id: LimitId, store: &mut S) -> Output {
        self.on_ledger(id, store, |_, _, _| false)
    }

    fn on_ledger<S: Store>(
        &mut self,
        id: LimitId,
        store: &mut S,
        mut change: impl FnMut(&mut Ledger, Instant, &mut Vec<Event>) -> bool,
    ) -> Output {
        let mut output = Output::default();
        let Some(limit) = self.limits.get_mut(id.0) else {
            return output;
        };
        match limit.transact(id, store, &mut output.events, &mut |ledger, _, now, events| change(ledger, now, events)) {
            Ok(Decided { snapshot, now, wakes }) => {
                output.actions.extend(wakes.into_iter().map(Action::Wake));
                output.snapshot = Some((snapshot, now));
            }
            Err(_) => output.events.push((id, Event::StoreFailed)),
        }
        output
    }

    /// When [`Scheduler::wake`] must be called next; `None` when there is nothing to do.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.limits.iter().flat_map(|limit| [limit.due_at(), limit.refresh_at]).flatten().min()
    }
}

/// A decision: on the ledger, which may be new, at a time. What happens is added to the events; whether the ledger changed
/// is answered.
type Decide<'a> = dyn FnMut(&mut Ledger, bool, Instant, &mut Vec<Event>) -> bool + 'a;

/// What a decision on the ledger came to.
struct Decided {
    snapshot: Snapshot,
    /// The time of the decision.
    now: Instant,
    /// The worker that holds the best request, if the rate has changed: it sleeps until the time at which the old rate
    /// would have brought a token. And those that hold requests of a model that may go at another time than before.
    wakes: Vec<WorkerId>,
}

/// What a worker has seen and done at the ledger.
struct Looked {
    decided: Decided,
    /// The active rules and the configured ones.
    rules: (Rules, Rules),
    is_new: bool,
    /// Whether the ledger knows what waits here.
    is_known: bool,
    /// Whether the gauges show something else than what is so by now.
    gauges_lag: bool,
    /// When the line of a worker that stays silent goes.
    expires_at: Option<Instant>,
    events: Vec<Event>,
}

impl Limit {
    fn new(name: &str, rules: Rules, company: Company) -> Self {
        Self {
            name: name.to_owned(),
            home: Home::new(name, company),
            me: None,
            rules,
            configured: rules,
            pending: None,
            recount: Recount::Done,
            queue: Queue::new(rules.timeouts),
            reservations: HashMap::new(),
            unused: Vec::new(),
            shadow: Shadow::default(),
            look_again_at: None,
            refresh_at: None,
        }
    }

    /// When something is due: a look at the ledger, or a deadline.
    fn due_at(&self) -> Option<Instant> {
        self.queue.next_deadline().into_iter().chain(self.look_again_at).min()
    }

    /// One decision: ends what has waited too long, takes back what was not used, grants what may be granted, places the
    /// arrival, publishes what waits.
    fn turn<S: Store>(&mut self, id: LimitId, new: Option<Request>, worker: WorkerId, store: &mut S) -> Output {
        self.me = Some(worker);
        let (mut expired, mut arrival) = (Vec::new(), None);
        let in_flight = u32::try_from(self.reservations.len()).unwrap_or(u32::MAX);
        let held = Held { in_flight, taken_back: !self.unused.is_empty() };
        let mut output = Output::default();
        // These are lent to the decision while the rest of the limit runs the transaction.
        let (mut queue, mut shadow) = (core::mem::take(&mut self.queue), core::mem::take(&mut self.shadow));
        let unused = core::mem::take(&mut self.unused);
        let mut turned = None;
        let decided = self.transact(id, store, &mut output.events, &mut |ledger, _, now, events| {
            expired.extend(queue.take_expired(now));
            // A request comes when the ledger first knows of it: decided again, it came only now.
            arrival = new.map(|new| queue.push(new, now));
            if !ledger.rules().shadow {
                // Those who have gone already must take no token from those who wait.
                for gone in shadow.gone() {
                    queue.remove(gone);
                }
            }
            for reservation in &unused {
                events.push(Event::Unused { returned: ledger.take_back(reservation, now) });
            }
            queue.set_governed(ledger.models().slowed().iter().map(|slowed| slowed.key));
            let (turn, changed) = ledger.turn(worker, &queue, held, arrival.as_ref(), now, events);
            let estimates = Lane::ALL.map(|lane| ledger.turn_estimate(lane, now));
            turned = Some((turn, estimates));
            changed || !unused.is_empty()
        });
        // The store asks before it says that it has taken a decision.
        let decided = decided.and_then(|decided| Ok((decided, turned.ok_or(StoreError::Unavailable)?)));
        let now = decided.as_ref().map_or_else(|_| store.now(), |(decided, _)| decided.now);
        match decided {
            Ok((Decided { snapshot, wakes, .. }, (turn, estimates))) => {
                queue.set_timeouts(self.rules.timeouts);
                let refuse = |request: &Request, outcome| {
                    let at = estimates.get(request.lane.index()).copied().unwrap_or(now);
                    Action::Reply {
                        request: request.id,
                        lane: request.lane,
                        outcome,
                        retry_after_s: retry_after_s(at.since(now), request.id, now),
                        waited: now.since(request.arrived),
                        snapshot: Some((snapshot, now)),
                    }
                };
                output.actions.extend(expired.iter().map(|request| refuse(request, Outcome::RateLimited)));
                for (request, reservation) in &turn.granted {
                    queue.remove(request.id);
                    if !self.rules.shadow {
                        self.reservations.insert(request.id, *reservation);
                    }
                    let waited = reservation.granted_at.since(request.arrived);
                    let level = request.lane.priority();
                    output.events.push((id, Event::Granted { request: request.id, level, waited }));
                    let granted_at = reservation.granted_at;
                    output.actions.push(Action::Resume { request: request.id, waited, granted_at });
                }
                if let Some(arrival) = &arrival {
                    match turn.admission {
                        Admission::Queued => {}
                        Admission::Fallback(lane) => {
                            queue.shift(arrival.id, lane);
                            output.events.push((id, Event::FellBack));
                        }
                        Admission::Refused => {
                            queue.remove(arrival.id);
                            output.actions.push(refuse(arrival, Outcome::QueueFull));
                        }
                    }
                }
                let also = wakes.into_iter().filter(|whose| Some(*whose) != turn.wake);
                let moved = self.home.take_wakes();
                let others = turn.wake.into_iter().chain(also).chain(moved).filter(|whose| *whose != worker);
                output.actions.extend(others.map(Action::Wake));
                output.snapshot = Some((snapshot, now));
                self.look_again_at = turn.look_again_at.map(|at| at.min(now.after(HEARTBEAT)));
            }
            Err(error) => {
                // Nothing was decided: who waits keeps waiting, an arrival among them, and it is tried again at once. A wait
                // that is over is over all the same.
                self.unused = unused;
                expired.extend(queue.take_expired(now));
                if arrival.is_none() {
                    arrival = new.map(|new| queue.push(new, now));
                }
                output.events.push((id, Event::StoreFailed));
                output.actions.extend(expired.iter().map(|request| Action::Reply {
                    request: request.id,
                    lane: request.lane,
                    outcome: Outcome::RateLimited,
                    retry_after_s: 1,
                    waited: now.since(request.arrived),
                    snapshot: None,
                }));
                let again = if error == StoreError::NotUnderstood { HEARTBEAT } else { TRY_AGAIN };
                self.look_again_at = Some(now.after(again));
            }
        }
        shadow.cast(self.rules.shadow, arrival.as_ref(), &queue, &mut output, id, now);
        (self.queue, self.shadow) = (queue, shadow);
        output
    }

    /// Looks at the ledger for the gauges' sake, and writes what time alone has changed of them.
    fn refresh<S: Store>(&mut self, id: LimitId, store: &mut S, events: &mut Vec<Happened>) -> Vec<Action> {
        let decided = self.transact(id, store, events, &mut |ledger, _, now, events| {
            let expired = ledger.expire(None, now, events);
            expired || ledger.shown() != Some(ledger.snapshot(now).shown())
        });
        match decided {
            Ok(Decided { wakes, .. }) => wakes.into_iter().map(Action::Wake).collect(),
            Err(_) => {
                events.push((id, Event::StoreFailed));
                // Whoever arms a timer after this relies on the time's having been read.
                self.refresh_at = Some(store.now().after(HEARTBEAT));
                Vec::new()
            }
        }
    }

    /// Runs one decision on the ledger and adds what happened to `events`. `decide` gets the ledger, advanced to the time
    /// of the decision, whether it is new, that time, and where to put events; it answers whether the
    /// ledger changed.
    fn transact<S: Store>(
        &mut self,
        id: LimitId,
        store: &mut S,
        events: &mut Vec<Happened>,
        decide: &mut Decide<'_>,
    ) -> Result<Decided, StoreError> {
        let (me, active, configured) = (self.me, self.rules, self.configured);
        let (pending, recount) = (self.pending, self.recount);
        let looked = self.home.decide(me, configured, store, |mut ledger, past, now| {
            let mut events = Vec::new();
            let Past { is_new: fresh, was_damaged: unreadable } = past;
            let before = ledger.peers().totals();
            let flow_and_gate = ledger.flow_and_gate();
            let openings = ledger.models().openings();
            // A ledger that was lost begins with the configured rules; what overrode them is put back, unless others have
            // set rules since.
            if fresh && ledger.epoch() == 1 && active != configured {
                ledger.override_rules(active, now, &mut events);
            }
            if let Some(pending) = pending.filter(|pending| pending.is_due(&ledger)) {
                ledger.adopt(pending.rules, now, &mut events);
                events.push(Event::RulesConfigured { epoch: ledger.epoch(), rules: pending.rules });
            }
            ledger.advance(now, &mut events);
            let changed = decide(&mut ledger, fresh, now, &mut events);
            let snapshot = ledger.snapshot(now);
            let mut wakes = ledger.holders_to_tell(&openings, now);
            // What others are woken for must be there when they look, or they would wake each other for ever.
            let write = changed || fresh || !events.is_empty() || !wakes.is_empty();
            if unreadable {
                events.push(Event::RecordUnreadable);
            }
            if fresh {
                // The gauges may still hold lines that were lost; the workers publish theirs again. Once is enough, by who
                // takes note that it is no longer new: a count that comes late would undo what others have added since.
                if me.is_some() {
                    events.push(Event::QueueCounted(snapshot.waiting));
                }
            } else if before != snapshot.waiting {
                events.push(Event::QueueChanged(differences(before, snapshot.waiting)));
            } else if recount.is_due(&snapshot, now) {
                events.push(Event::QueueCounted(snapshot.waiting));
            }
            let (before, after) = (ledger.shown(), snapshot.shown());
            let rules = (*ledger.rules(), if ledger.form() == Form::Two { *ledger.configured() } else { configured });
            if write && before != Some(after) {
                ledger.show(after);
                events.push(Event::GaugesChanged { before, after, rules: rules.0 });
            }
            // Who only reads leaves the gauges to the next look that writes.
            let gauges_lag = !write && before != Some(after);
            if write
                && ledger.flow_and_gate() != flow_and_gate
                && let Some(due) = ledger.due_worker()
                && !wakes.contains(&due)
            {
                wakes.push(due);
            }
            let expires_at = ledger.peers().expires_at();
            let is_known = me.is_some_and(|me| ledger.peers().knows(me));
            let value = write.then_some(ledger);
            let decided = Decided { snapshot, now, wakes };
            (value, Looked { decided, rules, is_new: fresh, is_known, gauges_lag, expires_at, events })
        });
        if let Some(form) = self.home.take_move() {
            events.push((id, Event::LedgerMoved(form)));
        }
        if self.home.has_wakes() {
            // The next turn wakes them.
            self.look_again_at = Some(Instant::ZERO);
        }
        let Looked { decided, rules, is_new, is_known, gauges_lag, expires_at, events: happened } = looked?;
        (self.rules, self.configured) = rules;
        self.pending = None;
        let is_counted = happened.iter().any(|event| matches!(event, Event::QueueCounted(_)));
        self.recount = self.recount.after(is_counted, is_new, &decided.snapshot, decided.now);
        if !is_known && !self.queue.is_empty() {
            // A new ledger, say. It does not count who waits here, and what held them up may not hold any more. A turn, to
            // which the queue is lent, sees to that itself.
            self.look_again_at = Some(Instant::ZERO);
        }
        let rules = self.rules;
        events.extend(happened.into_iter().map(|event| (id, event)));
        let snapshot = &decided.snapshot;
        let full_at = (snapshot.available < snapshot.full).then_some(snapshot.full_at);
        let window = rules.retreat.window;
        // The way back has many small steps, and nobody waits for them.
        let next_step = snapshot.retreat_due_at.map(|at| at.max(decided.now.after(window.quarter())));
        // A share of refusals must not look alarming for ever where nothing is asked for any more.
        let calm_at = (snapshot.throttled_permille > 0).then(|| decided.now.after(window));
        let lag = gauges_lag.then(|| decided.now.after(GAUGES_LAG_MAX));
        let recount = (self.recount != Recount::Done).then(|| decided.now.after(HEARTBEAT));
        // A worker that is gone must not be counted for ever where nobody asks any more.
        let dates = [full_at, next_step, calm_at, lag, recount, expires_at];
        self.refresh_at = dates.into_iter().flatten().min();
        Ok(decided)
    }
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

/// The longest time between two looks at the ledger while someone waits: it keeps the worker's line alive and takes up a
/// rate that rises.
pub const HEARTBEAT: Micros = Micros::from_secs(2);

/// How long gauges may show what is not so any more because someone has only read the ledger.
const GAUGES_LAG_MAX: Micros = Micros::from_secs(1);

/// When to try again after a decision that could not be made.
const TRY_AGAIN: Micros = Micros::from_millis(1);

/// The longest `Retry-After` given to a client.
const RETRY_AFTER_MAX_S: u64 = 300;

#[cfg(test)]
#[path = "scheduler/tests.rs"]
mod tests;
