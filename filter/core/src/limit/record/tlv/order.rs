//! Who is next: the workers' lines, whose turn it is, and what was granted by level.

use super::bytes::{Reader, Writer};
use super::once;
use crate::control::scope::{SLOWED_MAX, Slowed};
use crate::limit::ledger::{Due, Served};
use crate::model::ModelKey;
use crate::order::peers::{Head, Line, Load};
use crate::priority::{LANES, Lane, Priority};
use crate::units::{Instant, WorkerId};

mod field {
    //! Fields of a line.
    pub const COUNTS: u8 = 1;
    pub const HEADS: u8 = 2;
    pub const IN_FLIGHT: u8 = 3;
}

/// Heads of line in one worker's line: one for each class, or in the form of version 1 for each lane.
const HEADS_MAX: usize = SLOWED_MAX + 1;

/// In place of a class's number: its key follows.
const ANOTHER_CLASS: u8 = 31;

impl Writer {
    /// One worker's line; `unknown` are the fields that this module does not know.
    pub(super) fn line(&mut self, line: &Line, slowed: &[Slowed], unknown: &[u8]) {
        self.number(u64::from(line.worker.0));
        self.bytes.extend_from_slice(&line.seen_at.as_micros().to_le_bytes());
        self.bytes.push(u8::from(line.passed_over));
        self.section(field::COUNTS, |out| {
            let set = line.load.counts.iter().enumerate().filter(|(_, count)| **count > 0);
            out.bytes.push(set.clone().fold(0, |mask, (lane, _)| mask | 1 << lane));
            set.for_each(|(_, count)| out.number(u64::from(*count)));
        });
        if !line.load.heads.is_empty() {
            self.section(field::HEADS, |out| line.load.heads.iter().for_each(|head| out.head(head, slowed)));
        }
        if line.load.in_flight > 0 {
            self.section(field::IN_FLIGHT, |out| out.number(u64::from(line.load.in_flight)));
        }
        self.bytes.extend_from_slice(unknown);
    }

    /// A slowed model is told by its place among them, and the lane goes into the same byte.
    fn head(&mut self, head: &Head, slowed: &[Slowed]) {
        let lane = u8::try_from(head.lane.index()).unwrap_or(u8::MAX);
        let place = match head.class {
            ModelKey::NONE => Some(0),
            class => slowed.iter().position(|slowed| slowed.key == class).map(|at| at.saturating_add(1)),
        };
        match place.and_then(|place| u8::try_from(place).ok()).filter(|place| *place < ANOTHER_CLASS) {
            Some(place) => self.bytes.push(place << 3 | lane),
            None => {
                self.bytes.push(ANOTHER_CLASS << 3 | lane);
                self.bytes.extend_from_slice(&head.class.0.to_le_bytes());
            }
        }
        self.instant(head.arrived);
    }

    pub(super) fn due(&mut self, due: Due) {
        self.number(u64::from(due.worker.0));
        self.instant(due.since);
    }

    pub(super) fn served(&mut self, all: &[Served]) {
        for served in all {
            self.number(served.count);
            self.number(served.waited.get());
        }
    }
}

impl Reader<'_> {
    pub(super) fn line(&mut self, slowed: &[Slowed], unknown: &mut Vec<u8>) -> Option<Line> {
        let (worker, seen_at) = (WorkerId(self.number_u32()?), Instant::from_micros(self.fixed()?));
        let passed_over = self.flag()?;
        let (mut counts, mut heads, mut in_flight) = (None, None, None);
        while !self.bytes.is_empty() {
            let whole = self.bytes;
            let (tag, mut body) = self.section()?;
            match tag {
                field::COUNTS => {
                    let (&mask, rest) = body.bytes.split_first()?;
                    body.bytes = rest;
                    let mut read = [0; LANES];
                    for (lane, count) in read.iter_mut().enumerate() {
                        if mask >> lane & 1 > 0 {
                            *count = body.number_u32()?;
                        }
                    }
                    body.end()?;
                    once(&mut counts, read)?;
                }
                field::HEADS => {
                    let mut read = Vec::new();
                    while !body.bytes.is_empty() {
                        if read.len() >= HEADS_MAX {
                            return None;
                        }
                        read.push(body.head(slowed)?);
                    }
                    once(&mut heads, read)?;
                }
                field::IN_FLIGHT => {
                    once(&mut in_flight, body.number_u32()?)?;
                    body.end()?;
                }
                _ => {
                    let length = whole.len().saturating_sub(self.bytes.len());
                    unknown.extend_from_slice(whole.get(..length)?);
                }
            }
        }
        let load = Load {
            counts: counts.unwrap_or_default(),
            heads: heads.unwrap_or_default(),
            in_flight: in_flight.unwrap_or_default(),
        };
        Some(Line { worker, seen_at, passed_over, load })
    }

    fn head(&mut self, slowed: &[Slowed]) -> Option<Head> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        let class = match byte >> 3 {
            0 => ModelKey::NONE,
            ANOTHER_CLASS => ModelKey(self.fixed()?),
            place => slowed.get(usize::from(place).saturating_sub(1))?.key,
        };
        Some(Head { class, lane: *Lane::ALL.get(usize::from(byte & 7))?, arrived: self.instant()? })
    }

    pub(super) fn due(&mut self) -> Option<Due> {
        let due = Due { worker: WorkerId(self.number_u32()?), since: self.instant()? };
        self.end()?;
        Some(due)
    }

    pub(super) fn served(&mut self) -> Option<[Served; Priority::ALL.len()]> {
        let mut all = [Served::default(); Priority::ALL.len()];
        for served in &mut all {
            *served = Served { count: self.number()?, waited: self.span()? };
        }
        self.end()?;
        Some(all)
    }
}
