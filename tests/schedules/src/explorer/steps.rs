//! The steps: which may come next, and what each does.

use super::replay::{Answer, Begin, Next, Replayed, Turn, replay};
use super::{Explorer, Id, Local, State, Step, Try, WORKERS};
use crate::Bug;
use nimgate_core::limit::ledger::Ledger;
use nimgate_core::units::WorkerId;

/// What a worker in a callback does next, with what comes of it in the tables.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    Load(usize),
    Clock,
    Swap { limit: usize, ledger: Id, first: bool },
    Lose,
    Done(Outcome),
}

/// What comes of a callback: the worker after it, and whom it wakes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub worker: Id,
    pub woken: [bool; WORKERS],
}

impl Explorer<'_> {
    /// All steps that may come next.
    pub(super) fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, local) in state.locals.iter().enumerate() {
            if local.turn.is_some() {
                steps.push(Step::GoOn(at));
                continue;
            }
            let worker = self.workers.get(local.worker);
            if worker.tried < self.case.tries[at].len() {
                steps.push(Step::Try(at));
            }
            if local.woken {
                steps.push(Step::TakeUpWake(at));
            }
            if worker.next_wakeup().is_some_and(|due| due <= self.time(state.clock)) {
                steps.push(Step::Timer(at));
            }
        }
        if state.clock < self.case.clock.len() {
            steps.push(Step::Clock);
        }
        steps
    }

    /// The state after a step.
    pub(super) fn take(&mut self, mut state: State, step: Step) -> Result<State, String> {
        match step {
            Step::Clock => state.clock += 1,
            Step::Try(at) => {
                let worker = self.workers.get(state.locals[at].worker);
                match self.case.tries[at][worker.tried] {
                    Try::Arrive(priority) => self.begin(&mut state, at, Begin::Arrive(0, priority, false)),
                    Try::AskWeak(priority) => self.begin(&mut state, at, Begin::Arrive(0, priority, true)),
                    Try::AskOther(priority) => self.begin(&mut state, at, Begin::Arrive(1, priority, false)),
                    Try::Slow => self.begin(&mut state, at, Begin::Slow),
                    Try::End => self.begin(&mut state, at, Begin::End),
                    Try::Retry(retries) => self.begin(&mut state, at, Begin::Charge(retries)),
                    Try::Configure => self.begin(&mut state, at, Begin::Configure),
                    Try::Override => self.begin(&mut state, at, Begin::Override),
                    Try::Leave => {
                        let mut worker = worker.clone();
                        worker.leave();
                        state.locals[at].worker = self.workers.id(worker);
                    }
                }
            }
            Step::TakeUpWake(at) => {
                state.locals[at].woken = false;
                self.begin(&mut state, at, Begin::Woken);
            }
            Step::Timer(at) => self.begin(&mut state, at, Begin::Timer),
            Step::GoOn(at) => self.go_on(&mut state, at)?,
        }
        Ok(state)
    }

    fn begin(&mut self, state: &mut State, at: usize, begin: Begin) {
        let turn = Turn::new(begin, self.time(state.clock));
        state.locals[at].turn = Some(self.turns.id(turn));
        self.end_if_done(state, at);
    }

    /// Lets a worker that is in a callback do what it does next.
    fn go_on(&mut self, state: &mut State, at: usize) -> Result<(), String> {
        match self.plan(state, at) {
            Plan::Load(limit) => {
                state.locals[at].current = true;
                self.answer(state, at, Answer::Loaded(limit, state.ledgers[limit]));
            }
            Plan::Clock => self.answer(state, at, Answer::Time(self.time(state.clock))),
            Plan::Swap { limit, ledger, first } => {
                let bug = self.case.bug;
                let overwrites = (bug == Bug::UnconditionalFirstWrite && first) || bug == Bug::StaleRetry;
                if !state.locals[at].current && !overwrites {
                    state.locals[at].current = true;
                    self.answer(state, at, Answer::Lost);
                    return Ok(());
                }
                let before = *state;
                let ledger = self.refilled_twice_if_planted(ledger, before.ledgers[limit]);
                state.ledgers[limit] = Some(self.freed_twice_if_planted(ledger, &before, at));
                for other in &mut state.locals {
                    let looks_at = other.turn.and_then(|turn| self.turns.get(turn).looks_at());
                    other.current &= looks_at != Some(limit);
                }
                state.locals[at].current = true;
                self.answer(state, at, Answer::Replaced);
                self.commit(&before, state, at, limit)?;
                (0..WORKERS).for_each(|other| self.overtake(state, other));
            }
            Plan::Lose => self.answer(state, at, Answer::Lost),
            Plan::Done(_) => return Err("a callback that is over goes on".to_owned()),
        }
        Ok(())
    }

    /// Answers a worker. Its callback ends with the last answer: nothing is between the two that another could notice.
    fn answer(&mut self, state: &mut State, at: usize, answer: Answer) {
        if let Some(turn) = state.locals[at].turn {
            let mut turn = self.turns.get(turn).clone();
            turn.answers.push(answer);
            if self.case.merges() {
                turn.forget();
            }
            state.locals[at].turn = Some(self.turns.id(turn));
            self.end_if_done(state, at);
            self.overtake(state, at);
        }
    }

    /// Notes of a worker that is about to swap a ledger which is no longer there that it can only lose.
    fn overtake(&mut self, state: &mut State, at: usize) {
        let Local { turn: Some(turn), current: false, .. } = state.locals[at] else { return };
        let may_win = matches!(self.case.bug, Bug::UnconditionalFirstWrite | Bug::StaleRetry);
        if self.case.merges() && !may_win && matches!(self.plan(state, at), Plan::Swap { .. }) {
            let mut turn = self.turns.get(turn).clone();
            turn.overtake();
            state.locals[at] = Local { turn: Some(self.turns.id(turn)), current: true, ..state.locals[at] };
            // What it has decided before is known by the new turn too.
            self.plan(state, at);
        }
    }

    fn end_if_done(&mut self, state: &mut State, at: usize) {
        if let Plan::Done(Outcome { worker, woken }) = self.plan(state, at) {
            state.locals[at] = Local { worker, turn: None, current: true, ..state.locals[at] };
            for (local, woken) in state.locals.iter_mut().zip(woken) {
                local.woken |= woken;
            }
        }
    }

    fn plan(&mut self, state: &State, at: usize) -> Plan {
        let Local { worker, turn: Some(turn), .. } = state.locals[at] else {
            panic!("worker {} goes on and is in the middle of nothing", at + 1);
        };
        if let Some(plan) = self.plans.get(&(worker, turn)) {
            return *plan;
        }
        let Replayed { next, worker: then, wakes } =
            replay(self.workers.get(worker), self.turns.get(turn), &self.bytes, self.case);
        let is_done = matches!(next, Next::Done);
        let has_swapped = self.turns.get(turn).has_swapped();
        let outcome = (is_done || has_swapped).then(|| Outcome {
            worker: self.workers.id(then),
            // Workers have the numbers from 1 on.
            woken: std::array::from_fn(|at| wakes.contains(&WorkerId(at as u32 + 1))),
        });
        if let (Some(outcome), true) = (outcome, has_swapped) {
            self.so_far.insert((worker, turn), outcome);
        }
        let plan = match (next, outcome) {
            (Next::Done, Some(outcome)) => Plan::Done(outcome),
            _ if self.turns.get(turn).is_overtaken() => Plan::Lose,
            (Next::Load(limit), _) => Plan::Load(limit),
            (Next::Swap { limit, value, first }, _) => Plan::Swap { limit, ledger: self.ledger(value), first },
            _ => Plan::Clock,
        };
        self.plans.insert((worker, turn), plan);
        plan
    }

    fn ledger(&mut self, value: Vec<u8>) -> Id {
        let id = self.bytes.id(value);
        if self.ledgers.len() == id as usize {
            let ledger = Ledger::decode(self.bytes.get(id));
            self.ledgers.push(ledger.unwrap_or_else(|| panic!("a record that was just written can't be read")));
        }
        id
    }

    fn freed_twice_if_planted(&mut self, ledger: Id, before: &State, at: usize) -> Id {
        let ends = before.locals[at].turn.is_some_and(|turn| self.turns.get(turn).begin == Begin::End);
        if self.case.bug != Bug::SlotFreedTwice || !ends {
            return ledger;
        }
        let freed = self.ledgers[ledger as usize].clone().with_slot_freed();
        self.ledger(freed.encode())
    }

    fn refilled_twice_if_planted(&mut self, ledger: Id, before: Option<Id>) -> Id {
        match (self.case.bug, before) {
            (Bug::DoubleRefill, Some(before)) => {
                let (before, after) = (&self.ledgers[before as usize], &self.ledgers[ledger as usize]);
                self.ledger(after.clone().with_refill_of(before).encode())
            }
            _ => ledger,
        }
    }
}
