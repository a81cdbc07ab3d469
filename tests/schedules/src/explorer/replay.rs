//! A callback of a worker, run as far as its answers go.
//!
//! The core's store loop is an ordinary function that can't be stopped halfway. So it is run on a copy of the worker,
//! with a store that gives the answers that were given so far and, at the first question that has none, notes the
//! question and fails. The copy is thrown away unless the callback came to its end.

use super::{Case, Id, Table};
use crate::Bug;
use crate::worker::{Worker, limit_of};
use nimgate_core::priority::Priority;
use nimgate_core::store::{ATTEMPTS_MAX, Store, StoreError, Swap, Version};
use nimgate_core::units::{Instant, WorkerId};

/// How a callback begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Begin {
    /// A request comes, under which limit; whether it is for the model that may be slowed.
    Arrive(usize, Priority, bool),
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
    /// The bytes of a limit's ledger, by their place in the table.
    Loaded(usize, Option<Id>),
    /// The time.
    Time(Instant),
    /// The swap was made.
    Replaced,
    /// Another worker was quicker.
    Lost,
    /// Stands for all answers since the latest look at a ledger: another worker has been quicker, so the swap that comes
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
    /// How many races were lost of which the answers were forgotten, since a swap was made.
    pub lost: usize,
    /// What the worker was answered since.
    pub answers: Vec<Answer>,
}

impl Turn {
    /// A callback that begins at `now`.
    pub fn new(begin: Begin, now: Instant) -> Self {
        Self { begin, now, lost: 0, answers: Vec::new() }
    }

    /// Forgets what it was answered between its latest look at a ledger and a race lost after that: it decides again.
    pub fn forget(&mut self) {
        match self.answers.last() {
            Some(Answer::Lost) => {
                self.lost += 1;
                assert!(
                    self.lost < ATTEMPTS_MAX,
                    "a race is lost so often that the worker gives up, which is not modelled"
                );
                self.back_to_the_look();
            }
            Some(Answer::Replaced) => self.lost = 0,
            _ => {}
        }
    }

    /// Forgets what it was answered since its latest look at a ledger, because the swap that comes next will be lost.
    pub fn overtake(&mut self) {
        self.back_to_the_look();
        self.answers.push(Answer::Overtaken);
    }

    /// What came of other limits' ledgers before that stays.
    fn back_to_the_look(&mut self) {
        let is_since = |answer: &Answer| matches!(answer, Answer::Loaded(..) | Answer::Overtaken);
        let look = self.answers.iter().rposition(is_since).unwrap_or_default();
        self.answers.truncate(look);
    }

    /// The limit whose ledger the worker has looked at and not tried to swap since.
    pub fn looks_at(&self) -> Option<usize> {
        match self.answers.as_slice() {
            [.., Answer::Loaded(limit, _)] | [.., Answer::Loaded(limit, _), Answer::Time(_)] => Some(*limit),
            _ => None,
        }
    }

    /// Whether the next swap will be lost.
    pub fn is_overtaken(&self) -> bool {
        self.answers.last() == Some(&Answer::Overtaken)
    }

    /// Whether a swap was made, so that the callback is past what was decided then.
    pub fn has_swapped(&self) -> bool {
        self.answers.contains(&Answer::Replaced)
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
    /// It looks at a limit's ledger.
    Load(usize),
    /// It looks at the clock.
    Clock,
    /// It swaps a limit's ledger.
    Swap {
        /// Which limit's.
        limit: usize,
        /// The bytes that it puts there.
        value: Vec<u8>,
        /// Whether it has seen none.
        first: bool,
    },
    /// Nothing: the callback is over.
    Done,
}

/// How a callback stands.
#[derive(Clone, Debug)]
pub(super) struct Replayed {
    pub next: Next,
    /// The worker after the callback, or as it would be if the store failed from now on: this is how it stands with what it
    /// has decided by swaps that were made.
    pub worker: Worker,
    /// Whom it wakes for that, when the callback is over.
    pub wakes: Vec<WorkerId>,
}

/// Runs the callback `turn` of `worker` as far as its answers go.
pub(super) fn replay(worker: &Worker, turn: &Turn, bytes: &Table<Vec<u8>>, case: &Case) -> Replayed {
    let bug = case.bug;
    let begun_at = turn.now;
    let until = turn.answers.len() - usize::from(turn.is_overtaken());
    let answers = turn.answers[..until].iter();
    let (looked, first_time, has_swapped) = (None, None, false);
    let mut store =
        Replay { bytes, bug, answers, begun_at, looked, first_time, has_seen: false, has_swapped, next: None };
    let mut worker = worker.clone();
    let mut wakes = match turn.begin {
        Begin::Arrive(limit, priority, is_weak) => worker.ask(limit, priority, is_weak, turn.now, &mut store),
        Begin::End => worker.end(&mut store),
        Begin::Slow => worker.slow(turn.now, &mut store),
        Begin::Charge(retries) => worker.charge(retries, &mut store),
        Begin::Configure => worker.configure(case.changed, &mut store),
        Begin::Override => worker.override_rules(case.changed, &mut store),
        Begin::Woken => worker.wake(true, &mut store),
        Begin::Timer => worker.wake(false, &mut store),
    };
    if bug == Bug::WakesOfOneLimit && turn.answers.iter().any(|answer| matches!(answer, Answer::Loaded(1, _))) {
        wakes.clear();
    }
    let next = store.next.unwrap_or_else(|| {
        assert!(store.answers.next().is_none(), "{turn:?} asks less than it did before");
        Next::Done
    });
    Replayed { next, worker, wakes }
}

struct Replay<'a> {
    bytes: &'a Table<Vec<u8>>,
    bug: Bug,
    answers: std::slice::Iter<'a, Answer>,
    /// When the callback began.
    begun_at: Instant,
    /// The limit whose ledger was looked at, and not the clock since.
    looked: Option<usize>,
    /// What the clock showed first.
    first_time: Option<Instant>,
    /// Whether there was a ledger at the last look.
    has_seen: bool,
    /// Whether a swap was made.
    has_swapped: bool,
    /// The first question that has no answer yet.
    next: Option<Next>,
}

impl Store for Replay<'_> {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        if self.next.is_some() {
            // What comes after a question that has no answer yet means nothing.
            return Err(StoreError::Unavailable);
        }
        let limit = limit_of(key);
        match self.answers.next() {
            Some(Answer::Loaded(of, id)) if *of == limit => {
                self.looked = Some(limit);
                self.has_seen = id.is_some();
                Ok(id.map(|id| (self.bytes.get(id).clone(), Version::MIN)))
            }
            None => {
                self.next = Some(Next::Load(limit));
                Err(StoreError::Unavailable)
            }
            Some(other) => panic!("looked at the ledger of limit {limit} and is answered {other:?}"),
        }
    }

    fn now(&mut self) -> Instant {
        // The first look at the clock is part of the callback's beginning.
        if self.next.is_some() || self.bug == Bug::OldTime || self.looked.take().is_none() {
            return self.begun_at;
        }
        if let (Bug::OneTimeForAll, Some(first)) = (self.bug, self.first_time) {
            return first;
        }
        match self.answers.next() {
            Some(Answer::Time(at)) => *self.first_time.insert(*at),
            None => {
                self.next = Some(Next::Clock);
                self.begun_at
            }
            Some(other) => panic!("looked at the clock and is answered {other:?}"),
        }
    }

    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        if self.next.is_some() {
            return Err(StoreError::Unavailable);
        }
        assert_eq!(version.is_some(), self.has_seen, "a swap expects what was seen");
        match self.answers.next() {
            Some(Answer::Replaced) => {
                self.has_swapped = true;
                Ok(Swap::Replaced)
            }
            Some(Answer::Lost) if self.bug == Bug::SecondSwapTakenForMade && self.has_swapped => Ok(Swap::Replaced),
            Some(Answer::Lost) => Ok(Swap::Lost),
            None => {
                self.next = Some(Next::Swap { limit: limit_of(key), value: value.to_vec(), first: version.is_none() });
                Err(StoreError::Unavailable)
            }
            Some(other) => panic!("swapped the ledger and is answered {other:?}"),
        }
    }
}
