//! The way back: how the rate grows after a cut.
//!
//! Concave up to the ceiling, the rate at which refusals began: quick while it is far, slow where it is near, as in CUBIC
//! (RFC 9438). Past the ceiling the excess doubles in a fixed time, so that a limit that has really risen is found within
//! a few windows whatever its height, while the first step past an old ceiling is small enough to cost one refusal.

use crate::units::{Micros, MilliRpm};

/// One way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Curve {
    /// The rate right after the cut.
    pub from: MilliRpm,
    /// The rate at which refusals began.
    pub ceiling: MilliRpm,
    /// How long it takes to the ceiling.
    pub plateau: Micros,
    /// In which time the excess past the ceiling doubles.
    pub doubling: Micros,
}

impl Curve {
    /// The rate after growing for `grown`.
    pub fn at(&self, grown: Micros) -> MilliRpm {
        let ceiling = u64::from(self.ceiling.get());
        let rate = match self.plateau.get().checked_sub(grown.get()) {
            Some(left) if left > 0 => {
                let left = left.saturating_mul(ONE).checked_div(self.plateau.get()).unwrap_or(0).min(ONE);
                let gap = u64::from(self.ceiling.get().saturating_sub(self.from.get()));
                let cube = left.saturating_mul(left).saturating_mul(left);
                ceiling.saturating_sub(gap.saturating_mul(cube) >> (3 * ONE_BITS))
            }
            _ => {
                let past = grown.get().saturating_sub(self.plateau.get());
                let doublings = past.saturating_mul(ONE).checked_div(self.doubling.get()).unwrap_or(0);
                // Once the limit has clearly risen, twice as fast.
                let doublings = doublings.saturating_add(doublings.saturating_sub(3 * ONE));
                // Two to the power of so many doublings, straight between whole ones.
                let whole = (doublings >> ONE_BITS).min(DOUBLINGS_MAX);
                let power = (ONE.saturating_add(doublings & (ONE - 1))) << whole;
                let excess = ceiling.saturating_mul(power.saturating_sub(ONE)) >> ONE_BITS;
                ceiling.saturating_add(excess.div_ceil(EXCESS_PART))
            }
        };
        MilliRpm::new(u32::try_from(rate).unwrap_or(u32::MAX))
    }
}

/// Fixed point: so many bits after the point.
const ONE_BITS: u32 = 10;
const ONE: u64 = 1 << ONE_BITS;

/// More doublings than any range of rates needs.
const DOUBLINGS_MAX: u64 = 28;

/// The excess after the first doubling is this part of the ceiling.
const EXCESS_PART: u64 = 50;
