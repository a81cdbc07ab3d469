//! What the core reports. Algorithms call an [`Observer`]; whether that becomes a metric or a log line is not their
//! concern.

use crate::ledger::{Rules, Snapshot};
use crate::outcome::Outcome;
use crate::priority::{LANES, Priority};
use crate::retreat::Transition;
use crate::units::{LimitId, Micros};

/// Told of everything worth counting. Each method does nothing unless overridden.
pub trait Observer {
    /// A request got its token after `waited`.
    fn granted(&mut self, limit: LimitId, priority: Priority, waited: Micros) {
        let _ = (limit, priority, waited);
    }

    /// In shadow mode: this would have become of a request, after `waited`.
    fn shadowed(&mut self, limit: LimitId, priority: Priority, outcome: Outcome, waited: Micros) {
        let _ = (limit, priority, outcome, waited);
    }

    /// A request waits outside the full queue.
    fn fell_back(&mut self, limit: LimitId) {
        let _ = limit;
    }

    /// The numbers of waiting requests on the ledger changed by these differences. The sum of all reports of all
    /// workers is what waits in the process.
    fn queue_changed(&mut self, limit: LimitId, differences: [i64; LANES]) {
        let _ = (limit, differences);
    }

    /// The ledger was begun anew and all that is known of those who wait is these numbers; what was reported before is
    /// void.
    fn queue_is(&mut self, limit: LimitId, waiting: [u32; LANES]) {
        let _ = (limit, waiting);
    }

    /// The ledger was looked at, with these rules in force.
    fn looked(&mut self, limit: LimitId, snapshot: &Snapshot, rules: &Rules) {
        let _ = (limit, snapshot, rules);
    }

    /// The retreat changed its state.
    fn retreat_changed(&mut self, limit: LimitId, transition: Transition) {
        let _ = (limit, transition);
    }

    /// The rules of a new configuration were put in force.
    fn rules_configured(&mut self, limit: LimitId, snapshot: &Snapshot, rules: &Rules) {
        let _ = (limit, snapshot, rules);
    }

    /// The rules of a configuration that had been replaced are in force again, since requests arrive under it.
    fn rules_adopted(&mut self, limit: LimitId, snapshot: &Snapshot, rules: &Rules) {
        let _ = (limit, snapshot, rules);
    }

    /// A decision was put off because other workers were quicker each time, or the host refused the store.
    fn store_failed(&mut self, limit: LimitId) {
        let _ = limit;
    }

    /// The ledger's record could not be read and was begun anew, with an empty bucket.
    fn ledger_corrupt(&mut self, limit: LimitId) {
        let _ = limit;
    }
}

/// An observer that looks away.
impl Observer for () {}
