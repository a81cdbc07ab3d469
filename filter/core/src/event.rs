//! Everything that happens to a limit, one enum: metrics, log and history are readers of it.

use crate::control::rate::{Phase, Transition};
use crate::limit::form::Form;
use crate::limit::rules::Rules;
use crate::outcome::Outcome;
use crate::priority::{LANES, Priority};
use crate::units::{LimitId, Micros, RequestId, WorkerId};

/// Something that happened, and to which limit.
pub type Happened = (LimitId, Event);

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A request got its token.
    Granted {
        /// Which.
        request: RequestId,
        /// Its level.
        level: Priority,
        /// How long it waited for it.
        waited: Micros,
    },
    /// In shadow mode: this would have become of a request.
    Shadowed {
        /// Its level.
        level: Priority,
        /// How it would have ended.
        outcome: Outcome,
        /// After how long.
        waited: Micros,
    },
    /// A request waits outside the full queue.
    FellBack,
    /// The numbers of waiting requests changed by these differences, lane by lane. The sum of all reports of all workers
    /// is what waits in the process.
    QueueChanged([i64; LANES]),
    /// The ledger was begun new, and this is all that is known to wait; what was reported before is void.
    QueueCounted([u32; LANES]),
    /// The numbers that gauges show are not those that the ledger said they show.
    GaugesChanged {
        /// What they show; `None` when nothing is known of that.
        before: Option<Shown>,
        /// What they should show.
        after: Shown,
        /// The active rules.
        rules: Rules,
    },
    /// The rate controller of the account or of a model changed its state or, being pardoned or forgotten, its rate.
    RateChanged(Transition),
    /// The rules of a new configuration are active now, on all workers.
    RulesConfigured {
        /// How many times rules have become active.
        epoch: u32,
        /// The rules.
        rules: Rules,
    },
    /// A worker that had a token due to it did not come in time, and is passed over until it writes again.
    PassedOver(WorkerId),
    /// A worker has been silent for too long: those who waited there, and its requests in flight, count no more.
    WorkerExpired {
        /// Which.
        worker: WorkerId,
        /// How many waited there.
        waiting: u32,
        /// How many were in flight and counted against a cap.
        in_flight: u32,
    },
    /// A token was taken for a request that was never sent.
    Unused {
        /// Whether the token went back; if not it is lost, since the bucket has been full meanwhile.
        returned: bool,
    },
    /// A decision was put off because other workers were quicker each time, or the host refused shared data.
    StoreFailed,
    /// The ledger moved between the keys of two versions, because a module of version 1 came or has gone.
    LedgerMoved(Form),
    /// The ledger's record could not be read and was begun new, with an empty bucket.
    RecordUnreadable,
}

/// What the gauges of a limit show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Whole tokens available.
    pub available: u32,
    /// The rate controller's state.
    pub phase: Phase,
    /// The present rate, in requests per minute.
    pub effective_rpm: u32,
    /// The estimate of the upstream's real limit, in requests per minute; 0 if there is none.
    pub estimated_rpm: u32,
    /// How many models go slower than the account.
    pub models_slowed: u32,
    /// The share of refusals among the answers of the last window, in thousandths.
    pub refused_permille: u32,
    /// How many times rules have become active.
    pub epoch: u32,
}
