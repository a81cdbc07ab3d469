//! The window guard: in no window of the configured length, however it lies, are there more grants than the quota.
//!
//! Providers count requests per rolling or fixed minute. A bucket alone keeps the rate but not that count: with capacity
//! `b` at rate `r` it lets `b + r` through in one minute. The guard counts grants in [`CELLS`] sub-windows of the window
//! and holds further ones back while those that may still be in it are as many as the quota. A grant is taken to be as
//! late as its sub-window's end, so the count is never too low, whatever the window's alignment; and to have reached the
//! upstream up to a margin later than that. What this costs is one sub-window and the margin in each window. Memory and
//! time do not depend on the rate.

use crate::units::{Instant, Micros};

/// Sub-windows in a window with its margin.
pub(crate) const CELLS: usize = 64;

/// Sub-windows remembered: those that can count, and a few that have left, to know since when there has been room.
pub(crate) const KEPT: usize = CELLS + 6;

/// What the guard holds to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowRules {
    /// The window's length; zero is no guard.
    pub window: Micros,
    /// The most grants in it, at least 1.
    pub quota: u32,
    /// How much longer than the window a grant counts: a request that was granted a window ago may have been so much
    /// slower on its way to the upstream than one that is granted now.
    pub margin: Micros,
}

impl WindowRules {
    /// How long a grant counts from the end of its sub-window on; zero without a guard.
    fn span(&self) -> Micros {
        if self.window == Micros::ZERO { Micros::ZERO } else { self.window.plus(self.margin) }
    }
}

/// The grants of the last window, by sub-window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowGuard {
    /// The window with its margin.
    span: Micros,
    /// How much longer than that a grant counts beside modules of version 1, which have such a margin.
    longer: Micros,
    newest: u64,
    counts: [u32; KEPT],
}

impl WindowGuard {
    /// A guard that has seen nothing.
    pub fn new(rules: WindowRules, now: Instant) -> Self {
        let mut guard = Self { span: rules.span(), longer: Micros::ZERO, newest: 0, counts: [0; KEPT] };
        guard.newest = guard.cell_at(now);
        guard
    }

    /// A guard from its stored parts.
    pub(crate) fn from_parts(span: Micros, newest: u64, counts: [u32; KEPT]) -> Self {
        Self { span, longer: Micros::ZERO, newest, counts }
    }

    /// The same, with the margin that is fixed in version 1: whoever decides beside it must find the window open at the
    /// same time.
    pub(crate) fn as_in_version_1(self) -> Self {
        Self { longer: self.cell().quarter(), ..self }
    }

    /// The same, without it.
    pub(crate) fn as_in_version_2(self) -> Self {
        Self { longer: Micros::ZERO, ..self }
    }

    /// The stored parts: the length of the window with its margin, the number of the newest sub-window, the counts.
    pub(crate) fn parts(&self) -> (Micros, u64, &[u32; KEPT]) {
        (self.span, self.newest, &self.counts)
    }

    /// Lets time pass. A window of another length than before takes over what was counted, each grant as late as it may
    /// have been; of what lay before the old window nothing is known.
    ///
    /// A small step back of the clock changes nothing. After a large one all grants count as made just now.
    pub fn advance(&mut self, rules: WindowRules, now: Instant) {
        if rules.span() != self.span {
            let before = *self;
            *self = Self { longer: before.longer, ..Self::new(rules, now) };
            for (cell, count) in before.cells() {
                self.add(self.cell_at(before.end_of(cell).min(now)), count);
            }
        }
        let cell = self.cell_at(now);
        if self.newest.saturating_sub(cell) > BACK_MAX {
            let all = self.cells().fold(0u32, |sum, (_, count)| sum.saturating_add(count));
            *self = Self { longer: self.longer, ..Self::new(rules, now) };
            self.add(cell, all);
        }
        if cell > self.newest {
            let passed = cell.saturating_sub(self.newest).min(KEPT as u64);
            self.newest = cell;
            for back in 0..passed {
                if let Some(count) = self.slot(cell.saturating_sub(back)) {
                    *count = 0;
                }
            }
        }
    }

    /// How many grants there is room for. Call [`WindowGuard::advance`] first.
    pub fn room(&self, rules: WindowRules, now: Instant) -> u32 {
        if self.span == Micros::ZERO {
            return u32::MAX;
        }
        let counted = self.cells().filter(|(cell, _)| self.leaves_at(*cell) > now);
        rules.quota.saturating_sub(counted.fold(0u32, |sum, (_, count)| sum.saturating_add(count)))
    }

    /// Counts `n` grants.
    pub fn count(&mut self, n: u32) {
        if self.span > Micros::ZERO {
            self.add(self.newest, n);
        }
    }

    /// Takes back the count of a grant made at `granted_at` that was never sent.
    pub(crate) fn uncount(&mut self, granted_at: Instant) {
        let cell = self.cell_at(granted_at);
        let first = self.newest.saturating_sub(KEPT as u64).saturating_add(1);
        if self.span > Micros::ZERO
            && (first..=self.newest).contains(&cell)
            && let Some(count) = self.slot(cell)
        {
            *count = count.saturating_sub(1);
        }
    }

    /// When there is room for `n` more grants, if none is made before: `now` or later.
    pub fn opens_at(&self, rules: WindowRules, now: Instant, n: u32) -> Instant {
        if self.span == Micros::ZERO {
            return now;
        }
        // More than a window holds takes further windows.
        let quota = rules.quota.max(1);
        let last = n.saturating_sub(1);
        let (windows, rest) = (last.checked_div(quota).unwrap_or(0), last.checked_rem(quota).unwrap_or(0));
        let room = self.room(rules, now);
        let mut missing = rest.saturating_add(1).saturating_sub(room);
        let mut at = now;
        for (cell, count) in self.cells().filter(|(cell, _)| self.leaves_at(*cell) > now) {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(count);
            at = self.leaves_at(cell);
        }
        at.after(self.span.plus(self.longer).plus(self.cell()).times(u64::from(windows)))
    }

    /// Since when there has been room, at the earliest; meaningful only when there is. [`Instant::ZERO`] if it is longer
    /// than the guard remembers.
    pub(crate) fn open_since(&self, rules: WindowRules, now: Instant) -> Instant {
        let mut room = self.room(rules, now);
        if self.span == Micros::ZERO {
            return Instant::ZERO;
        }
        let mut left: Vec<(u64, u32)> = self.cells().filter(|(cell, _)| self.leaves_at(*cell) <= now).collect();
        while let Some((cell, count)) = left.pop() {
            room = room.saturating_sub(count);
            if room == 0 {
                return self.leaves_at(cell);
            }
        }
        Instant::ZERO
    }

    /// The sub-windows that hold grants, from the oldest to the newest.
    fn cells(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let first = self.newest.saturating_sub(KEPT as u64).saturating_add(1);
        (first..=self.newest).filter_map(|cell| {
            let count = *self.counts.get(place(cell))?;
            (count > 0).then_some((cell, count))
        })
    }

    fn add(&mut self, cell: u64, n: u32) {
        let first = self.newest.saturating_sub(KEPT as u64).saturating_add(1);
        if cell >= first
            && let Some(count) = self.slot(cell)
        {
            *count = count.saturating_add(n);
        }
    }

    fn slot(&mut self, cell: u64) -> Option<&mut u32> {
        self.counts.get_mut(place(cell))
    }

    /// A sub-window's length.
    fn cell(&self) -> Micros {
        Micros::new(self.span.get().div_ceil(CELLS as u64))
    }

    fn cell_at(&self, at: Instant) -> u64 {
        at.as_micros().checked_div(self.cell().get()).unwrap_or(0)
    }

    fn end_of(&self, cell: u64) -> Instant {
        Instant::from_micros(cell.saturating_add(1).saturating_mul(self.cell().get()))
    }

    /// When the grants of a sub-window have surely left every window that ends then or later.
    fn leaves_at(&self, cell: u64) -> Instant {
        self.end_of(cell).after(self.span).after(self.longer)
    }
}

/// The place of a sub-window in the ring.
fn place(cell: u64) -> usize {
    usize::try_from(cell.checked_rem(KEPT as u64).unwrap_or(0)).unwrap_or(0)
}

/// The largest step back of the clock, in sub-windows, that is waited out.
const BACK_MAX: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const RULES: WindowRules = WindowRules { window: Micros::from_secs(60), quota: 10, margin: Micros::from_secs(4) };

    fn at(millis: u64) -> Instant {
        Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
    }

    fn guard_with(counts: &[(u64, u32)]) -> WindowGuard {
        let mut guard = WindowGuard::new(RULES, at(0));
        for (millis, count) in counts {
            guard.advance(RULES, at(*millis));
            guard.count(*count);
        }
        guard
    }

    #[test]
    fn a_grant_counts_until_its_sub_window_has_left() {
        let mut guard = guard_with(&[(100, 10)]);
        for (millis, room) in [(200, 0), (64_100, 0), (64_999, 0), (65_000, 10), (1_000_000, 10)] {
            guard.advance(RULES, at(millis));
            assert_eq!(guard.room(RULES, at(millis)), room, "at {millis}");
        }
    }

    #[test]
    fn says_when_there_is_room_for_so_many() {
        let guard = guard_with(&[(0, 4), (10_000, 5)]);
        let opens = |n| guard.opens_at(RULES, at(10_000), n);
        assert_eq!(opens(1), at(10_000));
        assert_eq!(opens(2), at(65_000));
        assert_eq!(opens(5), at(65_000));
        assert_eq!(opens(6), at(75_000));
        assert_eq!(opens(10), at(75_000));
        assert_eq!(opens(11), at(10_000 + 65_000));
        // Those that have left just now make room only once.
        assert_eq!(guard.opens_at(RULES, at(65_000), 6), at(75_000));
    }

    #[test]
    fn says_since_when_there_has_been_room() {
        let mut guard = guard_with(&[(0, 4), (10_000, 6)]);
        guard.advance(RULES, at(66_000));
        assert_eq!(guard.open_since(RULES, at(66_000)), at(65_000));
        guard.count(1);
        assert_eq!(guard.open_since(RULES, at(66_000)), at(65_000));
        let mut never_full = guard_with(&[(0, 4)]);
        never_full.advance(RULES, at(66_000));
        assert_eq!(never_full.open_since(RULES, at(66_000)), Instant::ZERO);
    }

    #[test]
    fn a_grant_that_was_never_sent_makes_room_again() {
        let mut guard = guard_with(&[(0, 4), (10_000, 6)]);
        assert_eq!(guard.room(RULES, at(10_000)), 0);
        guard.uncount(at(10_300));
        assert_eq!((guard.room(RULES, at(10_000)), guard.opens_at(RULES, at(10_000), 1)), (1, at(10_000)));
        // What is not remembered, or lies ahead, takes nothing back.
        guard.uncount(Instant::ZERO);
        guard.uncount(at(20_000));
        assert_eq!(guard.room(RULES, at(10_000)), 1);
    }

    #[test]
    fn a_new_length_takes_the_count_over() {
        let mut guard = guard_with(&[(0, 4), (40_000, 6)]);
        let shorter = WindowRules { window: Micros::from_secs(15), margin: Micros::from_secs(1), ..RULES };
        guard.advance(shorter, at(41_000));
        assert_eq!(guard.room(shorter, at(41_000)), 4);
        guard.advance(RULES, at(41_000));
        assert_eq!(guard.room(RULES, at(41_000)), 4);
        let off = WindowRules { window: Micros::ZERO, ..RULES };
        guard.advance(off, at(41_000));
        assert_eq!(guard.room(off, at(41_000)), u32::MAX);
        let before = guard;
        guard.count(7);
        assert_eq!(guard, before, "where there is no window nothing is counted");
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_away() {
        let mut guard = guard_with(&[(0, 4), (40_000, 6)]);
        guard.advance(RULES, at(39_000));
        assert_eq!(guard.room(RULES, at(39_000)), 0);
        // Two sub-windows are waited out, more are not: all that was granted then counts from the new time on.
        guard.advance(RULES, at(38_000));
        assert_eq!(guard.opens_at(RULES, at(38_000), 1), at(65_000));
        guard.advance(RULES, at(37_000));
        assert_eq!(guard.opens_at(RULES, at(37_000), 1), at(37_000 + 65_000));
        guard.advance(RULES, at(0));
        assert_eq!(guard.room(RULES, at(64_000)), 0);
        guard.advance(RULES, at(65_000));
        assert_eq!(guard.room(RULES, at(65_000)), 10);
    }
}
