//! The rate controller for one account or model, the 429 retreat: how fast to go, given what the upstream answered.
//!
//! ```text
//!                 429                    hold passed
//!   NORMAL ───────────────▶ RETREAT ─────────────────────▶ RECOVER ──▶ NORMAL
//!      ▲                    ▲  │  ▲ │ 429: one at a time      │  │     (configured
//!      └────────────────────┘  │  └─┘ until one is served     │  │      rate reached)
//!        the cut was undone    │                              │  │
//!                              └──────────────────────────────┘  │
//!                              ▲             429                 │
//!                              └─────────────────────────────────┘
//! ```
//!
//! One transition function, [`Retreat::step`], and one for time alone, [`Retreat::advance`]: the time comes in, the new
//! state and what changed go out. Nothing here knows seconds: all spans are parts or multiples of the window in which
//! the upstream counts.
//!
//! *How far to cut* is read from what the upstream admitted, not from a factor: the rate of requests it let in while it
//! also refused some is its limit, whatever kind of limiter it has. *How to come back* is [`curve::Curve`]: quickly to
//! where refusals began, from there gently, and then ever faster. A 429 counts as *fresh* only if its request was granted
//! after the last cut, so that one burst of 429s is one event. If the first request after a cut is refused too, the gate
//! is half open: single requests are tried, at growing distances, until one is served.

pub use crate::limit::rules::RetreatRules;
use crate::model::ModelName;
use crate::units::{Instant, Micros, MilliRpm};
use curve::Curve;
use meter::Meter;

pub(crate) mod curve;
pub mod meter;
mod steps;

/// The state that operators see.
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

/// One answer of the upstream, as far as one rate is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feedback {
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
    /// The upstream refused a request.
    Refused,
    /// Requests for one model were refused while others were served.
    ModelRefused,
    /// The workers that serve one model are busy with others' requests.
    WorkersFull,
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
    /// Another model was refused as well, so this one is not the only cause.
    OthersRefusedToo,
    /// More models are slowed than are remembered, and this one's last refusal is the oldest.
    Forgotten,
    /// As much is refused at a lower rate, so it is not the rate that is refused.
    Strays,
    /// Nothing was let in for long, and then all was.
    OpenAgain,
    /// Another rate is tried for a while, to see whether the upstream refuses less or more.
    TestBegins,
    /// That is over, and it is the rate that the upstream refuses, as far as is known.
    TestEnds,
}

impl Reason {
    /// The reason in words, for the log.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Refused => "the upstream answered 429",
            Self::ModelRefused => "the upstream answered 429 to requests for this model and served others",
            Self::WorkersFull => "the upstream answered 503, since the workers of this model are full",
            Self::RetryAfter => "the upstream answered 429 with Retry-After",
            Self::Relapse => "the upstream answered 429 to a request sent after the last cut",
            Self::HoldPassed => "no new 429 for the length of the hold",
            Self::CutUndone => "no other 429 followed, and the rate before had long been fine",
            Self::BaseReached => "the configured rate is reached again",
            Self::SwitchedOff => "the retreat was switched off in the configuration",
            Self::OthersRefusedToo => "the upstream refused other models too, so this one is not slowed alone",
            Self::Strays => "the upstream refuses as much at a lower rate, so it is not the rate that it refuses",
            Self::TestBegins => "another rate is tried for a while, to see whether the upstream refuses as much then",
            Self::TestEnds => "the trial of another rate is over",
            Self::OpenAgain => "the upstream let nothing in for a while, and now does again",
            Self::Forgotten => "more models are slowed than are remembered, and this one was refused longest ago",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    pub from: Phase,
    pub to: Phase,
    pub reason: Reason,
    pub rate: MilliRpm,
    /// The model that alone goes slower or faster; `None` is the account.
    pub model: Option<ModelName>,
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
    /// Whether the present cut is undone if no other 429 follows.
    pub(crate) undo: bool,
    /// Requests granted since `measured_from` and not refused.
    pub(crate) admitted: u32,
    pub(crate) measured_from: Instant,
    /// When full speed was last left.
    pub(crate) left_normal_at: Instant,
    /// Since when there has been an estimate of the upstream's limit; then the last one, and its time.
    pub(crate) known_from: Instant,
    pub(crate) learned: MilliRpm,
    pub(crate) learned_at: Instant,
    pub(crate) meter: Meter,
}

/// What is believed of the upstream's real limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    pub rate: MilliRpm,
    /// How long ago it was measured.
    pub age: Micros,
}

impl Retreat {
    /// The start: full speed.
    pub fn new(rules: RetreatRules) -> Self {
        Self { rate: rules.base, ..Self::default() }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn rate(&self) -> MilliRpm {
        self.rate
    }

    /// Whether anything is slower than configured.
    pub(crate) fn is_slow(&self) -> bool {
        self.phase != Phase::Normal
    }

    /// The most tokens that may be saved up: as configured at full speed, and otherwise next to none, since what a
    /// burst would find at a ceiling are refusals.
    pub fn burst(&self, rules: RetreatRules, capacity: u32) -> u32 {
        match self.phase {
            Phase::Normal => capacity,
            Phase::Retreat | Phase::Recover => {
                let parts = u64::from(self.rate.get()).saturating_mul(rules.window.get());
                let tokens = parts.checked_div(MINUTE.saturating_mul(BURST_PART).saturating_mul(1_000)).unwrap_or(0);
                u32::try_from(tokens).unwrap_or(u32::MAX).clamp(1, capacity.max(1))
            }
        }
    }

    /// Until when no token may be granted, because the upstream asked for that or a single request is being tried.
    pub fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// When the upstream was last found to refuse; [`Instant::ZERO`] if never.
    pub fn cut_at(&self) -> Instant {
        self.cut_at
    }

    /// When time alone changes the state; `None` at full speed.
    pub fn due_at(&self) -> Option<Instant> {
        (self.phase != Phase::Normal).then_some(self.due_at)
    }

    /// The share of 429s among the answers of the last window, in thousandths.
    pub fn throttled_permille(&self, now: Instant) -> u32 {
        self.meter.refused_permille(now)
    }

    /// Whether one request at a time is tried.
    pub(crate) fn is_half_open(&self) -> bool {
        self.half_open
    }

    /// Requests granted since the last cut that are not known to be refused.
    pub(crate) fn let_in_since_cut(&self) -> u32 {
        self.admitted
    }

    /// Whether the rate is about the one at which refusals began.
    pub(crate) fn is_near_ceiling(&self) -> bool {
        self.phase != Phase::Normal && self.rate >= self.curve.ceiling.scaled(9, 10)
    }

    /// Whether a ceiling that was found at the same place twice is near, so that a refusal is no surprise.
    pub(crate) fn expects_refusals(&self) -> bool {
        self.confirmed > 0 && self.is_near_ceiling()
    }

    /// Requests granted since `since`, a moment ago or earlier, that are not known to be refused. The one that was granted at
    /// `refused` is known to be.
    pub(crate) fn let_in_since(&self, since: Instant, refused: Instant) -> u32 {
        self.meter.let_in_since(since, refused)
    }

    /// Whether a ceiling was known before `since`, so that refusals after that are no surprise.
    pub(crate) fn knew_a_ceiling(&self, rules: RetreatRules, since: Instant, now: Instant) -> bool {
        let estimate = self.estimate(rules, now).filter(|_| self.known_from < since);
        estimate.is_some_and(|estimate| self.rate >= estimate.rate.scaled(9, 10))
    }

    /// What was refused since `since` turns out to be a single model's affair: a cut that it caused is taken back.
    pub(crate) fn acquit(&mut self, rules: RetreatRules, since: Instant) -> Option<Transition> {
        if self.phase == Phase::Normal || self.left_normal_at < since {
            return None;
        }
        self.closed_until = Instant::ZERO;
        self.half_open = false;
        self.rate = rules.base;
        self.learned = MilliRpm::default();
        Some(self.enter(Phase::Normal, Reason::ModelRefused))
    }

    /// What was held against this scope was not its limit: it goes at `to` again, and faster from there. `paused_until` is
    /// how long the upstream asked for a pause, which is kept.
    pub(crate) fn pardon(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        (to, paused_until): (MilliRpm, Instant),
        reason: Reason,
    ) -> Option<Transition> {
        if self.phase == Phase::Normal {
            return None;
        }
        self.closed_until = self.closed_until.min(paused_until);
        self.half_open = false;
        self.undo = false;
        self.relapses = 0;
        self.rate = self.rate.max(to).min(rules.base);
        if self.rate == rules.base {
            self.learned = MilliRpm::default();
            return Some(self.enter(Phase::Normal, reason));
        }
        self.grown = Micros::ZERO;
        self.due_at = now;
        self.curve = Curve { from: self.rate, ceiling: self.rate, plateau: Micros::new(1), ..self.curve };
        Some(self.enter(Phase::Recover, reason))
    }

    /// What there is to report when requests go at another rate for a while, and the state stays.
    pub(crate) fn remains(&self, rate: MilliRpm, reason: Reason) -> Transition {
        Transition { from: self.phase, to: self.phase, reason, rate, model: None }
    }

    /// The estimate of the upstream's real limit: what it admitted when it last refused, and the closer to the
    /// configured rate the longer that is ago. `None` if it has never refused, or not for [`FORGET_WINDOWS`] windows.
    pub fn estimate(&self, rules: RetreatRules, now: Instant) -> Option<Estimate> {
        let age = now.since(self.learned_at);
        let memory = rules.window.times(FORGET_WINDOWS);
        if self.learned.get() == 0 || age >= memory {
            return None;
        }
        let gap = u64::from(rules.base.get().saturating_sub(self.learned.get()));
        let faded = gap.saturating_mul(age.get() / 1_000).checked_div((memory.get() / 1_000).max(1)).unwrap_or(0);
        let rate = self.learned.plus(MilliRpm::new(u32::try_from(faded).unwrap_or(0)));
        Some(Estimate { rate: rate.min(rules.base), age })
    }

    fn enter(&mut self, to: Phase, reason: Reason) -> Transition {
        let from = core::mem::replace(&mut self.phase, to);
        Transition { from, to, reason, rate: self.rate, model: None }
    }
}

const MINUTE: u64 = 60_000_000;

/// So many requests in a window, as a rate.
pub(crate) fn per_window(requests: f64, window: Micros) -> MilliRpm {
    MilliRpm::new((requests.max(0.0) * 1e3 / window_of(window)) as u32)
}

/// A window in minutes.
pub(crate) fn window_of(window: Micros) -> f64 {
    window.get().max(1) as f64 / MINUTE as f64
}

/// Below full speed, as many tokens may be saved up as come in this part of a window.
const BURST_PART: u64 = 64;

/// After so many windows without a refusal nothing is believed of the upstream's limit any more: four hours of minutes.
pub const FORGET_WINDOWS: u64 = 240;

#[cfg(test)]
#[path = "rate/tests.rs"]
mod tests;
