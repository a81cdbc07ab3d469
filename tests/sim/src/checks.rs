//! The invariants, by their numbers, and what must be kept in mind to check them.
//!
//! | number | what must hold |
//! | --- | --- |
//! | I1, I5 | what the ledger says of its tokens is what time brought and grants took, to the token |
//! | I2 | never more tokens than capacity and rate allow, in any window |
//! | I3 | each request ends in exactly one way |
//! | I4 | no grant twice or after the end, no host call on behalf of a stream that is gone |
//! | I6, I7, I9 | priority within a worker, across workers, and first come first served |
//! | I8 | whoever waits is granted or refused in the end, and not long after the deadline |
//! | I10 | a token that is there does not lie idle while someone waits |
//! | I11 | no grant after the deadline, and a refusal soon after it |
//! | I13 | lost swaps end: in a bounded number of tries for one, and in a success for some worker |
//! | I12, I20 | gauges equal a recount, outcomes add up |
//! | I14 | a record that can't be read is begun anew without a gift of tokens |
//! | I15 | a reload is taken up, and brings no tokens |
//! | I17, I18 | I8 and I10 hold after a step back of the clock, and after a crash |
//! | I16 | the retreat keeps its bounds, and its gate |
//! | I19 | what is not metered passes untouched |

use crate::plan::{MILLI, SECOND, Settings, TOKEN};
use crate::state::{Phase, State};
use std::collections::VecDeque;

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    pub number: &'static str,
    pub what: String,
}

/// The last word of a VM on the ledger in its running callback.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit {
    pub number: u64,
    /// The time for which it was decided.
    pub at: u64,
}

/// What the checks keep in mind.
#[derive(Default)]
pub struct Checks {
    pub first: Option<Violation>,
    /// The bucket as it would be if the upstream never slowed anyone down, in the units of [`TOKEN`].
    pub level: i64,
    pub level_at: u64,
    pub ready_since: u64,
    pub rate: i64,
    pub capacity: i64,
    pub rate_max: i64,
    pub rate_min_floor: i64,
    pub capacity_max: i64,
    pub commits: u64,
    /// Since when a token has been there; the bound of I10 counts from here or later.
    pub last_grant: u64,
    pub gate_until: u64,
    pub gate_commit: u64,
    pub throttled: bool,
    /// Whether the ledger is unreadable and nobody has found out yet.
    pub corrupt: bool,
    /// Whether the count on the board may differ from the recount, since a fault has touched the board.
    pub board_touched: bool,
    pub settings: Option<Settings>,
    /// Whether what there was before may be in force still.
    pub lenient: bool,
    /// Whether there has been another configuration, a crash, a step back of the clock, a corrupted record.
    pub reloaded: bool,
    /// When the configuration in use came.
    pub configured_at: u64,
    pub crashed: bool,
    pub stepped_back: bool,
    pub begun_anew: bool,
    /// How many swaps in a row were lost by all workers together.
    pub lost_in_a_row: u64,
    /// When the last grants were made, oldest first.
    pub granted_at: VecDeque<u64>,
    pub worst_idle: u64,
    pub arrivals: [u64; 4],
    pub grants: u64,
}

impl Checks {
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
        }
    }

    /// When the reference bucket has a token.
    fn ready_at(&self) -> u64 {
        let missing = TOKEN - self.level;
        if missing <= 0 { self.ready_since } else { self.level_at + (missing as u64).div_ceil(self.rate.max(1) as u64) }
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
            "I2" if checks.begun_anew => "I14",
            "I2" if checks.reloaded => "I15",
            "I8" | "I10" if checks.stepped_back => "I17",
            "I8" | "I10" if checks.crashed => "I18",
            _ => number,
        }
    }

    /// The order key of a request as the filter defines it: lane with aging, then time of arrival.
    fn key(&self, r: usize, at: u64) -> (u64, u64) {
        let request = &self.requests[r];
        let settings = self.checks.settings.unwrap_or(self.plan.settings);
        let rank = if request.fallback {
            4 + request.priority as u64
        } else {
            let climbed = settings.aging.map_or(0, |step| at.saturating_sub(request.arrived) / step);
            (request.priority as u64).saturating_sub(climbed)
        };
        (rank, request.arrived)
    }

    /// A request was granted by the decision `commit`.
    pub fn check_grant(&mut self, r: usize, commit: Commit) {
        let (worker, phase) = (self.requests[r].worker, self.requests[r].phase);
        if phase != Phase::Waiting {
            self.broken("I4", format!("request {r} is granted while {phase:?}"));
            return;
        }
        self.checks.refill(commit.at);
        self.checks.level -= TOKEN;
        self.checks.last_grant = self.now;
        self.checks.grants += 1;
        if self.checks.level < 0 {
            let level = self.checks.level as f64 / TOKEN as f64;
            self.broken("I2", format!("granting request {r} leaves {level} tokens"));
        }
        self.check_window(r, commit.at);
        if commit.at < self.checks.gate_until && commit.number > self.checks.gate_commit && !self.checks.board_touched {
            self.broken("I16", format!("request {r} is granted while retry-after holds everyone back"));
        }
        let patience = self.plan.settings.patience(self.requests[r].priority, self.requests[r].fallback);
        // A callback that began in time may end a little later, since others run inside it.
        let raced = if self.plan.races > 0 { 20 * MILLI } else { 0 };
        if commit.at >= self.requests[r].arrived + patience + raced + 2 * self.behind_slack() {
            self.broken("I11", format!("request {r} is granted after its deadline"));
        }
        if !self.plan.is_calm() || self.checks.board_touched {
            return;
        }
        let mine = self.key(r, commit.at);
        let better = self.waiting.iter().copied().find(|q| {
            let other = &self.requests[*q];
            *q != r
                && other.published.is_some_and(|published| published < commit.number)
                && (other.worker == worker || !self.desks[other.worker].committed)
                && self.key(*q, commit.at) < mine
        });
        if let Some(q) = better {
            let number = match (self.key(q, commit.at).0 < mine.0, self.requests[q].worker == worker) {
                (true, true) => "I6",
                (true, false) => "I7",
                (false, _) => "I9",
            };
            let (other, theirs) = (self.requests[q].worker, self.key(q, commit.at));
            self.broken(
                number,
                format!("request {r} of worker {worker} {mine:?} goes before {q} of worker {other} {theirs:?}"),
            );
        }
    }

    /// No window of the configured length holds more grants than its quota, at the highest rate there has been.
    fn check_window(&mut self, r: usize, at: u64) {
        let window = self.plan.settings.window;
        if window == 0 {
            return;
        }
        let granted = &mut self.checks.granted_at;
        granted.push_back(at);
        while granted.front().is_some_and(|first| first + 2 * window <= at) {
            granted.pop_front();
        }
        let quota = (self.checks.rate_max as u64 * window / (60 * SECOND)).max(1);
        let count = granted.iter().filter(|other| **other + window > at).count();
        // Of what was granted before a record broke, nothing is known.
        if count as u64 > quota && !self.checks.begun_anew {
            self.broken("I2", format!("request {r} is grant {count} in a window that may hold {quota}"));
        }
    }

    /// Until when the window may hold everyone back.
    fn window_open_at(&self) -> u64 {
        let settings = &self.plan.settings;
        if settings.window == 0 || (self.checks.granted_at.len() as u64) < settings.quota() {
            return 0;
        }
        let from = self.checks.granted_at.len() - settings.quota() as usize;
        self.checks.granted_at[from] + settings.window + settings.window / 40
    }

    /// By how much times may be off because the clock stepped back.
    pub fn behind_slack(&self) -> u64 {
        2 * self.plan.faults.clock
    }

    /// How late anything may be that no fault of its own worker delays.
    pub fn lateness(&self) -> u64 {
        let f = &self.plan.faults;
        // Workers that don't come are passed over one after the other.
        let graces = 35 * MILLI * self.plan.workers as u64;
        let base = if self.plan.is_calm() { 20 * MILLI } else { 60 * MILLI + graces };
        let reload = if f.reloads { 150 * MILLI } else { 0 };
        let refusals = if f.refusals > 0 { 100 * MILLI } else { 0 };
        base + refusals + 3 * f.late_ticks + 4 * self.behind_slack() + reload
    }

    /// Looks, just before time goes on to `until`, whether anything has been let lie too long.
    pub fn check_waiting(&mut self, until: u64) {
        let lateness = self.lateness();
        let mut since = u64::MAX;
        let mut late = None;
        for r in &self.waiting {
            let request = &self.requests[*r];
            let awake = self.desks[request.worker].stalled_until;
            if request.published.is_some() {
                since = since.min(request.published_at.max(awake));
            }
            let deadline = request.arrived + self.plan.settings.patience(request.priority, request.fallback);
            if until > deadline.max(awake) + lateness {
                late = Some(*r);
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
        // While an older configuration may be in force its rate is not known; nor what a clock that stepped back has cost at
        // an older rate.
        let unsure = self.checks.lenient || (self.checks.stepped_back && self.checks.reloaded);
        if since != u64::MAX && !self.checks.throttled && !self.checks.corrupt && !unsure {
            let from = since
                .max(self.checks.configured_at)
                .max(self.window_open_at())
                .max(self.checks.ready_at())
                .max(self.checks.last_grant);
            let idle = until.saturating_sub(from);
            self.checks.worst_idle = self.checks.worst_idle.max(idle);
            // While a new configuration came, time may have been paid for at the old rate or at the new one.
            let unsure = if self.checks.reloaded {
                6 * MILLI * self.checks.rate_max as u64 / self.checks.rate as u64
            } else {
                0
            };
            if idle > lateness + unsure {
                self.broken("I10", format!("a token lies idle for {idle} us while someone waits"));
            }
        }
    }

    /// The gauges against a recount. Exact when no fault has touched the board.
    pub fn check_gauges(&mut self) {
        let mut total = 0;
        for priority in PRIORITIES {
            let value = self.metric(&format!("limit=.=nvidia;.;priority=.={priority};.;nimgate_queue_length"));
            if value < 0 {
                self.broken("I12", format!("the queue length of {priority} is {value}"));
            }
            total += value;
        }
        let outside = self.metric("limit=.=nvidia;.;nimgate_fallback_length");
        if outside < 0 {
            self.broken("I12", format!("the number outside the queue is {outside}"));
        }
        if !self.plan.is_calm() || self.checks.board_touched {
            return;
        }
        let untold: i64 = self.desks.iter().map(|desk| desk.untold).sum();
        let recount = self.waiting.len() as i64 + untold;
        if total + outside != recount {
            let what = format!("gauges say {total} + {outside} wait, a recount says {recount}");
            self.broken("I12", what);
        }
        let queue_max = self.plan.settings.queue_max as i64;
        if total > queue_max || outside > queue_max {
            self.broken("I12", format!("{total} in the queue and {outside} outside it, of {queue_max} each"));
        }
    }

    /// What the ledger says of its tokens against the reference bucket, to the token. A fault-free run whose upstream has
    /// never refused anything has one rate, so both must agree exactly.
    pub fn check_tokens(&mut self) {
        let Some((available, at, number)) = self.looked.take() else { return };
        let unknown = self.checks.throttled || self.checks.board_touched || self.plan.settings.window > 0;
        if !self.plan.is_calm() || unknown || number != self.checks.commits {
            return;
        }
        self.checks.refill(at);
        let expected = self.checks.level.div_euclid(TOKEN);
        if available > expected {
            self.broken("I1", format!("the ledger has {available} tokens, of {expected} that can be there"));
        } else if available < expected {
            self.broken("I5", format!("the ledger has {available} tokens, so of {expected} some went to nobody"));
        }
    }

    /// A gauge was set.
    pub fn check_record(&mut self, name: &str, value: i64) {
        let checks = &self.checks;
        if name.ends_with("nimgate_effective_rpm") && (value > checks.rate_max || value < checks.rate_min_floor) {
            let what = format!("the effective rate is {value}");
            self.broken("I16", what);
        } else if name.ends_with("nimgate_tokens_available") && value > checks.capacity_max {
            self.broken("I12", format!("{value} tokens are in the bucket"));
        }
    }
}

/// The levels as metrics name them.
pub const PRIORITIES: [&str; 4] = ["urgent", "high", "normal", "low"];
