//! The steps of the retreat: what time alone brings, what an answer of the upstream brings.

use super::curve::Curve;
use super::{FORGET_WINDOWS, Feedback, MINUTE, Phase, Reason, Retreat, RetreatRules, Transition};
use crate::control::strays::Evidence;
use crate::units::{Instant, Micros, MilliRpm};

impl RetreatRules {
    /// For how long to grant nothing if the upstream asks for that; zero if it doesn't.
    pub(crate) fn pause(self, asked: Option<Micros>) -> Micros {
        asked.map_or(Micros::ZERO, |pause| pause.min(self.retry_after_max))
    }

    /// Whether a pause that the upstream asks for is too dear to be kept by those that it may not concern: longer than a
    /// quarter of a window.
    pub(crate) fn is_long(self, asked: Option<Micros>) -> bool {
        self.pause(asked) > part(self.window, LONG_PAUSE_PART)
    }
}

impl Retreat {
    /// The start of a model that has just been refused. `let_in` is the rate of what the upstream admitted of late, `least`
    /// how many requests in a window it is slowed to at least. With `half_open` one request at a time is let through until
    /// one is served.
    pub fn begin(
        rules: RetreatRules,
        now: Instant,
        (let_in, least): (MilliRpm, u32),
        answer: Feedback,
        half_open: bool,
    ) -> (Self, Transition) {
        let mut retreat = Self::new(rules);
        retreat.advance(rules, now);
        retreat.meter.answered(answer.granted_at, answer.throttled);
        // Of a model that is seldom asked for, what was let in says nothing.
        let least = per_minute(least, rules.window);
        if let_in > least {
            retreat.learn(let_in, now);
        }
        retreat.rate = let_in.scaled(BELOW, THOUSAND).max(least).max(rules.floor).min(rules.base);
        retreat.curve = Curve {
            from: retreat.rate,
            ceiling: retreat.rate.scaled(1_100, THOUSAND).min(rules.base),
            plateau: quarters(rules, PLATEAU_QUARTERS),
            doubling: part(rules.window, DOUBLING_PART),
        };
        let pause = rules.pause(answer.retry_after);
        retreat.half_open = half_open || pause > Micros::ZERO;
        retreat.closed_until = now.after(if half_open { pause.max(short(rules.window, PAUSE_PART)) } else { pause });
        retreat.cut_at = now;
        retreat.measured_from = now;
        retreat.due_at = retreat.closed_until.after(part(rules.window, HOLD_PART));
        let reason = if half_open { Reason::WorkersFull } else { Reason::ModelRefused };
        let transition = retreat.enter(Phase::Retreat, reason);
        (retreat, transition)
    }

    /// Lets time pass, and takes up a changed configuration.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant) -> Option<Transition> {
        self.meter.advance(rules.window, self.rate, now);
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
        let usage = self.use_of_rate(now);
        while self.phase != Phase::Normal && now >= self.due_at {
            let step = self.time_step(rules, usage);
            transition = match (transition, step) {
                (Some(first), Some(last)) => Some(Transition { from: first.from, ..last }),
                (first, last) => last.or(first),
            };
        }
        transition
    }

    /// How much the rate is used: only if it is, the upstream's silence says something of it.
    fn use_of_rate(&self, now: Instant) -> Use {
        let granted = self.meter.granted_rate(now);
        if granted.get() == 0 {
            return Use::Idle;
        }
        let all = granted.plus(MilliRpm::from_rpm(1)) >= self.meter.allowed_rate(now).scaled(9, 10);
        if all { Use::Whole } else { Use::Part }
    }

    /// The step that time alone brings at `due_at`.
    fn time_step(&mut self, rules: RetreatRules, usage: Use) -> Option<Transition> {
        let step = part(rules.window, STEP_PART);
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
                self.grown = self.grown.plus(match usage {
                    Use::Whole => step,
                    Use::Part => part(step, PART_USED),
                    Use::Idle => part(step, IDLE),
                });
                self.rate = self.curve.at(self.grown).max(self.rate).min(rules.base);
                if self.due_at >= self.cut_at.after(rules.window.times(FORGET_WINDOWS)) {
                    self.rate = rules.base;
                }
                (self.rate == rules.base).then(|| self.enter(Phase::Normal, Reason::BaseReached))
            }
        }
    }

    /// A token was granted. Call [`Retreat::advance`] first.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant) {
        self.meter.granted();
        self.admitted = self.admitted.saturating_add(1);
        if self.half_open {
            self.closed_until = self.closed_until.max(now.after(short(rules.window, TRIAL_PART)));
        }
    }

    /// Counts an answer that says nothing of this scope's rate.
    pub fn note(&mut self, answer: Feedback) {
        self.meter.answered(answer.granted_at, answer.throttled);
    }

    /// Counts a refusal that means nothing.
    pub(crate) fn ignore(&mut self, answer: Feedback) {
        self.note(answer);
        if answer.granted_at >= self.cut_at {
            self.admitted = self.admitted.saturating_sub(1);
        }
    }

    /// Grants nothing for as long as the upstream asks for, up to `retry_after_max`.
    pub(crate) fn keep_pause(&mut self, rules: RetreatRules, now: Instant, asked: Option<Micros>) {
        if rules.enabled {
            self.closed_until = self.closed_until.max(now.after(rules.pause(asked)));
        }
    }

    /// Takes in one answer of the upstream. Call [`Retreat::advance`] first.
    pub fn step(&mut self, rules: RetreatRules, now: Instant, answer: Feedback) -> Option<Transition> {
        // Without more evidence whatever is refused right after a cut says that next to nothing is let in.
        let evidence = Evidence { is_shut: self.phase == Phase::Retreat, ..Evidence::default() };
        self.step_with(rules, now, answer, evidence)
    }

    /// The same, where more is known of what a refusal means.
    pub(crate) fn step_with(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        answer: Feedback,
        evidence: Evidence,
    ) -> Option<Transition> {
        self.note(answer);
        if !rules.enabled {
            return None;
        }
        let fresh = answer.granted_at >= self.cut_at;
        if !answer.throttled {
            if fresh && self.half_open {
                self.reopen(rules, now);
            }
            return None;
        }
        let pause = rules.pause(answer.retry_after);
        self.closed_until = self.closed_until.max(now.after(pause));
        if !fresh {
            return None;
        }
        self.admitted = self.admitted.saturating_sub(1);
        let reason = match (self.phase, answer.retry_after) {
            (Phase::Retreat, _) => Reason::Relapse,
            (Phase::Normal | Phase::Recover, Some(_)) => Reason::RetryAfter,
            (Phase::Normal | Phase::Recover, None) => Reason::Refused,
        };
        if self.phase == Phase::Normal {
            self.left_normal_at = now;
        }
        if evidence.is_shut {
            self.relapse(rules, now, pause, evidence);
        } else {
            self.cut(rules, now, pause, evidence);
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

    /// The first refusal after a time without any: the upstream's limit is somewhere near.
    fn cut(&mut self, rules: RetreatRules, now: Instant, pause: Micros, evidence: Evidence) {
        let Evidence { least, let_in, best, .. } = evidence;
        let probe_windows = if evidence.has_fallen { PROBE_WINDOWS_AFTER_FALL } else { u32::MAX };
        let rules = RetreatRules { probe_windows: rules.probe_windows.min(probe_windows), ..rules };
        let in_window = let_in.unwrap_or_else(|| self.meter.admitted_rate(now));
        let span = now.since(self.measured_from);
        // The next one would have been one too many, so on average half a request more was allowed.
        let halves = self.admitted.saturating_mul(2).saturating_add(1);
        let since_cut = per_minute(halves, span.times(2)).min(self.rate);
        let near = self.phase == Phase::Recover && self.is_near_ceiling();
        let (mut after, mut ceiling) =
            if let_in.is_none() && near && span >= rules.window && since_cut >= self.rate.scaled(9, 10) {
                // From one refusal to the next a bucket gives exactly its rate, and a window of requests hardly less.
                self.confirm(rules, since_cut);
                let middle = since_cut.plus(self.rate).scaled(1, 2);
                let (least, most) = (since_cut.scaled(1_010, THOUSAND), since_cut.scaled(1_030, THOUSAND));
                self.learn(since_cut, now);
                (since_cut.scaled(995, THOUSAND), middle.clamp(least, most))
            } else if let_in.is_some() || self.meter.is_full() {
                // A whole window's requests while some are refused: about the limit, but no more than a part at once.
                self.confirmed /= 2;
                self.learn(in_window, now);
                let after = in_window.scaled(BELOW, THOUSAND);
                let after = after.clamp(self.rate.scaled(CUT, THOUSAND), self.rate.scaled(BELOW, THOUSAND));
                (after, if near { self.rate.plus(after).scaled(1, 2) } else { self.rate })
            } else {
                // Too little was sent to tell. What was known before helps, if it is of use.
                self.confirmed /= 2;
                let before = self.estimate(rules, now).map(|estimate| estimate.rate.scaled(BELOW, THOUSAND));
                let usable = before.filter(|rate| (self.rate.scaled(CUT / 2, THOUSAND)..self.rate).contains(rate));
                match usable {
                    Some(rate) => (rate, rate.scaled(1_050, THOUSAND)),
                    None => (self.rate.scaled(CUT, THOUSAND), self.rate),
                }
            };
        if near && pause >= part(rules.window, 2) {
            // A refusal that closes the gate for long is dear: stay well away from the ceiling.
            after = after.min(self.rate.scaled(850, THOUSAND));
            ceiling = after;
        }
        after = after.max(least).min(self.rate);
        if self.rate < best.scaled(95, 100) {
            // More than that was let in a little before: this is not where the ceiling is.
            ceiling = ceiling.max(best);
        }
        self.undo = self.phase == Phase::Normal
            && let_in.is_none()
            && pause == Micros::ZERO
            && self.meter.is_full()
            && in_window >= self.rate.scaled(9, 10)
            && now >= self.cut_at.after(rules.window.times(PROVEN_WINDOWS));
        self.relapses = 0;
        self.curve = Curve {
            from: after,
            ceiling,
            plateau: self.plateau(rules).plus(pause.times(PAUSES_APART)).plus(evidence.late),
            doubling: part(rules.window, DOUBLING_PART).plus(evidence.late),
        };
        self.rate = after;
    }

    /// Takes note whether the limit is where it was the last time.
    fn confirm(&mut self, rules: RetreatRules, measured: MilliRpm) {
        // Requests are whole: one more or less in a window says nothing.
        let tolerance = self.curve.ceiling.scaled(50, THOUSAND).max(per_minute(1, rules.window));
        let moved = measured.get().abs_diff(self.curve.ceiling.get()) > tolerance.get();
        self.confirmed = if moved { 0 } else { self.confirmed.saturating_add(1) };
    }

    fn learn(&mut self, rate: MilliRpm, now: Instant) {
        if self.learned.get() == 0 {
            self.known_from = now;
        }
        self.learned = rate;
        self.learned_at = now;
    }

    /// How long to stay below the ceiling: short as long as it is not known well, then as long as the operator wants.
    fn plateau(&self, rules: RetreatRules) -> Micros {
        // Half a window of a probe's distance is taken up by the growth past the ceiling.
        let known = u64::from(rules.probe_windows).saturating_mul(4).saturating_sub(2);
        let wanted = match self.confirmed {
            0 => PLATEAU_QUARTERS,
            1 => PLATEAU_QUARTERS.saturating_add(4),
            _ => known,
        };
        quarters(rules, wanted.min(known))
    }

    /// Refused again right after a cut: from now on one request at a time, until one is served.
    fn relapse(&mut self, rules: RetreatRules, now: Instant, asked: Micros, evidence: Evidence) {
        let in_window = self.meter.admitted_rate(now);
        let doublings = (self.relapses / 2).min(PAUSE_DOUBLINGS_MAX);
        self.relapses = self.relapses.saturating_add(1);
        self.confirmed = 0;
        self.undo = false;
        self.half_open = true;
        self.closed_until = self.closed_until.max(now.after(short(rules.window, PAUSE_PART).times(1 << doublings)));
        // What is refused although next to nothing was sent is no rate.
        if in_window >= self.rate.scaled(1, 4) && evidence.least < self.rate {
            self.curve.ceiling = self.curve.ceiling.min(self.rate.max(in_window));
            self.rate = self.rate.min(in_window.max(self.rate.scaled(1, 2)).max(evidence.least));
        }
        self.curve.from = self.rate;
        self.curve.plateau = quarters(rules, PLATEAU_QUARTERS).plus(asked.times(PAUSES_APART));
    }

    /// A request was served again. What the upstream had admitted in the window when it refused is too much, and what
    /// it has admitted now is not: the limit is between.
    pub(crate) fn reopen(&mut self, rules: RetreatRules, now: Instant) {
        self.half_open = false;
        self.closed_until = self.closed_until.min(now);
        self.measured_from = now;
        self.admitted = 0;
        if self.relapses > 0 && self.meter.is_full() {
            let in_window = self.meter.admitted_rate(now).min(self.rate);
            self.rate = in_window.plus(self.rate).scaled(1, 2).max(rules.floor).min(rules.base);
            self.curve.from = self.rate;
        }
        self.due_at = now.after(part(rules.window, HOLD_PART));
    }
}

fn part(of: Micros, parts: u64) -> Micros {
    Micros::new(of.get().checked_div(parts).unwrap_or(0).max(1))
}

/// A part of a window, and of a minute at most: in a window of an hour an eighth would be a long silence for a few refusals,
/// and single requests cost as little there.
fn short(window: Micros, parts: u64) -> Micros {
    part(window.min(Micros::new(MINUTE)), parts)
}

fn quarters(rules: RetreatRules, n: u64) -> Micros {
    part(rules.window, 4).times(n)
}

/// So many in such a span, as a rate.
fn per_minute(count: u32, span: Micros) -> MilliRpm {
    let thousandths = u64::from(count).saturating_mul(1_000).saturating_mul(MINUTE);
    MilliRpm::new(thousandths.checked_div(span.get()).and_then(|rate| u32::try_from(rate).ok()).unwrap_or(u32::MAX))
}

const THOUSAND: u32 = 1_000;

/// Just below a measured limit, in thousandths of it.
const BELOW: u32 = 980;

/// The deepest single cut, in thousandths of the rate before: that of AWS's adaptive mode and of CUBIC (RFC 9438).
const CUT: u32 = 700;

/// The rate grows in steps of this part of a window.
const STEP_PART: u64 = 32;

/// How much slower it grows while only a part of it is used, since silence then says nothing.
const PART_USED: u64 = 16;

/// How much slower it grows while nothing is sent. After half an hour of nothing everything may be different, and what
/// was learned is remembered all the same.
const IDLE: u64 = 4;

/// How much the rate is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Whole,
    Part,
    Idle,
}

/// After a cut the rate is held for this part of a window.
const HOLD_PART: u64 = 4;

/// Probes are no further apart than this while the limit has just fallen, since it may rise as suddenly.
const PROBE_WINDOWS_AFTER_FALL: u32 = 2;

/// Half open, the next request follows after this part of a window, or of a minute, if the one before has not been answered.
const TRIAL_PART: u64 = 8;

/// The first pause after a relapse is this part of a window, or of a minute; each two relapses double it, up to a whole one.
const PAUSE_PART: u64 = 8;
const PAUSE_DOUBLINGS_MAX: u32 = 3;

/// A pause is long from this part of a window on.
const LONG_PAUSE_PART: u64 = 4;

/// The plateau below a ceiling of which little is known, in quarters of a window.
const PLATEAU_QUARTERS: u64 = 6;

/// Past the ceiling, the excess doubles in this part of a window.
const DOUBLING_PART: u64 = 2;

/// Refusals that ask for a pause are at least so many of these pauses apart.
const PAUSES_APART: u64 = 8;

/// A rate that was used for so many windows without a refusal is not given up for a single one.
const PROVEN_WINDOWS: u64 = 2;
