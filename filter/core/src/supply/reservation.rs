//! Reservations: what a grant took, until it is known what became of it.
//!
//! A grant takes a token for a request that is then sent, most of the time. If it is not (its body did not fit, its client
//! had just left), the token goes back, but only where that can't let more requests be sent than capacity and rate allow:
//! a bucket that was full since the grant has lost what would have come meanwhile, and a token that came back on top would
//! be paid for twice. So the peak of the level since each of the last grants is kept.

use super::bucket::{Bucket, Flow, TOKEN};
use crate::model::ModelKey;
use crate::units::Instant;

/// A grant's number among all grants of its limit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Ticket(pub u64);

/// What a request holds from its grant until its stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    pub ticket: Ticket,
    pub granted_at: Instant,
    pub model: ModelKey,
}

/// A grant that may still be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Recent {
    pub ticket: Ticket,
    /// The highest level of the bucket since, in units.
    pub peak: u64,
}

/// The last grants, at most [`RECENT_MAX`], the oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RecentGrants {
    grants: Vec<Recent>,
    /// The number of the next grant.
    next: u64,
}

impl RecentGrants {
    pub(crate) fn from_parts(grants: Vec<Recent>, next: u64) -> Self {
        Self { grants, next }
    }

    /// The grants, and the number of the next one.
    pub fn parts(&self) -> (&[Recent], u64) {
        (&self.grants, self.next)
    }

    /// Takes note of a grant that has just left `bucket`, and numbers it.
    pub fn granted(&mut self, bucket: &Bucket) -> Ticket {
        let ticket = Ticket(self.next);
        self.next = self.next.saturating_add(1);
        if self.grants.len() >= RECENT_MAX {
            self.grants.remove(0);
        }
        self.grants.push(Recent { ticket, peak: bucket.level() });
        ticket
    }

    /// Takes note of the level after a refill.
    pub(crate) fn refilled(&mut self, bucket: &Bucket) {
        for grant in &mut self.grants {
            grant.peak = grant.peak.max(bucket.level());
        }
    }

    /// Gives the token of a grant back that was never used, if that can't let too many requests be sent, and says
    /// whether it did. Source of the rule: with `peak + 1 ≤ capacity` a run in which the grant never happened has never
    /// been cut at the capacity, so it has exactly this level.
    pub(crate) fn give_back(&mut self, ticket: Ticket, bucket: &mut Bucket, flow: Flow) -> bool {
        let Some(at) = self.grants.iter().position(|grant| grant.ticket == ticket) else {
            return false;
        };
        let would_be = self.grants.get(at).map_or(u64::MAX, |grant| grant.peak.saturating_add(TOKEN));
        self.grants.remove(at);
        if would_be > u64::from(flow.capacity).saturating_mul(TOKEN) {
            return false;
        }
        bucket.give_back(flow);
        for (place, grant) in self.grants.iter_mut().enumerate() {
            // The level was one higher all the time since, as far as later grants saw it; earlier ones saw the peak.
            grant.peak = if place >= at { grant.peak.saturating_add(TOKEN) } else { grant.peak.max(would_be) };
        }
        true
    }
}

/// Grants that may be taken back. Those that are, are so within moments.
pub(crate) const RECENT_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Micros, MilliRpm};
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const FLOW: Flow = Flow { rate: MilliRpm::from_rpm(60), capacity: 2 };

    fn at(millis: u64) -> Instant {
        Instant::from_micros(1_000_000_000).after(Micros::from_millis(millis))
    }

    struct Pair(Bucket, RecentGrants);

    impl Pair {
        fn new(tokens: u32) -> Self {
            Self(Bucket::with_tokens(tokens, at(0)), RecentGrants::default())
        }
        fn refill(&mut self, millis: u64) {
            self.0.refill(FLOW, at(millis));
            self.1.refilled(&self.0);
        }
        fn take(&mut self) -> Ticket {
            self.0.take(FLOW).unwrap();
            self.1.granted(&self.0)
        }
        fn give_back(&mut self, ticket: Ticket) -> bool {
            self.1.give_back(ticket, &mut self.0, FLOW)
        }
    }

    #[test]
    fn an_unused_token_comes_back_once() {
        let mut pair = Pair::new(1);
        let ticket = pair.take();
        assert!(pair.give_back(ticket));
        assert_eq!(pair.0.available(), 1);
        assert!(!pair.give_back(ticket));
        assert_eq!(pair.0.available(), 1);
    }

    #[test]
    fn a_token_is_lost_where_the_bucket_has_been_nearly_full_since() {
        let mut pair = Pair::new(2);
        let ticket = pair.take();
        pair.refill(500);
        assert!(!pair.give_back(ticket), "with 1.5 there, half a token would have been cut had it not been taken");
        assert_eq!(pair.0.available(), 1);
    }

    #[test]
    fn later_grants_remember_what_came_back_before_them() {
        let mut pair = Pair::new(2);
        let (first, second) = (pair.take(), pair.take());
        pair.refill(500);
        assert!(pair.give_back(first));
        assert!(!pair.give_back(second), "1.5 are there again, and with both the bucket would have been cut");
    }

    #[test]
    fn only_the_last_grants_can_be_taken_back() {
        let flow = Flow { rate: MilliRpm::from_rpm(60), capacity: 100 };
        let (mut bucket, mut recent) = (Bucket::with_tokens(20, at(0)), RecentGrants::default());
        let tickets: Vec<Ticket> = (0..=RECENT_MAX)
            .map(|_| {
                bucket.take(flow).unwrap();
                recent.granted(&bucket)
            })
            .collect();
        assert!(!recent.give_back(tickets[0], &mut bucket, flow));
        assert!(recent.give_back(tickets[1], &mut bucket, flow));
    }
}
