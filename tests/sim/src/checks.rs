//! The invariants, by their numbers, and what must be kept in mind to check them.
//!
//! | number | what must hold |
//! | --- | --- |
//! | I1, I5 | what the ledger says of its tokens is what time brought and grants and router retries took, to the token |
//! | I2 | never more tokens than capacity and rate allow, in any window; each request that goes on has its own |
//! | I3 | each request ends in exactly one way |
//! | I4 | no grant twice, after the end or while its connection closes; no host call for a stream that is gone |
//! | I6, I7, I9 | priority within a worker, across workers, and first come first served |
//! | I8 | whoever waits is granted or refused in the end, and not long after the deadline |
//! | I10 | a token that is there does not lie idle while someone waits |
//! | I11 | no grant after the deadline, and a refusal soon after it |
//! | I13 | lost swaps end: in a bounded number of tries for one, and in a success for some worker |
//! | I12, I20 | gauges equal a recount; outcomes, answers and retries add up |
//! | I14 | a record that can't be read is replaced without a gift of tokens; none is unreadable that nobody damaged |
//! | I15 | a reload is taken up, and brings no tokens |
//! | I17, I18 | I8 and I10 hold after a step back of the clock, and after a crash |
//! | I16 | the rate controller acts on refusals and on nothing else, and keeps its bounds and its gate |
//! | I19 | what is not metered passes untouched |
//! | I21 | shadow mode holds nobody and refuses nobody, and accounts for everybody |
//! | I22 | the console answers, tells what the gauges tell, and a change holds from its swap on |

use crate::plan::{MILLI, SECOND, Settings, TOKEN};
use crate::state::{Phase, State};
use std::collections::VecDeque;

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    pub number: &'static str,
    pub what: String,
}

/// The last word of a VM on a limit's ledger in its running callback.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit {
    pub number: u64,
    /// The time for which it was decided.
    pub at: u64,
}

/// What the checks keep in mind of one limit.
#[derive(Default)]
pub struct Limit {
    /// The bucket as it would be if the upstream never slowed anyone down, in the units of [`TOKEN`]; below zero what
    /// router retries have taken in advance.
    pub level: i64,
    pub level_at: u64,
    pub ready_since: u64,
    pub rate: i64,
    pub capacity: i64,
    /// The active settings, and those of the configuration.
    pub settings: Settings,
    pub configured: Settings,
    /// Whether an operator has ever changed them.
    pub posted: bool,
    /// All settings that have been active, and from when on.
    pub versions: Vec<(u64, Settings)>,
    /// When the last change came, and whether one is just coming: then either may be active.
    pub changed_at: u64,
    pub in_flux: bool,
    /// The number of the last change of the ledger.
    pub commit: u64,
    /// That number when the order of requests last changed.
    pub order_changed: u64,
    /// Since when a token has been there; the bound of I10 counts from here or later.
    pub last_grant: u64,
    pub gate_until: u64,
    pub gate_commit: u64,
    /// The number of the last change with an answer that opens the gate, and the latest grant that it may have been for.
    pub opened: (u64, u64),
    /// The same for answers that left the controller at full speed.
    pub pause_until: u64,
    /// Whether the upstream has ever refused anything.
    pub throttled: bool,
    /// Whether some model may be slowed; and how many of its answers are just coming.
    pub slowed: Vec<bool>,
    pub coming: Vec<u32>,
    /// When it was last heard that it no longer is. Time alone may have ended that a while before, but whoever waits for the
    /// model looks when it was to open.
    pub back_since: Vec<u64>,
    /// Whether it has ever been: what a worker says of its head of line may be older than what is known of the model.
    pub ever_slowed: Vec<bool>,
    /// Since when the gauges have said that the rate is the configured one.
    pub normal_since: Option<u64>,
    /// What the gauges of the state and of the rate say.
    pub is_normal: bool,
    pub is_slower: bool,
    /// When the last refusal came that was no stale one.
    pub cut_at: u64,
    /// Since when one request at a time may be tried, and when the last one was.
    pub half_open: Option<(u64, u64)>,
    /// Whether the ledger is unreadable and nobody has found out yet.
    pub corrupt: bool,
    pub begun_anew: bool,
    /// When the ledger that begins again was first written down, since it was corrupted.
    pub begins_at: Option<u64>,
    /// The last grants, the oldest first: only their tokens can come back.
    pub recent: VecDeque<Recent>,
    /// Changes of the ledger that the reference bucket has not followed yet, the oldest first.
    pub changes: VecDeque<Change>,
    /// How many router retries were charged.
    pub charged: u64,
    /// Until when tokens went to router retries at the most, if none was there.
    pub paid_at: u64,
    /// When requests were sent, oldest first, and from when on the filter knows of them.
    pub sent_at: VecDeque<(u64, Option<usize>)>,
    pub window_from: u64,
    /// How many requests asked for a token.
    pub asked: i64,
}

/// A grant whose token may come back.
#[derive(Clone, Copy, Debug)]
pub struct Recent {
    /// To whom, if that is known.
    pub request: Option<usize>,
    /// The highest level of the bucket since.
    pub peak: i64,
}

/// What a change of a ledger did to its bucket, in this order. How many it granted is known when the callback is over that
/// made it, and others may have made changes by then.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub by: usize,
    pub commit: Commit,
    pub is_over: bool,
    pub begins_anew: bool,
    /// Another rate and capacity.
    pub flow: Option<(i64, i64)>,
    /// Requests whose tokens may come back.
    pub unused: Vec<usize>,
    pub retries: u64,
    /// Grants, each with its request if that is known.
    pub grants: Vec<Option<usize>>,
}

/// What the checks keep in mind.
#[derive(Default)]
pub struct Checks {
    pub first: Option<Violation>,
    pub limits: Vec<Limit>,
    pub commits: u64,
    /// Whether the count on the workers' lines may differ from the recount, since a fault has touched them.
    pub lines_touched: bool,
    /// Whether what there was before may be active still.
    pub lenient: bool,
    /// Whether there has been another configuration, a crash, a step back of the clock.
    pub reloaded: bool,
    /// How many VMs have crashed.
    pub crashes: u64,
    pub stepped_back: bool,
    /// How many swaps in a row were lost by all workers together.
    pub lost_in_a_row: u64,
    /// The worker on which a connection is being closed.
    pub closing: Option<usize>,
    pub worst_idle: u64,
    pub grants: u64,
}

impl Limit {
    /// A limit at the start.
    pub fn new(settings: Settings, models: usize) -> Self {
        let mut limit = Self { configured: settings, normal_since: Some(0), is_normal: true, ..Self::default() };
        (limit.slowed, limit.coming) = (vec![false; models], vec![0; models]);
        limit.back_since = vec![0; models];
        limit.ever_slowed = vec![false; models];
        limit.change(settings, 0);
        limit.level = limit.capacity * TOKEN;
        limit
    }

    /// Lets time pass in the reference bucket.
    pub fn refill(&mut self, at: u64) {
        if at > self.level_at {
            let room = self.capacity * TOKEN;
            let ready_at = self.ready_at();
            if ready_at <= at {
                self.ready_since = ready_at;
            }
            let more = (at - self.level_at).min(1 << 40) as i64;
            self.level = self.level.saturating_add(more.saturating_mul(self.rate)).min(room);
            self.level_at = at;
            let there = self.there();
            self.recent.iter_mut().for_each(|grant| grant.peak = grant.peak.max(there));
        }
    }

    /// What the reference bucket will have at a time if nothing is taken until then.
    fn level_then(&self, at: u64) -> i64 {
        let more = at.saturating_sub(self.level_at).min(1 << 40) as i64;
        let refilled = self.level.saturating_add(more.saturating_mul(self.rate)).min(self.capacity * TOKEN);
        if at > self.level_at { refilled } else { self.level }
    }

    /// What is in the bucket: a debt does not make it emptier than empty.
    fn there(&self) -> i64 {
        if self.level < 0 { self.level.rem_euclid(TOKEN) } else { self.level }
    }

    /// A grant takes a token.
    fn take(&mut self, request: Option<usize>) {
        self.level -= TOKEN;
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { request, peak: self.there() });
    }

    /// A token was granted with a change.
    fn grants(&mut self, number: u64) {
        if let Some(change) = self.changes.iter_mut().find(|change| change.commit.number == number) {
            change.grants.push(None);
        }
    }

    /// The request is known to which the first grant of a change went that had none yet.
    pub fn went_to(&mut self, number: u64, request: usize) {
        let change = self.changes.iter_mut().find(|change| change.commit.number == number);
        if let Some(nameless) = change.and_then(|change| change.grants.iter_mut().find(|grant| grant.is_none())) {
            *nameless = Some(request);
        }
    }

    /// The token of a request that was granted and not sent comes back, unless a bucket that never gave it would have been
    /// cut since. Where the reference bucket only bounds the filter's from above, it loses no more than that cut.
    pub fn take_back(&mut self, request: usize, only_bounds: bool) {
        let Some(at) = self.recent.iter().position(|grant| grant.request == Some(request)) else { return };
        let Some(Recent { peak, .. }) = self.recent.remove(at) else { return };
        let room = (self.capacity * TOKEN - peak).clamp(0, TOKEN);
        let back = if room == TOKEN || only_bounds { room } else { 0 };
        if back == 0 {
            return;
        }
        if self.level < TOKEN {
            self.ready_since = self.level_at;
        }
        if back < TOKEN {
            self.paid_at = self.paid_at.max(self.level_at);
        }
        self.level += back;
        for (place, grant) in self.recent.iter_mut().enumerate() {
            grant.peak = if place >= at { grant.peak + back } else { grant.peak.max(peak + back) };
        }
    }

    /// When the reference bucket has a token.
    fn ready_at(&self) -> u64 {
        let missing = TOKEN - self.level;
        if missing <= 0 { self.ready_since } else { self.level_at + (missing as u64).div_ceil(self.rate.max(1) as u64) }
    }

    /// An answer came that is no refusal, to a request granted at a time: one sent after the last cut opens the gate. Where
    /// the clock has stepped back that is the latest that the filter may take it for.
    pub fn opens(&mut self, granted_at: u64) {
        if granted_at >= self.cut_at {
            (self.half_open, self.gate_until) = (None, 0);
        }
    }

    /// Other settings may become active, and any of those before may be.
    pub fn may_change(&mut self, new: Settings, at: u64) {
        self.refill(at);
        self.versions.push((at, new));
        self.rate = self.most(|settings| settings.rate_rpm) as i64;
        self.capacity = self.most(|settings| settings.capacity) as i64;
        (self.gate_until, self.pause_until, self.half_open) = (0, 0, None);
    }

    /// Other settings become active at once.
    pub fn change(&mut self, new: Settings, at: u64) {
        let (rate, capacity) = self.change_settings(new, at);
        self.set_flow(rate, capacity, at);
    }

    fn set_flow(&mut self, rate: i64, capacity: i64, at: u64) {
        self.refill(at);
        // What is owed still is paid at the new rate.
        let paying = self.paid_at.saturating_sub(at) * self.rate.max(1) as u64 / rate.max(1) as u64;
        self.paid_at = if paying > 0 { at + paying } else { self.paid_at };
        (self.rate, self.capacity) = (rate, capacity);
        self.level = self.level.min(capacity * TOKEN);
    }

    /// Other settings become active; the bucket learns of its rate and capacity, which are answered, by its turn.
    pub fn change_settings(&mut self, new: Settings, at: u64) -> (i64, i64) {
        if new.window != self.settings.window || !new.retreat {
            self.half_open = None;
        }
        if new.window != self.settings.window {
            // Of what lay before the old window nothing is known.
            let known = if self.settings.window == 0 { at } else { at.saturating_sub(self.settings.window) };
            self.window_from = self.window_from.max(known);
        }
        if !new.retreat {
            (self.gate_until, self.pause_until) = (0, 0);
        }
        if new.aging != self.settings.aging {
            self.order_changed = self.commit;
        }
        self.settings = new;
        self.versions.push((at, new));
        self.changed_at = at;
        (new.rate_rpm as i64, new.capacity as i64)
    }

    /// The greatest of a number over all settings that have been active.
    pub fn most(&self, of: impl Fn(&Settings) -> u64) -> u64 {
        self.versions.iter().map(|(_, settings)| of(settings)).max().unwrap_or(0)
    }

    /// Whether a worker may act on shadow mode without having read that it is on: where the host refuses, it has what it knew.
    pub fn is_shadow_unsure(&self, refusals: u64) -> bool {
        refusals > 0 && self.ever(|settings| settings.shadow)
    }

    /// Whether any of the settings that have been active has this.
    pub fn ever(&self, of: impl Fn(&Settings) -> bool) -> bool {
        self.versions.iter().any(|(_, settings)| of(settings))
    }

    /// Router retries take tokens, those that are there and then up to a bucketful of the next ones, of which none is
    /// forgiven that was owed before. Where the reference bucket only bounds the filter's from above, it is not known what
    /// part of a token the filter had when it forgave the rest.
    pub fn charge(&mut self, retries: u64, at: u64, only_bounds: bool, lenient: bool) {
        self.refill(at);
        self.sent_at.extend((0..retries).map(|_| (at, None)));
        self.charged += retries;
        let least = self.versions.iter().map(|(_, settings)| settings.capacity as i64).min().unwrap_or(0);
        let most_owed = if lenient || self.in_flux { least } else { self.capacity };
        if only_bounds {
            let forgiven = (TOKEN - 1 - most_owed * TOKEN).min(self.level);
            self.level = (self.level - retries as i64 * TOKEN).max(forgiven);
        } else {
            let owed = (-self.level.div_euclid(TOKEN)).max(0);
            let there = self.level + owed * TOKEN;
            let total = owed + retries as i64;
            let paid = total.min(there / TOKEN);
            // What stays owed is bounded, not what is paid at once.
            self.level = there - paid * TOKEN - (total - paid).min(most_owed.max(owed)) * TOKEN;
        }
        self.paid_at = self.paid_at.max(at) + retries * TOKEN as u64 / self.rate as u64;
    }
}

impl State {
    /// Notes a broken invariant; the first one ends the run.
    pub fn broken(&mut self, number: &'static str, what: String) {
        let number = self.blamed(number);
        self.note(|| format!("BROKEN {number}: {what}"));
        if self.checks.first.is_none() {
            self.checks.first = Some(Violation { number, what });
        }
    }

    /// The invariant to name: after some faults there is one of its own, which says that the others hold all the same.
    fn blamed(&self, number: &'static str) -> &'static str {
        let checks = &self.checks;
        match number {
            "I2" if checks.limits.iter().any(|limit| limit.begun_anew) => "I14",
            "I2" if checks.reloaded => "I15",
            "I8" | "I10" if checks.stepped_back => "I17",
            "I8" | "I10" if checks.crashes > 0 => "I18",
            _ => number,
        }
    }

    /// The order key of a request as the filter defines it: lane with aging, then time of arrival.
    fn key(&self, r: usize) -> (u64, u64) {
        let request = &self.requests[r];
        let (level, aging) = (request.priority as u64, self.checks.limits[request.limit].settings.aging);
        match (request.fallback, aging) {
            (true, _) => (u64::MAX, 4 + level),
            (false, Some(aging)) => (0, request.arrived + level * aging),
            (false, None) => (level, request.arrived),
        }
    }

    /// The shortest and the longest time that a request may wait, under whatever settings its worker may have known while
    /// it waited until `until`.
    pub fn timeouts(&self, r: usize, until: u64) -> (u64, u64) {
        let request = &self.requests[r];
        let versions = &self.checks.limits[request.limit].versions;
        let slack =
            if self.plan.is_calm() { 10 * MILLI } else { self.lateness() + 3 * SECOND + self.plan.faults.stalls };
        let ends = versions.iter().skip(1).map(|(from, _)| from + slack).chain([u64::MAX]);
        let spans = versions
            .iter()
            .zip(ends)
            .filter(|((from, _), end)| self.checks.lenient || (*from <= until + slack && *end >= request.arrived));
        let waits = spans.map(|((_, settings), _)| settings.timeout(request.priority, request.fallback));
        waits.fold((u64::MAX, 0), |(least, most), wait| (least.min(wait), most.max(wait)))
    }

    /// A token of a limit was granted by the decision `commit`.
    pub fn check_token(&mut self, l: usize, commit: Commit) {
        let limit = &mut self.checks.limits[l];
        limit.grants(commit.number);
        limit.last_grant = self.now;
        self.checks.grants += 1;
        let number = commit.number;
        if number == 0 {
            self.broken("I2", format!("limit {l} grants a token without a change of its ledger"));
        }
        let (touched, limit) = (self.checks.lines_touched, &self.checks.limits[l]);
        // In shadow mode requests go although the gate is shut, and their answers may open it.
        let is_gated = !touched && !limit.ever(|settings| settings.shadow);
        if commit.at < limit.gate_until && number > limit.gate_commit && is_gated {
            self.broken("I16", format!("limit {l} grants while retry-after holds everyone back"));
        }
        self.check_trial(l, commit);
    }

    /// A callback of a VM is over: the reference buckets follow its changes, and those that had to wait for it.
    pub fn follow(&mut self, vm: usize) {
        for l in 0..self.checks.limits.len() {
            let limit = &mut self.checks.limits[l];
            limit.changes.iter_mut().filter(|change| change.by == vm).for_each(|change| change.is_over = true);
            while let Some(change) = self.checks.limits[l].changes.pop_front_if(|change| change.is_over) {
                self.follow_change(l, change);
            }
        }
    }

    fn follow_change(&mut self, l: usize, change: Change) {
        let at = change.commit.at;
        let (exact, lenient) = (self.is_exact(l), self.checks.lenient);
        let limit = &mut self.checks.limits[l];
        limit.refill(at);
        if change.begins_anew {
            (limit.level, limit.level_at) = (0, limit.begins_at.map_or(at, |begins| begins.min(at)));
            limit.refill(at);
            limit.recent.clear();
        }
        if let Some((rate, capacity)) = change.flow {
            limit.set_flow(rate, capacity, at);
        }
        for request in &change.unused {
            limit.take_back(*request, !exact);
            limit.sent_at.retain(|(_, of)| *of != Some(*request));
        }
        // Where the host may have refused to tell of them they may not have been charged.
        if change.retries > 0 && self.plan.faults.refusals == 0 {
            limit.charge(change.retries, at, !exact, lenient);
        }
        self.note(|| format!("limit {l}: {change:?}"));
        for request in change.grants {
            self.checks.limits[l].take(request);
            let level = self.checks.limits[l].level;
            if level < 0 {
                let level = level as f64 / TOKEN as f64;
                self.broken("I2", format!("a grant of limit {l} leaves {level} tokens"));
            }
            self.check_window(l, at, request);
        }
        let tokens = self.checks.limits[l].level as f64 / TOKEN as f64;
        self.note(|| format!("limit {l} has {tokens} tokens"));
    }

    /// Whether a reference bucket has what the filter's has, or may have more: the upstream, a clock or settings of which it
    /// is not known since when they hold may have cost the latter time.
    fn is_exact(&self, l: usize) -> bool {
        let (checks, limit) = (&self.checks, &self.checks.limits[l]);
        !checks.lenient && !checks.stepped_back && !limit.throttled && self.plan.faults.refusals == 0
    }

    /// A callback has granted so many more tokens than it has let requests go.
    pub fn check_pairs(&mut self, vm: usize, l: usize, tokens: i64) {
        let limit = &self.checks.limits[l];
        if limit.is_shadow_unsure(self.plan.faults.refusals) {
            return;
        }
        if tokens < 0 {
            self.broken("I2", format!("worker {vm} lets requests of limit {l} go without tokens"));
        } else {
            self.broken("I5", format!("worker {vm} grants tokens of limit {l} that nobody gets"));
        }
    }

    /// While the gate is half open single requests are tried, a part of a window apart.
    fn check_trial(&mut self, l: usize, commit: Commit) {
        let is_normal = self.limit_metric(l, "nimgate_retreat_state") == 0;
        let limit = &mut self.checks.limits[l];
        let Some((from, last)) = limit.half_open else { return };
        if commit.number <= from {
            return;
        }
        let apart = limit.settings.counting_window() / 8;
        if is_normal || (last > 0 && commit.at + 1 >= last + apart) {
            // It is known that it was no limit; or the one before has not been refused for so long: it is being answered.
            limit.half_open = None;
            return;
        }
        limit.half_open = Some((from, commit.at));
        if last > 0 && commit.at + 1 < last + apart && !limit.ever(|settings| settings.shadow) {
            let what = format!("limit {l} tries two requests within {} us, half open", commit.at.saturating_sub(last));
            self.broken("I16", what);
        }
    }

    /// A request goes on, by the decision `commit`.
    pub fn check_grant(&mut self, r: usize, commit: Commit) {
        let (worker, phase, l) = (self.requests[r].worker, self.requests[r].phase, self.requests[r].limit);
        if phase != Phase::Waiting {
            self.broken("I4", format!("request {r} is granted while {phase:?}"));
            return;
        }
        if self.checks.closing == Some(worker) {
            self.broken("I4", format!("request {r} is granted while connections of its worker close"));
        }
        let (_, timeout) = self.timeouts(r, commit.at);
        // A callback that began in time may end a little later, since others run inside it.
        let raced = if self.plan.races > 0 { 20 * MILLI } else { 0 };
        if commit.at >= self.requests[r].arrived + timeout + raced + 2 * self.behind_slack() {
            self.broken("I11", format!("request {r} is granted after its deadline"));
        }
        if !self.plan.is_calm() || self.checks.lines_touched {
            return;
        }
        let (mine, order_changed) = (self.key(r), self.checks.limits[l].order_changed);
        let better = self.waiting.iter().copied().find(|q| {
            let other = &self.requests[*q];
            *q != r
                && other.limit == l
                && other.published.is_some_and(|published| published < commit.number)
                && (other.worker == worker || !self.desks[other.worker].committed[l])
                // What a worker published as its best was so by the order of then.
                && (other.worker == worker || self.desks[other.worker].published[l] > order_changed)
                && self.may_be_compared(r, *q)
                && self.key(*q) < mine
        });
        if let Some(q) = better {
            let number = match (self.key(q).0 < mine.0, self.requests[q].worker == worker) {
                (true, true) => "I6",
                (true, false) => "I7",
                (false, _) => "I9",
            };
            let (other, theirs) = (self.requests[q].worker, self.key(q));
            self.broken(
                number,
                format!("request {r} of worker {worker} {mine:?} goes before {q} of worker {other} {theirs:?}"),
            );
        }
    }

    /// Whether `q` must not be overtaken by `r`, which goes: its model goes as fast as the account, or is that of `r`, so
    /// that it may go too.
    fn may_be_compared(&self, r: usize, q: usize) -> bool {
        let (r, q) = (&self.requests[r], &self.requests[q]);
        let limit = &self.checks.limits[q.limit];
        let is_slowed = q.model.is_some_and(|model| limit.slowed[model]);
        !is_slowed || r.model == q.model
    }

    /// No window of the configured length holds more requests than its quota when one is granted.
    fn check_window(&mut self, l: usize, at: u64, request: Option<usize>) {
        let lenient = self.checks.lenient || self.checks.limits[l].in_flux;
        let limit = &mut self.checks.limits[l];
        let (window, longest) = (limit.settings.window, limit.most(|settings| settings.window));
        limit.sent_at.push_back((at, request));
        while limit.sent_at.front().is_some_and(|(first, _)| first + 2 * longest <= at) {
            limit.sent_at.pop_front();
        }
        // Of what was granted before a record broke, nothing is known.
        if window == 0 || limit.begun_anew || (lenient && limit.ever(|settings| settings.window != window)) {
            return;
        }
        let quota = if lenient { limit.most(Settings::quota) } else { limit.settings.quota() };
        // One that was granted in the very moment was so before or after.
        let from = limit.window_from;
        let count = limit.sent_at.iter().filter(|(other, _)| other + window > at && *other > from).count();
        if count as u64 > quota {
            self.broken("I2", format!("limit {l} sends {count} in a window that may hold {quota}"));
        }
    }

    /// Until when the window may hold everyone of a limit back.
    fn window_open_at(limit: &Limit) -> u64 {
        let (settings, count) = (&limit.settings, limit.sent_at.len() as u64);
        if settings.window == 0 || count < settings.quota() {
            return 0;
        }
        // What another window has counted may be as much later as its sub-windows are long.
        let carried = limit.most(|settings| settings.window) / 30;
        limit.sent_at[(count - settings.quota()) as usize].0 + settings.window + settings.window / 40 + carried
    }

    /// By how much times may be off because the clock stepped back.
    pub fn behind_slack(&self) -> u64 {
        2 * self.plan.faults.clock
    }

    /// How late anything may be that no fault of its own worker delays.
    pub fn lateness(&self) -> u64 {
        let f = &self.plan.faults;
        // Workers that don't come are passed over one after the other, VMs that crashed among them.
        let graces = 35 * MILLI * (self.plan.workers as u64 + self.checks.crashes);
        let base = if self.plan.is_calm() { 20 * MILLI } else { 60 * MILLI + graces };
        let reload = if f.reloads { 150 * MILLI } else { 0 };
        let refusals = if f.refusals > 0 { 100 * MILLI } else { 0 };
        base + refusals + 3 * f.late_ticks + 4 * self.behind_slack() + reload
    }

    /// How much later than at once a worker learns of other settings.
    fn news(&self) -> u64 {
        let f = &self.plan.faults;
        if f.lost_wakes > 0 || f.refusals > 0 { 2_100 * MILLI } else { 0 }
    }

    /// Looks, just before time goes on to `until`, whether anything has been let lie too long.
    pub fn check_waiting(&mut self, until: u64) {
        let lateness = self.lateness();
        let mut since = [u64::MAX; crate::plan::LIMITS_MAX];
        let mut late = None;
        let mut held = None;
        for r in &self.waiting {
            let request = &self.requests[*r];
            let (awake, limit) = (self.desks[request.worker].stalled_until, &self.checks.limits[request.limit]);
            if request.published_at > 0 && !request.model.is_some_and(|model| limit.slowed[model]) {
                let back = request.model.map_or(0, |model| limit.back_since[model]);
                since[request.limit] = since[request.limit].min(request.published_at.max(awake).max(back));
            }
            let deadline = request.arrived + self.timeouts(*r, until).1;
            if until > deadline.max(awake) + lateness {
                late = Some(*r);
            }
            let from = request.arrived.max(limit.changed_at).max(awake);
            let sure = !self.checks.lenient && !limit.corrupt && self.plan.faults.refusals == 0;
            if limit.settings.shadow && sure && until > from + lateness + self.news() {
                held = Some(*r);
            }
        }
        if let Some(r) = late {
            // Neither granted nor refused: it starves.
            let request = &self.requests[r];
            let what = format!(
                "request {r} of worker {}, arrived {}, fallback {}, still waits long after its deadline ({until})",
                request.worker, request.arrived, request.fallback
            );
            self.broken("I8", what);
        }
        if let Some(r) = held {
            self.broken("I21", format!("request {r} is held in shadow mode"));
        }
        // While an older configuration may be active its rate is not known; nor what a clock that stepped back has cost at
        // an older rate.
        if self.checks.lenient || (self.checks.stepped_back && self.checks.reloaded) {
            return;
        }
        for (l, since) in since.into_iter().enumerate().filter(|(_, since)| *since != u64::MAX) {
            let limit = &self.checks.limits[l];
            let mut from = since
                .max(limit.changed_at + if limit.versions.len() > 1 { self.news() } else { 0 })
                .max(Self::window_open_at(limit))
                .max(limit.ready_at())
                .max(limit.last_grant);
            if limit.paid_at > 0 && !self.is_exact(l) {
                // What the filter has is then known but for a part of a token.
                from = from.max(limit.paid_at.max(limit.last_grant) + TOKEN as u64 / limit.rate as u64);
            }
            if limit.throttled {
                // What the bucket has is not known, but at full speed a token comes in time all the same.
                // Of two workers that set the gauge at once, the one with the older news is not heard.
                let slow = self.limit_metric(l, "nimgate_retreat_state") != 0 || self.checks.stepped_back;
                let Some(normal) = limit.normal_since.filter(|_| !slow) else { continue };
                let token = TOKEN as u64 / limit.rate as u64;
                if limit.versions.len() > 1 {
                    from = from.max(limit.changed_at + token);
                }
                let trial = limit.settings.counting_window() / 8;
                from = from
                    // The slower rate may have left all of a debt.
                    .max(normal + token * (1 + limit.charged.min(limit.most(|settings| settings.capacity))))
                    .max(limit.last_grant + token.max(trial))
                    .max(limit.pause_until)
                    .max(limit.paid_at + token);
            }
            let (rate, most) = (limit.rate as u64, limit.most(|settings| settings.rate_rpm));
            let idle = until.saturating_sub(from);
            // Open: how often a decision that the host refuses is tried again; a lease makes it more host calls.
            let open = self.plan.faults.refusals > 0;
            if limit.corrupt || open {
                continue;
            }
            self.checks.worst_idle = self.checks.worst_idle.max(idle);
            // While a new configuration came, time may have been paid for at the old rate or at the new one.
            let unsure = if self.checks.reloaded { 6 * MILLI * most / rate } else { 0 };
            if idle > lateness + unsure {
                let limit = &self.checks.limits[l];
                let gauges = ["nimgate_tokens_available", "nimgate_effective_rpm", "nimgate_retreat_state"];
                let shown = gauges.map(|name| self.limit_metric(l, name));
                let waiting = self.waiting.iter().copied().filter(|r| self.requests[*r].limit == l);
                let known: Vec<_> = waiting.map(|r| (r, self.requests[r].published_at)).collect();
                let what = format!(
                    "a token of limit {l} lies idle for {idle} us while someone waits: tokens, rate and state {shown:?}, \
                     granted last at {}, retries paid at {}, window open at {}, normal since {:?}, paused until {}, waiting \
                     and since when known {known:?}",
                    limit.last_grant,
                    limit.paid_at,
                    Self::window_open_at(limit),
                    limit.normal_since,
                    limit.pause_until
                );
                self.broken("I10", what);
            }
        }
    }

    /// The gauges against a recount. Exact when no fault has touched the workers' lines.
    pub fn check_gauges(&mut self) {
        for l in 0..self.plan.limits.len() {
            let mut total = 0;
            // The recount after a damaged record sets the gauges, and what another worker adds in that moment is lost.
            let recounted = self.checks.limits[l].begun_anew && self.plan.races > 0;
            for priority in PRIORITIES {
                let value = self.limit_metric(l, &format!("priority=.={priority};.;nimgate_queue_length"));
                if value < 0 && !recounted {
                    self.broken("I12", format!("the queue length of {priority} is {value}"));
                }
                total += value;
            }
            let outside = self.limit_metric(l, "nimgate_fallback_length");
            if outside < 0 && !recounted {
                self.broken("I12", format!("the number outside the queue is {outside}"));
            }
            let limit = &self.checks.limits[l];
            // In shadow mode those are in the queue who have long gone.
            if !self.plan.is_calm() || self.checks.lines_touched || limit.ever(|settings| settings.shadow) {
                continue;
            }
            let untold: i64 = self.desks.iter().map(|desk| desk.untold[l]).sum();
            let recount = self.waiting.iter().filter(|r| self.requests[**r].limit == l).count() as i64 + untold;
            let queue_max = limit.most(|settings| settings.queue_max) as i64;
            if total + outside != recount {
                let what = format!("gauges of limit {l} say {total} + {outside} wait, a recount says {recount}");
                self.broken("I12", what);
            }
            if total > queue_max || outside > queue_max {
                self.broken("I12", format!("{total} in the queue and {outside} outside it, of {queue_max} each"));
            }
        }
    }

    /// What the ledgers say of their tokens against the reference buckets, to the token. A fault-free run whose upstream
    /// has never refused anything has one rate, so both must agree exactly.
    pub fn check_tokens(&mut self) {
        for (l, available, at, number) in std::mem::take(&mut self.looked) {
            let calm = self.plan.is_calm() && !self.checks.lines_touched;
            let limit = &self.checks.limits[l];
            if !calm || limit.throttled || limit.ever(|settings| settings.window > 0) || number != limit.commit {
                continue;
            }
            let expected = limit.level_then(at).div_euclid(TOKEN).max(0);
            if available > expected {
                let what = format!("the ledger of limit {l} has {available} tokens, of {expected} that can be there");
                self.broken("I1", what);
            } else if available < expected {
                let what =
                    format!("the ledger of limit {l} has {available} tokens, so of {expected} some went to nobody");
                self.broken("I5", what);
            }
        }
    }

    /// A gauge of a limit was set; `current` says whether by someone who knew the last change.
    pub fn check_record(&mut self, l: usize, name: &str, value: i64, current: bool) {
        let (now, lenient) = (self.now, self.checks.lenient);
        self.note(|| format!("{name} is {value}"));
        let limit = &mut self.checks.limits[l];
        let (most, base) = (limit.most(|settings| settings.rate_rpm) as i64, limit.settings.rate_rpm as i64);
        let floor = limit.versions.iter().map(|(_, settings)| settings.floor_rpm).min().unwrap_or(0) as i64;
        let exact = current && !lenient && !limit.in_flux && !limit.throttled;
        if name.ends_with("nimgate_effective_rpm") {
            // It may be lower at full speed too, while the filter tries another rate.
            limit.is_slower = value < base;
            if current && limit.is_slower {
                limit.normal_since = None;
            }
            if value > most || value < floor || (exact && value != base) {
                self.broken("I16", format!("the effective rate of limit {l} is {value}, of {base} configured"));
            } else if current && value >= base && limit.is_normal {
                limit.normal_since = limit.normal_since.or(Some(now));
            }
        } else if name.ends_with("nimgate_retreat_state") && current {
            if value == 0 && limit.normal_since.is_none() {
                // What was asked for before is over: the way back has ended, or it was another's fault.
                limit.pause_until = 0;
            }
            limit.normal_since = if value == 0 { limit.normal_since.or(Some(now)) } else { None };
            limit.is_normal = value == 0;
            if value != 0 && exact {
                self.broken("I16", format!("limit {l} is slowed down, and nothing was refused"));
            }
        } else if name.ends_with("nimgate_models_slowed") && current {
            if value == 0 {
                let none_comes = limit.coming.iter().map(|coming| *coming == 0);
                for ((slowed, back), clear) in limit.slowed.iter_mut().zip(&mut limit.back_since).zip(none_comes) {
                    if *slowed && clear {
                        (*slowed, *back) = (false, now);
                    }
                }
            } else if value > limit.slowed.iter().filter(|slowed| **slowed).count() as i64 {
                self.broken("I16", format!("limit {l} slows down {value} models, and fewer were refused"));
            }
        } else if name.ends_with("nimgate_tokens_available") && value > limit.most(|settings| settings.capacity) as i64
        {
            self.broken("I12", format!("{value} tokens are in the bucket of limit {l}"));
        }
    }
}

/// How many of the last grants can be taken back, as the filter has it.
const RECENT_MAX: usize = 8;

/// The levels as metrics name them.
pub const PRIORITIES: [&str; 4] = ["urgent", "high", "normal", "low"];
