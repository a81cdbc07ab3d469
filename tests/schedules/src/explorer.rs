//! All schedules of several workers, with states that are met again on another way recognised.
//!
//! A schedule is a sequence of steps, each of one worker or of the clock: a callback begins (a request comes, a client
//! leaves, a wake-up is taken up, a timer fires) and reads the time; a look at the ledger; a look at the clock; a swap,
//! with which the callback ends if it succeeds; the clock moves on. Any enabled step may come next, so wake-ups and
//! timers may be as late as they like. Between two steps of the same worker nothing happens that another could notice,
//! so these are all the schedules that differ.
//!
//! A worker in the middle of a callback is what it was before, and what it has been answered since: to go on, its
//! callback is run again from the start with those answers. States are compared by value, not by a hash, and the number
//! of schedules is the number of ways through the graph of states.
//!
//! Three things that should make no difference are left out of the state unless [`Case::is_literal`]: what a worker was
//! answered before it lost a race, for it decides anew; what it was answered since another was quicker, if it is about
//! to swap; and the order of the lines on the board. They do make none if a literal exploration finds as many
//! schedules, and a test says that it does.

mod count;
mod replay;
mod verdict;

use crate::Bug;
use crate::record::Form;
use crate::worker::{Worker, at_ms};
pub use count::Count;
use hashbrown::HashMap;
use nimgate::ledger::Ledger;
use nimgate::priority::Priority;
use nimgate::units::{Instant, WorkerId};
use replay::{Answer, Begin, Next, Turn, replay};
use std::hash::Hash;

/// What a worker has to do, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Try {
    /// A request comes.
    Arrive(Priority),
    /// The client of the latest request that still waits here leaves.
    Leave,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Case {
    /// The most tokens that the bucket holds; it is full at first.
    pub capacity: u32,
    /// What each worker has to do.
    pub tries: [Vec<Try>; WORKERS],
    /// The times, in milliseconds from the start and in order, to which the clock moves in as many steps.
    pub clock: Vec<u64>,
    /// Whether states that differ only in what should make no difference are told apart.
    pub is_literal: bool,
    /// What is planted.
    pub bug: Bug,
}

/// How many workers there are.
pub const WORKERS: usize = 3;

/// What was explored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explored {
    /// Different states.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// States in which nothing is left to do.
    pub ends: u64,
    /// Ways from the start to an end.
    pub schedules: Count,
    /// The number of steps in the longest.
    pub longest: u64,
}

/// Something that must hold did not.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What.
    pub what: String,
    /// The schedule that led to it.
    pub schedule: Vec<String>,
}

/// The place of a value in a [`Table`].
type Id = u32;

/// Values, each of them once.
#[derive(Debug)]
struct Table<T> {
    ids: HashMap<T, Id>,
    values: Vec<T>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { ids: HashMap::new(), values: Vec::new() }
    }

    fn id(&mut self, value: T) -> Id {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let id = self.values.len() as Id;
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    fn get(&self, id: Id) -> &T {
        &self.values[id as usize]
    }
}

/// What one worker is and does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Local {
    /// The worker as it was when it was last in the middle of nothing.
    worker: Id,
    /// The callback that it is in.
    turn: Option<Id>,
    /// Whether nobody has swapped the ledger since it last looked; true while it has not looked.
    current: bool,
    /// Whether a wake-up is on its way to it.
    woken: bool,
}

/// A state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    /// The ledger's bytes; `None` when there are none yet.
    ledger: Option<Id>,
    /// How many steps the clock has made.
    clock: usize,
    /// How much a naive bucket holds, see [`verdict`].
    naive: verdict::NaiveBucket,
    locals: [Local; WORKERS],
}

/// One step. The number is the worker's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Clock,
    Try(usize),
    TakeUpWake(usize),
    Timer(usize),
    GoOn(usize),
}

/// What a worker in a callback does next, with what comes of it in the tables.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Load,
    Clock,
    Swap { ledger: Id, first: bool },
    Lose,
    Done { worker: Id, woken: [bool; WORKERS] },
}

/// What is known of a state that has been met.
#[derive(Clone, Copy, Debug)]
enum Met {
    /// It lies on the way to the state that is looked at now.
    Open,
    /// Everything that can come of it is explored: the number of schedules from here on, and the longest.
    Closed(Count, u64),
}

/// A state on the way, and what is still to be tried from it.
#[derive(Debug)]
struct Visit {
    id: Id,
    state: State,
    steps: Vec<Step>,
    tried: usize,
    schedules: Count,
    longest: u64,
}

/// The explorer.
#[derive(Debug)]
struct Explorer<'a> {
    case: &'a Case,
    form: Form,
    bytes: Table<Vec<u8>>,
    ledgers: Vec<Ledger>,
    workers: Table<Worker>,
    turns: Table<Turn>,
    plans: HashMap<(Id, Id), Plan>,
    dues: HashMap<(Id, usize), verdict::Due>,
    states: HashMap<State, Id>,
    met: Vec<Met>,
}

/// Explores all schedules of `case`.
///
/// # Errors
/// The first [`Violation`] that is met.
pub fn explore(case: &Case) -> Result<Explored, Violation> {
    let mut explorer = Explorer {
        case,
        form: Form::of_the_record(),
        bytes: Table::new(),
        ledgers: Vec::new(),
        workers: Table::new(),
        turns: Table::new(),
        plans: HashMap::new(),
        dues: HashMap::new(),
        states: HashMap::new(),
        met: Vec::new(),
    };
    explorer.run()
}

impl Explorer<'_> {
    fn run(&mut self) -> Result<Explored, Violation> {
        let locals = std::array::from_fn(|at| {
            let worker = self.workers.id(Worker::new(at as u32 + 1, self.case.capacity, self.case.bug));
            Local { worker, turn: None, current: true, woken: false }
        });
        let naive = verdict::NaiveBucket::full(self.case.capacity);
        let start = State { ledger: None, clock: 0, naive, locals };
        let mut explored = Explored { states: 0, steps: 0, ends: 0, schedules: Count::default(), longest: 0 };
        let mut way: Vec<Visit> = Vec::new();
        let mut next = Some(start);
        loop {
            if let Some(state) = next.take() {
                let unknown = self.met.len() as Id;
                let id = *self.states.entry(state).or_insert(unknown);
                match self.met.get(id as usize) {
                    Some(Met::Open) => {
                        return Err(self.violation(&way, "the workers run in circles".to_owned()));
                    }
                    Some(Met::Closed(schedules, longest)) => {
                        if let Some(visit) = way.last_mut() {
                            visit.schedules += *schedules;
                            visit.longest = visit.longest.max(longest + 1);
                        }
                    }
                    None => {
                        self.met.push(Met::Open);
                        self.holds(&state).map_err(|what| self.violation(&way, what))?;
                        let steps = self.steps(&state);
                        let is_end = steps.is_empty();
                        if is_end {
                            explored.ends += 1;
                            self.holds_at_the_end(&state).map_err(|what| self.violation(&way, what))?;
                        }
                        way.push(Visit {
                            id,
                            state,
                            steps,
                            tried: 0,
                            schedules: Count::new(u128::from(is_end)),
                            longest: 0,
                        });
                    }
                }
            }
            let Some(visit) = way.last_mut() else { break };
            if let Some(step) = visit.steps.get(visit.tried).copied() {
                visit.tried += 1;
                explored.steps += 1;
                let state = visit.state;
                let after = self.take(state, step).map_err(|what| self.violation(&way, what))?;
                next = Some(after);
            } else {
                let (schedules, longest) = (visit.schedules, visit.longest);
                self.met[visit.id as usize] = Met::Closed(schedules, longest);
                way.pop();
                match way.last_mut() {
                    Some(before) => {
                        before.schedules += schedules;
                        before.longest = before.longest.max(longest + 1);
                    }
                    None => (explored.schedules, explored.longest) = (schedules, longest),
                }
            }
        }
        explored.states = self.met.len() as u64;
        Ok(explored)
    }

    /// All steps that may come next.
    fn steps(&self, state: &State) -> Vec<Step> {
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
    fn take(&mut self, mut state: State, step: Step) -> Result<State, String> {
        match step {
            Step::Clock => state.clock += 1,
            Step::Try(at) => {
                let worker = self.workers.get(state.locals[at].worker);
                match self.case.tries[at][worker.tried] {
                    Try::Arrive(priority) => self.begin(&mut state, at, Begin::Arrive(priority)),
                    Try::Leave => {
                        let mut worker = worker.clone();
                        worker.leave(self.time(state.clock));
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
            Plan::Load => {
                state.locals[at].current = true;
                self.answer(state, at, Answer::Loaded(state.ledger));
            }
            Plan::Clock => self.answer(state, at, Answer::Time(self.time(state.clock))),
            Plan::Swap { ledger, first } => {
                let bug = self.case.bug;
                let overwrites = (bug == Bug::UnconditionalFirstWrite && first) || bug == Bug::StaleRetry;
                if !state.locals[at].current && !overwrites {
                    state.locals[at].current = true;
                    self.answer(state, at, Answer::Lost);
                    return Ok(());
                }
                let before = *state;
                state.ledger = Some(self.refilled_twice_if_planted(ledger, before.ledger));
                for other in &mut state.locals {
                    other.current &= !other.turn.is_some_and(|turn| self.turns.get(turn).has_looked());
                }
                state.locals[at].current = true;
                self.answer(state, at, Answer::Replaced);
                self.commit(&before, state, at)?;
                (0..WORKERS).for_each(|other| self.overtake(state, other));
            }
            Plan::Lose => self.answer(state, at, Answer::Lost),
            Plan::Done { .. } => return Err("a callback that is over goes on".to_owned()),
        }
        Ok(())
    }

    /// Answers a worker. Its callback ends with the last answer: nothing is between the two that another could notice.
    fn answer(&mut self, state: &mut State, at: usize, answer: Answer) {
        if let Some(turn) = state.locals[at].turn {
            let mut turn = self.turns.get(turn).clone();
            turn.answers.push(answer);
            if !self.case.is_literal {
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
        if !self.case.is_literal && !may_win && matches!(self.plan(state, at), Plan::Swap { .. }) {
            let mut turn = self.turns.get(turn).clone();
            turn.overtake();
            state.locals[at] = Local { turn: Some(self.turns.id(turn)), current: true, ..state.locals[at] };
        }
    }

    fn end_if_done(&mut self, state: &mut State, at: usize) {
        if let Plan::Done { worker, woken } = self.plan(state, at) {
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
        if self.turns.get(turn).answers == [Answer::Overtaken] {
            return Plan::Lose;
        }
        let plan = match replay(self.workers.get(worker), self.turns.get(turn), &self.bytes, self.case.bug) {
            Next::Load => Plan::Load,
            Next::Clock => Plan::Clock,
            Next::Swap { value, first } => Plan::Swap { ledger: self.ledger(value), first },
            Next::Done { worker, wakes } => {
                // Workers have the numbers from 1 on.
                let woken = std::array::from_fn(|at| wakes.contains(&WorkerId(at as u32 + 1)));
                Plan::Done { worker: self.workers.id(*worker), woken }
            }
        };
        self.plans.insert((worker, turn), plan);
        plan
    }

    fn ledger(&mut self, mut value: Vec<u8>) -> Id {
        if !self.case.is_literal {
            self.sort_lines(&mut value);
        }
        let id = self.bytes.id(value);
        if self.ledgers.len() == id as usize {
            let ledger = Ledger::decode(self.bytes.get(id));
            self.ledgers.push(ledger.unwrap_or_else(|| panic!("a record that was just written can't be read")));
        }
        id
    }

    /// Puts the lines of the board, with which the record ends, in the order of the numbers with which they begin.
    fn sort_lines(&self, value: &mut [u8]) {
        let Some((_, lines)) = value.split_at_checked(self.form.lines_at) else { return };
        let mut lines: Vec<Vec<u8>> = lines.chunks(self.form.line_len).map(<[u8]>::to_vec).collect();
        lines.sort_by_key(|line| line.get(..4).map(<[u8]>::to_vec));
        value[self.form.lines_at..].copy_from_slice(&lines.concat());
    }

    fn refilled_twice_if_planted(&mut self, ledger: Id, before: Option<Id>) -> Id {
        match (self.case.bug, before) {
            (Bug::DoubleRefill, Some(before)) => {
                let mut value = self.bytes.get(ledger).clone();
                value[self.form.updated_at.clone()]
                    .copy_from_slice(&self.bytes.get(before)[self.form.updated_at.clone()]);
                self.ledger(value)
            }
            _ => ledger,
        }
    }

    /// The time after so many steps of the clock.
    fn time(&self, steps: usize) -> Instant {
        at_ms(steps.checked_sub(1).map_or(0, |last| self.case.clock[last]))
    }
}
