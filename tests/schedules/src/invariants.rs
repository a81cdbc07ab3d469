//! What must hold of several workers and their ledger, whatever the schedule.

use crate::worker::{Request, UnderLimit, WEAK, Worker, at_ms, token_every};
use nimgate_core::limit::ledger::{GRACE, Ledger};
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelKey;
use nimgate_core::order::key::OrderRule;
use nimgate_core::units::{Instant, WorkerId};

/// Checks what holds of a limit at any moment at which no worker has swapped its ledger and not yet acted upon it: no token
/// too many, nobody lost or counted twice, the peers' lines and the gauges true. `rules` are those that allow most.
///
/// # Errors
/// A sentence on what does not hold.
pub fn hold_always(
    workers: &[&Worker],
    limit: usize,
    ledger: Option<&Ledger>,
    rules: &Rules,
    now: Instant,
) -> Result<(), String> {
    let those = || workers.iter().filter_map(|worker| Some((worker.id(), worker.limits.get(limit)?)));
    let granted: u32 = those().map(|(_, under)| under.granted).sum();
    let passed = now.since(at_ms(0));
    let paid = u64::from(rules.capacity) + passed.get() / token_every(rules).get();
    ensure(u64::from(granted) <= paid, || format!("{granted} tokens were granted and only {paid} were there"))?;
    let quota = rules.window_rules().quota;
    ensure(passed >= rules.window || granted <= quota, || {
        format!("{granted} were granted in a window that may hold {quota}")
    })?;
    for (id, under) in those() {
        let UnderLimit { arrived, waiting, streams, is_told, .. } = under;
        let accounted = under.granted + under.left + waiting.len() as u32;
        ensure(accounted == *arrived, || format!("{id:?} was given {arrived} requests and knows of {accounted}"))?;
        let line = ledger.and_then(|ledger| ledger.peers().lines().iter().find(|line| line.worker == id));
        let said = line.map_or(0, |line| line.load.counts.iter().sum());
        ensure(!is_told || said == waiting.len() as u32, || {
            format!("the ledger says that {said} wait at {id:?}, and {} do", waiting.len())
        })?;
        let held = line.map_or(0, |line| line.load.in_flight) as usize;
        let is_capped = ledger.is_some_and(|ledger| ledger.rules().max_in_flight.is_some());
        ensure(!is_capped || !is_told || held == streams.len(), || {
            format!("the ledger says that {held} are in flight at {id:?}, and {} are", streams.len())
        })?;
    }
    let in_flight: usize = those().map(|(_, under)| under.streams.len()).sum();
    let cap = ledger.and_then(|ledger| ledger.rules().max_in_flight).map_or(usize::MAX, |cap| cap as usize);
    ensure(in_flight <= cap, || format!("{in_flight} are in flight, and no more than {cap} may be"))?;
    let totals: u32 = ledger.map_or(0, |ledger| ledger.peers().totals().iter().sum());
    let shown: i64 = those().map(|(_, under)| under.gauge()).sum();
    ensure(shown == i64::from(totals), || format!("the gauges show {shown} and the ledger says {totals}"))
}

/// Whether fewer are in flight than may be.
pub fn has_slot(ledger: &Ledger) -> bool {
    ledger.rules().max_in_flight.is_none_or(|cap| ledger.peers().in_flight(None) < cap)
}

/// Whether requests of the model that may be slowed may go at a time.
pub fn weak_opens(ledger: &Ledger, now: Instant) -> bool {
    ledger.models().open_at(ModelKey::of(WEAK)) <= now
}

/// Whether a request may go at a time as far as its model is concerned.
pub fn is_open(ledger: &Ledger, request: &Request, now: Instant) -> bool {
    !request.is_weak || weak_opens(ledger, now)
}

/// Whose request is the best in the ledger of those that may go, and when a token is there for it; `None` while all slots
/// are taken.
pub fn due(ledger: &Ledger, now: Instant) -> Option<(WorkerId, Instant)> {
    let mut ledger = ledger.clone();
    ledger.advance(now, &mut Vec::new());
    let may_go = |model| ledger.models().open_at(model) <= now;
    let best = ledger.peers().best_except(None, OrderRule::Static { aging: None }, may_go)?;
    if !has_slot(&ledger) {
        return None;
    }
    Some((best.worker, ledger.snapshot(now).token_at.max(now)))
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
/// waiting under a limit looks in time, the others soon enough to pass over one that does not come.
///
/// # Errors
/// A sentence on what does not hold.
pub fn hold_at_rest(workers: &[&Worker], limit: usize, ledger: Option<&Ledger>, now: Instant) -> Result<(), String> {
    let Some(ledger) = ledger else { return Ok(()) };
    let waiting = |worker: &Worker| worker.limits.get(limit).map_or(&[][..], |under| &under.waiting).to_vec();
    let opens_at = ledger.models().open_at(ModelKey::of(WEAK));
    for worker in workers.iter().filter(|worker| has_slot(ledger) && waiting(worker).iter().any(|of| of.is_weak)) {
        let latest = opens_at.max(ledger.snapshot(now).token_at).after(GRACE.times(2));
        ensure(worker.next_wakeup().is_some_and(|at| at <= latest), || {
            format!("{:?} sleeps until {:?} though its model may go at {opens_at:?}", worker.id(), worker.next_wakeup())
        })?;
    }
    let Some((due, token_at)) = due(ledger, now) else { return Ok(()) };
    let may_go = |worker: &&&Worker| waiting(worker).iter().any(|waiting| is_open(ledger, waiting, now));
    for worker in workers.iter().filter(may_go) {
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
