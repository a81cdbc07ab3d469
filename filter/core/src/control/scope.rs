//! The models that the upstream slows down by themselves: one with a limit far below the account's, or one whose pool of
//! workers is full. The account's other models must not wait for them.
//!
//! A 429 does not say whose limit it is. It is the model's if other models are served while it is refused, and the
//! account's if others are refused too. What this takes is remembered of the few models that were asked for last; all
//! sizes are bounded, whatever names clients think of.

use super::books::{Books, Finding};
use super::rate::{Feedback, Phase, Reason, Retreat, RetreatRules, Transition};
use crate::model::{ModelKey, ModelName};
use crate::units::{Instant, Micros, MilliRpm};

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

    /// Whether it was slowed in the last window because the upstream asked for a pause that is not over yet.
    fn is_paused(&self, rules: RetreatRules, now: Instant) -> bool {
        !self.worker_full && self.retreat.closed_until() > now && self.retreat.cut_at().after(rules.window) >= now
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
    /// The books; `None` in a record of version 1, which has no room for them. There streaks must do.
    pub(crate) books: Option<Books>,
}

/// Whose a refusal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// The model's, and since when it was being refused. Cuts of the account since then are taken back.
    Model(Instant),
    /// The model's, but others are refused as well, so that the account keeps its rate.
    ModelAmongOthers,
    /// Unclear: it is counted, and a short pause is kept by all; nothing more.
    Unclear,
    /// The account's.
    Account,
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
    pub fn served(&mut self, rules: RetreatRules, now: Instant, granted_at: Instant, key: ModelKey) {
        if key != ModelKey::NONE
            && !self.is_slowed(key)
            && let Some(books) = &mut self.books
        {
            books.count(rules.window, now, key, false);
        }
        if let Some(seen) = self.seen_mut(key) {
            seen.served_at = seen.served_at.max(granted_at);
        }
    }

    fn is_slowed(&self, key: ModelKey) -> bool {
        self.slowed.iter().any(|slowed| slowed.key == key)
    }

    /// A request of a model was refused with 429: whose limit is that?
    pub(crate) fn refused(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        answer: Feedback,
        (account, strays): (&Retreat, f64),
        changes: &mut Vec<Transition>,
    ) -> Cause {
        if key == ModelKey::NONE {
            return Cause::Account;
        }
        let slowed = self.is_slowed(key);
        let streak = self.streak(rules, now, key, account, changes);
        let Some(books) = &mut self.books else { return streak.map_or(Cause::Account, Cause::Model) };
        if slowed {
            return Cause::ModelAmongOthers;
        }
        books.count(rules.window, now, key, true);
        let cause = match books.finding(key, account.expects_refusals(), strays) {
            Finding::Own { others_clean: true } => {
                // The streak began when this model was first refused, or another was in between: so long it may be.
                let blamed = rules.window.times(BLAMED_WINDOWS).get();
                Cause::Model(Instant::from_micros(now.as_micros().saturating_sub(blamed)))
            }
            Finding::Own { others_clean: false } => Cause::ModelAmongOthers,
            Finding::Uneven if rules.is_long(answer.retry_after) => Cause::ModelAmongOthers,
            Finding::Uneven => Cause::Unclear,
            Finding::Account if self.pauses_alone(rules, now, key, answer, account) => Cause::ModelAmongOthers,
            Finding::Account => {
                if answer.retry_after.is_some() {
                    self.release_paused(rules, now, changes);
                }
                Cause::Account
            }
        };
        if matches!(cause, Cause::Model(_) | Cause::ModelAmongOthers)
            && let Some(books) = &mut self.books
        {
            books.close(key);
        }
        cause
    }

    /// Whether a pause that the upstream asks for is this model's alone as far as is known. A long one is, if others are
    /// let in or on their way, until it has been asked for [`PAUSED_LEAST`] models, or all, and nothing was let in between. A
    /// short one is cheap for all, and at a known ceiling it is no surprise.
    fn pauses_alone(
        &self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        answer: Feedback,
        account: &Retreat,
    ) -> bool {
        if self.books.is_none() || !rules.is_long(answer.retry_after) || account.expects_refusals() {
            return false;
        }
        let others = self.seen.iter().filter(|seen| seen.key != key && seen.let_in() > 0).count();
        let paused = || self.slowed.iter().filter(|slowed| slowed.is_paused(rules, now));
        let Some(first) = paused().map(|slowed| slowed.retreat.cut_at()).min() else { return others > 0 };
        let asked = paused().count().saturating_add(1);
        (asked < PAUSED_LEAST && others > 0) || account.let_in_since(first, answer.granted_at) > 0
    }

    /// Pauses that models were held to turn out to be the account's.
    fn release_paused(&mut self, rules: RetreatRules, now: Instant, changes: &mut Vec<Transition>) {
        self.slowed.retain(|slowed| {
            let paused = slowed.is_paused(rules, now);
            changes.extend(paused.then(|| slowed.released(rules, Reason::OthersRefusedToo)));
            !paused
        });
    }

    /// If a refusal with 429 is the model's own, by the row of them, answers since when it was being
    /// refused; if not, it is the account's.
    ///
    /// It is the model's if it was refused before, and since then requests for other models were sent and served and
    /// none refused. Where a ceiling of the account is known that may be chance, so it takes more of them.
    fn streak(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        account: &Retreat,
        changes: &mut Vec<Transition>,
    ) -> Option<Instant> {
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
        if self.books.is_some() {
            return None;
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
            seen.let_in()
        });
        let least = if worker_full || self.books.is_none() { LEAST_IN_WINDOW } else { 1 };
        let let_in = (rate_of(let_in, rules.window), least);
        let (retreat, transition) = Retreat::begin(rules, now, let_in, answer, worker_full);
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
    /// Requests let in, or not known to be refused, in the half window that was counted last and the one before.
    fn let_in(&self) -> u32 {
        self.now.saturating_add(self.before)
    }

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

/// Without books a model is slowed to no fewer requests in a window at first, and so is one whose workers are full.
const LEAST_IN_WINDOW: u32 = 4;

/// Refusals of one model in a row, with none of another between, that mean the model and not the account.
const STREAK: u32 = 2;

/// The same where a ceiling of the account is known, near which some model is refused now and then.
const STREAK_AT_CEILING: u32 = 4;

/// A long pause that so many models were asked for in a row is the account's.
const PAUSED_LEAST: usize = 3;

/// A limit that models turn out to have may have cut the account for so many windows.
const BLAMED_WINDOWS: u64 = 6;

/// Refusals that are further apart are not in a row.
const STREAK_WINDOWS: u64 = 8;

#[cfg(test)]
#[path = "scope/tests.rs"]
mod tests;
