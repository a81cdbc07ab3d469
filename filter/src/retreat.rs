//! The 429 retreat: how fast to go, given what the upstream answered.
//!
//! ```text
//!            429 share reached,            hold passed
//!            or Retry-After                without a fresh 429
//!   NORMAL ───────────────────▶ RETREAT ─────────────────────▶ RECOVER ──▶ NORMAL
//!                               ▲     │ a fresh 429 cuts again      │     (base rate
//!                               └─────┘                             │      reached)
//!                               ▲            a fresh 429            │
//!                               └───────────────────────────────────┘
//! ```
//!
//! One transition function, [`Retreat::step`]: the time comes in, the new state and what changed go out. A 429 counts
//! as *fresh* only if its request was granted after the last cut, so that one burst of 429s is one event. The steps are
//! fixed; everything else in the filter sees only [`Retreat::rate`], [`Retreat::closed_until`] and the state's name, so
//! that a better controller can take this one's place.

use crate::units::{Instant, Micros, MilliRpm};

/// What the operator configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetreatRules {
    /// Whether 429s slow the limit down at all.
    pub enabled: bool,
    /// The configured rate: the ceiling.
    pub base: MilliRpm,
    /// The lowest rate that a retreat may reach; above 0, so that recovery is always possible.
    pub floor: MilliRpm,
    /// The longest `Retry-After` that is obeyed.
    pub retry_after_max: Micros,
}

/// The state that the operator sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Phase {
    /// At the configured rate.
    #[default]
    Normal = 0,
    /// Cut back, waiting.
    Retreat = 1,
    /// Coming back step by step.
    Recover = 2,
}

impl Phase {
    /// The state's name in metrics, log and `/status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Retreat => "RETREAT",
            Self::Recover => "RECOVER",
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Normal),
            1 => Some(Self::Retreat),
            2 => Some(Self::Recover),
            _ => None,
        }
    }
}

/// One answer of the upstream. Replies that Envoy or the filter made are no answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// When the request got its token.
    pub granted_at: Instant,
    /// Whether the answer says "too many requests".
    pub throttled: bool,
    /// How long the upstream asks to wait.
    pub retry_after: Option<Micros>,
}

/// Why the state changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The share of 429s among the latest answers reached the threshold.
    ShareOf429,
    /// The upstream asked for a pause with `Retry-After`.
    RetryAfter,
    /// A request that was granted after the last cut was refused all the same.
    Relapse,
    /// The hold passed without a fresh 429.
    HoldPassed,
    /// The configured rate is reached again.
    BaseReached,
    /// The retreat was switched off.
    SwitchedOff,
}

impl Reason {
    /// The reason in words, for the log.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ShareOf429 => "the share of 429s among the upstream's answers reached the threshold",
            Self::RetryAfter => "the upstream answered 429 with Retry-After",
            Self::Relapse => "the upstream answered 429 to a request sent after the last cut",
            Self::HoldPassed => "no new 429 for the length of the hold",
            Self::BaseReached => "the configured rate is reached again",
            Self::SwitchedOff => "the retreat was switched off in the configuration",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    /// The state before.
    pub from: Phase,
    /// The state after.
    pub to: Phase,
    /// Why.
    pub reason: Reason,
    /// The rate after.
    pub rate: MilliRpm,
}

/// The state of the retreat, shared by all workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retreat {
    pub(crate) phase: Phase,
    pub(crate) rate: MilliRpm,
    /// When the next step of time is due: the end of the hold, or the next raise.
    pub(crate) due_at: Instant,
    /// The time of the last cut: 429s of requests granted before it are stale.
    pub(crate) cut_at: Instant,
    pub(crate) closed_until: Instant,
    pub(crate) window: Window,
}

impl Retreat {
    /// The start: full speed.
    pub fn new(rules: RetreatRules) -> Self {
        Self { rate: rules.base, ..Self::default() }
    }

    /// The state's name.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The rate now in force.
    pub fn rate(&self) -> MilliRpm {
        self.rate
    }

    /// Until when no token may be granted, because the upstream asked for that.
    pub fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// When time alone changes the state; `None` at full speed.
    pub fn due_at(&self) -> Option<Instant> {
        (self.phase != Phase::Normal).then_some(self.due_at)
    }

    /// The share of 429s among the answers of the last [`WINDOW`], in thousandths.
    pub fn throttled_permille(&self, now: Instant) -> u32 {
        self.window.permille(now)
    }

    /// Lets time pass, and takes up a changed configuration.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant) -> Option<Transition> {
        self.rate = match self.phase {
            Phase::Normal => rules.base,
            Phase::Retreat | Phase::Recover => self.rate.clamp(rules.floor.min(rules.base), rules.base),
        };
        if self.phase != Phase::Normal && !rules.enabled {
            self.closed_until = Instant::ZERO;
            self.rate = rules.base;
            return Some(self.enter(Phase::Normal, Reason::SwitchedOff));
        }
        // Steps that nobody looked at in time are made up for one by one, so that the way back takes as long as it
        // should however seldom anyone looks. Their number is bounded: each raises the rate, and the last one ends it.
        let mut transition: Option<Transition> = None;
        while self.phase != Phase::Normal && now >= self.due_at {
            let step = self.time_step(rules);
            transition = match (transition, step) {
                (Some(first), Some(last)) => Some(Transition { from: first.from, ..last }),
                (first, last) => last.or(first),
            };
        }
        transition
    }

    /// The step that time alone brings at `due_at`.
    fn time_step(&mut self, rules: RetreatRules) -> Option<Transition> {
        self.due_at = self.due_at.after(RAISE_EVERY);
        match self.phase {
            Phase::Normal => None,
            Phase::Retreat => Some(self.enter(Phase::Recover, Reason::HoldPassed)),
            Phase::Recover => {
                let raise = rules.base.scaled(1, RAISES).max(MilliRpm::new(1));
                self.rate = self.rate.plus(raise).min(rules.base);
                (self.rate == rules.base).then(|| self.enter(Phase::Normal, Reason::BaseReached))
            }
        }
    }

    /// Takes in one answer of the upstream. Call [`Retreat::advance`] first.
    pub fn step(&mut self, rules: RetreatRules, now: Instant, answer: Answer) -> Option<Transition> {
        self.window.count(now, answer.throttled);
        if !rules.enabled || !answer.throttled {
            return None;
        }
        if let Some(pause) = answer.retry_after {
            let until = now.after(pause.min(rules.retry_after_max));
            self.closed_until = self.closed_until.max(until);
        }
        if answer.granted_at < self.cut_at {
            return None;
        }
        let reason = match (self.phase, answer.retry_after) {
            (Phase::Normal, Some(_)) => Reason::RetryAfter,
            (Phase::Normal, None) if self.window.permille(now) >= SHARE_PERMILLE => Reason::ShareOf429,
            (Phase::Normal, None) => return None,
            (Phase::Retreat | Phase::Recover, _) => Reason::Relapse,
        };
        self.cut_at = now;
        self.due_at = now.after(HOLD).max(self.closed_until);
        self.rate = self.rate.scaled(1, 2).max(rules.floor).min(rules.base);
        Some(self.enter(Phase::Retreat, reason))
    }

    fn enter(&mut self, to: Phase, reason: Reason) -> Transition {
        let from = core::mem::replace(&mut self.phase, to);
        Transition { from, to, reason, rate: self.rate }
    }
}

/// Answers and 429s of the last [`WINDOW`], in cells of a sixth of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Window {
    /// The number of the newest cell, counted from the clock's origin.
    pub(crate) newest: u64,
    /// For each cell, by number modulo their count: answers, and 429s among them.
    pub(crate) cells: [(u32, u32); CELLS],
}

impl Window {
    fn count(&mut self, now: Instant, throttled: bool) {
        let cell = Self::cell(now);
        if cell > self.newest {
            // What the window has moved past is empty again; a leap of any size clears each cell once.
            for passed in self.newest.saturating_add(1)..=cell.min(self.newest.saturating_add(CELLS as u64)) {
                self.set(passed, (0, 0));
            }
            self.newest = cell;
        }
        let (answers, refused) = self.get(cell);
        self.set(cell, (answers.saturating_add(1), refused.saturating_add(u32::from(throttled))));
    }

    fn permille(&self, now: Instant) -> u32 {
        let newest = Self::cell(now);
        let (mut answers, mut refused) = (0u64, 0u64);
        for back in 0..CELLS as u64 {
            let Some(cell) = newest.checked_sub(back) else {
                break;
            };
            if cell <= self.newest && cell.saturating_add(CELLS as u64) > self.newest {
                let (a, r) = self.get(cell);
                answers = answers.saturating_add(u64::from(a));
                refused = refused.saturating_add(u64::from(r));
            }
        }
        refused.saturating_mul(1_000).checked_div(answers).and_then(|share| u32::try_from(share).ok()).unwrap_or(0)
    }

    fn cell(now: Instant) -> u64 {
        now.as_micros().checked_div(CELL.get()).unwrap_or(0)
    }

    fn place(cell: u64) -> usize {
        cell.checked_rem(CELLS as u64).map_or(0, |place| place as usize)
    }

    fn get(&self, cell: u64) -> (u32, u32) {
        self.cells.get(Self::place(cell)).copied().unwrap_or_default()
    }

    fn set(&mut self, cell: u64, value: (u32, u32)) {
        if let Some(place) = self.cells.get_mut(Self::place(cell)) {
            *place = value;
        }
    }
}

/// Cells in the window.
pub(crate) const CELLS: usize = 6;

/// The length of one cell.
const CELL: Micros = Micros::from_secs(10);

/// The window over which the share of 429s is taken: the minute in which NVIDIA counts.
pub const WINDOW: Micros = CELL.times(CELLS as u64);

/// The share of 429s, in thousandths, at which the retreat begins. At 40 requests a minute one 429 among twenty answers
/// reaches it, and a single stray one among a full minute's answers does not.
const SHARE_PERMILLE: u32 = 50;

/// How long a cut is held before the rate rises: half a window, so that the upstream's own count can run down.
const HOLD: Micros = Micros::from_secs(30);

/// The time between two raises.
const RAISE_EVERY: Micros = Micros::from_secs(10);

/// A raise is this part of the configured rate: from half speed the way back takes five raises, fifty seconds.
const RAISES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const RULES: RetreatRules = RetreatRules {
        enabled: true,
        base: MilliRpm::from_rpm(40),
        floor: MilliRpm::from_rpm(1),
        retry_after_max: Micros::from_secs(300),
    };

    fn at(secs: u64) -> Instant {
        Instant::ZERO.after(Micros::from_secs(1_000 + secs))
    }

    fn answer(granted_secs: u64, throttled: bool) -> Answer {
        Answer { granted_at: at(granted_secs), throttled, retry_after: None }
    }

    #[test]
    fn one_burst_is_one_cut() {
        let mut retreat = Retreat::new(RULES);
        let first = retreat.step(RULES, at(10), answer(9, true)).unwrap();
        assert_eq!((first.from, first.to, first.reason), (Phase::Normal, Phase::Retreat, Reason::ShareOf429));
        assert_eq!(first.rate, MilliRpm::from_rpm(20));
        for _ in 0..50 {
            assert_eq!(retreat.step(RULES, at(11), answer(9, true)), None);
        }
        assert_eq!(retreat.rate(), MilliRpm::from_rpm(20));
    }

    #[test]
    fn a_stray_429_among_a_minute_of_answers_changes_nothing() {
        let mut retreat = Retreat::new(RULES);
        for second in 0..39 {
            retreat.step(RULES, at(second), answer(second, false));
        }
        assert_eq!(retreat.step(RULES, at(40), answer(39, true)), None);
        assert_eq!(retreat.throttled_permille(at(40)), 25);
    }

    #[test]
    fn comes_back_by_itself_in_fixed_steps() {
        let mut retreat = Retreat::new(RULES);
        retreat.step(RULES, at(0), answer(0, true));
        assert_eq!(retreat.advance(RULES, at(29)), None);
        assert_eq!(retreat.advance(RULES, at(30)).unwrap().to, Phase::Recover);
        for (second, rpm) in [(40, 24), (50, 28), (60, 32), (70, 36)] {
            assert_eq!(retreat.advance(RULES, at(second)), None);
            assert_eq!(retreat.rate(), MilliRpm::from_rpm(rpm));
        }
        let last = retreat.advance(RULES, at(80)).unwrap();
        assert_eq!((last.to, last.reason), (Phase::Normal, Reason::BaseReached));
        assert_eq!(retreat.rate(), RULES.base);
    }

    #[test]
    fn a_relapse_cuts_again_and_the_floor_holds() {
        let mut retreat = Retreat::new(RULES);
        let mut second = 0;
        for _ in 0..20 {
            retreat.step(RULES, at(second), answer(second, true));
            second += 31;
            retreat.advance(RULES, at(second));
        }
        assert_eq!(retreat.rate(), RULES.floor);
    }

    #[test]
    fn retry_after_closes_the_gate_up_to_the_cap() {
        let mut retreat = Retreat::new(RULES);
        let pause = Answer { retry_after: Some(Micros::from_secs(1_000_000_000)), ..answer(0, true) };
        assert_eq!(retreat.step(RULES, at(0), pause).unwrap().reason, Reason::RetryAfter);
        assert_eq!(retreat.closed_until(), at(300));
        assert_eq!(retreat.advance(RULES, at(299)), None);
        assert_eq!(retreat.advance(RULES, at(300)).unwrap().to, Phase::Recover);
    }

    #[test]
    fn steps_that_nobody_looked_at_are_made_up_for() {
        let mut retreat = Retreat::new(RULES);
        retreat.step(RULES, at(0), answer(0, true));
        let all_at_once = retreat.advance(RULES, at(100_000)).unwrap();
        assert_eq!((all_at_once.from, all_at_once.to), (Phase::Retreat, Phase::Normal));
        assert_eq!(retreat.rate(), RULES.base);
    }

    #[test]
    fn switched_off_counts_but_never_slows() {
        let off = RetreatRules { enabled: false, ..RULES };
        let mut retreat = Retreat::new(off);
        assert_eq!(retreat.step(off, at(0), answer(0, true)), None);
        assert_eq!(retreat.throttled_permille(at(0)), 1_000);
        assert_eq!(retreat.rate(), RULES.base);
    }

    #[test]
    fn switching_off_ends_a_retreat_and_a_new_base_is_taken_up() {
        let mut retreat = Retreat::new(RULES);
        retreat.step(RULES, at(0), answer(0, true));
        let slower = RetreatRules { base: MilliRpm::from_rpm(10), ..RULES };
        retreat.advance(slower, at(1));
        assert_eq!(retreat.rate(), MilliRpm::from_rpm(10));
        let off = RetreatRules { enabled: false, ..RULES };
        assert_eq!(retreat.advance(off, at(2)).unwrap().reason, Reason::SwitchedOff);
        assert_eq!(retreat.rate(), RULES.base);
    }

    #[test]
    fn the_window_forgets() {
        let mut retreat = Retreat::new(RetreatRules { enabled: false, ..RULES });
        retreat.step(RULES, at(0), answer(0, true));
        assert_eq!(retreat.throttled_permille(at(59)), 1_000);
        assert_eq!(retreat.throttled_permille(at(70)), 0);
        let mut window = Window::default();
        window.count(Instant::from_micros(u64::MAX), true);
        window.count(at(0), true);
        assert!(window.permille(at(0)) <= 1_000);
    }
}
