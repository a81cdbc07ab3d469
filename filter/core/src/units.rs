//! The quantities that everything else counts in, as types of their own so that two integers can't be swapped.
//!
//! Time is monotonic and in microseconds; rates are in thousandths of a request per minute. All arithmetic saturates:
//! a filter that overflows would trap, and a trap hangs every request that its worker holds.

use core::fmt;

/// A point in monotonic time, in microseconds from an arbitrary origin that is the same for all workers of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Instant(u64);

impl Instant {
    pub const ZERO: Self = Self(0);

    /// The point `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later, as after a step back of the clock.
    pub const fn since(self, earlier: Self) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }

    /// The point `by` later.
    pub const fn after(self, by: Micros) -> Self {
        Self(self.0.saturating_add(by.0))
    }
}

/// A span of time in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Micros(u64);

impl Micros {
    pub const ZERO: Self = Self(0);

    /// Longer than anything waits.
    pub const MAX: Self = Self(u64::MAX);

    pub const fn new(micros: u64) -> Self {
        Self(micros)
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The span in whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// The span in whole milliseconds, rounded up, so that a timer never fires early.
    pub const fn as_millis_ceil(self) -> u64 {
        self.0.div_ceil(1_000)
    }

    /// The span in whole seconds, rounded up.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000_000)
    }

    /// The span in seconds, to the microsecond.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub const fn quarter(self) -> Self {
        Self(self.0 / 4)
    }

    /// The span `n` times over.
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

/// A rate in thousandths of a request per minute.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MilliRpm(u32);

impl MilliRpm {
    /// `milli` thousandths of a request per minute.
    pub const fn new(milli: u32) -> Self {
        Self(milli)
    }

    /// `rpm` requests per minute; past [`RATE_RPM_MAX`] the largest that it can hold.
    pub const fn from_rpm(rpm: u32) -> Self {
        Self(rpm.saturating_mul(1_000))
    }

    /// Thousandths of a request per minute.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whole requests per minute, rounded to the nearest.
    pub const fn as_rpm(self) -> u32 {
        self.0.saturating_add(500) / 1_000
    }

    /// `num / den` of this rate; unchanged when `den` is 0.
    pub const fn scaled(self, num: u32, den: u32) -> Self {
        match (self.0 as u64).saturating_mul(num as u64).checked_div(den as u64) {
            Some(milli) if milli <= u32::MAX as u64 => Self(milli as u32),
            Some(_) => Self(u32::MAX),
            None => self,
        }
    }

    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for MilliRpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1_000, self.0 % 1_000 / 100)
    }
}

/// The identity of a request inside one worker: the number of its stream context.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestId(pub u32);

/// The identity of a worker inside the process: the token of the shared queue on which it can be woken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct WorkerId(pub u32);

/// The number of a limit inside one worker, in the order in which that worker first heard of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LimitId(pub usize);

/// The highest configurable rate, in requests per minute: the largest round number for which all arithmetic is exact.
pub(crate) const RATE_RPM_MAX: u32 = 1_000_000;
