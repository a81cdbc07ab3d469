//! A callback of a worker, run as far as its answers go.
//!
//! The core's store loop is an ordinary function that can't be stopped halfway. So it is run on a copy of the worker,
//! with a store that gives the answers that were given so far and, at the first question that has none, notes the
//! question and fails. The copy is thrown away unless the callback came to its end.

use super::{Case, Id, Table};
use crate::Bug;
use crate::worker::Worker;
use nimgate_core::priority::Priority;
use nimgate_core::store::{ATTEMPTS_MAX, Store, StoreError, Swap, Version};
use nimgate_core::units::{Instant, WorkerId};

/// How a callback begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Begin {
    /// A request comes; whether it is for the model that may be slowed.
    Arrive(Priority, bool),
    /// A stream ends.
    End,
    /// The upstream slows a model down.
    Slow,
    /// So many retries are charged.
    Charge(u32),
    /// A configuration comes.
    Configure,
    /// An operator changes the rules.
    Override,
    /// Another worker's wake-up is taken up.
    Woken,
    /// The timer fires.
    Timer,
}

/// What a worker is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Answer {
    /// The ledger's bytes, by their place in the table.
    Loaded(Option<Id>),
    /// The time.
    Time(Instant),
    /// The swap was made.
    Replaced,
    /// Another worker was quicker.
    Lost,
    /// Stands for all answers since the latest lost race: another worker has been quicker again, so the swap that comes
    /// next will be lost, whatever it is.
    Overtaken,
}

/// A callback that has begun and not ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Turn {
    /// How it began.
    pub begin: Begin,
    /// The time when it began.
    pub now: Instant,
    /// How many races were lost of which the answers were forgotten.
    pub lost: usize,
    /// What the worker was answered since.
    pub answers: Vec<Answer>,
}

impl Turn {
    /// A callback that begins at `now`.
    pub fn new(begin: Begin, now: Instant) -> Self {
        Self { begin, now, lost: 0, answers: Vec::new() }
    }

    /// Forgets what came before the latest lost race.
    pub fn forget(&mut self) {
        if self.answers.last() == Some(&Answer::Lost) {
            self.lost += 1;
            assert!(
                self.lost < ATTEMPTS_MAX,
                "a race is lost so often that the worker gives up, which is not modelled"
            );
            self.answers.clear();
        }
    }

    /// Forgets what it was answered since the latest lost race, because the swap that comes next will be lost too.
    pub fn overtake(&mut self) {
        self.answers.clear();
        self.answers.push(Answer::Overtaken);
    }

    /// Whether the worker has looked at the ledger and not tried to swap it since.
    pub fn has_looked(&self) -> bool {
        matches!(self.answers.last(), Some(Answer::Loaded(_) | Answer::Time(_) | Answer::Overtaken))
    }

    /// The time for which the latest decision was made.
    pub fn decided_at(&self) -> Instant {
        let time = self.answers.iter().rev().find_map(|answer| match answer {
            Answer::Time(at) => Some(*at),
            _ => None,
        });
        time.unwrap_or(self.now)
    }
}

/// What a worker in a callback does next.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// It looks at the ledger.
    Load,
    /// It looks at the clock.
    Clock,
    /// It swaps the ledger.
    Swap {
        /// The bytes that it puts there.
        value: Vec<u8>,
        /// Whether it has seen none.
        first: bool,
    },
    /// Nothing: the callback is over.
    Done {
        /// The worker after it.
        worker: Box<Worker>,
        /// Whom to wake.
        wakes: Vec<WorkerId>,
    },
}

/// Runs the callback `turn` of `worker` as far as its answers go.
pub(super) fn replay(worker: &Worker, turn: &Turn, bytes: &Table<Vec<u8>>, case: &Case) -> Next {
    let bug = case.bug;
    let begun_at = turn.now;
    let answers = turn.answers.iter();
    let mut store = Replay { bytes, bug, answers, begun_at, has_loaded: false, has_seen: false, next: None };
    let mut worker = worker.clone();
    let wakes = match turn.begin {
        Begin::Arrive(priority, is_weak) => worker.ask(priority, is_weak, turn.now, &mut store),
        Begin::End => worker.end(&mut store),
        Begin::Slow => worker.slow(turn.now, &mut store),
        Begin::Charge(retries) => worker.charge(retries, &mut store),
        Begin::Configure => worker.configure(case.changed, &mut store),
        Begin::Override => worker.override_rules(case.changed, &mut store),
        Begin::Woken => worker.wake(true, &mut store),
        Begin::Timer => worker.wake(false, &mut store),
    };
    match store.next {
        Some(next) => next,
        None => {
            assert!(store.answers.next().is_none(), "{turn:?} asks less than it did before");
            Next::Done { worker: Box::new(worker), wakes }
        }
    }
}

struct Replay<'a> {
    bytes: &'a Table<Vec<u8>>,
    bug: Bug,
    answers: std::slice::Iter<'a, Answer>,
    /// When the callback began.
    begun_at: Instant,
    /// Whether the ledger was looked at, and not the clock since.
    has_loaded: bool,
    /// Whether there was a ledger at the last look.
    has_seen: bool,
    /// The first question that has no answer yet.
    next: Option<Next>,
}

impl Store for Replay<'_> {
    fn load(&mut self, _: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match self.answers.next() {
            Some(Answer::Loaded(id)) => {
                self.has_loaded = true;
                self.has_seen = id.is_some();
                Ok(id.map(|id| (self.bytes.get(id).clone(), Version::MIN)))
            }
            None => {
                self.next.get_or_insert(Next::Load);
                Err(StoreError::Unavailable)
            }
            Some(other) => panic!("looked at the ledger and is answered {other:?}"),
        }
    }

    fn now(&mut self) -> Instant {
        // The first look at the clock is part of the callback's beginning.
        if self.bug == Bug::OldTime || !std::mem::take(&mut self.has_loaded) {
            return self.begun_at;
        }
        match self.answers.next() {
            Some(Answer::Time(at)) => *at,
            None => {
                self.next.get_or_insert(Next::Clock);
                self.begun_at
            }
            Some(other) => panic!("looked at the clock and is answered {other:?}"),
        }
    }

    fn swap(&mut self, _: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        if self.next.is_some() {
            // What comes after a question that has no answer yet means nothing.
            return Err(StoreError::Unavailable);
        }
        assert_eq!(version.is_some(), self.has_seen, "a swap expects what was seen");
        match self.answers.next() {
            Some(Answer::Replaced) => Ok(Swap::Replaced),
            Some(Answer::Lost) => Ok(Swap::Lost),
            None => {
                self.next = Some(Next::Swap { value: value.to_vec(), first: version.is_none() });
                Err(StoreError::Unavailable)
            }
            Some(other) => panic!("swapped the ledger and is answered {other:?}"),
        }
    }
}
