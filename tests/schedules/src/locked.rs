//! The shared store behind a lock that a model checker provides, for schedules that it runs whole.
//!
//! Each try to change the ledger takes the lock twice, to look at it and to swap it, as Envoy's shared data does; these
//! are the places at which the model checker can let another worker go first. The clock is read in the same step as the
//! ledger, which keeps the number of schedules small; the explorer has it as a step of its own.

use crate::Bug;
use crate::invariants::{due, hold_always, hold_at_rest};
use crate::worker::{Worker, at_ms, rules};
use nimgate_core::limit::ledger::Ledger;
use nimgate_core::store::{Store, StoreError, Swap, Version};
use nimgate_core::units::{Instant, WorkerId};

/// The value of the one key, and the time.
#[derive(Debug)]
pub struct Values {
    bytes: Option<Vec<u8>>,
    version: u32,
    clock: Instant,
}

impl Default for Values {
    fn default() -> Self {
        Self { bytes: None, version: 0, clock: at_ms(0) }
    }
}

/// A lock that a model checker knows.
pub trait Lock {
    /// Runs `work` while nobody else does.
    fn locked<T>(&self, work: impl FnOnce(&mut Values) -> T) -> T;
}

/// The store as one worker sees it.
#[derive(Debug)]
pub struct SharedStore<'a, L> {
    lock: &'a L,
    bug: Bug,
    /// The time at which this worker's callback began. The clock of all has come at least so far when it looks.
    pub now: Instant,
    /// What the clock showed at the last look at the ledger, until that is asked for.
    read_at: Option<Instant>,
}

impl<'a, L: Lock> SharedStore<'a, L> {
    /// A worker's view of the values behind `lock`.
    pub fn new(lock: &'a L, bug: Bug) -> Self {
        Self { lock, bug, now: at_ms(0), read_at: None }
    }
}

impl<L: Lock> Store for SharedStore<'_, L> {
    fn load(&mut self, _: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let now = self.now;
        let (value, read_at) = self.lock.locked(|values| {
            values.clock = values.clock.max(now);
            let value = values.bytes.clone().and_then(|bytes| Some((bytes, Version::new(values.version)?)));
            (value, values.clock)
        });
        self.read_at = Some(read_at);
        Ok(value)
    }

    fn now(&mut self) -> Instant {
        self.read_at.take().filter(|_| self.bug != Bug::OldTime).unwrap_or(self.now)
    }

    fn swap(&mut self, _: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        let bug = self.bug;
        Ok(self.lock.locked(|values| {
            let overwrites = (bug == Bug::UnconditionalFirstWrite && version.is_none()) || bug == Bug::StaleRetry;
            if version.map_or(0, Version::get) != values.version && !overwrites {
                return Swap::Lost;
            }
            let mut value = value.to_vec();
            if let (Bug::DoubleRefill, Some(before)) = (bug, &values.bytes)
                && let (Some(after), Some(before)) = (Ledger::decode(&value), Ledger::decode(before))
            {
                value = after.with_refill_of(&before).encode();
            }
            values.version += 1;
            values.bytes = Some(value);
            Swap::Replaced
        }))
    }
}

/// Brings a run to rest once all workers have done what they had to: delivers the wake-ups that are still on their way,
/// and those that come of them, and checks everything that must hold then. Then lets time pass until the next token is
/// there, and checks that the worker to whom it is due takes it of its own accord. `wakes` may name a worker that has
/// looked since; it then looks again, as it may at any time.
///
/// # Panics
/// With a sentence on what does not hold.
pub fn come_to_rest(workers: &mut [Worker], mut wakes: Vec<WorkerId>, lock: &impl Lock, capacity: u32, bug: Bug) {
    let mut store = SharedStore::new(lock, bug);
    store.now = lock.locked(|values| values.clock);
    while let Some(woken) = wakes.pop() {
        if let Some(worker) = workers.iter_mut().find(|worker| worker.id() == woken) {
            wakes.extend(worker.wake(true, &mut store));
        }
    }
    let ledger = check(workers, &store, capacity);
    let held = hold_at_rest(&workers.iter().collect::<Vec<_>>(), 0, ledger.as_ref(), store.now);
    held.unwrap_or_else(|words| panic!("{words}"));
    let Some((whose, token_at)) = ledger.and_then(|ledger| due(&ledger, store.now)) else { return };
    store.now = token_at;
    let worker = workers.iter_mut().find(|worker| worker.id() == whose);
    let worker = worker.unwrap_or_else(|| panic!("the ledger knows of {whose:?}, who is not there"));
    let granted = worker.limits[0].granted;
    // Once to show the full bucket, if that is due first, and once for the token.
    for _ in 0..2 {
        if worker.next_wakeup().is_some_and(|at| at <= token_at) {
            worker.wake(false, &mut store);
        }
    }
    assert!(
        worker.limits[0].granted > granted,
        "{whose:?} lets a token pass at {token_at:?}, looks at {:?}",
        worker.next_wakeup()
    );
    check(workers, &store, capacity);
}

fn check<L: Lock>(workers: &[Worker], store: &SharedStore<'_, L>, capacity: u32) -> Option<Ledger> {
    let bytes = store.lock.locked(|values| values.bytes.clone());
    let ledger = bytes.map(|bytes| Ledger::decode(&bytes).unwrap_or_else(|| panic!("the record can't be read")));
    let held = hold_always(&workers.iter().collect::<Vec<_>>(), 0, ledger.as_ref(), &rules(capacity), store.now);
    held.unwrap_or_else(|words| panic!("{words}"));
    ledger
}
