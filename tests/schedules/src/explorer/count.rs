//! Numbers of schedules, which are greater than any built-in integer holds.

use std::fmt;

/// A number below 2²⁵⁶.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Count {
    high: u128,
    low: u128,
}

impl Count {
    /// A small number.
    pub const fn new(low: u128) -> Self {
        Self { high: 0, low }
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        let (low, carries) = self.low.overflowing_add(other.low);
        self.low = low;
        self.high += other.high + u128::from(carries);
    }
}

/// In full where that is readable, rounded where it is not.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.high == 0 && self.low < 1_000_000_000_000 {
            return self.low.fmt(f);
        }
        write!(f, "{:.2e}", self.high as f64 * (u128::MAX as f64 + 1.0) + self.low as f64)
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
