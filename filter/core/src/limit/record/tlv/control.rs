//! What the rate controllers know: the account's, the models that were seen and how they fared, the
//! models that are slowed.

use super::bytes::{Reader, Writer};
use crate::control::books::{BOOKS_MAX, Book, Books};
use crate::control::rate::curve::Curve;
use crate::control::rate::meter::{self, Cell, Meter};
use crate::control::rate::{Phase, Retreat};
use crate::control::scope::{SEEN_MAX, Seen, Slowed};
use crate::model::{ModelKey, ModelName, NAME_BYTES};
use crate::units::{MilliRpm, RATE_RPM_MAX};

impl Writer {
    pub(super) fn retreat(&mut self, retreat: &Retreat) {
        let flags = retreat.phase as u64 | u64::from(retreat.half_open) << 2 | u64::from(retreat.undo) << 3;
        self.number(flags);
        self.number(u64::from(retreat.rate.get()));
        self.instant(retreat.due_at);
        self.instant(retreat.cut_at);
        self.instant(retreat.closed_until);
        self.number(u64::from(retreat.curve.from.get()));
        self.number(u64::from(retreat.curve.ceiling.get()));
        self.number(retreat.curve.plateau.get());
        self.number(retreat.curve.doubling.get());
        self.number(retreat.grown.get());
        self.number(u64::from(retreat.relapses));
        self.number(u64::from(retreat.confirmed));
        self.number(u64::from(retreat.admitted));
        self.instant(retreat.measured_from);
        self.instant(retreat.left_normal_at);
        self.instant(retreat.known_from);
        self.number(u64::from(retreat.learned.get()));
        self.instant(retreat.learned_at);
        self.number(retreat.meter.window.get());
        self.number(retreat.meter.newest);
        self.instant(retreat.meter.counted_to);
        self.sparse(
            retreat
                .meter
                .cells
                .iter()
                .map(|cell| [cell.granted, cell.wasted, cell.answers, cell.refused, cell.allowed]),
        );
    }

    pub(super) fn seen(&mut self, all: &[Seen]) {
        for seen in all {
            self.bytes.extend_from_slice(&seen.key.0.to_le_bytes());
            self.instant(seen.served_at);
            self.instant(seen.refused_at);
            self.number(u64::from(seen.streak));
            self.instant(seen.streak_from);
            self.number(seen.half);
            self.number(u64::from(seen.now));
            self.number(u64::from(seen.before));
        }
    }

    pub(super) fn books(&mut self, books: &Books) {
        for book in &books.books {
            self.bytes.extend_from_slice(&book.key.0.to_le_bytes());
            self.number(u64::from(book.served));
            self.number(u64::from(book.refused));
            self.instant(book.at);
        }
    }

    pub(super) fn slowed(&mut self, slowed: &Slowed) {
        self.bytes.extend_from_slice(&slowed.key.0.to_le_bytes());
        let name = slowed.name.bytes();
        let length = NAME_BYTES.saturating_sub(name.iter().rev().take_while(|byte| **byte == 0).count());
        self.number(length as u64);
        self.bytes.extend_from_slice(name.get(..length).unwrap_or_default());
        self.instant(slowed.next_at);
        self.number(u64::from(slowed.worker_full));
        self.retreat(&slowed.retreat);
    }
}

impl Reader<'_> {
    pub(super) fn retreat(&mut self) -> Option<Retreat> {
        let flags = self.number()?;
        if flags > 0b1111 {
            return None;
        }
        Some(Retreat {
            phase: Phase::from_code(u8::try_from(flags & 0b11).ok()?)?,
            half_open: flags & 0b100 > 0,
            undo: flags & 0b1000 > 0,
            rate: {
                let range = 1..=MilliRpm::from_rpm(RATE_RPM_MAX).get();
                MilliRpm::new(self.number_u32().filter(|rate| range.contains(rate))?)
            },
            due_at: self.instant()?,
            cut_at: self.instant()?,
            closed_until: self.instant()?,
            curve: Curve {
                from: MilliRpm::new(self.number_u32()?),
                ceiling: MilliRpm::new(self.number_u32()?),
                plateau: self.span()?,
                doubling: self.span()?,
            },
            grown: self.span()?,
            relapses: self.number_u32()?,
            confirmed: self.number_u32()?,
            admitted: self.number_u32()?,
            measured_from: self.instant()?,
            left_normal_at: self.instant()?,
            known_from: self.instant()?,
            learned: MilliRpm::new(self.number_u32()?),
            learned_at: self.instant()?,
            meter: {
                let (window, newest, counted_to) = (self.span()?, self.number()?, self.instant()?);
                let mut cells = [Cell::default(); meter::KEPT];
                self.sparse(&mut cells, |cell, [granted, wasted, answers, refused, allowed]: [u32; 5]| {
                    *cell = Cell { granted, wasted, answers, refused, allowed };
                })?;
                Meter { window, newest, counted_to, cells }
            },
        })
    }

    pub(super) fn seen(&mut self) -> Option<Vec<Seen>> {
        let mut all = Vec::with_capacity(SEEN_MAX);
        while !self.bytes.is_empty() {
            if all.len() >= SEEN_MAX {
                return None;
            }
            all.push(Seen {
                key: ModelKey(self.fixed()?),
                served_at: self.instant()?,
                refused_at: self.instant()?,
                streak: self.number_u32()?,
                streak_from: self.instant()?,
                half: self.number()?,
                now: self.number_u32()?,
                before: self.number_u32()?,
            });
        }
        Some(all)
    }

    pub(super) fn books(&mut self) -> Option<Books> {
        let mut books: Vec<Book> = Vec::new();
        while !self.bytes.is_empty() {
            if books.len() >= BOOKS_MAX {
                return None;
            }
            let key = ModelKey(self.fixed()?);
            books.push(Book { key, served: self.number_u32()?, refused: self.number_u32()?, at: self.instant()? });
        }
        Some(Books { books })
    }

    pub(super) fn slowed(&mut self) -> Option<Slowed> {
        Some(Slowed {
            key: ModelKey(self.fixed()?),
            name: {
                let length = usize::try_from(self.number()?).ok()?;
                let (name, rest) = self.bytes.split_at_checked(length)?;
                self.bytes = rest;
                let mut bytes = [0; NAME_BYTES];
                bytes.get_mut(..length)?.copy_from_slice(name);
                ModelName::from_bytes(bytes)
            },
            next_at: self.instant()?,
            worker_full: self.flag()?,
            retreat: self.retreat()?,
        })
    }
}
