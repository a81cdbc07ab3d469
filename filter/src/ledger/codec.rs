//! The ledger's form in shared data: little-endian, fixed fields, then one fixed-size line for each slot.
//!
//! Reading never panics and believes nothing: a record of another version, of an impossible length or with a value out
//! of range is refused as a whole, and the caller starts afresh with an empty bucket.

use super::board::{Board, Slot, WORKERS_MAX};
use super::in_force::{Contender, InForce};
use super::{Due, Ledger, Rules, Served};
use crate::bucket::Bucket;
use crate::models::{ModelKey, ModelName, Models, NAME_BYTES, SEEN_MAX, SLOWED_MAX, Seen, Slowed};
use crate::pace::Pace;
use crate::priority::{LANES, Priority};
use crate::queue::{LaneHead, Patience};
use crate::retreat::curve::Curve;
use crate::retreat::meter::{self, Cell, Meter};
use crate::retreat::{Phase, Retreat, RetreatRules};
use crate::units::{Instant, Micros, MilliRpm, RATE_RPM_MAX, WorkerId};
use crate::window_guard::{KEPT, WindowGuard};

/// The version of the record's form. It is part of the key too, so that old and new code, which live side by side
/// while Envoy drains, don't overwrite each other's records.
pub const VERSION: u32 = 1;

impl Ledger {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Writer(Vec::with_capacity(FIXED_BYTES.saturating_add(self.board.slots().len().saturating_mul(SLOT_BYTES))));
        out.u32(VERSION);
        out.rules(self.rules());
        out.rules(self.configured());
        out.u32(self.epoch());
        let (newest, contender) = self.in_force.parts();
        out.u64(newest);
        out.u64(contender.map_or(0, |contender| contender.connection));
        out.instant(contender.map(|contender| contender.since).unwrap_or_default());
        let (level, updated_at, ready_since) = self.bucket.parts();
        out.u64(level);
        out.instant(updated_at);
        out.instant(ready_since);
        let (window, newest, counts) = self.guard.parts();
        out.u64(window.get());
        out.u64(newest);
        counts.iter().for_each(|count| out.u32(*count));
        out.u32(self.owed);
        out.retreat(&self.pace.account);
        out.models(&self.pace.models);
        for served in self.served {
            out.u64(served.count);
            out.u64(served.waited.get());
        }
        out.u32(u32::from(self.due.is_some()));
        out.u32(self.due.map_or(0, |due| due.worker.0));
        out.instant(self.due.map(|due| due.since).unwrap_or_default());
        out.u32(u32::try_from(self.board.slots().len()).unwrap_or(u32::MAX));
        for slot in self.board.slots() {
            out.u32(slot.worker.0);
            out.u32(u32::from(slot.passed_over));
            out.instant(slot.seen_at);
            for head in slot.lanes {
                out.u32(head.count);
                out.instant(head.since);
            }
        }
        out.0
    }

    /// Reads a record; `None` when it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.u32()? != VERSION {
            return None;
        }
        let (rules, configured) = (from.rules()?, from.rules()?);
        let epoch = from.u32()?;
        let newest = from.u64()?;
        let contender = Contender { connection: from.u64()?, since: from.instant()? };
        let in_force = InForce::from_parts(
            rules,
            configured,
            epoch,
            newest,
            Some(contender).filter(|contender| contender.connection > 0),
        );
        let bucket = Bucket::from_parts(from.u64()?, from.instant()?, from.instant()?);
        let guard = {
            let (window, newest) = (Micros::new(from.u64()?), from.u64()?);
            let mut counts = [0; KEPT];
            for count in &mut counts {
                *count = from.u32()?;
            }
            WindowGuard::from_parts(window, newest, counts)
        };
        let owed = from.u32()?;
        let pace = Pace { account: from.retreat()?, models: from.models()? };
        let mut served = [Served::default(); Priority::ALL.len()];
        for served in &mut served {
            *served = Served { count: from.u64()?, waited: Micros::new(from.u64()?) };
        }
        let due = Some(Due {
            worker: WorkerId({
                let known = from.flag()?;
                let worker = from.u32()?;
                if known { worker } else { u32::MAX }
            }),
            since: from.instant()?,
        })
        .filter(|due| due.worker.0 != u32::MAX);
        let slots = from.u32()? as usize;
        if slots > WORKERS_MAX || from.0.len() != slots.checked_mul(SLOT_BYTES)? {
            return None;
        }
        let mut board = Vec::with_capacity(slots);
        while !from.0.is_empty() {
            board.push(Slot {
                worker: WorkerId(from.u32()?),
                passed_over: from.flag()?,
                seen_at: from.instant()?,
                lanes: {
                    let mut lanes = [LaneHead::default(); LANES];
                    for head in &mut lanes {
                        *head = LaneHead { count: from.u32()?, since: from.instant()? };
                    }
                    lanes
                },
            });
        }
        Some(Self { in_force, bucket, guard, owed, pace, due, served, board: Board::from_slots(board) })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn instant(&mut self, value: Instant) {
        self.u64(value.as_micros());
    }

    fn retreat(&mut self, retreat: &Retreat) {
        self.u32(retreat.phase as u32);
        self.u32(retreat.rate.get());
        self.instant(retreat.due_at);
        self.instant(retreat.cut_at);
        self.instant(retreat.closed_until);
        self.u32(retreat.curve.from.get());
        self.u32(retreat.curve.ceiling.get());
        self.u64(retreat.curve.plateau.get());
        self.u64(retreat.curve.doubling.get());
        self.u64(retreat.grown.get());
        self.u32(retreat.relapses);
        self.u32(retreat.confirmed);
        self.u32(u32::from(retreat.half_open));
        self.u32(u32::from(retreat.undo));
        self.u32(retreat.admitted);
        self.instant(retreat.measured_from);
        self.instant(retreat.left_normal_at);
        self.instant(retreat.known_from);
        self.u32(retreat.learned.get());
        self.instant(retreat.learned_at);
        self.u64(retreat.meter.window.get());
        self.u64(retreat.meter.newest);
        self.instant(retreat.meter.counted_to);
        for cell in &retreat.meter.cells {
            self.u32(cell.granted);
            self.u32(cell.wasted);
            self.u32(cell.answers);
            self.u32(cell.refused);
            self.u32(cell.allowed);
        }
    }

    fn models(&mut self, models: &Models) {
        self.u32(u32::try_from(models.seen.len()).unwrap_or(u32::MAX));
        for seen in &models.seen {
            self.u64(seen.key.0);
            self.instant(seen.served_at);
            self.instant(seen.refused_at);
            self.u32(seen.streak);
            self.instant(seen.streak_from);
            self.u64(seen.half);
            self.u32(seen.now);
            self.u32(seen.before);
        }
        self.u32(u32::try_from(models.slowed.len()).unwrap_or(u32::MAX));
        for slowed in &models.slowed {
            self.u64(slowed.key.0);
            self.0.extend_from_slice(slowed.name.bytes());
            self.instant(slowed.next_at);
            self.u32(u32::from(slowed.worker_full));
            self.retreat(&slowed.retreat);
        }
    }

    fn rules(&mut self, rules: &Rules) {
        self.u32(rules.retreat.base.get());
        self.u32(rules.capacity);
        self.u32(rules.queue_max);
        self.u64(rules.aging.map_or(0, Micros::get));
        self.u32(u32::from(rules.retreat.enabled));
        self.u32(rules.retreat.floor.get());
        self.u64(rules.retreat.retry_after_max.get());
        self.u32(u32::from(rules.retreat.obey_503));
        self.u32(rules.retreat.probe_windows);
        self.u64(rules.retreat.window.get());
        self.u64(rules.window.get());
        self.u64(rules.patience.low.get());
        self.u64(rules.patience.others.get());
        self.u32(u32::from(rules.may_fall_back));
        self.u32(u32::from(rules.shadow));
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn instant(&mut self) -> Option<Instant> {
        self.u64().map(Instant::from_micros)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u32()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn retreat(&mut self) -> Option<Retreat> {
        Some(Retreat {
            phase: Phase::from_code(u8::try_from(self.u32()?).ok()?)?,
            rate: self.rate()?,
            due_at: self.instant()?,
            cut_at: self.instant()?,
            closed_until: self.instant()?,
            curve: Curve {
                from: MilliRpm::new(self.u32()?),
                ceiling: MilliRpm::new(self.u32()?),
                plateau: Micros::new(self.u64()?),
                doubling: Micros::new(self.u64()?),
            },
            grown: Micros::new(self.u64()?),
            relapses: self.u32()?,
            confirmed: self.u32()?,
            half_open: self.flag()?,
            undo: self.flag()?,
            admitted: self.u32()?,
            measured_from: self.instant()?,
            left_normal_at: self.instant()?,
            known_from: self.instant()?,
            learned: MilliRpm::new(self.u32()?),
            learned_at: self.instant()?,
            meter: {
                let (window, newest, counted_to) = (Micros::new(self.u64()?), self.u64()?, self.instant()?);
                let mut cells = [Cell::default(); meter::KEPT];
                for cell in &mut cells {
                    *cell = Cell {
                        granted: self.u32()?,
                        wasted: self.u32()?,
                        answers: self.u32()?,
                        refused: self.u32()?,
                        allowed: self.u32()?,
                    };
                }
                Meter { window, newest, counted_to, cells }
            },
        })
    }

    fn models(&mut self) -> Option<Models> {
        let mut models = Models::default();
        let seen = self.u32()? as usize;
        if seen > SEEN_MAX {
            return None;
        }
        for _ in 0..seen {
            models.seen.push(Seen {
                key: ModelKey(self.u64()?),
                served_at: self.instant()?,
                refused_at: self.instant()?,
                streak: self.u32()?,
                streak_from: self.instant()?,
                half: self.u64()?,
                now: self.u32()?,
                before: self.u32()?,
            });
        }
        let slowed = self.u32()? as usize;
        if slowed > SLOWED_MAX {
            return None;
        }
        for _ in 0..slowed {
            models.slowed.push(Slowed {
                key: ModelKey(self.u64()?),
                name: {
                    let (name, rest) = self.0.split_first_chunk::<NAME_BYTES>()?;
                    self.0 = rest;
                    ModelName::from_bytes(*name)
                },
                next_at: self.instant()?,
                worker_full: self.flag()?,
                retreat: self.retreat()?,
            });
        }
        Some(models)
    }

    fn rules(&mut self) -> Option<Rules> {
        let base = self.rate()?;
        let capacity = self.u32()?;
        let queue_max = self.u32()?;
        let aging = self.u64()?;
        let enabled = self.flag()?;
        let floor = self.rate()?;
        let rules = Rules {
            capacity,
            queue_max,
            aging: (aging > 0).then(|| Micros::new(aging)),
            retreat: RetreatRules {
                enabled,
                base,
                floor,
                retry_after_max: Micros::new(self.u64()?),
                obey_503: self.flag()?,
                probe_windows: self.u32()?,
                window: Micros::new(self.u64()?),
            },
            window: Micros::new(self.u64()?),
            patience: Patience { low: Micros::new(self.u64()?), others: Micros::new(self.u64()?) },
            may_fall_back: self.flag()?,
            shadow: self.flag()?,
        };
        (capacity > 0).then_some(rules)
    }

    fn rate(&mut self) -> Option<MilliRpm> {
        self.u32().map(MilliRpm::new).filter(|rate| (1..=MilliRpm::from_rpm(RATE_RPM_MAX).get()).contains(&rate.get()))
    }
}

/// Bytes of a slot: worker, mark, time, and for each lane a count and a time.
const SLOT_BYTES: usize = 4 + 4 + 8 + LANES * 12;

/// Bytes before the slots.
const FIXED_BYTES: usize = 4
    + 2 * RULES_BYTES
    + 4
    + 24
    + 24
    + 16
    + KEPT * 4
    + 4
    + RETREAT_BYTES
    + MODELS_BYTES
    + 16 * Priority::ALL.len()
    + 16
    + 4;

/// Bytes of the retreat's state: itself, the curve, the meter.
const RETREAT_BYTES: usize = 8 + 24 + 24 + 8 + 56 + 24 + meter::KEPT * 20;

/// Bytes of a set of rules.
const RULES_BYTES: usize = 12 + 8 + 8 + 8 + 16 + 8 + 16 + 4 + 4;

/// Bytes of what is known of models, as long as none is slowed.
const MODELS_BYTES: usize = 4 + SEEN_MAX * 52 + 4;
