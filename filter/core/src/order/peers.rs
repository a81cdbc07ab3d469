//! What each worker has waiting, as the others see it: one line for each worker, so that any worker can tell who is next
//! in the whole process.
//!
//! Only workers that have someone waiting, or requests in flight that count, have a line. A line says how many wait in
//! each lane and the head of line of each class of models, whether it may go now or not: that is read from the ledger, by
//! whoever looks. A worker that does not take what is due to it within a grace time is marked and passed over until it
//! writes again; one that has not written for long is removed, so that nobody waits for a dead worker.

use super::key::{OrderKey, OrderRule};
use crate::model::ModelKey;
use crate::priority::{LANES, Lane};
use crate::units::{Instant, Micros, WorkerId};

/// The head of line of one class of a worker's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The model whose own rate decides when it may go; [`ModelKey::NONE`] for all others.
    pub class: ModelKey,
    pub lane: Lane,
    pub arrived: Instant,
}

/// What one worker has, without when it said so.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// How many wait in each lane.
    pub counts: [u32; LANES],
    /// The heads of line, at most one for each class; in the form of version 1 one for each lane.
    pub heads: Vec<Head>,
    /// Requests in flight that count against a cap.
    pub in_flight: u32,
}

impl Load {
    fn is_empty(&self) -> bool {
        self.in_flight == 0 && self.counts.iter().all(|count| *count == 0)
    }

    fn best(&self, rule: OrderRule, open: &impl Fn(ModelKey) -> bool) -> Option<(OrderKey, ModelKey)> {
        let may_go = self.heads.iter().filter(|head| open(head.class));
        may_go.map(|head| (rule.key(head.lane, head.arrived), head.class)).min()
    }
}

/// One worker's line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub worker: WorkerId,
    /// When that worker last wrote it.
    pub seen_at: Instant,
    /// Whether the worker let a token pass that was due to it, and has not written since.
    pub passed_over: bool,
    pub load: Load,
}

/// The best head of line of the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Best {
    pub key: OrderKey,
    pub worker: WorkerId,
    pub class: ModelKey,
}

/// The lines of all workers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peers {
    lines: Vec<Line>,
}

impl Peers {
    pub(crate) fn from_lines(lines: Vec<Line>) -> Self {
        Self { lines }
    }

    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether it knows what waits at a worker.
    pub fn knows(&self, worker: WorkerId) -> bool {
        self.lines.iter().any(|line| line.worker == worker)
    }

    /// Writes `worker`'s line and says whether that changed what others read there. A worker with nothing has no line. A
    /// line that says the same as before is refreshed only now and then, so that a worker that merely looks does not make
    /// others' writes fail.
    pub fn publish(&mut self, worker: WorkerId, load: Load, now: Instant) -> bool {
        match self.lines.iter().position(|line| line.worker == worker) {
            Some(at) if load.is_empty() => {
                self.lines.remove(at);
                true
            }
            Some(at) => {
                let Some(line) = self.lines.get_mut(at) else {
                    return false;
                };
                let stale = now.since(line.seen_at) >= REFRESH_EVERY;
                let changed = line.load != load || line.passed_over || stale;
                if changed {
                    *line = Line { worker, seen_at: now, passed_over: false, load };
                }
                changed
            }
            None if load.is_empty() || self.lines.len() >= WORKERS_MAX => false,
            None => {
                let at = self.lines.partition_point(|line| line.worker < worker);
                self.lines.insert(at, Line { worker, seen_at: now, passed_over: false, load });
                true
            }
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn free_slot(&mut self) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.load.in_flight > 0) {
            line.load.in_flight = line.load.in_flight.saturating_sub(1);
        }
    }

    /// Removes the lines of workers that have been silent too long, and returns them.
    pub(crate) fn expire(&mut self, now: Instant, except: Option<WorkerId>) -> Vec<Line> {
        let is_gone = |line: &Line| Some(line.worker) != except && now.since(line.seen_at) >= LINE_TTL;
        if !self.lines.iter().any(is_gone) {
            return Vec::new();
        }
        let (gone, stay) = core::mem::take(&mut self.lines).into_iter().partition(is_gone);
        self.lines = stay;
        gone
    }

    /// When the first line expires if its worker stays silent.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.lines.iter().map(|line| line.seen_at.after(LINE_TTL)).min()
    }

    /// Marks a worker as passed over.
    pub fn pass_over(&mut self, worker: WorkerId) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.worker == worker) {
            line.passed_over = true;
        }
    }

    /// The best head of line of the workers other than `except`, among the classes that are `open`. Workers that were
    /// passed over don't count.
    pub fn best_except(
        &self,
        except: Option<WorkerId>,
        rule: OrderRule,
        open: impl Fn(ModelKey) -> bool,
    ) -> Option<Best> {
        let others = self.lines.iter().filter(|line| Some(line.worker) != except && !line.passed_over);
        others
            .filter_map(|line| line.load.best(rule, &open).map(|(key, class)| Best { key, worker: line.worker, class }))
            .min()
    }

    /// How many wait in each lane, over all workers.
    pub fn totals(&self) -> [u32; LANES] {
        let mut totals = [0u32; LANES];
        for line in &self.lines {
            for (total, count) in totals.iter_mut().zip(&line.load.counts) {
                *total = total.saturating_add(*count);
            }
        }
        totals
    }

    /// How many wait in the queue (`queued`) or outside it, over all workers except one.
    pub fn waiting(&self, queued: bool, except: WorkerId) -> u64 {
        let others = self.lines.iter().filter(|line| line.worker != except);
        others.map(|line| waiting(&line.load.counts, queued)).fold(0, u64::saturating_add)
    }

    /// Requests in flight that count against a cap, over all workers except one.
    pub fn in_flight(&self, except: Option<WorkerId>) -> u32 {
        let others = self.lines.iter().filter(|line| Some(line.worker) != except);
        others.fold(0, |sum, line| sum.saturating_add(line.load.in_flight))
    }
}

/// How many wait in the queue (`queued`) or outside it.
pub fn waiting(counts: &[u32; LANES], queued: bool) -> u64 {
    let lanes = Lane::ALL.into_iter().zip(counts).filter(|(lane, _)| lane.is_queued() == queued);
    lanes.map(|(_, count)| u64::from(*count)).fold(0, u64::saturating_add)
}

/// More workers than any Envoy runs; a bound on the size of the record. Workers past it still get tokens, but only
/// when nobody with a line is ahead of them.
pub(crate) const WORKERS_MAX: usize = 256;

/// How often a worker writes its line even though nothing changed.
pub(crate) const REFRESH_EVERY: Micros = Micros::from_secs(1);

/// How long a worker may be silent before its line is removed. Its timer is armed for at most
/// [`crate::scheduler::HEARTBEAT`], so it has missed several turns by then.
pub(crate) const LINE_TTL: Micros = Micros::from_secs(10);
