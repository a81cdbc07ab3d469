//! The models that the upstream slows down by themselves: one with a limit far below the account's, or one whose pool of
//! workers is full. The account's other models must not wait for them.
//!
//! A 429 does not say whose limit it is. It is the model's if other models are served while it is refused, and the
//! account's if others are refused too. What this takes is remembered of the few models that were asked for last; all
//! sizes are bounded, whatever names clients think of.

use super::rate::{Feedback, Phase, Reason, Retreat, RetreatRules, Transition};
use crate::units::{Instant, Micros, MilliRpm};

/// Which model a request asks for: a hash of its name. [`ModelKey::NONE`] where none was read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct ModelKey(pub u64);

impl ModelKey {
    /// No model is known, as where a limit matches by host.
    pub const NONE: Self = Self(0);

    /// The key of a name: FNV-1a, since all workers must find the same one.
    pub fn of(name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash.max(1))
    }
}

/// The beginning of a model's name, for the operator's eyes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelName {
    bytes: [u8; NAME_BYTES],
}

impl ModelName {
    /// As much of a name as is kept.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; NAME_BYTES];
        let mut end = name.len().min(NAME_BYTES);
        while !name.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(end)) {
            *to = from;
        }
        Self { bytes }
    }

    pub const NONE: Self = Self { bytes: [0; NAME_BYTES] };

    /// The name; what is not UTF-8 (it always is, unless the record was tampered with) reads as nothing.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes).unwrap_or_default().trim_end_matches('\0')
    }

    pub(crate) fn bytes(&self) -> &[u8; NAME_BYTES] {
        &self.bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; NAME_BYTES]) -> Self {
        Self { bytes }
    }
}

/// A model that was asked for lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub key: ModelKey,
    /// When the last of its requests that were served was granted.
    pub served_at: Instant,
    /// When one was last refused.
    pub refused_at: Instant,
    /// Refusals in a row of this model, with none of another between.
    pub streak: u32,
    /// When the first of them came.
    pub streak_from: Instant,
    /// The half window in which it was last counted.
    pub half: u64,
    /// Requests let in in that half window.
    pub now: u32,
    /// And in the one before.
    pub before: u32,
}

/// A model that goes slower than the account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slowed {
    pub key: ModelKey,
    pub name: ModelName,
    /// How slow, and the way back.
    pub retreat: Retreat,
    /// When its next request may go.
    pub next_at: Instant,
    /// Whether its pool of workers was full, rather than a rate reached.
    pub worker_full: bool,
}

impl Slowed {
    /// From when on its requests may go.
    pub fn open_at(&self) -> Instant {
        self.next_at.max(self.retreat.closed_until())
    }

    /// What there is to report when it goes as fast as the others again for a reason of others.
    fn released(&self, rules: RetreatRules, reason: Reason) -> Transition {
        let from = self.retreat.phase();
        Transition { from, to: Phase::Normal, reason, rate: rules.base, model: Some(self.name) }
    }
}

/// All that is known of single models.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Models {
    pub(crate) seen: Vec<Seen>,
    pub(crate) slowed: Vec<Slowed>,
}

impl Models {
    /// The models that go slower than the account.
    pub fn slowed(&self) -> &[Slowed] {
        &self.slowed
    }

    /// From when on requests for a model may go; [`Instant::ZERO`] for all that are not slowed.
    pub fn open_at(&self, key: ModelKey) -> Instant {
        self.slowed.iter().find(|slowed| slowed.key == key).map_or(Instant::ZERO, Slowed::open_at)
    }

    /// From when on requests for each slowed model may go.
    pub fn openings(&self) -> Vec<(ModelKey, Instant)> {
        self.slowed.iter().map(|slowed| (slowed.key, slowed.open_at())).collect()
    }

    /// Lets time pass. Who is back at full speed is no longer slowed.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant, changes: &mut Vec<Transition>) {
        self.slowed.retain_mut(|slowed| {
            let step = slowed.retreat.advance(rules, now);
            changes.extend(step.map(|step| Transition { model: Some(slowed.name), ..step }));
            slowed.retreat.is_slow()
        });
    }

    /// A token was granted for a request of a model.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant, key: ModelKey) {
        if key == ModelKey::NONE {
            return;
        }
        let half = half_at(rules.window, now);
        if let Some(seen) = self.seen_mut(key) {
            seen.pass(half);
            seen.now = seen.now.saturating_add(1);
        }
        if let Some(slowed) = self.slowed.iter_mut().find(|slowed| slowed.key == key) {
            slowed.retreat.granted(rules, now);
            let rate = u64::from(slowed.retreat.rate().get()).max(1);
            slowed.next_at =
                slowed.next_at.max(now).after(Micros::new(MINUTE_THOUSANDTHS.checked_div(rate).unwrap_or(0)));
        }
    }

    /// A request of a model that was granted at `granted_at` was served.
    pub fn served(&mut self, granted_at: Instant, key: ModelKey) {
        if let Some(seen) = self.seen_mut(key) {
            seen.served_at = seen.served_at.max(granted_at);
        }
    }

    /// A request of a model was refused with 429. If that is the model's own limit, answers since when it was being
    /// refused; if not, it is the account's.
    ///
    /// It is the model's if it was refused before, and since then requests for other models were sent and served and
    /// none refused. Where a ceiling of the account is known that may be chance, so it takes more of them.
    pub fn refused(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        account: &Retreat,
        changes: &mut Vec<Transition>,
    ) -> Option<Instant> {
        if key == ModelKey::NONE {
            return None;
        }
        let half = half_at(rules.window, now);
        for other in self.seen.iter_mut().filter(|seen| seen.key != key) {
            other.streak = 0;
        }
        let seen = self.seen_mut(key)?;
        seen.pass(half);
        seen.now = seen.now.saturating_sub(1);
        if seen.streak == 0 || seen.refused_at.after(rules.window.times(STREAK_WINDOWS)) < now {
            seen.streak = 0;
            seen.streak_from = now;
        }
        seen.refused_at = now;
        seen.streak = seen.streak.saturating_add(1);
        let Seen { streak, streak_from: since, .. } = *seen;
        let others_served = self.seen.iter().any(|seen| seen.key != key && seen.served_at > since);
        let needed = if account.knew_a_ceiling(rules, since, now) { STREAK_AT_CEILING } else { STREAK };
        let slowed = self.slowed.iter().any(|slowed| slowed.key == key);
        let own = slowed || (others_served && streak >= needed);
        if own {
            return Some(since);
        }
        // Models slowed a moment ago were probably not the cause.
        self.slowed.retain(|slowed| {
            let stays = slowed.worker_full || slowed.retreat.cut_at().after(rules.window) < now;
            changes.extend((!stays).then(|| slowed.released(rules, Reason::OthersRefusedToo)));
            stays
        });
        None
    }

    /// Slows a model down, or further down.
    pub fn slow(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        (key, name): (ModelKey, ModelName),
        answer: Feedback,
        worker_full: bool,
        changes: &mut Vec<Transition>,
    ) {
        if key == ModelKey::NONE || !rules.enabled {
            return;
        }
        if let Some(slowed) = self.slowed.iter_mut().find(|slowed| slowed.key == key) {
            slowed.worker_full = worker_full;
            let step = slowed.retreat.step(rules, now, answer);
            changes.extend(step.map(|step| Transition { model: Some(slowed.name), ..step }));
            return;
        }
        if self.slowed.len() >= SLOWED_MAX {
            // The one whose trouble is longest ago has the best chance to be over it.
            let oldest = self.slowed.iter().enumerate().min_by_key(|(_, slowed)| slowed.retreat.cut_at());
            if let Some(at) = oldest.map(|(at, _)| at) {
                changes.push(self.slowed.swap_remove(at).released(rules, Reason::Forgotten));
            }
        }
        let half = half_at(rules.window, now);
        let let_in = self.seen_mut(key).map_or(0, |seen| {
            seen.pass(half);
            seen.now.saturating_add(seen.before)
        });
        let (retreat, transition) = Retreat::begin(rules, now, rate_of(let_in, rules.window), answer, worker_full);
        self.slowed.push(Slowed { key, name, retreat, next_at: now, worker_full });
        changes.push(Transition { model: Some(name), ..transition });
    }

    /// An answer to a request of a slowed model that was served.
    pub(crate) fn eased(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        answer: Feedback,
    ) -> Option<Transition> {
        let slowed = self.slowed.iter_mut().find(|slowed| slowed.key == key)?;
        let step = slowed.retreat.step(rules, now, answer)?;
        Some(Transition { model: Some(slowed.name), ..step })
    }

    /// What is known of a model; one that is new takes the place of the one that was served or refused longest ago.
    fn seen_mut(&mut self, key: ModelKey) -> Option<&mut Seen> {
        if key == ModelKey::NONE {
            return None;
        }
        let found = self.seen.iter().position(|seen| seen.key == key);
        let at = match found {
            Some(at) => at,
            None => {
                let new = Seen {
                    key,
                    served_at: Instant::ZERO,
                    refused_at: Instant::ZERO,
                    streak: 0,
                    streak_from: Instant::ZERO,
                    half: 0,
                    now: 0,
                    before: 0,
                };
                if self.seen.len() < SEEN_MAX {
                    self.seen.push(new);
                } else {
                    let oldest = self.seen.iter_mut().min_by_key(|seen| seen.served_at.max(seen.refused_at));
                    if let Some(oldest) = oldest {
                        *oldest = new;
                    }
                }
                self.seen.iter().position(|seen| seen.key == key)?
            }
        };
        self.seen.get_mut(at)
    }
}

impl Seen {
    /// Moves the counts on to the half window `half`.
    fn pass(&mut self, half: u64) {
        match half.saturating_sub(self.half) {
            0 => return,
            1 => self.before = self.now,
            _ => self.before = 0,
        }
        self.now = 0;
        self.half = half;
    }
}

fn half_at(window: Micros, at: Instant) -> u64 {
    at.as_micros().checked_div((window.get() / 2).max(1)).unwrap_or(0)
}

/// So many requests in about three quarters of a window, which is what two half windows hold on average, as a rate.
fn rate_of(count: u32, window: Micros) -> MilliRpm {
    let span = (window.get() / 4).saturating_mul(3).max(1);
    let milli = u64::from(count).saturating_mul(MINUTE_THOUSANDTHS).checked_div(span).unwrap_or(0);
    MilliRpm::new(u32::try_from(milli).unwrap_or(u32::MAX))
}

/// Microseconds in a minute, times thousandths of a request.
const MINUTE_THOUSANDTHS: u64 = 60_000_000 * 1_000;

/// Models remembered. Those who share an account use a handful.
pub(crate) const SEEN_MAX: usize = 8;

/// Models slowed at once.
pub(crate) const SLOWED_MAX: usize = 8;

/// Bytes of a name that are kept.
pub(crate) const NAME_BYTES: usize = 48;

/// Refusals of one model in a row, with none of another between, that mean the model and not the account.
const STREAK: u32 = 2;

/// The same where a ceiling of the account is known, near which some model is refused now and then.
const STREAK_AT_CEILING: u32 = 4;

/// Refusals that are further apart are not in a row.
const STREAK_WINDOWS: u64 = 8;

#[cfg(test)]
#[path = "scope/tests.rs"]
mod tests;
