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
use curve::Curve;
use meter::Meter;

pub mod curve;
pub mod meter;

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
    /// The window in which the upstream counts: all spans of the retreat are parts or multiples of it.
    pub window: Micros,
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
    /// The hold passed without a fresh 429 although the rate before the cut had long been fine: it was a stray one.
    CutUndone,
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
            Self::CutUndone => "no other 429 followed, and the rate before had long been fine",
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
    /// The way back, and how long the rate has been on it.
    pub(crate) curve: Curve,
    pub(crate) grown: Micros,
    /// When the next step of time is due: the end of the hold, or the next step of growth.
    pub(crate) due_at: Instant,
    /// The time of the last cut: 429s of requests granted before it are stale.
    pub(crate) cut_at: Instant,
    pub(crate) closed_until: Instant,
    /// Cuts in a row, each before the hold of the one before was over.
    pub(crate) relapses: u32,
    /// Cuts in a row that found the ceiling where it was.
    pub(crate) confirmed: u32,
    /// Whether each grant closes the gate until the upstream has answered it, or a while has passed.
    pub(crate) half_open: bool,
    /// Requests granted since the last cut and not refused.
    pub(crate) undo: bool,
    pub(crate) admitted: u32,
    pub(crate) measured_from: Instant,
    pub(crate) meter: Meter,
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

    /// The most tokens that may be saved up: as configured at full speed, and otherwise next to none, since what a
    /// burst would find at a ceiling are refusals.
    pub fn burst(&self, rules: RetreatRules, capacity: u32) -> u32 {
        match self.phase {
            Phase::Normal => capacity,
            Phase::Retreat | Phase::Recover => {
                let milli = u64::from(self.rate.get()).saturating_mul(rules.window.get()) / (MINUTE * BURST_PART);
                u32::try_from(milli / 1_000).unwrap_or(u32::MAX).clamp(1, capacity)
            }
        }
    }

    /// Until when no token may be granted, because the upstream asked for that.
    pub fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// When time alone changes the state; `None` at full speed.
    pub fn due_at(&self) -> Option<Instant> {
        (self.phase != Phase::Normal).then_some(self.due_at)
    }

    /// The share of 429s among the answers of the last window, in thousandths.
    pub fn throttled_permille(&self, now: Instant) -> u32 {
        self.meter.refused_permille(now)
    }

    /// Lets time pass, and takes up a changed configuration.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant) -> Option<Transition> {
        self.meter.advance(rules.window, now);
        self.rate = match self.phase {
            Phase::Normal => rules.base,
            Phase::Retreat | Phase::Recover => self.rate.clamp(rules.floor.min(rules.base), rules.base),
        };
        if self.phase != Phase::Normal && !rules.enabled {
            self.closed_until = Instant::ZERO;
            self.half_open = false;
            self.rate = rules.base;
            return Some(self.enter(Phase::Normal, Reason::SwitchedOff));
        }
        // Steps that nobody looked at in time are made up for one by one, so that the way back takes as long as it
        // should however seldom anyone looks. Their number is bounded, since growth only gets faster.
        let mut transition: Option<Transition> = None;
        let busy = self.is_busy(rules, now);
        while self.phase != Phase::Normal && now >= self.due_at {
            let step = self.time_step(rules, busy);
            transition = match (transition, step) {
                (Some(first), Some(last)) => Some(Transition { from: first.from, ..last }),
                (first, last) => last.or(first),
            };
        }
        transition
    }

    /// Whether the rate is used, so that the upstream's silence says something of it.
    fn is_busy(&self, _rules: RetreatRules, now: Instant) -> bool {
        let granted = self.meter.granted_rate(now);
        granted.get() > 0 && granted.plus(MilliRpm::from_rpm(1)) >= self.rate.scaled(9, 10)
    }

    /// The step that time alone brings at `due_at`.
    fn time_step(&mut self, rules: RetreatRules, busy: bool) -> Option<Transition> {
        let step = part(rules.window, STEPS);
        self.due_at = self.due_at.after(step);
        match self.phase {
            Phase::Normal => None,
            Phase::Retreat => {
                self.relapses = 0;
                if core::mem::take(&mut self.undo) {
                    self.rate = rules.base;
                    return Some(self.enter(Phase::Normal, Reason::CutUndone));
                }
                Some(self.enter(Phase::Recover, Reason::HoldPassed))
            }
            Phase::Recover => {
                self.grown = self.grown.plus(if busy { step } else { part(step, IDLE_PART) });
                self.rate = self.curve.at(self.grown).max(self.rate).min(rules.base);
                (self.rate == rules.base).then(|| self.enter(Phase::Normal, Reason::BaseReached))
            }
        }
    }

    /// A token was granted. Call [`Retreat::advance`] first.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant) {
        self.meter.granted();
        self.admitted = self.admitted.saturating_add(1);
        if self.half_open {
            self.closed_until = self.closed_until.max(now.after(part(rules.window, PROBE_PART)));
        }
    }

    /// Takes in one answer of the upstream. Call [`Retreat::advance`] first.
    pub fn step(&mut self, rules: RetreatRules, now: Instant, answer: Answer) -> Option<Transition> {
        self.meter.answered(answer.granted_at, answer.throttled);
        if !rules.enabled {
            return None;
        }
        let fresh = answer.granted_at >= self.cut_at;
        if fresh && answer.throttled {
            self.admitted = self.admitted.saturating_sub(1);
        }
        if !answer.throttled {
            if fresh && self.half_open {
                self.reopen(rules, now);
            }
            return None;
        }
        let pause = answer.retry_after.map_or(Micros::ZERO, |pause| pause.min(rules.retry_after_max));
        self.closed_until = self.closed_until.max(now.after(pause));
        if !fresh {
            return None;
        }
        let reason = match (self.phase, answer.retry_after) {
            (Phase::Normal, Some(_)) => Reason::RetryAfter,
            (Phase::Normal | Phase::Recover, _) => Reason::ShareOf429,
            (Phase::Retreat, _) => Reason::Relapse,
        };
        if self.phase == Phase::Retreat {
            self.relapse(rules, now, pause);
        } else {
            self.cut(rules, now, pause);
        }
        self.half_open |= answer.retry_after.is_some();
        self.cut_at = now;
        self.measured_from = now;
        self.admitted = 0;
        self.grown = Micros::ZERO;
        self.due_at = self.closed_until.max(now).after(part(rules.window, HOLD_PART));
        self.rate = self.rate.max(rules.floor).min(rules.base);
        Some(self.enter(Phase::Retreat, reason))
    }

    /// The first refusal after a time without any: the upstream's ceiling is somewhere near.
    fn cut(&mut self, rules: RetreatRules, now: Instant, pause: Micros) {
        let admitted = self.meter.admitted_rate(now);
        let span = now.since(self.measured_from);
        let long = span >= rules.window && self.phase == Phase::Recover;
        let mean = per_minute(self.admitted, span);
        let known = self.phase == Phase::Recover && self.rate >= self.curve.ceiling.scaled(9, 10);
        let (after, ceiling);
        if known && long && mean >= self.rate.scaled(90, 100) {
            let mean = mean.min(self.rate);
            let moved = mean.scaled(100, 95) < self.curve.ceiling || mean > self.curve.ceiling.scaled(105, 100);
            self.confirmed = if moved { 0 } else { self.confirmed.saturating_add(1) };
            after = mean.scaled(995, 1000);
            ceiling = mean.plus(self.rate).scaled(1, 2).clamp(mean.scaled(1010, 1000), mean.scaled(1030, 1000));
        } else {
            after = if self.meter.is_full() {
                admitted.scaled(98, 100).clamp(self.rate.scaled(70, 100), self.rate.scaled(98, 100))
            } else {
                self.rate.scaled(70, 100)
            };
            self.confirmed /= 2;
            ceiling = if known { self.rate.plus(after).scaled(1, 2) } else { self.rate };
        }
        // A refusal that closes the gate for long is dear: stay well away from the ceiling, and don't try it soon again.
        let (after, ceiling) = if known && pause >= part(rules.window, 2) {
            (after.min(self.rate.scaled(85, 100)), after.min(self.rate.scaled(85, 100)))
        } else {
            (after, ceiling)
        };
        self.undo = self.phase == Phase::Normal
            && self.meter.is_full()
            && admitted >= self.rate.scaled(9, 10)
            && pause == Micros::ZERO
            && now >= self.cut_at.after(rules.window.times(2));
        self.relapses = 0;
        let quarters = match self.confirmed { 0 => 6, 1 => 10, _ => 18 };
        self.curve = Curve {
            from: after,
            ceiling,
            plateau: part(rules.window, 4).times(quarters).plus(pause.times(8)),
            doubling: part(rules.window, 10).times(5),
        };
        self.rate = after;
    }

    /// Refused again right after a cut: from now on one request at a time, until one is let in.
    fn relapse(&mut self, rules: RetreatRules, now: Instant, asked: Micros) {
        let admitted = self.meter.admitted_rate(now);
        let pause = part(rules.window, 16).times(1 << (self.relapses / 2).min(4));
        self.relapses = self.relapses.saturating_add(1);
        self.confirmed = 0;
        self.undo = false;
        self.half_open = true;
        self.closed_until = self.closed_until.max(now.after(pause));
        if admitted >= self.rate.scaled(1, 4) {
            self.curve.ceiling = self.curve.ceiling.min(self.rate.max(admitted));
            self.rate = self.rate.min(admitted.max(self.rate.scaled(1, 2)));
        }
        self.curve.from = self.rate;
        self.curve.plateau = part(rules.window, 2).times(3).plus(asked.times(8));
    }

    /// A request was let in again. What the upstream had admitted in the window when it refused is too much, and what
    /// it has admitted now is not: the limit is between.
    fn reopen(&mut self, rules: RetreatRules, now: Instant) {
        self.half_open = false;
        self.closed_until = self.closed_until.min(now);
        self.measured_from = now;
        self.admitted = 0;
        if self.relapses > 0 {
            let admitted = self.meter.admitted_rate(now).min(self.rate);
            self.rate = admitted.plus(self.rate).scaled(1, 2);
            self.curve.from = self.rate;
        }
        self.due_at = now.after(part(rules.window, HOLD_PART));
    }

    fn enter(&mut self, to: Phase, reason: Reason) -> Transition {
        let from = core::mem::replace(&mut self.phase, to);
        Transition { from, to, reason, rate: self.rate }
    }
}

fn part(of: Micros, parts: u64) -> Micros {
    Micros::new(of.get().checked_div(parts).unwrap_or(0).max(1))
}

/// So many in such a span, as a rate.
fn per_minute(count: u32, span: Micros) -> MilliRpm {
    let thousandths = u64::from(count).saturating_mul(1_000).saturating_mul(MINUTE);
    MilliRpm::new(thousandths.checked_div(span.get()).and_then(|rate| u32::try_from(rate).ok()).unwrap_or(u32::MAX))
}

const MINUTE: u64 = 60_000_000;
const BURST_PART: u64 = 64;
const STEPS: u64 = 32;
const IDLE_PART: u64 = 16;
const PROBE_PART: u64 = 8;
const HOLD_PART: u64 = 4;

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
        window: Micros::from_secs(60),
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
