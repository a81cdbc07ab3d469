//! What was granted and what came of it in the last window, in [`CELLS`] sub-windows: the retreat's only evidence.
//!
//! Refusals are counted twice: by the time of the answer, for the share of 429s that the operator sees, and by the time
//! of the grant, since only that says how many requests of a window the upstream has let in.

use crate::units::{Instant, Micros, MilliRpm};

/// Sub-windows in a window.
pub(crate) const CELLS: usize = 32;

/// Sub-windows remembered: the newest has only begun, so a part of the oldest still belongs to the window.
pub(crate) const KEPT: usize = CELLS + 1;

/// The counts of one sub-window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// Tokens granted in it.
    pub granted: u32,
    /// Of those, the ones that the upstream refused.
    pub wasted: u32,
    /// Answers that came in it.
    pub answers: u32,
    /// Of those, the ones that said "too many requests".
    pub refused: u32,
    /// Thousandths of requests that the rate allowed in it.
    pub allowed: u32,
}

/// The counts of the last window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meter {
    pub(crate) window: Micros,
    /// The number of the newest sub-window, counted from the clock's origin.
    pub(crate) newest: u64,
    /// Until when `allowed` is counted.
    pub(crate) counted_to: Instant,
    pub(crate) cells: [Cell; KEPT],
}

impl Default for Meter {
    fn default() -> Self {
        Self { window: Micros::ZERO, newest: 0, counted_to: Instant::ZERO, cells: [Cell::default(); KEPT] }
    }
}

impl Meter {
    /// Lets time pass, in which `rate` was allowed. A window of another length forgets everything; so does a large step
    /// back of the clock.
    pub fn advance(&mut self, window: Micros, rate: MilliRpm, now: Instant) {
        let cell = cell_at(window, now);
        if window != self.window || self.newest > cell.saturating_add(KEPT as u64) {
            *self = Self { window, newest: cell, counted_to: now, ..Self::default() };
        }
        // A leap of any size clears each place once.
        let first = self.newest.saturating_add(1);
        for passed in first..=cell.min(self.newest.saturating_add(KEPT as u64)) {
            if let Some(place) = self.cells.get_mut(place(passed)) {
                *place = Cell::default();
            }
        }
        self.newest = self.newest.max(cell);
        // More than a window's worth would only say that nobody looked.
        let passed = now.since(self.counted_to).get().min(window.get());
        let allowed = passed.saturating_mul(u64::from(rate.get())).checked_div(MINUTE.get()).unwrap_or(0);
        // What is less than a thousandth waits for the next time.
        if allowed > 0 {
            self.counted_to = now;
            let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
            self.count(self.newest, |cell| cell.allowed = cell.allowed.saturating_add(allowed));
        }
    }

    /// Counts a token granted now.
    pub fn granted(&mut self) {
        self.count(self.newest, |cell| cell.granted = cell.granted.saturating_add(1));
    }

    /// Counts an answer that came now, to a request granted at `granted_at`.
    pub fn answered(&mut self, granted_at: Instant, refused: bool) {
        self.count(self.newest, |cell| {
            cell.answers = cell.answers.saturating_add(1);
            cell.refused = cell.refused.saturating_add(u32::from(refused));
        });
        let then = cell_at(self.window, granted_at);
        if refused && then <= self.newest && then.saturating_add(KEPT as u64) > self.newest {
            self.count(then, |cell| cell.wasted = cell.wasted.saturating_add(1));
        }
    }

    /// The rate that was allowed in the window that ends at `now`, on average.
    pub(crate) fn allowed_rate(&self, now: Instant) -> MilliRpm {
        self.rate(now, |cell| u64::from(cell.allowed))
    }

    /// The rate of grants in the window that ends at `now`.
    pub(crate) fn granted_rate(&self, now: Instant) -> MilliRpm {
        self.rate(now, |cell| u64::from(cell.granted).saturating_mul(1_000))
    }

    /// The rate of grants in the window that ends at `now`, without those that were refused.
    pub(crate) fn admitted_rate(&self, now: Instant) -> MilliRpm {
        self.rate(now, |cell| u64::from(cell.granted.saturating_sub(cell.wasted)).saturating_mul(1_000))
    }

    /// Tokens granted after the sub-window of `since` and before the newest one and the one before it, whose answers may
    /// be on their way, without those that were refused; the one granted at `refused` was refused too.
    pub(crate) fn let_in_since(&self, since: Instant, refused: Instant) -> u32 {
        let refused = cell_at(self.window, refused);
        let first = cell_at(self.window, since).max(self.newest.saturating_sub(CELLS as u64)).saturating_add(1);
        (first..self.newest.saturating_sub(1)).fold(0u32, |sum, number| {
            let cell = self.get(number);
            let wasted = cell.wasted.saturating_add(u32::from(number == refused));
            sum.saturating_add(cell.granted.saturating_sub(wasted))
        })
    }

    /// Whether tokens were granted in the oldest tenth of the window too, so that its rates are those of a whole window.
    pub fn is_full(&self) -> bool {
        let oldest = self.newest.saturating_sub(CELLS as u64);
        (oldest..oldest.saturating_add(CELLS as u64 / 8)).any(|cell| self.get(cell).granted > 0)
    }

    /// The share of refusals among the answers of the window, in thousandths.
    pub fn refused_permille(&self, now: Instant) -> u32 {
        let (mut answers, mut refused) = (0u64, 0u64);
        let newest = cell_at(self.window, now).max(self.newest);
        for back in 0..CELLS as u64 {
            let Some(cell) = newest.checked_sub(back) else { break };
            if cell <= self.newest && cell.saturating_add(KEPT as u64) > self.newest {
                let counts = self.get(cell);
                answers = answers.saturating_add(u64::from(counts.answers));
                refused = refused.saturating_add(u64::from(counts.refused));
            }
        }
        refused.saturating_mul(1_000).checked_div(answers).and_then(|share| u32::try_from(share).ok()).unwrap_or(0)
    }

    /// What was counted in the window that ends at `now`, in thousandths of a request, as a rate.
    fn rate(&self, now: Instant, of: impl Fn(Cell) -> u64) -> MilliRpm {
        let length = cell_length(self.window).get();
        // The newest sub-window has run this far; as much of the oldest has left the window.
        let begun = now.as_micros().saturating_sub(self.newest.saturating_mul(length)).min(length);
        let oldest = self.newest.saturating_sub(CELLS as u64);
        let whole =
            (oldest.saturating_add(1)..=self.newest).fold(0u64, |sum, cell| sum.saturating_add(of(self.get(cell))));
        let part = of(self.get(oldest)).saturating_mul(length.saturating_sub(begun));
        let thousandths = whole.saturating_add(part.checked_div(length).unwrap_or(0));
        let per_minute = thousandths.saturating_mul(MINUTE.get()).checked_div(self.window.get()).unwrap_or(0);
        MilliRpm::new(u32::try_from(per_minute).unwrap_or(u32::MAX))
    }

    fn get(&self, cell: u64) -> Cell {
        self.cells.get(place(cell)).copied().unwrap_or_default()
    }

    fn count(&mut self, cell: u64, what: impl FnOnce(&mut Cell)) {
        if let Some(cell) = self.cells.get_mut(place(cell)) {
            what(cell);
        }
    }
}

const MINUTE: Micros = Micros::from_secs(60);

fn cell_length(window: Micros) -> Micros {
    Micros::new(window.get().div_ceil(CELLS as u64).max(1))
}

fn cell_at(window: Micros, at: Instant) -> u64 {
    at.as_micros().checked_div(cell_length(window).get()).unwrap_or(0)
}

fn place(cell: u64) -> usize {
    usize::try_from(cell.checked_rem(KEPT as u64).unwrap_or(0)).unwrap_or(0)
}
