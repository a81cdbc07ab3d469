//! The naive model of one limit: a list of requests, a bucket, a list of grants that a window counts, and the rule that
//! what there is goes to the first in order that may go. It knows nothing of workers, lines and wake-ups.
//!
//! One thing it can't know by itself: from when on requests of a model that is slowed may go. That is the rate
//! controller's affair, so it is told ([`List::told_openings`]).

use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelKey;
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::{LANES, Lane, Priority};
use nimgate_core::supply::bucket::TOKEN;
use nimgate_core::units::{Instant, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// How a request ended, and when.
pub type Ends = BTreeMap<u32, (Instant, End)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Granted,
    Expired,
    Full,
    Left,
}

/// What shadow mode said of a request: when, its level, how it would have ended and after how long.
pub type Shadowed = (Instant, Priority, &'static str, Micros);

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub id: u32,
    pub lane: Lane,
    pub arrived: Instant,
    pub model: ModelKey,
}

/// What the bucket has seen, to see it again without one of its grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Passed(Micros),
    Took(u32),
}

pub struct List {
    pub rules: Rules,
    configured: Rules,
    /// Units in the bucket, without those that are owed: below zero while they are more than what is there.
    level: i128,
    seen: Vec<Seen>,
    /// The last grants, that may still be taken back.
    recent: Vec<u32>,
    pub now: Instant,
    pub waiting: Vec<Waiting>,
    /// The sub-window of each grant that the window counts, or has counted a while ago.
    counted: Vec<u64>,
    pub in_flight: BTreeSet<u32>,
    /// From when on requests of a slowed model may go; that is not known from a grant until it is told.
    openings: BTreeMap<ModelKey, Instant>,
    /// How many requests of each model were granted.
    granted: BTreeMap<ModelKey, u32>,
    /// In shadow mode: those who wait and have gone all the same.
    gone: BTreeSet<u32>,
    pub shadowed: Vec<Shadowed>,
    pub ends: Ends,
}

/// Sub-windows in a window with its margin, and those that are remembered.
const CELLS: u64 = 64;
const KEPT: u64 = CELLS + 6;

/// Grants that may be taken back.
const RECENT_MAX: usize = 8;

impl List {
    pub fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            configured: rules,
            level: full(rules),
            seen: Vec::new(),
            recent: Vec::new(),
            now,
            waiting: Vec::new(),
            counted: Vec::new(),
            in_flight: BTreeSet::new(),
            openings: BTreeMap::new(),
            granted: BTreeMap::new(),
            gone: BTreeSet::new(),
            shadowed: Vec::new(),
            ends: Ends::new(),
        }
    }

    /// Lets time pass, from one thing that happens to the next, up to `then`. What is due at `then` itself is not done.
    pub fn pass_to(&mut self, then: Instant) {
        let mut at_once = 0;
        while let Some(next) = self.next().filter(|next| *next < then) {
            at_once = if next > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "the list runs in circles at {next:?}");
            self.refill(next);
            self.settle();
        }
        self.refill(then);
    }

    /// Takes up from when on each slowed model may go, unless the model has more to be told of: `fleet_granted` is how
    /// many of its requests were granted by those who tell.
    pub fn told_openings(&mut self, openings: &BTreeMap<ModelKey, Instant>, fleet_granted: &BTreeMap<ModelKey, u32>) {
        let count = |of: &BTreeMap<ModelKey, u32>, model| of.get(&model).copied().unwrap_or(0);
        let models: BTreeSet<ModelKey> = self.openings.keys().chain(openings.keys()).copied().collect();
        for model in models {
            if count(&self.granted, model) == count(fleet_granted, model) {
                match openings.get(&model) {
                    Some(at) => self.openings.insert(model, *at),
                    None => self.openings.remove(&model),
                };
            }
        }
    }

    pub fn arrive(&mut self, id: u32, priority: Priority, model: ModelKey) {
        self.waiting.push(Waiting { id, lane: Lane::Queued(priority), arrived: self.now, model });
        if self.rules.shadow {
            self.ends.insert(id, (self.now, End::Granted));
            self.gone.insert(id);
        }
        self.settle();
        if self.waiting.last().is_none_or(|last| last.id != id) {
            return;
        }
        let waits = |queued: bool| self.waiting.iter().filter(|waiting| waiting.lane.is_queued() == queued).count();
        let room = self.rules.queue_max as usize;
        if waits(true) <= room {
            return;
        }
        if self.rules.may_fall_back && waits(false) < room {
            self.waiting.last_mut().unwrap().lane = Lane::Fallback(priority);
        } else {
            self.end(id, End::Full);
        }
    }

    pub fn end(&mut self, id: u32, how: End) {
        let at = self.waiting.iter().position(|waiting| waiting.id == id).expect("it waits");
        let waiting = self.waiting.remove(at);
        if self.gone.remove(&id) {
            let outcome = match how {
                End::Granted => Outcome::Forwarded,
                End::Expired => Outcome::RateLimited,
                End::Full => Outcome::QueueFull,
                End::Left => panic!("who has gone can't leave"),
            };
            let waited = self.now.since(waiting.arrived);
            self.shadowed.push((self.now, waiting.lane.priority(), outcome.label(), waited));
            return;
        }
        assert!(self.ends.insert(id, (self.now, how)).is_none());
    }

    /// The stream of a granted request ends.
    pub fn end_stream(&mut self, id: u32) {
        self.in_flight.remove(&id);
    }

    /// Whether the token of a request that was never sent may go back: if the bucket, had it never been taken, would hold
    /// one more. Right only while the rules stay and nothing is owed.
    pub fn may_go_back(&self, id: u32) -> bool {
        self.recent.contains(&id) && self.level_without(Some(id)) == self.level_without(None) + i128::from(TOKEN)
    }

    fn level_without(&self, without: Option<u32>) -> i128 {
        self.seen.iter().fold(full(self.rules), |level, seen| match seen {
            Seen::Passed(time) => (level + self.earned(*time)).min(full(self.rules)),
            Seen::Took(id) if Some(*id) == without => level,
            Seen::Took(_) => level - i128::from(TOKEN),
        })
    }

    /// The request was never sent: the window forgets it, and its token goes back or is lost.
    pub fn take_back(&mut self, id: u32, granted_at: Instant, returned: bool) {
        let cell = self.cell_at(granted_at);
        if let Some(at) = self.counted.iter().position(|counted| *counted == cell) {
            self.counted.swap_remove(at);
        }
        self.recent.retain(|recent| *recent != id);
        if returned {
            self.level = (self.level + i128::from(TOKEN)).min(full(self.rules));
            self.seen.retain(|seen| *seen != Seen::Took(id));
        }
    }

    /// The upstream got `n` requests without a token.
    pub fn charge(&mut self, n: u32) {
        let cell = self.cell_at(self.now);
        self.counted.extend((0..n).filter(|_| self.rules.window > Micros::ZERO).map(|_| cell));
        let token = i128::from(TOKEN);
        let owed = -self.level.div_euclid(token).min(0);
        let there = self.level + owed * token;
        let total = owed + i128::from(n);
        let paid = total.min(there / token);
        // What stays owed beyond a bucketful is forgotten, unless a smaller bucket has come since it was owed.
        let most = owed.max(i128::from(self.rules.capacity));
        self.level = there - (paid + (total - paid).min(most)) * token;
    }

    /// The rules of a configuration, which are new only if they differ from those of the one before.
    pub fn configure(&mut self, rules: Rules) {
        if rules != self.configured {
            self.configured = rules;
            self.replace_rules(rules);
        }
    }

    /// Rules that an operator puts in the place of the configured ones.
    pub fn replace_rules(&mut self, rules: Rules) {
        let before = std::mem::replace(&mut self.rules, rules);
        self.level = self.level.min(full(rules));
        if span(before) != span(rules) {
            // Each grant as late as it may have been.
            let now = self.now;
            let remembered = |cell: &u64, of: Rules| *cell + KEPT > cell_at(of, now);
            let cells = std::mem::take(&mut self.counted).into_iter().filter(|cell| remembered(cell, before));
            let moved = cells.map(|cell| cell_at(rules, end_of(before, cell).min(now)));
            let on = rules.window > Micros::ZERO && before.window > Micros::ZERO;
            self.counted = moved.filter(|cell| on && remembered(cell, rules)).collect();
        }
        if rules.shadow && !before.shadow {
            for waiting in &self.waiting {
                self.ends.insert(waiting.id, (self.now, End::Granted));
                self.gone.insert(waiting.id);
            }
        }
        if !rules.shadow {
            let gone = std::mem::take(&mut self.gone);
            self.waiting.retain(|waiting| !gone.contains(&waiting.id));
        }
    }

    fn refill(&mut self, then: Instant) {
        let time = then.since(self.now);
        self.level = (self.level + self.earned(time)).min(full(self.rules));
        self.now = then;
        match self.seen.last_mut() {
            Some(Seen::Passed(passed)) => *passed = passed.plus(time),
            _ => self.seen.push(Seen::Passed(time)),
        }
        let (rules, now) = (self.rules, self.now);
        self.counted.retain(|cell| *cell + KEPT > cell_at(rules, now));
    }

    fn earned(&self, time: Micros) -> i128 {
        i128::from(time.get()) * i128::from(self.rules.retreat.base.get())
    }

    fn deadline(&self, waiting: &Waiting) -> Instant {
        waiting.arrived.after(self.rules.timeouts.of(waiting.lane))
    }

    fn open_at(&self, model: ModelKey) -> Instant {
        self.openings.get(&model).copied().unwrap_or(Instant::ZERO)
    }

    /// When there is something for someone next, or someone's time is over.
    fn next(&self) -> Option<Instant> {
        let missing = (i128::from(TOKEN) - self.level).max(0).unsigned_abs();
        let token_at = self.now.after(Micros::new(missing.div_ceil(u128::from(self.rules.retreat.base.get())) as u64));
        let room_at = self.room_at().max(self.now);
        let class_at = self.waiting.iter().map(|waiting| self.open_at(waiting.model)).min().unwrap_or(FAR);
        let grant_at = if self.has_slot() { token_at.max(room_at).max(class_at) } else { FAR };
        let deadlines = self.waiting.iter().map(|waiting| self.deadline(waiting));
        deadlines.min().map(|deadline| deadline.min(grant_at).max(self.now))
    }

    fn has_slot(&self) -> bool {
        let cap = self.rules.max_in_flight.filter(|_| !self.rules.shadow);
        cap.is_none_or(|cap| self.in_flight.len() < cap as usize)
    }

    /// When so many grants have left the window that there is room for one; it may be long ago.
    fn room_at(&self) -> Instant {
        let mut leaves: Vec<Instant> = self.counted.iter().map(|cell| self.leaves_at(*cell)).collect();
        leaves.sort();
        let too_many = leaves.len().checked_sub(self.rules.window_rules().quota as usize);
        too_many.filter(|_| self.rules.window > Micros::ZERO).map_or(Instant::ZERO, |last| leaves[last])
    }

    fn leaves_at(&self, cell: u64) -> Instant {
        end_of(self.rules, cell).after(span(self.rules))
    }

    fn cell_at(&self, at: Instant) -> u64 {
        cell_at(self.rules, at)
    }

    /// Does what is due now: first those whose time is over, then what there is to the first in order that may go.
    pub fn settle(&mut self) {
        let over = |waiting: &&Waiting| self.deadline(waiting) <= self.now;
        let mut expired: Vec<_> =
            self.waiting.iter().filter(over).map(|waiting| (self.deadline(waiting), waiting.id)).collect();
        expired.sort();
        expired.into_iter().for_each(|(_, id)| self.end(id, End::Expired));
        while self.level >= i128::from(TOKEN) && self.room_at() <= self.now && self.has_slot() {
            let may_go = self.waiting.iter().filter(|waiting| self.open_at(waiting.model) <= self.now);
            let Some(first) = may_go.min_by_key(|waiting| self.place(waiting)).copied() else { break };
            self.level -= i128::from(TOKEN);
            self.seen.push(Seen::Took(first.id));
            if self.recent.len() == RECENT_MAX {
                self.recent.remove(0);
            }
            self.recent.push(first.id);
            if self.rules.window > Micros::ZERO {
                self.counted.push(self.cell_at(self.now));
            }
            if !self.gone.contains(&first.id) {
                self.in_flight.insert(first.id);
            }
            *self.granted.entry(first.model).or_default() += 1;
            if let Some(opening) = self.openings.get_mut(&first.model) {
                *opening = FAR;
            }
            self.end(first.id, End::Granted);
        }
    }

    /// The order of service: by level, or with aging by arrival and a span for each level; those outside the queue last.
    fn place(&self, waiting: &Waiting) -> (bool, u64, Instant) {
        let Waiting { lane, arrived, .. } = *waiting;
        let level = lane.priority() as u64;
        let rank = match self.rules.aging.filter(|_| lane.is_queued()) {
            Some(span) => arrived.after(span.times(level)).as_micros(),
            None => level,
        };
        (!lane.is_queued(), rank, arrived)
    }

    pub fn lanes(&self) -> [i64; LANES] {
        Lane::ALL.map(|lane| self.waiting.iter().filter(|waiting| waiting.lane == lane).count() as i64)
    }
}

const FAR: Instant = Instant::from_micros(u64::MAX);

fn full(rules: Rules) -> i128 {
    i128::from(rules.capacity) * i128::from(TOKEN)
}

/// How long a grant counts from the end of its sub-window on.
fn span(rules: Rules) -> Micros {
    if rules.window == Micros::ZERO { Micros::ZERO } else { rules.window.plus(rules.window_margin) }
}

fn cell(rules: Rules) -> u64 {
    span(rules).get().div_ceil(CELLS).max(1)
}

fn cell_at(rules: Rules, at: Instant) -> u64 {
    at.as_micros() / cell(rules)
}

fn end_of(rules: Rules, at: u64) -> Instant {
    Instant::from_micros((at + 1) * cell(rules))
}
