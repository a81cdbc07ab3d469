//! What is known of one limit: its ledger as it is now, and what has been counted.

use crate::history::Entry;
use nimgate_core::control::rate::{Estimate, Phase};
use nimgate_core::control::scope::Slowed;
use nimgate_core::limit::home::Home;
use nimgate_core::limit::ledger::{Ledger, Served, Snapshot};
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelName;
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::{LANES, Lane, Priority};
use nimgate_core::store::{Store, StoreError};
use nimgate_core::units::{Instant, Micros, MilliRpm};

/// One limit as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitView {
    pub name: String,
    /// Whether a configuration that this worker has in use names it.
    pub is_configured: bool,
    pub counters: Counters,
    /// What changed lately, the latest last.
    pub history: Vec<Entry>,
    /// The ledger; `None` when there is none that could be read.
    pub ledger: Option<LedgerView>,
}

/// What a ledger held when it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerView {
    pub snapshot: Snapshot,
    pub active: Rules,
    pub configured: Rules,
    /// How many times the rules have changed, the first ones included.
    pub epoch: u32,
    /// What has been granted, by level.
    pub served: [Served; Priority::ALL.len()],
    /// For each lane how long the request at its head has waited; `None` where nobody waits.
    pub oldest: [Option<Micros>; LANES],
    /// For each lane when a request that came now would have its turn.
    pub expected: [Micros; LANES],
    /// The models that go slower than the limit.
    pub slowed: Vec<SlowedModel>,
    /// How long no token is granted because the upstream asked for that.
    pub closed: Micros,
}

/// A model that goes slower than its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlowedModel {
    pub name: ModelName,
    pub phase: Phase,
    pub rate: MilliRpm,
    /// What is believed of its real limit.
    pub estimate: Option<Estimate>,
    /// Whether its workers were full, rather than a rate reached.
    pub worker_full: bool,
}

impl SlowedModel {
    fn at(slowed: &Slowed, ledger: &Ledger, now: Instant) -> Self {
        Self {
            name: slowed.name,
            phase: slowed.retreat.phase(),
            rate: slowed.retreat.rate(),
            estimate: slowed.retreat.estimate(ledger.rules().retreat, now),
            worker_full: slowed.worker_full,
        }
    }
}

/// What has been counted of one limit since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests that ended, by outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The upstream's answers, in the order of [`ANSWERS`].
    pub answers: [u64; ANSWERS.len()],
    /// Requests that waited outside a full queue.
    pub fallbacks: u64,
    /// What would have become of requests in shadow mode, in the order of [`Outcome::SHADOW`].
    pub shadow: [u64; Outcome::SHADOW.len()],
}

/// The classes in which the upstream's answers are counted.
pub const ANSWERS: [&str; 6] = ["2xx", "3xx", "429", "4xx", "5xx", "other"];

impl Counters {
    /// How many requests ended so.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.index()).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.outcomes.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    /// How many failed at the upstream: its answers of 500 and above, and those that never came.
    pub(crate) fn upstream_errors(&self) -> u64 {
        let answered =
            ANSWERS.iter().zip(self.answers).find(|(class, _)| **class == "5xx").map_or(0, |(_, count)| count);
        answered
            .saturating_add(self.ended(Outcome::UpstreamTimeout))
            .saturating_add(self.ended(Outcome::UpstreamUnreachable))
    }
}

/// Reads the ledger of a limit without changing it.
///
/// # Errors
/// [`StoreError`] when the store refuses.
pub fn read_ledger<S: Store>(name: &str, store: &mut S) -> Result<Option<LedgerView>, StoreError> {
    let ledger = Home::read(name, store)?;
    let now = store.now();
    Ok(ledger.map(|mut ledger| {
        ledger.advance(now, &mut Vec::new());
        LedgerView::at(&ledger, now)
    }))
}

impl LedgerView {
    fn at(ledger: &Ledger, now: Instant) -> Self {
        let mut oldest = [None; LANES];
        for head in ledger.peers().lines().iter().flat_map(|line| &line.load.heads) {
            if let Some(oldest) = oldest.get_mut(head.lane.index()) {
                *oldest = (*oldest).max(Some(now.since(head.arrived)));
            }
        }
        Self {
            snapshot: ledger.snapshot(now),
            active: *ledger.rules(),
            configured: *ledger.configured(),
            epoch: ledger.epoch(),
            served: *ledger.served(),
            oldest,
            expected: Lane::ALL.map(|lane| ledger.turn_estimate(lane, now).since(now)),
            slowed: ledger.models().slowed().iter().map(|slowed| SlowedModel::at(slowed, ledger, now)).collect(),
            closed: ledger.retreat().closed_until().since(now),
        }
    }

    /// How many wait in the queue.
    pub fn queued(&self) -> u32 {
        self.waiting(true)
    }

    /// How many wait outside it.
    pub fn outside(&self) -> u32 {
        self.waiting(false)
    }

    fn waiting(&self, queued: bool) -> u32 {
        Lane::ALL
            .into_iter()
            .zip(self.snapshot.waiting)
            .filter(|(lane, _)| lane.is_queued() == queued)
            .fold(0, |total, (_, count)| total.saturating_add(count))
    }

    /// Whether the queue takes another request.
    pub(crate) fn has_room(&self) -> bool {
        self.queued() < self.active.queue_max
    }

    /// Whether a request at the head of the queue would get its token before it gave up.
    pub(crate) fn gives_tokens(&self, now: Instant) -> bool {
        self.snapshot.token_at.since(now) <= self.active.timeouts.longest()
    }
}
