//! Refusals that have nothing to do with how fast requests are sent, and how far down a cut of the account may go.
//!
//! An upstream that refuses five requests of a hundred for reasons of its own (a bad replica, an outage of a part, a
//! content filter that answers 429) refuses as many of them at half the rate, so cutting gains nothing and costs half of
//! the goodput. What tells the two apart is the answer to a cut: a limit is no longer reached, strays stay. So, while
//! refusals are few enough to be strays:
//!
//! - the rate is not cut far below the best that was let in of late, unless more is refused than strays would be;
//! - if the share of refusals stays the same at a lower rate, by a test of likelihoods, it is taken for the share of strays;
//! - so many refusals are ignored from then on, and from time to time a test tells whether it is still so.
//!
//! The evidence is by the time of the grants, so that answers that come late count for the right time.

use super::chernoff::chernoff;
use super::history::History;
use super::rate::{Feedback, Phase, Reason, Retreat, RetreatRules, Transition, per_window, window_of};
use crate::units::{Instant, Micros, MilliRpm};
pub(crate) use trial::LOW_EVIDENCE_LEAST;

mod trial;

/// What is known of strays, and of what the account lets in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strays {
    pub(crate) history: History,
    /// The share of requests that are refused whatever the rate, in millionths; 0 if none is known.
    pub(crate) share: u32,
    /// Thousandths of refusals that may be ignored.
    pub(crate) credit: u32,
    /// Since when a test runs, whether fewer requests are refused at a lower rate; [`Instant::ZERO`] if none does.
    pub(crate) test_from: Instant,
    /// The share of strays that the test asks about, in millionths, and the rate meanwhile.
    pub(crate) test_share: u32,
    pub(crate) test_rate: MilliRpm,
    /// Before this no other test begins.
    pub(crate) test_at: Instant,
    /// How many windows after a test that found no strays, and after one that found some, the next may begin.
    pub(crate) gap_without: u32,
    pub(crate) gap_with: u32,
    /// The most that was let in in a window of late, but for single ones, and from when on that counts.
    pub(crate) best: u32,
    pub(crate) best_from: Instant,
    /// When the first request was granted; [`Instant::ZERO`] before, the end of time when enough is known.
    pub(crate) young_from: Instant,
    /// The highest rate before the last cuts, and when that was cut.
    pub(crate) before: MilliRpm,
    pub(crate) before_at: Instant,
    /// Until when the upstream has asked for a pause.
    pub(crate) paused_until: Instant,
    /// Since when the account has been below the configured rate.
    pub(crate) left_at: Instant,
    /// Refusals in a row, with nothing served between.
    pub(crate) row: u32,
    /// Refusals since a cut that have changed nothing, and which cut.
    pub(crate) ignored: u32,
    pub(crate) ignored_since: Instant,
    /// Since when nothing at all has been let in, the rate before that, and when that was last seen.
    pub(crate) shut_at: Instant,
    pub(crate) shut_rate: MilliRpm,
    pub(crate) shut_seen_at: Instant,
    /// When the limit was last found to have fallen.
    pub(crate) fell_at: Instant,
    /// Until when refusals are taken for those of a limit, since a test has just found that.
    pub(crate) limit_until: Instant,
    /// How late refusals come; 0 while they come at once. How soon they usually come, and answers do.
    pub(crate) late: Micros,
    pub(crate) refusal_takes: Micros,
    pub(crate) answer_takes: Micros,
    /// When a request was last tried while the gate was half open.
    pub(crate) tried_at: Instant,
    /// The logarithm of the likelihood that there are strays against that there are none, at a rate that is low anyway, in
    /// thousandths, from -3000 on; answers it is made of, and refusals among them.
    pub(crate) low_evidence: i32,
    pub(crate) low_answers: u32,
    pub(crate) low_refused: u32,
}

/// What a refusal that is booked to the account means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// It is one of the strays that are expected, or too little to act on.
    Nothing,
    /// The account's limit is reached.
    Limit(Evidence),
}

/// How far to cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Evidence {
    /// The rate is not cut below this.
    pub least: MilliRpm,
    /// Whether nothing has been let in since the last cut.
    pub is_shut: bool,
    /// What was let in, if refusals come too late for the meter to tell, or the first window is not over.
    pub let_in: Option<MilliRpm>,
    /// How late refusals come.
    pub late: Micros,
    /// The best that was let in of late; a cut well below that has found no ceiling.
    pub best: MilliRpm,
    /// Whether the limit has just fallen, so that it may come back soon.
    pub has_fallen: bool,
}

impl Strays {
    /// Lets time pass. Call it after [`Retreat::advance`]. What changes is added to `changes`.
    pub(crate) fn advance(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        account: &mut Retreat,
        changes: &mut Vec<Transition>,
    ) {
        let has_begun = self.history.advance(rules.window, now);
        if account.is_half_open()
            && account.let_in_since_cut() > 0
            && now >= account.closed_until().max(self.tried_at.after(self.silence(rules)))
        {
            // What has not been refused for so long is being answered, however long that takes.
            account.reopen(rules, now);
            self.row = 0;
            self.opened(rules, now, account, changes);
        }
        if !rules.enabled {
            self.abort_test(account, changes);
            return;
        }
        if !has_begun {
            return;
        }
        if self.has_begun() && self.is_young() && now > self.young_from.after(rules.window.times(YOUNG_WINDOWS)) {
            self.young_from = MATURE;
        }
        self.late = smoothed(self.late, Micros::ZERO, 200);
        self.best = self.best_of_late(now);
        self.begin_test(rules, now, account, changes);
        self.end_test(rules, now, account, changes);
    }

    /// The rate at which requests go: that of the retreat, or lower while a test runs.
    pub(crate) fn rate(&self, account: &Retreat) -> MilliRpm {
        if self.test_from != Instant::ZERO { account.rate().min(self.test_rate) } else { account.rate() }
    }

    /// The share of requests that are refused whatever the rate.
    pub fn share(&self) -> f64 {
        f64::from(self.share) / 1e6
    }

    /// When time alone changes what is believed; `None` while no test runs.
    pub(crate) fn due_at(&self, now: Instant) -> Option<Instant> {
        (self.test_from != Instant::ZERO).then(|| self.history.next_part_at(now))
    }

    /// A token was granted.
    pub(crate) fn granted(&mut self, now: Instant, account: &Retreat) {
        self.history.granted();
        if self.young_from == Instant::ZERO {
            self.young_from = now;
        }
        if account.is_half_open() {
            self.tried_at = now;
        }
    }

    /// A request was served that was granted at `granted_at`. Call it after [`Retreat::step`], which may have opened the gate.
    pub(crate) fn served(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        granted_at: Instant,
        (account, was_half_open): (&mut Retreat, bool),
        changes: &mut Vec<Transition>,
    ) {
        self.answer_takes = smoothed(self.answer_takes, now.since(granted_at), 10);
        if granted_at >= account.cut_at() {
            self.row = 0;
        }
        if was_half_open && !account.is_half_open() {
            self.opened(rules, now, account, changes);
        }
        self.count_low(rules, now, false, account, changes);
        self.earn();
    }

    /// A request was refused by a model's own limit.
    pub(crate) fn refused_elsewhere(&mut self, granted_at: Instant) {
        self.history.refused(granted_at, false);
        self.earn();
    }

    /// The last `refusals` that were booked to the account turn out to be a model's.
    pub(crate) fn forgive(&mut self, refusals: u32) {
        self.history.forgive(refusals);
    }

    /// A request was refused, and whose limit that is will become clear later.
    pub(crate) fn refused_unclear(&mut self, rules: RetreatRules, now: Instant, answer: Feedback) {
        self.history.refused(answer.granted_at, true);
        self.pause(rules, now, answer);
        self.earn();
    }

    /// A request was refused, and it is booked to the account. What is ignored changes nothing but the counts.
    pub(crate) fn refused(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        answer: Feedback,
        account: &mut Retreat,
        changes: &mut Vec<Transition>,
    ) -> Meaning {
        self.history.refused(answer.granted_at, true);
        self.pause(rules, now, answer);
        let late = now.since(answer.granted_at);
        self.refusal_takes = smoothed(self.refusal_takes, late, 5);
        let meaning = self.meaning(rules, now, answer, account);
        if meaning == Meaning::Nothing {
            let since_cut = self.ignored_since_cut(account);
            self.ignored = since_cut.saturating_add(u32::from(answer.granted_at >= account.cut_at()));
            self.ignored_since = account.cut_at();
        }
        self.count_low(rules, now, true, account, changes);
        self.earn();
        meaning
    }

    fn pause(&mut self, rules: RetreatRules, now: Instant, answer: Feedback) {
        self.paused_until = self.paused_until.max(now.after(rules.pause(answer.retry_after)));
    }

    fn meaning(&mut self, rules: RetreatRules, now: Instant, answer: Feedback, account: &Retreat) -> Meaning {
        let window = rules.window;
        // A pause that the upstream asks for is kept in any case.
        let may_ignore = answer.retry_after.is_none();
        if may_ignore && self.share > 0 && self.credit >= 1_000 {
            self.credit = self.credit.saturating_sub(1_000);
            return Meaning::Nothing;
        }
        let late = now.since(answer.granted_at);
        let is_late = late > window.quarter();
        let ago = |windows_halves: u64| before(now, late.plus(Micros::new(window.get() / 2).times(windows_halves)));
        let is_normal = account.phase() == Phase::Normal;
        let best = self.best(rules, now);
        let in_window = self.history.since(before(now, window));
        let in_half = self.history.since(before(now, Micros::new(window.get() / 2)));
        let quiet = !is_late && answer.retry_after.is_none();
        if quiet && is_normal && best == 0.0 && in_window.refused < 2 {
            return Meaning::Nothing;
        }
        let is_used = f64::from(in_window.let_in()) >= USED * best;
        let surprises = !account.expects_refusals();
        if quiet
            && surprises
            && !is_used
            && in_half.refused < 2
            && self.ignored_since_cut(account) < 1
            && !account.is_half_open()
        {
            return Meaning::Nothing;
        }
        if is_normal {
            self.left_at = now;
        }
        let share = self.share();
        let enough = if self.is_young() { REFUTED_YOUNG } else { REFUTED };
        let of_late = self.history.since(ago(1).max(account.cut_at()));
        let longer = self.history.since(ago(4).max(self.left_at));
        let is_refuted =
            chernoff(f64::from(of_late.refused), f64::from(of_late.granted) * share.max(STRAYS_MOST_LATELY)) >= enough
                || chernoff(f64::from(longer.refused), f64::from(longer.granted) * share.max(STRAYS_MOST)) >= enough;
        if is_refuted {
            self.forget_best(now);
        }
        let longest = self.history.since(ago(8).max(self.left_at));
        let share_now = f64::from(longest.refused) / f64::from(longest.granted.max(20));
        let part = (0.98 - 2.0 * (share_now - share).max(0.0)).clamp(0.8, 0.95);
        let fresh = answer.granted_at >= account.cut_at();
        let refused_since = self.ignored_since_cut(account).saturating_add(u32::from(fresh));
        let needed = if self.share > 0 { 2 } else { 1 };
        let nothing_let_in = account.let_in_since_cut() <= u32::from(fresh);
        let is_shut =
            fresh && (account.is_half_open() || (!is_normal && !is_late && nothing_let_in && refused_since >= needed));
        if is_late {
            self.late = self.late.max(late);
        }
        let let_in = self.let_in(rules, now, answer.granted_at);
        self.row = self.row.saturating_add(1);
        let has_moved = is_shut && self.row >= ROW;
        let mut least = if is_refuted { MilliRpm::default() } else { per_window(part * best, window) };
        if self.is_young() {
            least = least.max(rules.base.scaled(1, 4));
        }
        if has_moved {
            least = MilliRpm::default();
        } else if is_shut {
            least = account.rate();
        }
        if has_moved || is_refuted {
            if !self.is_young()
                && !is_late
                && self.late <= window.quarter()
                && f64::from(in_window.let_in()) < 0.8 * best
            {
                self.fell_at = now;
            }
            self.young_from = MATURE;
            self.low_evidence = 0;
            self.left_at = now;
            self.test_from = Instant::ZERO;
            self.forget_best(now);
        }
        if is_shut {
            self.low_evidence = 0;
            let since_seen = now > self.shut_seen_at.after(window.times(4));
            if !account.is_half_open() && (self.shut_rate.get() == 0 || since_seen) {
                self.shut_at = now;
                let lately = self.before_at.after(Micros::new(window.get() / 2)) > now;
                self.shut_rate = if lately { account.rate().max(self.before) } else { account.rate() };
            }
            self.shut_seen_at = now;
        }
        let knows_best = !(is_refuted || has_moved || now < self.limit_until || self.late > window.quarter());
        Meaning::Limit(Evidence {
            least,
            is_shut,
            let_in,
            late: self.late,
            best: if knows_best { per_window(best, window) } else { MilliRpm::default() },
            has_fallen: self.fell_at != Instant::ZERO && now < self.fell_at.after(window.times(FALLEN_WINDOWS)),
        })
    }

    /// What was let in, where the meter can't tell: in the first window, or when refusals come late.
    fn let_in(&self, rules: RetreatRules, now: Instant, granted_at: Instant) -> Option<MilliRpm> {
        let window = rules.window;
        let late = now.since(granted_at);
        if self.is_young() && self.has_begun() {
            let age = now.since(self.young_from);
            if age < window && age > Micros::new(window.get() / 20) {
                let sum = self.history.since(self.young_from);
                return Some(per_window(f64::from(sum.let_in()) * ratio(window, age), window));
            }
        }
        if late <= window.quarter() {
            return None;
        }
        let (from, until) = if self.answer_takes.times(2) < late {
            (before(granted_at, window), granted_at)
        } else {
            let late = self.late.max(late);
            (before(now, late.plus(window)), before(now, late))
        };
        Some(per_window(f64::from(self.history.between(from, until).let_in().max(1)), window))
    }

    /// The account is cut: takes note of the rate before.
    pub(crate) fn cut(&mut self, rules: RetreatRules, now: Instant, before: MilliRpm) {
        if before >= self.before || now > self.before_at.after(rules.window.times(CUTS_WINDOWS)) {
            self.before = before;
            self.before_at = now;
        }
    }

    /// The highest rate before the cuts of the last windows, or the present one.
    fn highest(&self, rules: RetreatRules, now: Instant, account: &Retreat) -> MilliRpm {
        let is_recent = now <= self.before_at.after(rules.window.times(CUTS_WINDOWS));
        if is_recent { self.before.max(account.rate()) } else { account.rate() }
    }

    /// A model's limit turns out to have been the cause of the account's cuts: they are taken back.
    pub(crate) fn acquit(&mut self, rules: RetreatRules, now: Instant, account: &mut Retreat) -> Option<Transition> {
        let to = self.highest(rules, now, account);
        self.before = MilliRpm::default();
        account.pardon(rules, now, (to, Instant::ZERO), Reason::ModelRefused)
    }

    /// The gate opens after nothing was let in for a while. If that was long, it was no rate that was exceeded.
    fn opened(&mut self, rules: RetreatRules, now: Instant, account: &mut Retreat, changes: &mut Vec<Transition>) {
        if self.shut_rate.get() > 0 && now > self.shut_at.after(rules.window.times(2)) {
            changes.extend(account.pardon(
                rules,
                now,
                (self.shut_rate.scaled(95, 100), self.paused_until),
                Reason::OpenAgain,
            ));
        }
        self.shut_rate = MilliRpm::default();
    }

    /// Refusals of requests granted since the last cut that have changed nothing.
    fn ignored_since_cut(&self, account: &Retreat) -> u32 {
        if self.ignored_since == account.cut_at() { self.ignored } else { 0 }
    }

    /// Whether nothing was granted in the last window.
    fn is_idle(&self, rules: RetreatRules, now: Instant) -> bool {
        self.history.since(before(now, rules.window)).granted == 0
    }

    /// How long a request must have been on its way to be known not to be refused.
    fn silence(&self, rules: RetreatRules) -> Micros {
        Micros::new(rules.window.get() / 30).max(self.refusal_takes.times(4))
    }

    /// Whether a request was ever granted.
    fn has_begun(&self) -> bool {
        self.young_from != Instant::ZERO
    }

    fn is_young(&self) -> bool {
        self.young_from != MATURE
    }

    fn forget_best(&mut self, now: Instant) {
        self.best = 0;
        self.best_from = now;
        self.low_answers = 0;
        self.low_refused = 0;
    }

    /// The most that was let in in a window of late; at first, as far as it goes.
    fn best(&self, rules: RetreatRules, now: Instant) -> f64 {
        if !self.is_young() {
            return f64::from(self.best);
        }
        if !self.has_begun() {
            return 0.0;
        }
        let window = rules.window;
        let age = now.since(self.young_from).max(window.quarter());
        let most = f64::from(rules.base.get()) / 1e3 * window_of(window);
        (f64::from(self.history.since(self.young_from).let_in()) * ratio(window, age)).min(most)
    }

    /// The most that was let in in a window of late: not in a single one, which may have been a burst.
    fn best_of_late(&self, now: Instant) -> u32 {
        // Each quarter of a window, the window that ended a quarter before, so that its answers are in.
        let ago = self.history.parts_since(before(now, self.late)).saturating_add(2);
        let since_best = self.history.parts_since(self.best_from);
        let samples = (0..SAMPLES).map(|n| n.saturating_mul(2)).filter(|n| *n <= since_best);
        let mut sums: Vec<u32> = samples
            .map(|n| self.history.window_before(ago.saturating_add(n)).let_in())
            .filter(|sum| *sum > 0)
            .collect();
        sums.sort_unstable_by(|a, b| b.cmp(a));
        let at = sums.len().saturating_sub(1).min(BEST);
        sums.get(at).copied().unwrap_or_default()
    }

    /// Each answer brings a part of a refusal that may be ignored.
    fn earn(&mut self) {
        self.credit = self.credit.saturating_add(self.share.saturating_mul(12) / 10_000).min(CREDIT_MOST);
    }
}

fn before(at: Instant, by: Micros) -> Instant {
    Instant::from_micros(at.as_micros().saturating_sub(by.get()))
}

fn ratio(of: Micros, to: Micros) -> f64 {
    of.get() as f64 / to.get().max(1) as f64
}

/// A mean that follows what is new: of each new value a part counts.
fn smoothed(old: Micros, new: Micros, parts: u64) -> Micros {
    let part_of = |span: Micros| span.get().checked_div(parts).unwrap_or(0);
    Micros::new(old.get().saturating_sub(part_of(old)).saturating_add(part_of(new)))
}

/// Stands for a time that never comes.
const MATURE: Instant = Instant::from_micros(u64::MAX);

/// Until so many windows after the first request the best is what was let in since then.
const YOUNG_WINDOWS: u64 = 3;

/// A window is used if this part of the best was let in in it.
const USED: f64 = 0.96;

/// The evidence, in nats, from which more is refused than strays would be; and the shares of strays that are thought
/// possible, in the last half window and in the last two.
const REFUTED: f64 = 4.0;
const REFUTED_YOUNG: f64 = 2.0;
const STRAYS_MOST_LATELY: f64 = 0.10;
const STRAYS_MOST: f64 = 0.12;

/// So many refusals in a row, with nothing let in since the last cut, say that the limit has moved.
const ROW: u32 = 3;

/// After a fall of the limit it is looked for more often for so many windows.
const FALLEN_WINDOWS: u64 = 30;

/// The rate before a cut is remembered for so many windows.
const CUTS_WINDOWS: u64 = 10;

/// Samples of what was let in, each a quarter of a window after the other; the best but so many counts.
const SAMPLES: u64 = 40;
const BEST: usize = 5;

/// Thousandths of refusals that may be ignored at once.
const CREDIT_MOST: u32 = 6_000;

#[cfg(test)]
mod tests;
