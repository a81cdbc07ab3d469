//! What must hold of each state and each swap of an exploration.

use super::replay::{Answer, Begin};
use super::steps::Outcome;
use super::{Explorer, Local, State, Step, Violation, Visit};
use crate::invariants::{due, ensure, has_slot, hold_always, hold_at_rest, is_open, looks_in_time, weak_opens};
use crate::worker::{Request, UnderLimit, Worker, at_ms, token_every};
use nimgate_core::limit::ledger::{GRACE, Ledger};
use nimgate_core::limit::rules::Rules;
use nimgate_core::units::{Instant, Micros, RequestId, WorkerId};

/// Whose request is the best in a ledger at a time, and when a token is there for it.
pub(super) type Due = Option<(WorkerId, Instant)>;

/// A bucket as one would write it down first: how many microseconds it has saved up, less those that are owed, and until
/// when that was counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct NaiveBucket {
    saved: i64,
    counted_to: Instant,
}

impl NaiveBucket {
    /// A full one, at the start.
    pub fn full(rules: &Rules) -> Self {
        Self { saved: worth(rules, rules.capacity), counted_to: at_ms(0) }
    }

    fn at(self, now: Instant, rules: &Rules) -> Self {
        let saved = (self.saved + now.since(self.counted_to).get() as i64).min(worth(rules, rules.capacity));
        Self { saved, counted_to: self.counted_to.max(now) }
    }

    fn pay(self, rules: &Rules, number: u32) -> Option<Self> {
        let saved = self.saved - worth(rules, number);
        (number == 0 || saved >= 0).then_some(Self { saved, ..self })
    }

    /// Retries are spent whether they are there or not.
    fn charge(self, rules: &Rules, number: u32) -> Self {
        Self { saved: self.saved - worth(rules, number), ..self }
    }

    fn there(self, rules: &Rules) -> u64 {
        self.saved.max(0) as u64 / token_every(rules).get()
    }
}

/// The time in which so many tokens come.
fn worth(rules: &Rules, number: u32) -> i64 {
    token_every(rules).times(u64::from(number)).get() as i64
}

impl Explorer<'_> {
    /// Checks what must hold of every state.
    pub(super) fn holds(&mut self, state: &State) -> Result<(), String> {
        (0..self.case.limits().len()).try_for_each(|limit| self.holds_of(limit, state))
    }

    fn holds_of(&mut self, limit: usize, state: &State) -> Result<(), String> {
        let now = self.time(state.clock);
        let due = self.due(state, limit);
        let workers = self.workers_of(state);
        let ledger = state.ledgers[limit].map(|id| &self.ledgers[id as usize]);
        hold_always(&workers, limit, ledger, &self.case.most(limit), now)?;
        // Whom a callback wakes is woken when it is over.
        let outcomes = || state.locals.iter().filter_map(|local| self.outcome_so_far(local));
        let will_be_woken = |at: usize| state.locals[at].woken || outcomes().any(|outcome| outcome.woken[at]);
        let is_idle = |at: usize| state.locals[at].turn.is_none() && !will_be_woken(at);
        if let Some((due, token_at)) = due
            && let Some(at) = workers.iter().position(|worker| worker.id() == due)
            && is_idle(at)
        {
            looks_in_time(workers[at], token_at)?;
        }
        if (0..workers.len()).all(is_idle) { hold_at_rest(&workers, limit, ledger, now) } else { Ok(()) }
    }

    /// Checks what must hold when nothing is left to do: everyone has got what was there.
    pub(super) fn holds_at_the_end(&mut self, state: &State) -> Result<(), String> {
        (0..self.case.limits().len()).try_for_each(|limit| self.holds_at_the_end_of(limit, state))
    }

    fn holds_at_the_end_of(&mut self, limit: usize, state: &State) -> Result<(), String> {
        let now = self.time(state.clock);
        let due = self.due(state, limit);
        let ledger = state.ledgers[limit].map(|id| &self.ledgers[id as usize]);
        for worker in self.workers_of(state) {
            let UnderLimit { is_told, waiting, gone, .. } = &worker.limits[limit];
            ensure(*is_told, || format!("{:?} never published who left", worker.id()))?;
            let is_held = waiting.iter().any(|waiting| !gone.contains(&waiting.id));
            ensure(!worker.is_in_shadow(limit) || !is_held, || {
                format!("{:?} holds requests in shadow mode", worker.id())
            })?;
            let may_wait = ledger
                .is_none_or(|ledger| !has_slot(ledger) || !waiting.iter().any(|waiting| is_open(ledger, waiting, now)));
            ensure(may_wait || due.is_some(), || format!("{:?} waits for nothing", worker.id()))?;
        }
        ensure(due.is_none_or(|(_, token_at)| token_at > now), || "a token is there, and someone waits".to_owned())
    }

    /// Checks what must hold of a swap of a limit's ledger by the worker at `at`: the tokens that it took were there, and
    /// went to the best.
    pub(super) fn commit(&mut self, before: &State, after: &mut State, at: usize, limit: usize) -> Result<(), String> {
        let now = self.time(after.clock);
        let turn = before.locals[at].turn.map(|id| self.turns.get(id)).ok_or("a swap by nobody")?;
        let (worker, is) = (self.so_far(&before.locals[at]), self.so_far(&after.locals[at]));
        let id = worker.id();
        let (was, is) = (&worker.limits[limit], &is.limits[limit]);
        let ledger = after.ledgers[limit].map(|id| &self.ledgers[id as usize]).ok_or("no ledger after a swap")?;

        let granted = is.granted - was.granted;
        let configured = self.case.limits()[limit];
        let rules = before.ledgers[limit].map_or(configured, |id| *self.ledgers[id as usize].rules());
        let naive = before.naive[limit].at(turn.decided_at(), &rules);
        let mut left =
            naive.pay(&rules, granted).ok_or_else(|| format!("{id:?} took {granted} tokens of {naive:?}"))?;
        if let Begin::Charge(retries) = turn.begin {
            left = left.charge(&rules, retries);
        }
        after.naive[limit] = left;
        let mut then = ledger.clone();
        then.advance(now, &mut Vec::new());
        let there = u64::from(then.snapshot(now).available);
        let rules = ledger.rules();
        let saved = left.at(now, rules).there(rules);
        let sent: u32 = after.locals.iter().map(|local| self.so_far(local).limits[limit].granted).sum();
        let is_first_window = now.since(at_ms(0)) < configured.window;
        let room = u64::from(configured.window_rules().quota.saturating_sub(sent));
        let saved = if is_first_window { saved.min(room) } else { saved };
        let is_so = if configured.window == Micros::ZERO || is_first_window { there == saved } else { there <= saved };
        ensure(is_so, || format!("the bucket holds {there} tokens and a naive one {saved}"))?;

        let came = match turn.begin {
            Begin::Arrive(of, priority, is_weak) if of == limit => {
                let (id, arrived) = (RequestId(worker.arrived), turn.decided_at());
                Some(Request { id, priority, arrived, is_weak })
            }
            _ => None,
        };
        let those = was.waiting.iter().copied().chain(came);
        let served: Vec<_> = those.filter(|of| is.waiting.iter().all(|waiting| waiting.id != of.id)).collect();
        let Some(last) = served.iter().map(Request::place).max() else { return Ok(()) };
        // One of the slowed model closes it for the next, so it is before others of its model that it must be.
        let last_weak = served.iter().filter(|of| of.is_weak).map(Request::place).max();
        let was_open = before.ledgers[limit].is_none_or(|id| weak_opens(&self.ledgers[id as usize], turn.decided_at()));
        ensure(last_weak.is_none() || was_open, || format!("{id:?} took a token for a model that may not go"))?;
        for (other, local) in after.locals.iter().enumerate() {
            let worker = self.so_far(local);
            for is_weak in [false, true] {
                let of_these = worker.limits[limit].waiting.iter().filter(|request| request.is_weak == is_weak);
                let Some(best) = of_these.min_by_key(|request| request.place()) else { continue };
                let may_be_passed_by = || {
                    other != at && is_passed_over(ledger, worker.id()) && turn.decided_at() >= best.arrived.after(GRACE)
                };
                let last = if is_weak { last_weak.unwrap_or(last) } else { last };
                let may_go = !is_weak || was_open;
                ensure(!may_go || best.place() >= last || may_be_passed_by(), || {
                    format!("{id:?} took a token before {:?}, whose {best:?} is ahead", worker.id())
                })?;
            }
        }
        Ok(())
    }

    fn due(&mut self, state: &State, limit: usize) -> Due {
        let id = state.ledgers[limit]?;
        let now = self.time(state.clock);
        let ledger = &self.ledgers[id as usize];
        *self.dues.entry((id, state.clock)).or_insert_with(|| due(ledger, now))
    }

    fn workers_of(&self, state: &State) -> Vec<&Worker> {
        state.locals.iter().map(|local| self.so_far(local)).collect()
    }

    /// A worker with what it has decided by swaps that were made, in the middle of a callback too.
    fn so_far(&self, local: &Local) -> &Worker {
        self.workers.get(self.outcome_so_far(local).map_or(local.worker, |outcome| outcome.worker))
    }

    fn outcome_so_far(&self, local: &Local) -> Option<&Outcome> {
        self.so_far.get(&(local.worker, local.turn?))
    }

    /// Tells what went wrong, and how it came to it.
    pub(super) fn violation(&self, way: &[Visit], what: String) -> Violation {
        let steps = way.iter().filter_map(|visit| Some((visit, *visit.steps.get(visit.tried.checked_sub(1)?)?)));
        let schedule = steps.map(|(visit, step)| self.in_words(&visit.state, step)).collect();
        Violation { what, schedule }
    }

    fn in_words(&self, state: &State, step: Step) -> String {
        let after = |at: usize| state.locals[at].turn.and_then(|turn| self.turns.get(turn).answers.last());
        match step {
            Step::Clock => format!("the clock moves on to {} ms", self.case.clock[state.clock]),
            Step::Try(at) => {
                let tried = self.workers.get(state.locals[at].worker).tried;
                format!("worker {}: {:?}", at + 1, self.case.tries[at][tried])
            }
            Step::TakeUpWake(at) => format!("worker {} takes up a wake-up", at + 1),
            Step::Timer(at) => format!("worker {}: its timer fires", at + 1),
            Step::GoOn(at) => match after(at) {
                None | Some(Answer::Lost | Answer::Replaced) => format!("worker {} looks at a ledger", at + 1),
                Some(Answer::Loaded(..)) if self.case.bug != crate::Bug::OldTime => {
                    format!("worker {} looks at the clock", at + 1)
                }
                _ => format!("worker {} swaps a ledger", at + 1),
            },
        }
    }
}

fn is_passed_over(ledger: &Ledger, worker: WorkerId) -> bool {
    ledger.peers().lines().iter().any(|line| line.worker == worker && line.passed_over)
}
