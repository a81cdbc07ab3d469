//! The board: what each worker has waiting, so that any worker can tell whose turn it is.
//!
//! Only workers with someone waiting have a slot. A worker that does not take what is due to it within a grace time is
//! marked and passed over until it speaks again; one that has not spoken for long is taken off the board, so that
//! nobody waits for a ghost.

use crate::priority::{LANES, Lane};
use crate::queue::{LaneHead, OrderKey, best};
use crate::units::{Instant, Micros, WorkerId};

/// One worker's line on the board.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Whose line it is.
    pub worker: WorkerId,
    /// When that worker last wrote it.
    pub seen_at: Instant,
    /// Whether the worker let a token pass that was due to it, and has not spoken since.
    pub passed_over: bool,
    /// What waits there, lane by lane.
    pub lanes: [LaneHead; LANES],
}

/// The lines of all workers that have someone waiting.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Board {
    slots: Vec<Slot>,
}

impl Board {
    pub(crate) fn from_slots(slots: Vec<Slot>) -> Self {
        Self { slots }
    }

    /// The lines, in no particular order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Writes `worker`'s line anew and says whether that changed what others read there. A worker with nobody waiting
    /// has no line. A line that says the same as before is refreshed only now and then, so that a worker that merely
    /// looks does not make others' writes fail.
    pub fn publish(&mut self, worker: WorkerId, lanes: [LaneHead; LANES], now: Instant) -> bool {
        let nobody = lanes.iter().all(|head| head.count == 0);
        match self.slots.iter().position(|slot| slot.worker == worker) {
            Some(at) if nobody => {
                self.slots.swap_remove(at);
                true
            }
            Some(at) => {
                let Some(slot) = self.slots.get_mut(at) else {
                    return false;
                };
                let stale = now.since(slot.seen_at) >= REFRESH_EVERY;
                let changed = slot.lanes != lanes || slot.passed_over || stale;
                if changed {
                    *slot = Slot { worker, seen_at: now, passed_over: false, lanes };
                }
                changed
            }
            None if nobody => false,
            None => {
                if self.slots.len() >= WORKERS_MAX {
                    return false;
                }
                self.slots.push(Slot { worker, seen_at: now, passed_over: false, lanes });
                true
            }
        }
    }

    /// Takes off the lines of workers that have been silent too long; says whether there were any.
    pub fn expire(&mut self, now: Instant, except: WorkerId) -> bool {
        let before = self.slots.len();
        self.slots.retain(|slot| slot.worker == except || now.since(slot.seen_at) < SLOT_TTL);
        self.slots.len() != before
    }

    /// Marks a worker as passed over.
    pub fn pass_over(&mut self, worker: WorkerId) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.worker == worker) {
            slot.passed_over = true;
        }
    }

    /// The worker other than `except` whose foremost request is the best, and that request's place. Workers that were
    /// passed over don't count.
    pub fn best_except(
        &self,
        except: Option<WorkerId>,
        now: Instant,
        aging: Option<Micros>,
    ) -> Option<(OrderKey, WorkerId)> {
        self.slots
            .iter()
            .filter(|slot| Some(slot.worker) != except && !slot.passed_over)
            .filter_map(|slot| best(&slot.lanes, now, aging).map(|(key, _)| (key, slot.worker)))
            .min()
    }

    /// How many wait in each lane, over all workers.
    pub fn totals(&self) -> [u32; LANES] {
        let mut totals = [0u32; LANES];
        for slot in &self.slots {
            for (total, head) in totals.iter_mut().zip(&slot.lanes) {
                *total = total.saturating_add(head.count);
            }
        }
        totals
    }

    /// How many wait in the queue (`queued`) or outside it, over all workers except one.
    pub fn waiting(&self, queued: bool, except: WorkerId) -> u64 {
        self.slots
            .iter()
            .filter(|slot| slot.worker != except)
            .map(|slot| waiting(&slot.lanes, queued))
            .fold(0, u64::saturating_add)
    }
}

/// How many wait in the queue (`queued`) or outside it, in these lanes.
pub fn waiting(lanes: &[LaneHead; LANES], queued: bool) -> u64 {
    Lane::ALL
        .into_iter()
        .zip(lanes)
        .filter(|(lane, _)| lane.is_queued() == queued)
        .map(|(_, head)| u64::from(head.count))
        .fold(0, u64::saturating_add)
}

/// More workers than any Envoy runs; a bound on the size of the record. Workers past it still get tokens, but only
/// when nobody on the board is ahead of them.
pub const WORKERS_MAX: usize = 256;

/// How often a worker with someone waiting writes its line even though nothing changed.
pub const REFRESH_EVERY: Micros = Micros::from_secs(1);

/// How long a worker with someone waiting may be silent before its line is taken off. Its timer is armed for at most
/// [`crate::scheduler::HEARTBEAT`], so it has missed several turns by then.
pub const SLOT_TTL: Micros = Micros::from_secs(10);
