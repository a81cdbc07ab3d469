//! What must hold of several workers and their ledger, whatever the schedule.

use crate::worker::{TOKEN_EVERY, Worker, at_ms};
use nimgate::ledger::{GRACE, Ledger};
use nimgate::units::{Instant, WorkerId};

/// Checks what holds at any moment at which no worker has swapped the ledger and not yet acted upon it: no token too
/// many, nobody lost or counted twice, the board and the gauges true.
///
/// # Errors
/// A sentence on what does not hold.
pub fn hold_always(workers: &[&Worker], ledger: Option<&Ledger>, capacity: u32, now: Instant) -> Result<(), String> {
    let granted: u32 = workers.iter().map(|worker| worker.granted).sum();
    let paid = u64::from(capacity) + now.since(at_ms(0)).get() / TOKEN_EVERY.get();
    ensure(u64::from(granted) <= paid, || format!("{granted} tokens were granted and only {paid} were there"))?;
    for worker in workers {
        let accounted = worker.granted + worker.left + worker.waiting.len() as u32;
        ensure(accounted == worker.arrived, || {
            format!("{:?} was given {} requests and knows of {accounted}", worker.id(), worker.arrived)
        })?;
        let line = ledger.and_then(|ledger| ledger.board().slots().iter().find(|slot| slot.worker == worker.id()));
        let said = line.map_or(0, |line| line.lanes.iter().map(|head| head.count).sum());
        ensure(!worker.is_told || said == worker.waiting.len() as u32, || {
            format!("the board says that {said} wait at {:?}, and {} do", worker.id(), worker.waiting.len())
        })?;
    }
    let totals: u32 = ledger.map_or(0, |ledger| ledger.board().totals().iter().sum());
    let shown: i64 = workers.iter().map(|worker| worker.gauge()).sum();
    ensure(shown == i64::from(totals), || format!("the gauges show {shown} and the board says {totals}"))
}

/// Whose request is the best on the board, and when a token is there for it.
pub fn due(ledger: &Ledger, now: Instant) -> Option<(WorkerId, Instant)> {
    let mut ledger = ledger.clone();
    ledger.advance(now);
    let (_, worker) = ledger.board().best_except(None, now, None)?;
    Some((worker, ledger.snapshot(now).token_at.max(now)))
}

/// Checks that the worker whose request is the best, if it is in the middle of nothing and no wake-up is on its way to
/// it, will look when the token is there.
///
/// # Errors
/// A sentence on what does not hold.
pub fn looks_in_time(worker: &Worker, token_at: Instant) -> Result<(), String> {
    ensure(worker.next_wakeup().is_some_and(|at| at <= token_at), || {
        format!("{:?} is due at {token_at:?}, looks at {:?} and is not woken", worker.id(), worker.next_wakeup())
    })
}

/// Checks what holds when all workers are in the middle of nothing and no wake-up is on its way: everyone with someone
/// waiting looks in time, the others soon enough to pass over one that does not come.
///
/// # Errors
/// A sentence on what does not hold.
pub fn hold_at_rest(workers: &[&Worker], ledger: Option<&Ledger>, now: Instant) -> Result<(), String> {
    let Some((due, token_at)) = ledger.and_then(|ledger| due(ledger, now)) else { return Ok(()) };
    for worker in workers.iter().filter(|worker| !worker.waiting.is_empty()) {
        if worker.id() == due {
            looks_in_time(worker, token_at)?;
        }
        let latest = token_at.after(GRACE.times(2));
        ensure(worker.next_wakeup().is_some_and(|at| at <= latest), || {
            format!("{:?} sleeps until {:?} though a token is there at {token_at:?}", worker.id(), worker.next_wakeup())
        })?;
    }
    Ok(())
}

pub(crate) fn ensure(holds: bool, words: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(words()) }
}
