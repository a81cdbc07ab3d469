//! Version 1 of the record, to the byte as the module of commit fc05618 reads and writes it: little-endian, fixed fields,
//! then one fixed-size line for each worker.
//!
//! This form can't grow: that module takes any other length for a damaged record and begins again from nothing. So nothing here may
//! change; `filter/core/tests/golden/` holds records that its code wrote.
//!
//! Two places are free, because that module reads what stands there only if a flag before it says so, and writes zero
//! otherwise: the time of a contender that is none, and the time of a turn that is due to nobody. [`Record::mark`] lies
//! there. Whatever that module writes is without a mark, which tells its writes from ours.

use super::super::form::{Form, known_to_version_1};
use super::super::in_use::InUse;
use super::super::ledger::{Due, Ledger, Served};
use super::super::rules::Rules;
use super::super::rules::Timeouts;
use crate::control::controller::RateController;
use crate::control::rate::curve::Curve;
use crate::control::rate::meter::{self, Cell, Meter};
use crate::control::rate::{Phase, Retreat, RetreatRules};
use crate::control::scope::{Models, SEEN_MAX, SLOWED_MAX, Seen, Slowed};
use crate::model::{ModelKey, ModelName, NAME_BYTES};
use crate::order::peers::{self, Head, Load, Peers, WORKERS_MAX};
use crate::priority::{LANES, Lane, Priority};
use crate::supply::bucket::Bucket;
use crate::supply::reservation::RecentGrants;
use crate::supply::window::{KEPT, WindowGuard};
use crate::units::{Instant, Micros, MilliRpm, RATE_RPM_MAX, WorkerId};

/// What stands in the record's first four bytes, and in its key.
pub const VERSION: u32 = 1;

/// The key under which a module of version 1 looks for the ledger of a limit.
pub fn key(limit: &str) -> String {
    format!("nimgate/{VERSION}/ledger/{limit}")
}

/// All that a record of version 1 holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The active rules.
    pub rules: Rules,
    /// Those of the configuration.
    pub configured: Rules,
    /// How many times rules have become active.
    pub epoch: u32,
    /// The number of the newest connection.
    pub newest: u64,
    /// A configuration that is not in use and got a new connection.
    pub contender: Option<Contender>,
    /// The bucket: its level, when it was last refilled, since when a token has been there.
    pub bucket: (u64, Instant, Instant),
    /// The window: its length, the number of the newest sub-window.
    pub window: (Micros, u64),
    /// The grants of each sub-window.
    pub counts: [u32; KEPT],
    /// Tokens spent before there was one.
    pub owed: u32,
    /// The account's rate controller.
    pub account: Retreat,
    /// What is known of single models.
    pub models: Models,
    /// What was granted, by level.
    pub served: [Served; Priority::ALL.len()],
    /// Whose request is the best.
    pub due: Option<Due>,
    /// What waits at the workers.
    pub lines: Vec<LineV1>,
    /// A word to the next reader that no module of version 1 keeps when it writes; zero is none. It is lost if there
    /// are both a contender and a turn that is due.
    pub mark: u64,
}

/// What waits at one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineV1 {
    /// Whose line it is.
    pub worker: WorkerId,
    /// Whether the worker let a token pass that was due to it, and has not written since.
    pub passed_over: bool,
    /// When it last wrote.
    pub seen_at: Instant,
    /// How many wait in each lane, and since when the first of them.
    pub lanes: [(u32, Instant); LANES],
}

/// A configuration that is not in use and got a new connection. Modules of this version don't ask connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contender {
    /// Since when it has been known.
    pub since: Instant,
    /// The connection's number.
    pub connection: u64,
}

/// The time of a head of line that may not go yet.
pub const NEVER: Instant = Instant::from_micros(u64::MAX);

impl From<&Ledger> for Record {
    fn from(ledger: &Ledger) -> Self {
        let (window, cell, counts) = ledger.guard.parts();
        Self {
            rules: known_to_version_1(ledger.rules()),
            configured: known_to_version_1(ledger.configured()),
            epoch: ledger.epoch(),
            // No connection is newer than this one, so version 1 brings no former configuration back by itself.
            newest: u64::MAX,
            contender: None,
            bucket: ledger.bucket.parts(),
            window: (window, cell),
            counts: *counts,
            owed: ledger.owed,
            account: ledger.controller.account,
            models: ledger.controller.models.clone(),
            served: ledger.served,
            due: ledger.due,
            lines: ledger.peers.lines().iter().filter_map(LineV1::of).collect(),
            mark: 0,
        }
    }
}

impl LineV1 {
    /// `None` if nobody waits there.
    pub fn of(line: &peers::Line) -> Option<Self> {
        let peers::Line { worker, seen_at, passed_over, ref load } = *line;
        let mut lanes = [(0, Instant::ZERO); LANES];
        for ((lane, count), place) in Lane::ALL.into_iter().zip(load.counts).zip(&mut lanes) {
            // Whether a model with its own rate may go is for its worker to say, with its next write.
            let heads = load.heads.iter().filter(|head| head.lane == lane && head.class == ModelKey::NONE);
            *place =
                (count, if count == 0 { Instant::ZERO } else { heads.map(|head| head.arrived).min().unwrap_or(NEVER) });
        }
        lanes.iter().any(|(count, _)| *count > 0).then_some(Self { worker, passed_over, seen_at, lanes })
    }
}

impl From<LineV1> for peers::Line {
    fn from(line: LineV1) -> Self {
        let lanes = Lane::ALL.into_iter().zip(line.lanes);
        let may_go = lanes.filter(|(_, (count, since))| *count > 0 && *since != NEVER);
        Self {
            worker: line.worker,
            seen_at: line.seen_at,
            passed_over: line.passed_over,
            load: Load {
                counts: line.lanes.map(|(count, _)| count),
                heads: may_go.map(|(lane, (_, arrived))| Head { class: ModelKey::NONE, lane, arrived }).collect(),
                in_flight: 0,
            },
        }
    }
}

impl From<Record> for Ledger {
    fn from(record: Record) -> Self {
        let (level, updated_at, ready_since) = record.bucket;
        let (window, newest) = record.window;
        let mut lines: Vec<peers::Line> = record.lines.into_iter().map(peers::Line::from).collect();
        lines.sort_by_key(|line| line.worker);
        Self {
            form: Form::One,
            in_use: InUse::from_parts(record.rules, record.configured, record.epoch),
            bucket: Bucket::from_parts(level, updated_at, ready_since),
            guard: WindowGuard::from_parts(window, newest, record.counts).as_in_version_1(),
            owed: record.owed,
            recent: RecentGrants::default(),
            controller: RateController { account: record.account, models: record.models, strays: None },
            due: record.due,
            freed_at: Instant::ZERO,
            served: record.served,
            shown: None,
            peers: Peers::from_lines(lines),
        }
    }
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Writer(Vec::with_capacity(FIXED_BYTES.saturating_add(self.lines.len().saturating_mul(LINE_BYTES))));
        out.u32(VERSION);
        out.rules(&self.rules);
        out.rules(&self.configured);
        out.u32(self.epoch);
        out.u64(self.newest);
        let contender = self.contender.filter(|contender| contender.connection > 0);
        out.u64(contender.map_or(0, |contender| contender.connection));
        out.instant(contender.map_or(Instant::from_micros(self.mark), |contender| contender.since));
        let (level, updated_at, ready_since) = self.bucket;
        out.u64(level);
        out.instant(updated_at);
        out.instant(ready_since);
        let (window, newest) = self.window;
        out.u64(window.get());
        out.u64(newest);
        self.counts.iter().for_each(|count| out.u32(*count));
        out.u32(self.owed);
        out.retreat(&self.account);
        out.models(&self.models);
        for served in self.served {
            out.u64(served.count);
            out.u64(served.waited.get());
        }
        out.u32(u32::from(self.due.is_some()));
        out.u32(self.due.map_or(0, |due| due.worker.0));
        out.instant(self.due.map_or(Instant::from_micros(self.mark), |due| due.since));
        out.u32(u32::try_from(self.lines.len()).unwrap_or(u32::MAX));
        for line in &self.lines {
            out.u32(line.worker.0);
            out.u32(u32::from(line.passed_over));
            out.instant(line.seen_at);
            for (count, since) in line.lanes {
                out.u32(count);
                out.instant(since);
            }
        }
        out.0
    }

    /// Reads a record; `None` when it is not one. It never panics, and a value out of range refuses the whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.u32()? != VERSION {
            return None;
        }
        let (rules, configured) = (from.rules()?, from.rules()?);
        let epoch = from.u32()?;
        let newest = from.u64()?;
        let contender = Contender { connection: from.u64()?, since: from.instant()? };
        let contender = Some(contender).filter(|contender| contender.connection > 0).ok_or(contender.since);
        let bucket = (from.u64()?, from.instant()?, from.instant()?);
        let window = (Micros::new(from.u64()?), from.u64()?);
        let mut counts = [0; KEPT];
        for count in &mut counts {
            *count = from.u32()?;
        }
        let owed = from.u32()?;
        let (account, models) = (from.retreat()?, from.models()?);
        let mut served = [Served::default(); Priority::ALL.len()];
        for served in &mut served {
            *served = Served { count: from.u64()?, waited: Micros::new(from.u64()?) };
        }
        let due = {
            let (known, worker, since) = (from.flag()?, WorkerId(from.u32()?), from.instant()?);
            if known { Ok(Due { worker, since }) } else { Err(since) }
        };
        let count = from.u32()? as usize;
        if count > WORKERS_MAX || from.0.len() != count.checked_mul(LINE_BYTES)? {
            return None;
        }
        let mut lines = Vec::with_capacity(count);
        while !from.0.is_empty() {
            lines.push(LineV1 {
                worker: WorkerId(from.u32()?),
                passed_over: from.flag()?,
                seen_at: from.instant()?,
                lanes: {
                    let mut lanes = [(0, Instant::ZERO); LANES];
                    for head in &mut lanes {
                        *head = (from.u32()?, from.instant()?);
                    }
                    lanes
                },
            });
        }
        let mark = contender.err().or(due.err()).map_or(0, Instant::as_micros);
        let (contender, due) = (contender.ok(), due.ok());
        Some(Self {
            rules,
            configured,
            epoch,
            newest,
            contender,
            bucket,
            window,
            counts,
            owed,
            account,
            models,
            served,
            due,
            lines,
            mark,
        })
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
        self.u64(rules.timeouts.low.get());
        self.u64(rules.timeouts.others.get());
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
            timeouts: Timeouts { low: Micros::new(self.u64()?), others: Micros::new(self.u64()?), ..Timeouts::DEFAULT },
            may_fall_back: self.flag()?,
            shadow: self.flag()?,
            ..Rules::DEFAULT
        };
        (capacity > 0).then_some(known_to_version_1(&rules))
    }

    fn rate(&mut self) -> Option<MilliRpm> {
        self.u32().map(MilliRpm::new).filter(|rate| (1..=MilliRpm::from_rpm(RATE_RPM_MAX).get()).contains(&rate.get()))
    }
}

/// Bytes of a line: worker, mark, time, and for each lane a count and a time.
const LINE_BYTES: usize = 4 + 4 + 8 + LANES * 12;

/// Bytes before the lines, for the size of the buffer.
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
