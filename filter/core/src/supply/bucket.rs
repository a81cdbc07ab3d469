//! The token bucket, in integers only.
//!
//! One token is [`TOKEN`] units, chosen so that a rate in thousandths of a request per minute adds a whole number of
//! units in each microsecond. Nothing is ever rounded, so no sequence of refills, however fine, gains or loses a part
//! of a token: what was granted is exactly what elapsed time paid for.

use crate::units::{Instant, Micros, MilliRpm};

/// Units in one token: microseconds in a minute times thousandths in one.
pub const TOKEN: u64 = 60_000_000 * 1_000;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    pub rate: MilliRpm,
    /// The most tokens the bucket holds, at least 1.
    pub capacity: u32,
}

/// A refusal: no token now, but one at `at` if nothing else is taken and the rate stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotUntil {
    /// When the next token is there.
    pub at: Instant,
}

/// The state of a token bucket. It is meaningful only together with the [`Flow`] under which it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    level: u64,
    updated_at: Instant,
    ready_since: Instant,
}

impl Bucket {
    /// A bucket with `tokens` tokens in it.
    pub fn with_tokens(tokens: u32, now: Instant) -> Self {
        Self { level: units(tokens), updated_at: now, ready_since: now }
    }

    /// A bucket from its stored parts.
    pub(crate) fn from_parts(level: u64, updated_at: Instant, ready_since: Instant) -> Self {
        Self { level, updated_at, ready_since }
    }

    /// The stored parts: level in units, time of the last refill, time since which a token has been there.
    pub(crate) fn parts(&self) -> (u64, Instant, Instant) {
        (self.level, self.updated_at, self.ready_since)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn set_updated_at(&mut self, at: Instant) {
        self.updated_at = at;
    }

    /// Adds what elapsed time brings under `flow`, pays tokens that are owed from it, and cuts what no longer fits. Returns
    /// how many are still owed.
    ///
    /// A small step back of the clock (a worker whose clock reading is slightly older) adds nothing and waits for time
    /// to catch up. A large one, of more than [`CLOCK_STEP_MAX`], adds nothing and starts to count from `now`, so that
    /// the bucket is not dry until the old time comes round again.
    pub(crate) fn refill_and_pay(&mut self, flow: Flow, now: Instant, owed: u32) -> u32 {
        let was_ready = self.level >= TOKEN;
        if now >= self.updated_at {
            if !was_ready {
                // The first tokens go to what is owed.
                self.ready_since = self.updated_at.after(self.until(flow, units(owed.saturating_add(1))));
            }
            let earned = now.since(self.updated_at).get().saturating_mul(u64::from(flow.rate.get()));
            self.level = self.level.saturating_add(earned);
            self.updated_at = now;
        } else if self.updated_at.since(now) > CLOCK_STEP_MAX {
            self.updated_at = now;
            self.ready_since = now;
        }
        let paid = owed.min(self.available());
        self.level = self.level.saturating_sub(units(paid)).min(units(flow.capacity));
        owed.saturating_sub(paid)
    }

    /// The same where nothing is owed.
    pub fn refill(&mut self, flow: Flow, now: Instant) {
        self.refill_and_pay(flow, now, 0);
    }

    /// Takes one token, or says when one will be there. Call [`Bucket::refill`] first.
    ///
    /// # Errors
    /// [`NotUntil`] when less than one token is there; the bucket is then unchanged.
    pub fn take(&mut self, flow: Flow) -> Result<(), NotUntil> {
        match self.level.checked_sub(TOKEN) {
            Some(rest) => {
                self.level = rest;
                if rest >= TOKEN {
                    self.ready_since = self.updated_at;
                }
                Ok(())
            }
            None => Err(NotUntil { at: self.ready_at(flow) }),
        }
    }

    /// Puts a token back that was taken and not used, as far as it fits.
    pub(crate) fn give_back(&mut self, flow: Flow) {
        if self.level < TOKEN {
            self.ready_since = self.updated_at;
        }
        self.level = self.level.saturating_add(TOKEN).min(units(flow.capacity));
    }

    /// What is in the bucket, in units: [`TOKEN`] for each token.
    pub fn level(&self) -> u64 {
        self.level
    }

    /// Whether a whole token is there.
    pub fn is_ready(&self) -> bool {
        self.level >= TOKEN
    }

    /// Since when a token has been there; meaningful only when [`Bucket::is_ready`].
    pub fn ready_since(&self) -> Instant {
        self.ready_since
    }

    /// When a token is there, if nothing is taken: now or later.
    pub fn ready_at(&self, flow: Flow) -> Instant {
        self.updated_at.after(self.until(flow, TOKEN))
    }

    /// When the `n`-th token from now is there, if all before it are taken as they come.
    pub(crate) fn nth_at(&self, flow: Flow, n: u32) -> Instant {
        self.updated_at.after(self.until(flow, units(n.max(1))))
    }

    /// Whole tokens in the bucket.
    pub fn available(&self) -> u32 {
        u32::try_from(self.level / TOKEN).unwrap_or(u32::MAX)
    }

    /// The time until the level reaches `goal` units. A rate of 0 never gets there.
    fn until(&self, flow: Flow, goal: u64) -> Micros {
        let missing = goal.saturating_sub(self.level);
        match (missing, u64::from(flow.rate.get())) {
            (0, _) => Micros::ZERO,
            (_, 0) => Micros::new(u64::MAX),
            (missing, rate) => Micros::new(missing.div_ceil(rate)),
        }
    }
}

fn units(tokens: u32) -> u64 {
    u64::from(tokens).saturating_mul(TOKEN)
}

/// The largest step back of the clock that is taken for a reading that arrived late rather than for a clock that was
/// set. Workers of one process read one monotonic clock, so their readings differ by scheduling delays at the most.
pub(crate) const CLOCK_STEP_MAX: Micros = Micros::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const FLOW: Flow = Flow { rate: MilliRpm::from_rpm(40), capacity: 4 };

    fn at(micros: u64) -> Instant {
        Instant::from_micros(10_000_000 + micros)
    }

    #[test]
    fn a_full_bucket_gives_its_capacity_and_then_says_when() {
        let mut bucket = Bucket::with_tokens(4, at(0));
        for _ in 0..4 {
            assert_eq!(bucket.take(FLOW), Ok(()));
        }
        assert_eq!(bucket.take(FLOW), Err(NotUntil { at: at(1_500_000) }));
    }

    #[test]
    fn refused_strictly_before_the_stated_time_and_granted_at_it() {
        let mut bucket = Bucket::with_tokens(0, at(0));
        let NotUntil { at: when } = bucket.take(FLOW).unwrap_err();
        bucket.refill(FLOW, Instant::from_micros(when.as_micros() - 1));
        assert!(bucket.take(FLOW).is_err());
        bucket.refill(FLOW, when);
        assert_eq!(bucket.ready_since(), when);
        assert_eq!(bucket.take(FLOW), Ok(()));
    }

    #[test]
    fn fine_refills_lose_nothing() {
        let flow = Flow { rate: MilliRpm::new(7), capacity: 3 };
        let mut fine = Bucket::with_tokens(0, at(0));
        for step in 1..=100_000 {
            fine.refill(flow, at(step * 37));
        }
        let mut coarse = Bucket::with_tokens(0, at(0));
        coarse.refill(flow, at(3_700_000));
        assert_eq!(fine.level, coarse.level);
    }

    #[test]
    fn a_small_step_back_is_waited_out_and_a_large_one_restarts() {
        let mut bucket = Bucket::with_tokens(0, at(5_000_000));
        bucket.refill(FLOW, at(4_500_000));
        assert_eq!(bucket.updated_at, at(5_000_000));
        bucket.refill(FLOW, at(1_000_000));
        assert_eq!((bucket.level, bucket.updated_at), (0, at(1_000_000)));
        // The largest step that is still waited out.
        bucket.refill(FLOW, at(0));
        assert_eq!(bucket.updated_at, at(1_000_000));
    }

    #[test]
    fn each_token_is_there_since_it_came_or_the_one_before_went() {
        let mut bucket = Bucket::with_tokens(0, at(0));
        bucket.refill(FLOW, at(7_000_000));
        assert!(bucket.is_ready());
        assert_eq!(bucket.ready_since(), at(1_500_000));
        for _ in 0..3 {
            assert_eq!(bucket.take(FLOW), Ok(()));
            assert_eq!(bucket.ready_since(), at(7_000_000));
        }
        bucket.refill(FLOW, at(8_000_000));
        assert_eq!(bucket.take(FLOW), Ok(()));
        assert!(!bucket.is_ready());
        // None is left, so this one's time stays until the next comes.
        assert_eq!(bucket.ready_since(), at(7_000_000));
    }

    #[test]
    fn any_leap_forward_fills_at_most_to_capacity() {
        let mut bucket = Bucket::with_tokens(0, at(0));
        bucket.refill(FLOW, Instant::from_micros(u64::MAX));
        assert_eq!(bucket.available(), 4);
    }

    #[test]
    fn a_smaller_capacity_cuts_what_no_longer_fits() {
        let mut bucket = Bucket::with_tokens(4, at(0));
        bucket.refill(Flow { capacity: 1, ..FLOW }, at(1));
        assert_eq!(bucket.available(), 1);
    }

    #[test]
    fn what_is_owed_is_paid_before_anything_is_cut() {
        let mut bucket = Bucket::with_tokens(4, at(0));
        assert_eq!(bucket.refill_and_pay(FLOW, at(3_000_000), 1), 0);
        assert_eq!(bucket.available(), 4, "two came in, one was owed, and four fit");
        let mut empty = Bucket::with_tokens(0, at(0));
        assert_eq!(empty.refill_and_pay(FLOW, at(3_000_000), 5), 3);
        assert_eq!(empty.available(), 0);
        let mut later = Bucket::with_tokens(0, at(0));
        later.refill_and_pay(FLOW, at(7_000_000), 2);
        assert_eq!(
            (later.available(), later.ready_since()),
            (2, at(4_500_000)),
            "the third that came is the first that is there"
        );
    }
}
