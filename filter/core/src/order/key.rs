//! The order key: a request's place in the order of service of the whole process.

use crate::priority::Lane;
use crate::units::{Instant, Micros};

/// The place of a request in the order of service. Lower goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OrderKey {
    outside: bool,
    rank: u64,
    arrived: Instant,
}

/// How keys are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrderRule {
    /// By level, and within a level by arrival. With aging, by `arrived + level × aging`: a request is never passed by
    /// one that came more than `aging` × (levels between them) after it. A key of this kind never changes while the
    /// rules stay, so all workers agree on it whenever they look.
    Static {
        /// How much earlier a request must have come for each level by which it is less urgent; `None` is never enough.
        aging: Option<Micros>,
    },
    /// The rule of version 1, for as long as workers of that version share the ledger: a queued request moves up one
    /// whole level for each span of aging that it has waited.
    Stepped {
        /// The span; `None` is never.
        aging: Option<Micros>,
        /// The time for which keys are compared.
        now: Instant,
    },
}

impl OrderRule {
    /// The key of a request that has waited in `lane` since `arrived`. Outside the queue requests don't age.
    pub fn key(self, lane: Lane, arrived: Instant) -> OrderKey {
        let level = lane.priority() as u64;
        let rank = match self {
            Self::Static { aging: Some(aging) } if lane.is_queued() => arrived.after(aging.times(level)).as_micros(),
            Self::Stepped { aging: Some(aging), now } if lane.is_queued() => {
                level.saturating_sub(now.since(arrived).get().checked_div(aging.get()).unwrap_or(0))
            }
            Self::Static { .. } | Self::Stepped { .. } => level,
        };
        OrderKey { outside: !lane.is_queued(), rank, arrived }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn at(secs: u64) -> Instant {
        Instant::ZERO.after(Micros::from_secs(secs))
    }

    #[test]
    fn an_older_request_keeps_its_lead_by_a_span_for_each_level() {
        let rule = OrderRule::Static { aging: Some(Micros::from_secs(10)) };
        let key = |level, arrived| rule.key(Lane::Queued(level), at(arrived));
        assert!(key(Priority::Low, 100) < key(Priority::Urgent, 131));
        assert!(key(Priority::Urgent, 129) < key(Priority::Low, 100));
        assert!(key(Priority::Low, 100) < key(Priority::Urgent, 130), "of two with one rank the older goes first");
        assert!(key(Priority::Low, 100) < rule.key(Lane::Fallback(Priority::Urgent), at(0)));
    }

    #[test]
    fn version_1_moved_up_by_whole_levels() {
        let key = |level, arrived, now| {
            OrderRule::Stepped { aging: Some(Micros::from_secs(10)), now: at(now) }
                .key(Lane::Queued(level), at(arrived))
        };
        assert!(key(Priority::Normal, 5, 9) < key(Priority::Low, 0, 9));
        assert!(key(Priority::Low, 0, 10) < key(Priority::Normal, 5, 10));
    }

    #[test]
    fn without_aging_only_levels_and_arrivals_count() {
        let rule = OrderRule::Static { aging: None };
        assert!(rule.key(Lane::Queued(Priority::High), at(9)) < rule.key(Lane::Queued(Priority::Normal), at(0)));
        assert!(rule.key(Lane::Queued(Priority::High), at(1)) < rule.key(Lane::Queued(Priority::High), at(2)));
    }
}
