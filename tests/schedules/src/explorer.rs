//! All schedules of several workers, with states that are met again on another way recognised.
//!
//! A schedule is a sequence of steps, each of one worker or of the clock: a callback begins (a request comes, a client
//! leaves, a wake-up is taken up, a timer fires) and reads the time; a look at a limit's ledger; a look at the clock; a swap,
//! after which, if it succeeds, the callback ends or goes on with the next limit; the clock moves on. Any enabled step may come next, so wake-ups and
//! timers may be as late as they like. Between two steps of the same worker nothing happens that another could notice,
//! so these are all the schedules that differ.
//!
//! A worker in the middle of a callback is what it was before, and what it has been answered since: to go on, its
//! callback is run again from the start with those answers. States are compared by value, not by a hash, and the number
//! of schedules is the number of ways through the graph of states.
//!
//! Two things that should make no difference are left out of the state unless [`Case::is_literal`]: what a worker was
//! answered before it lost a race, for it decides again; and what it was answered since another was quicker, if it is
//! about to swap. They do make none if a literal exploration finds as many
//! schedules, and a test says that it does.

mod count;
mod replay;
mod steps;
mod verdict;

use crate::Bug;
use crate::worker::{LIMITS, Worker, at_ms};
pub use count::Count;
use hashbrown::HashMap;
use nimgate_core::limit::ledger::Ledger;
use nimgate_core::limit::rules::Rules;
use nimgate_core::priority::Priority;
use nimgate_core::units::Instant;
use replay::Turn;
use std::hash::Hash;

/// What a worker has to do, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Try {
    /// A request comes.
    Arrive(Priority),
    /// The client of the latest request that still waits here leaves.
    Leave,
    /// A request comes for the model that may be slowed.
    AskWeak(Priority),
    /// A request comes under the other limit.
    AskOther(Priority),
    /// The upstream slows that model down.
    Slow,
    /// The oldest stream of a request that was granted here ends.
    End,
    /// Envoy's router has sent a request so many times more.
    Retry(u32),
    /// The configuration with [`Case::changed`] comes.
    Configure,
    /// An operator sets [`Case::changed`] through the console.
    Override,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Case {
    /// The rules; the bucket is full at first.
    pub rules: Rules,
    /// The rules of a second limit, if there is one. Only [`Try::AskOther`] is under it.
    pub other: Option<Rules>,
    /// The rules that a configuration or an operator brings in the middle. They never allow less.
    pub changed: Rules,
    /// What each worker has to do.
    pub tries: [Vec<Try>; WORKERS],
    /// The times, in milliseconds from the start and in order, to which the clock moves in as many steps.
    pub clock: Vec<u64>,
    /// Whether states that differ only in what should make no difference are told apart.
    pub is_literal: bool,
    /// What is planted.
    pub bug: Bug,
}

impl Case {
    /// Whether what should make no difference is left out of the states: unless a planted bug makes it one.
    fn merges(&self) -> bool {
        !self.is_literal && self.bug != Bug::SecondSwapTakenForMade
    }

    /// The rules of all limits at the start.
    fn limits(&self) -> Vec<Rules> {
        std::iter::once(self.rules).chain(self.other).collect()
    }

    /// The rules that allow most of a limit.
    fn most(&self, limit: usize) -> Rules {
        match self.other {
            Some(other) if limit > 0 => other,
            _ => Rules { capacity: self.rules.capacity.max(self.changed.capacity), ..self.rules },
        }
    }
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
    /// Whether nobody has swapped the ledger that it last looked at since then; true while it has not looked.
    current: bool,
    /// Whether a wake-up is on its way to it.
    woken: bool,
}

/// A state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    /// The bytes of each limit's ledger; `None` when there are none yet.
    ledgers: [Option<Id>; LIMITS],
    /// How many steps the clock has made.
    clock: usize,
    /// How much a naive bucket of each limit holds, see [`verdict`].
    naive: [verdict::NaiveBucket; LIMITS],
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
    bytes: Table<Vec<u8>>,
    ledgers: Vec<Ledger>,
    workers: Table<Worker>,
    turns: Table<Turn>,
    plans: HashMap<(Id, Id), steps::Plan>,
    /// What has come so far of callbacks that have made a swap.
    so_far: HashMap<(Id, Id), steps::Outcome>,
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
        bytes: Table::new(),
        ledgers: Vec::new(),
        workers: Table::new(),
        turns: Table::new(),
        plans: HashMap::new(),
        so_far: HashMap::new(),
        dues: HashMap::new(),
        states: HashMap::new(),
        met: Vec::new(),
    };
    explorer.run()
}

impl Explorer<'_> {
    fn run(&mut self) -> Result<Explored, Violation> {
        let limits = self.case.limits();
        let locals = std::array::from_fn(|at| {
            let worker = self.workers.id(Worker::with_limits(at as u32 + 1, &limits, self.case.bug));
            Local { worker, turn: None, current: true, woken: false }
        });
        let naive =
            std::array::from_fn(|limit| verdict::NaiveBucket::full(limits.get(limit).unwrap_or(&self.case.rules)));
        let start = State { ledgers: [None; LIMITS], clock: 0, naive, locals };
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

    /// The time after so many steps of the clock.
    fn time(&self, steps: usize) -> Instant {
        at_ms(steps.checked_sub(1).map_or(0, |last| self.case.clock[last]))
    }
}
