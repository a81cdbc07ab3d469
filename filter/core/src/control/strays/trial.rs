//! The test whether a lower rate is refused less: a limit is, strays are not.

use super::{FALLEN_WINDOWS, Strays, before};
use crate::control::history::Sum;
use crate::control::rate::{Phase, Reason, Retreat, RetreatRules, Transition, per_window};
use crate::units::{Instant, Micros};

impl Strays {
    /// Ends a test without a result.
    pub(super) fn abort_test(&mut self, account: &Retreat, changes: &mut Vec<Transition>) {
        if self.test_from != Instant::ZERO {
            self.test_from = Instant::ZERO;
            changes.push(account.remains(account.rate(), Reason::TestEnds));
        }
    }

    /// Much is refused although the rate was cut: does less help at all? And what is believed of strays is tried again from
    /// time to time.
    pub(super) fn begin_test(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        account: &Retreat,
        changes: &mut Vec<Transition>,
    ) {
        let window = rules.window;
        if self.test_from != Instant::ZERO || now < self.test_at || self.late > window.times(6) {
            return;
        }
        let begun = self.left_at.after(Micros::new(window.get() / 2));
        let after_fall = if self.fell_at == Instant::ZERO { begun } else { self.fell_at.after(window.times(3)) };
        let of_last = |windows| self.history.since(before(now, window.times(windows)).max(begun).max(after_fall));
        // At a low rate it takes longer until there is enough to tell.
        let sum = Some(of_last(4)).filter(|sum| sum.refused >= 4).unwrap_or_else(|| of_last(10));
        let share = share_of(sum);
        let slow = account.phase() != Phase::Normal && !account.is_half_open();
        let is_suspect = self.share == 0 && slow && sum.refused >= 4 && (SHARE_LEAST..=SHARE_MOST).contains(&share);
        let is_again = self.share > 0 && account.phase() != Phase::Retreat;
        if !(is_suspect || is_again) || self.best(rules, now) <= 0.0 || self.is_idle(rules, now) {
            return;
        }
        let asked = if is_suspect { share } else { self.share() };
        self.test_from = now;
        self.test_share = millionths((0.8 * asked).clamp(0.02, 0.12));
        let part = if is_suspect { TEST_FIRST } else { TEST_AGAIN };
        self.test_rate = per_window(self.best(rules, now), window).scaled(part, 1_000).max(rules.floor);
        changes.push(account.remains(self.rate(account), Reason::TestBegins));
    }

    /// Whether fewer were refused at the lower rate.
    pub(super) fn end_test(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        account: &mut Retreat,
        changes: &mut Vec<Transition>,
    ) {
        if self.test_from == Instant::ZERO {
            return;
        }
        if self.is_idle(rules, now) {
            // Nobody asks, so nothing can be learned.
            self.abort_test(account, changes);
            return;
        }
        let window = rules.window;
        let share = f64::from(self.test_share) / 1e6;
        let known = before(now, self.late.max(Micros::new(window.get() / 30)));
        let sum = self.history.between(self.test_from.after(Micros::new(window.get() / 20)), known);
        let (all, refused) = (f64::from(sum.granted.saturating_sub(sum.elsewhere)), f64::from(sum.refused));
        let evidence = refused * RATIO.ln() + (all - refused) * ((1.0 - share) / (1.0 - share / RATIO)).ln();
        let has_run = |windows| now > self.test_from.after(window.times(windows)).after(self.late);
        let is_over = has_run(10) || (has_run(5) && all >= ENOUGH);
        if evidence >= 2.0 || (is_over && evidence > 0.0) {
            let earlier = if self.share == 0 {
                let sum = self.history.between(before(self.test_from, window.times(4)), self.test_from);
                (f64::from(sum.granted), f64::from(sum.refused))
            } else {
                (80.0, 80.0 * self.share())
            };
            self.find_strays(rules, now, (all + earlier.0, refused + earlier.1), account, changes);
        } else if evidence <= -3.0 || is_over {
            if self.share == 0 {
                self.limit_until = now.after(window.times(FALLEN_WINDOWS));
            }
            self.share = 0;
            self.test_from = Instant::ZERO;
            self.gap_without = self.gap_without.max(5).saturating_mul(2).min(80);
            self.test_at = now.after(window.times(u64::from(self.gap_without)));
            changes.push(account.remains(account.rate(), Reason::TestEnds));
        }
    }

    /// So many of so many are refused whatever the rate.
    fn find_strays(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        (all, refused): (f64, f64),
        account: &mut Retreat,
        changes: &mut Vec<Transition>,
    ) {
        let is_first = self.share == 0;
        self.share = millionths((refused / all.max(1.0)).min(SHARE_MOST)).max(1);
        self.gap_without = 5;
        self.gap_with = if is_first { 6 } else { self.gap_with.saturating_mul(2).clamp(6, 60) };
        self.test_at = now.after(rules.window.times(u64::from(self.gap_with)));
        self.test_from = Instant::ZERO;
        self.credit = 4_000;
        self.low_evidence = 0;
        let to = if is_first { self.highest(rules, now, account) } else { account.rate() };
        let pardon = account.pardon(rules, now, (to, self.paused_until), Reason::Strays);
        changes.push(pardon.unwrap_or(account.remains(account.rate(), Reason::Strays)));
    }

    /// The same without a test, where the rate is low anyway.
    pub(super) fn count_low(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        refused: bool,
        account: &mut Retreat,
        changes: &mut Vec<Transition>,
    ) {
        let window = rules.window;
        let is_low = account.phase() != Phase::Normal
            && f64::from(account.rate().get()) <= 0.94 * f64::from(per_window(self.best(rules, now), window).get());
        let is_new = now < self.left_at.after(window);
        if !is_low || is_new || self.test_from != Instant::ZERO {
            return;
        }
        if self.share > 0 {
            // The figure follows slowly.
            let target = if refused { 1_000_000 } else { 0i64 };
            let share = i64::from(self.share);
            let share = share.saturating_add(target.saturating_sub(share) / 100);
            self.share = u32::try_from(share).unwrap_or(0).clamp(1, millionths(SHARE_MOST));
            return;
        }
        if self.late > window.quarter() {
            return;
        }
        let sum = self.history.since(before(now, window.times(4)));
        let share = (f64::from(sum.refused) / f64::from(sum.granted.max(20))).clamp(0.03, 0.15);
        self.low_answers = self.low_answers.saturating_add(1);
        self.low_refused = self.low_refused.saturating_add(u32::from(refused));
        let step = if refused { RATIO.ln() } else { ((1.0 - share) / (1.0 - share / RATIO)).ln() };
        self.low_evidence = self.low_evidence.saturating_add((step * 1e3) as i32).max(LOW_EVIDENCE_LEAST);
        if self.low_evidence >= 2_500 && self.low_refused >= 3 {
            let all = f64::from(self.low_answers.saturating_add(sum.granted));
            let refused = f64::from(self.low_refused.saturating_add(sum.refused));
            self.find_strays(rules, now, (all, refused), account, changes);
            self.low_answers = 0;
            self.low_refused = 0;
        } else if self.low_answers >= 300 {
            self.low_answers = 0;
            self.low_refused = 0;
        }
    }
}

fn share_of(sum: Sum) -> f64 {
    // Retries of Envoy's router are refused too, and are no grants.
    (f64::from(sum.refused) / f64::from(sum.granted.max(1))).min(1.0)
}

fn millionths(share: f64) -> u32 {
    (share * 1e6) as u32
}

/// The evidence against strays counts no further than to this, in thousandths of a nat.
pub(crate) const LOW_EVIDENCE_LEAST: i32 = -3_000;

/// The rate during a first test and a later one, in thousandths of the best.
const TEST_FIRST: u32 = 850;
const TEST_AGAIN: u32 = 900;

/// Shares of refusals that may be strays.
const SHARE_LEAST: f64 = 0.04;
const SHARE_MOST: f64 = 0.15;

/// Requests of a test from which it says something.
const ENOUGH: f64 = 40.0;

/// A test compares a share with this part of it: a limit would refuse no more than that at a lower rate.
const RATIO: f64 = 4.0;
