//! What was granted in the last eleven windows and what came of it, in eighths of a window, by the time of the grant:
//! only that says what the upstream let in, however late it refuses.

use crate::units::{Instant, Micros};

/// Parts of a window.
pub(crate) const PARTS: u64 = 8;

/// Parts remembered: eleven windows.
pub(crate) const KEPT: usize = 88;

/// The counts of one part of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Part {
    /// Requests that were granted in it.
    pub granted: u16,
    /// Of those, the ones that were refused and count against the account.
    pub refused: u16,
    /// Of those, the ones that were refused by a model's own limit.
    pub elsewhere: u16,
}

/// The counts of the last windows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History {
    pub(crate) window: Micros,
    /// The number of the newest part, counted from the clock's origin.
    pub(crate) newest: u64,
    pub(crate) parts: [Part; KEPT],
}

/// Requests of a span of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sum {
    pub granted: u32,
    pub refused: u32,
    pub elsewhere: u32,
}

impl Sum {
    /// Requests that are not known to be refused.
    pub fn let_in(self) -> u32 {
        self.granted.saturating_sub(self.refused).saturating_sub(self.elsewhere)
    }
}

impl Default for History {
    fn default() -> Self {
        Self { window: Micros::ZERO, newest: 0, parts: [Part::default(); KEPT] }
    }
}

impl History {
    /// Lets time pass. A window of another length forgets everything; so does a large step back of the clock. Says whether
    /// a new part has begun.
    pub fn advance(&mut self, window: Micros, now: Instant) -> bool {
        let part = part_at(window, now);
        if window != self.window || self.newest > part.saturating_add(KEPT as u64) {
            *self = Self { window, newest: part, ..Self::default() };
            return true;
        }
        if part <= self.newest {
            return false;
        }
        let first = self.newest.saturating_add(1);
        for passed in first..=part.min(self.newest.saturating_add(KEPT as u64)) {
            if let Some(place) = self.parts.get_mut(place(passed)) {
                *place = Part::default();
            }
        }
        self.newest = part;
        true
    }

    /// Counts a grant now.
    pub fn granted(&mut self) {
        let newest = self.newest;
        self.count(newest, |part| part.granted = part.granted.saturating_add(1));
    }

    /// Counts a refusal of a request that was granted at `granted_at`; whether it counts against the account.
    pub fn refused(&mut self, granted_at: Instant, is_accounts: bool) {
        let part = part_at(self.window, granted_at);
        if part <= self.newest && part.saturating_add(KEPT as u64) > self.newest {
            self.count(part, |part| {
                let count = if is_accounts { &mut part.refused } else { &mut part.elsewhere };
                *count = count.saturating_add(1);
            });
        }
    }

    /// The last `refusals` that counted against the account no longer do.
    pub fn forgive(&mut self, refusals: u32) {
        let mut left = u16::try_from(refusals).unwrap_or(u16::MAX);
        let oldest = self.newest.saturating_sub(KEPT as u64).saturating_add(1);
        for part in (oldest..=self.newest).rev() {
            if left == 0 {
                return;
            }
            self.count(part, |part| {
                let moved = left.min(part.refused);
                part.refused = part.refused.saturating_sub(moved);
                part.elsewhere = part.elsewhere.saturating_add(moved);
                left = left.saturating_sub(moved);
            });
        }
    }

    /// What was granted since `from`, to the part.
    pub(crate) fn since(&self, from: Instant) -> Sum {
        self.sum(part_at(self.window, from), self.newest)
    }

    /// What was granted from the part of `from` on and before that of `until`.
    pub(crate) fn between(&self, from: Instant, until: Instant) -> Sum {
        match part_at(self.window, until).checked_sub(1) {
            Some(last) => self.sum(part_at(self.window, from), last),
            None => Sum::default(),
        }
    }

    /// What was let in in the window of whole parts that ended `parts` before the newest one began.
    pub(crate) fn window_before(&self, parts: u64) -> Sum {
        let last = self.newest.saturating_sub(parts).saturating_sub(1);
        self.sum(last.saturating_sub(PARTS - 1), last)
    }

    /// How many parts ago `at` was.
    pub fn parts_since(&self, at: Instant) -> u64 {
        self.newest.saturating_sub(part_at(self.window, at))
    }

    /// When the part after that of `now` begins.
    pub fn next_part_at(&self, now: Instant) -> Instant {
        let length = self.window.get().div_ceil(PARTS).max(1);
        Instant::from_micros(part_at(self.window, now).saturating_add(1).saturating_mul(length))
    }

    fn sum(&self, first: u64, last: u64) -> Sum {
        let oldest = self.newest.saturating_sub(KEPT as u64).saturating_add(1);
        (first.max(oldest)..=last.min(self.newest)).fold(Sum::default(), |sum, part| {
            let part = self.parts.get(place(part)).copied().unwrap_or_default();
            Sum {
                granted: sum.granted.saturating_add(u32::from(part.granted)),
                refused: sum.refused.saturating_add(u32::from(part.refused)),
                elsewhere: sum.elsewhere.saturating_add(u32::from(part.elsewhere)),
            }
        })
    }

    fn count(&mut self, part: u64, what: impl FnOnce(&mut Part)) {
        if let Some(part) = self.parts.get_mut(place(part)) {
            what(part);
        }
    }
}

fn part_at(window: Micros, at: Instant) -> u64 {
    at.as_micros().checked_div(window.get().div_ceil(PARTS).max(1)).unwrap_or(0)
}

fn place(part: u64) -> usize {
    usize::try_from(part.checked_rem(KEPT as u64).unwrap_or(0)).unwrap_or(0)
}
