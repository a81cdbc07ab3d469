//! Version 2 of the record: sections that say what they are and how long, so that it can grow.
//!
//! ```text
//! record  = "NG" 2 length:u32 section*
//! section = tag:u8 length:varint body
//! line    = fixed part, then fields, each tag:u8 length:varint body      (also a slowed model)
//! rules   = (knob:varint value:varint)*
//! ```
//!
//! Numbers are varints (LEB128), points in time are differences to the bucket's `updated_at`, but eight bytes in lines,
//! of which there may be many and which every decision reads. A meter's empty sub-windows take no room.
//!
//! What a reader does not know it keeps, byte for byte, and writes back: sections, fields of a line or of a slowed
//! model, knobs of a set of rules ([`Kept`]). So an older module of version 2 loses nothing of a newer one's. A tag of
//! [`CRITICAL`] and above is the exception: whoever does not know it must grant nothing. A later form of a known section
//! takes a tag of its own; what follows the fixed part of one that has no fields is refused.
//!
//! Reading never panics and believes nothing: a value out of range, a section twice or one that is missing refuses the
//! whole record, and the caller begins with an empty bucket.

use super::super::in_use::InUse;
use super::super::ledger::{Due, Form, Ledger, Rules, Served};
use crate::control::pace::Pace;
use crate::control::rate::curve::Curve;
use crate::control::rate::meter::{self, Cell, Meter};
use crate::control::rate::{Phase, Retreat};
use crate::control::scope::{ModelKey, ModelName, Models, NAME_BYTES, SEEN_MAX, SLOWED_MAX, Seen, Slowed};
use crate::event::Shown;
use crate::order::peers::{Head, Line, Load, Peers, WORKERS_MAX};
use crate::priority::{LANES, Lane, Priority};
use crate::supply::bucket::Bucket;
use crate::supply::reservation::{RECENT_MAX, Recent, RecentGrants, Ticket};
use crate::supply::window::{KEPT, WindowGuard};
use crate::units::{Instant, Micros, MilliRpm, RATE_RPM_MAX, WorkerId};

/// What stands in the record's third byte, and in its key.
pub const VERSION: u8 = 2;

/// Tags from here on must be understood, or nothing may be granted.
pub const CRITICAL: u8 = 0x80;

/// The most bytes of unknown content that are kept; a record with more is refused.
pub const KEPT_BYTES_MAX: usize = 16 * 1024;

/// The key under which the ledger of a limit lies in this form.
pub fn key(limit: &str) -> String {
    format!("nimgate/{VERSION}/ledger/{limit}")
}

const MAGIC: [u8; 3] = [b'N', b'G', VERSION];

/// The magic and the length of what follows, so that a record that was cut is seen to be.
const HEAD_BYTES: usize = MAGIC.len() + 4;

mod tag {
    //! Never give a number a second meaning.
    pub const RULES: u8 = 1;
    pub const CONFIGURED: u8 = 2;
    pub const IN_USE: u8 = 3;
    pub const BUCKET: u8 = 4;
    pub const WINDOW: u8 = 5;
    pub const OWED: u8 = 6;
    pub const ACCOUNT: u8 = 7;
    pub const SEEN: u8 = 8;
    pub const SLOWED: u8 = 9;
    pub const SERVED: u8 = 10;
    pub const DUE: u8 = 11;
    pub const LINE: u8 = 12;
    pub const RECENT: u8 = 13;
    pub const SLOTS: u8 = 14;
    pub const SHOWN: u8 = 15;
    /// Where the ledger lives. Whoever can't read it must not grant.
    pub const HOME: u8 = super::CRITICAL;
}

mod field {
    //! Fields of a line.
    pub const COUNTS: u8 = 1;
    pub const HEADS: u8 = 2;
    pub const IN_FLIGHT: u8 = 3;
}

/// Why there is no ledger in some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// They are no record.
    Damaged,
    /// A newer module wrote something that must be understood. Grant nothing, and don't write.
    NotUnderstood,
}

/// Where the ledger lives, as far as this record knows. See [`super::super::home`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The state of the move between the two keys.
    pub state: State,
    /// How many times the ledger has moved here. It is also in the frozen record of version 1.
    pub generation: u64,
    /// Until when grants may be made from this record: so long is version 1's record surely closed.
    pub lease: Instant,
    /// What is known of the time before this record. It stays until a worker has taken note.
    pub origin: Origin,
}

/// What is known of the time before a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// The record goes on from others.
    #[default]
    Known = 0,
    /// There was none before.
    New = 1,
    /// The one before could not be read.
    Lost = 2,
}

/// The state of the move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// The ledger lives under the key of version 1; this record holds none.
    #[default]
    Away = 0,
    /// It lives here.
    Here = 1,
    /// It is on its way to the key of version 1. Nobody may grant.
    Leaving = 2,
}

/// What a reader did not know, to be written back as it was.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    sections: Vec<u8>,
    rules: Vec<u8>,
    configured: Vec<u8>,
    lines: Vec<(WorkerId, Vec<u8>)>,
    slowed: Vec<(ModelKey, Vec<u8>)>,
}

impl Kept {
    /// Other rules became active: knobs of the former ones that this module does not know no longer hold.
    pub fn forget_rules(&mut self) {
        self.rules.clear();
        self.configured.clear();
    }

    fn bytes(&self) -> usize {
        let lists = self.lines.iter().map(|(_, raw)| raw.len()).chain(self.slowed.iter().map(|(_, raw)| raw.len()));
        lists.fold(self.sections.len(), usize::saturating_add).saturating_add(self.rules.len())
    }
}

/// A record as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Where the ledger lives.
    pub place: Place,
    /// The ledger; `None` if it is [`State::Away`].
    pub ledger: Option<Ledger>,
    /// The rest.
    pub kept: Kept,
}

/// The bytes of a record.
pub fn encode(place: Place, ledger: Option<&Ledger>, kept: &Kept) -> Vec<u8> {
    let lines = ledger.map_or(0, |ledger| ledger.peers.lines().len());
    let mut out = Writer { bytes: Vec::with_capacity(lines.saturating_mul(48).saturating_add(1_024)), base: 0 };
    out.bytes.extend_from_slice(&MAGIC);
    out.bytes.extend_from_slice(&[0; 4]);
    if let Some(ledger) = ledger {
        out.base = ledger.bucket.parts().1.as_micros();
    }
    // The base comes first, since all that follows needs it.
    out.section(tag::HOME, |out| {
        out.number(out.base);
        out.number(place.state as u64);
        out.number(place.generation);
        out.instant(place.lease);
        out.number(place.origin as u64);
    });
    if let Some(ledger) = ledger {
        out.ledger(ledger, kept);
    }
    out.bytes.extend_from_slice(&kept.sections);
    let length = u32::try_from(out.bytes.len().saturating_sub(HEAD_BYTES)).unwrap_or(u32::MAX);
    if let Some(place) = out.bytes.get_mut(MAGIC.len()..).and_then(<[u8]>::first_chunk_mut) {
        *place = length.to_le_bytes();
    }
    out.bytes
}

/// Reads a record.
///
/// # Errors
/// [`Refusal`] when there is no ledger to be had from these bytes.
pub fn decode(bytes: &[u8]) -> Result<Decoded, Refusal> {
    let (length, body) = bytes.strip_prefix(&MAGIC).and_then(<[u8]>::split_first_chunk).ok_or(Refusal::Damaged)?;
    if u32::try_from(body.len()) != Ok(u32::from_le_bytes(*length)) {
        return Err(Refusal::Damaged);
    }
    if let Some(decoded) = read(body) {
        return Ok(decoded);
    }
    // What must be understood and is not may have changed all the rest with it.
    let mut sections = Reader { bytes: body, base: 0 };
    while let Some((tag, _)) = sections.section() {
        if tag >= CRITICAL && tag != tag::HOME {
            return Err(Refusal::NotUnderstood);
        }
    }
    Err(Refusal::Damaged)
}

fn read(bytes: &[u8]) -> Option<Decoded> {
    let mut from = Reader { bytes, base: 0 };
    let (first, mut home) = from.section()?;
    if first != tag::HOME {
        return None;
    }
    from.base = home.number()?;
    home.base = from.base;
    let place = Place {
        state: match home.number()? {
            0 => State::Away,
            1 => State::Here,
            2 => State::Leaving,
            _ => return None,
        },
        generation: home.number()?,
        lease: home.instant()?,
        origin: match home.number()? {
            0 => Origin::Known,
            1 => Origin::New,
            2 => Origin::Lost,
            _ => return None,
        },
    };
    home.end()?;
    let mut kept = Kept::default();
    let (mut rules, mut configured, mut in_use, mut bucket, mut window) = (None, None, None, None, None);
    let (mut owed, mut account, mut served, mut due) = (None, None, None, None);
    let (mut recent, mut freed_at, mut shown) = (None, None, None);
    let mut models = Models::default();
    let mut lines: Vec<Line> = Vec::new();
    let mut seen_once = false;
    while !from.bytes.is_empty() {
        let whole = from.bytes;
        let (tag, mut body) = from.section()?;
        match tag {
            tag::RULES => once(&mut rules, body.rules(&mut kept.rules)?)?,
            tag::CONFIGURED => once(&mut configured, body.rules(&mut kept.configured)?)?,
            tag::IN_USE => once(&mut in_use, body.in_use()?)?,
            tag::BUCKET => {
                once(&mut bucket, Bucket::from_parts(body.number()?, body.instant()?, body.instant()?))?;
                body.end()?;
            }
            tag::WINDOW => once(&mut window, body.window()?)?,
            tag::OWED => {
                once(&mut owed, body.number_u32()?)?;
                body.end()?;
            }
            tag::ACCOUNT => {
                once(&mut account, body.retreat()?)?;
                body.end()?;
            }
            tag::SEEN => {
                if core::mem::replace(&mut seen_once, true) {
                    return None;
                }
                models.seen = body.seen()?;
            }
            tag::SLOWED => {
                if models.slowed.len() >= SLOWED_MAX {
                    return None;
                }
                let slowed = body.slowed()?;
                if !body.bytes.is_empty() {
                    body.check_fields()?;
                    kept.slowed.push((slowed.key, body.bytes.to_vec()));
                }
                models.slowed.push(slowed);
            }
            tag::SERVED => once(&mut served, body.served()?)?,
            tag::DUE => {
                once(&mut due, Due { worker: WorkerId(body.number_u32()?), since: body.instant()? })?;
                body.end()?;
            }
            tag::LINE => {
                if lines.len() >= WORKERS_MAX {
                    return None;
                }
                let mut unknown = Vec::new();
                let line = body.line(&models.slowed, &mut unknown)?;
                if !unknown.is_empty() {
                    kept.lines.push((line.worker, unknown));
                }
                lines.push(line);
            }
            tag::RECENT => once(&mut recent, body.recent()?)?,
            tag::SLOTS => {
                once(&mut freed_at, body.instant()?)?;
                body.end()?;
            }
            tag::SHOWN => once(&mut shown, body.shown()?)?,
            CRITICAL.. => return None,
            _ => {
                let length = whole.len().saturating_sub(from.bytes.len());
                kept.sections.extend_from_slice(whole.get(..length)?);
            }
        }
    }
    if kept.bytes() > KEPT_BYTES_MAX {
        return None;
    }
    if place.state == State::Away {
        return Some(Decoded { place, ledger: None, kept });
    }
    let rules = rules?;
    if configured.is_none() {
        kept.configured.clone_from(&kept.rules);
    }
    let ledger = Ledger {
        form: Form::Two,
        in_use: InUse::from_parts(rules, configured.unwrap_or(rules), in_use?),
        bucket: bucket?,
        guard: window?,
        owed: owed.unwrap_or(0),
        recent: recent.unwrap_or_default(),
        pace: Pace { account: account?, models },
        due,
        freed_at: freed_at.unwrap_or_default(),
        served: served.unwrap_or_default(),
        shown,
        peers: Peers::from_lines(lines),
    };
    Some(Decoded { place, ledger: Some(ledger), kept })
}

/// A section that may stand in a record only once.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

struct Writer {
    bytes: Vec<u8>,
    base: u64,
}

impl Writer {
    #[inline]
    fn number(&mut self, value: u64) {
        if value < 0x80 {
            self.bytes.push(value as u8);
        } else {
            self.long(value);
        }
    }

    fn long(&mut self, mut value: u64) {
        if value >> 56 == 0 {
            let length = value.ilog2() / 7;
            let ends = self.bytes.len().saturating_add(length as usize).saturating_add(1);
            // All bytes but the last have their highest bit set.
            let marks = CONTINUED & !(u64::MAX << length.saturating_mul(8));
            self.bytes.extend_from_slice(&(spread(value) | marks).to_le_bytes());
            self.bytes.truncate(ends);
            return;
        }
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Most points in time are shortly before the base; [`Instant::ZERO`], which means never, is one byte too.
    fn instant(&mut self, at: Instant) {
        let code = match at.as_micros() {
            0 => 0,
            at => zigzag(self.base.wrapping_sub(at)).wrapping_add(1),
        };
        self.number(code);
    }

    /// A section or field; its length is written in two bytes, so that the body need not be known before.
    fn section(&mut self, tag: u8, body: impl FnOnce(&mut Self)) {
        self.bytes.push(tag);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0x80, 0]);
        let start = self.bytes.len();
        body(self);
        let length = self.bytes.len().saturating_sub(start);
        if let Some([low, high]) = self.bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *low = length as u8 | 0x80;
            *high = (length >> 7) as u8 & 0x7f;
        }
    }

    fn ledger(&mut self, ledger: &Ledger, kept: &Kept) {
        self.section(tag::RULES, |out| out.rules(ledger.rules(), &kept.rules));
        if ledger.configured() != ledger.rules() || kept.configured != kept.rules {
            self.section(tag::CONFIGURED, |out| out.rules(ledger.configured(), &kept.configured));
        }
        self.section(tag::IN_USE, |out| out.number(u64::from(ledger.epoch())));
        let (level, updated_at, ready_since) = ledger.bucket.parts();
        self.section(tag::BUCKET, |out| {
            out.number(level);
            out.instant(updated_at);
            out.instant(ready_since);
        });
        let (window, newest, counts) = ledger.guard.parts();
        self.section(tag::WINDOW, |out| {
            out.number(window.get());
            out.number(newest);
            out.sparse(counts.iter().map(|count| [*count]));
        });
        if ledger.owed > 0 {
            self.section(tag::OWED, |out| out.number(u64::from(ledger.owed)));
        }
        self.section(tag::ACCOUNT, |out| out.retreat(&ledger.pace.account));
        if !ledger.pace.models.seen.is_empty() {
            self.section(tag::SEEN, |out| {
                for seen in &ledger.pace.models.seen {
                    out.bytes.extend_from_slice(&seen.key.0.to_le_bytes());
                    out.instant(seen.served_at);
                    out.instant(seen.refused_at);
                    out.number(u64::from(seen.streak));
                    out.instant(seen.streak_from);
                    out.number(seen.half);
                    out.number(u64::from(seen.now));
                    out.number(u64::from(seen.before));
                }
            });
        }
        for slowed in &ledger.pace.models.slowed {
            self.section(tag::SLOWED, |out| {
                out.bytes.extend_from_slice(&slowed.key.0.to_le_bytes());
                let name = slowed.name.bytes();
                let length = NAME_BYTES.saturating_sub(name.iter().rev().take_while(|byte| **byte == 0).count());
                out.number(length as u64);
                out.bytes.extend_from_slice(name.get(..length).unwrap_or_default());
                out.instant(slowed.next_at);
                out.number(u64::from(slowed.worker_full));
                out.retreat(&slowed.retreat);
                if let Some((_, raw)) = kept.slowed.iter().find(|(key, _)| *key == slowed.key) {
                    out.bytes.extend_from_slice(raw);
                }
            });
        }
        self.section(tag::SERVED, |out| {
            for served in ledger.served {
                out.number(served.count);
                out.number(served.waited.get());
            }
        });
        if let Some(due) = ledger.due {
            self.section(tag::DUE, |out| {
                out.number(u64::from(due.worker.0));
                out.instant(due.since);
            });
        }
        let (grants, next) = ledger.recent.parts();
        if next > 0 {
            self.section(tag::RECENT, |out| {
                out.number(next);
                for grant in grants {
                    out.number(next.wrapping_sub(grant.ticket.0));
                    out.number(grant.peak);
                }
            });
        }
        self.section(tag::SLOTS, |out| out.instant(ledger.freed_at));
        if let Some(shown) = ledger.shown {
            self.section(tag::SHOWN, |out| {
                for value in [
                    shown.available,
                    shown.phase as u32,
                    shown.effective_rpm,
                    shown.estimated_rpm,
                    shown.models_slowed,
                    shown.refused_permille,
                    shown.epoch,
                ] {
                    out.number(u64::from(value));
                }
            });
        }
        for line in ledger.peers.lines() {
            self.section(tag::LINE, |out| {
                out.number(u64::from(line.worker.0));
                out.bytes.extend_from_slice(&line.seen_at.as_micros().to_le_bytes());
                out.bytes.push(u8::from(line.passed_over));
                out.section(field::COUNTS, |out| {
                    let set = line.load.counts.iter().enumerate().filter(|(_, count)| **count > 0);
                    out.bytes.push(set.clone().fold(0, |mask, (lane, _)| mask | 1 << lane));
                    set.for_each(|(_, count)| out.number(u64::from(*count)));
                });
                if !line.load.heads.is_empty() {
                    out.section(field::HEADS, |out| {
                        line.load.heads.iter().for_each(|head| out.head(head, &ledger.pace.models.slowed));
                    });
                }
                if line.load.in_flight > 0 {
                    out.section(field::IN_FLIGHT, |out| out.number(u64::from(line.load.in_flight)));
                }
                if let Some((_, raw)) = kept.lines.iter().find(|(worker, _)| *worker == line.worker) {
                    out.bytes.extend_from_slice(raw);
                }
            });
        }
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

    fn rules(&mut self, rules: &Rules, unknown: &[u8]) {
        rules.encode_fields(|tag, word| {
            self.number(u64::from(tag));
            self.number(word);
        });
        self.bytes.extend_from_slice(unknown);
    }

    fn retreat(&mut self, retreat: &Retreat) {
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

    /// A row of counts of which most are zero: how many are not, and for each how many are skipped before it, which of
    /// its numbers are not zero, and those.
    fn sparse<const N: usize>(&mut self, rows: impl Iterator<Item = [u32; N]> + Clone) {
        let is_set = |row: &[u32; N]| row.iter().any(|number| *number > 0);
        self.number(rows.clone().filter(|row| is_set(row)).count() as u64);
        let mut skipped = 0u64;
        for row in rows {
            if !is_set(&row) {
                skipped = skipped.saturating_add(1);
                continue;
            }
            self.number(core::mem::take(&mut skipped));
            let mask = row.iter().enumerate().fold(0u64, |mask, (at, number)| mask | u64::from(*number > 0) << at);
            self.number(mask);
            row.iter().filter(|number| **number > 0).for_each(|number| self.number(u64::from(*number)));
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    base: u64,
}

impl<'a> Reader<'a> {
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (&first, rest) = self.bytes.split_first()?;
        if first < 0x80 {
            self.bytes = rest;
            return Some(u64::from(first));
        }
        self.long()
    }

    fn long(&mut self) -> Option<u64> {
        if let Some(eight) = self.bytes.first_chunk() {
            let eight = u64::from_le_bytes(*eight);
            let last = (!eight & CONTINUED).trailing_zeros() / 8;
            if last < 8 {
                let (_, rest) = self.bytes.split_at_checked(usize::try_from(last).ok()?.saturating_add(1))?;
                self.bytes = rest;
                return Some(gather(eight & u64::MAX >> 56u32.saturating_sub(last.saturating_mul(8))));
            }
        }
        let mut value = 0u64;
        for (at, byte) in self.bytes.iter().enumerate().take(10) {
            let part = u64::from(byte & 0x7f);
            let shift = u32::try_from(at).ok()?.checked_mul(7)?;
            // The tenth byte has room for one bit.
            if shift == 63 && part > 1 {
                return None;
            }
            value |= part << shift;
            if *byte < 0x80 {
                self.bytes = self.bytes.get(at.saturating_add(1)..)?;
                return Some(value);
            }
        }
        None
    }

    fn number_u32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.number()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn span(&mut self) -> Option<Micros> {
        self.number().map(Micros::new)
    }

    fn instant(&mut self) -> Option<Instant> {
        let micros = match self.number()? {
            0 => 0,
            code => self.base.wrapping_sub(unzigzag(code.wrapping_sub(1))),
        };
        Some(Instant::from_micros(micros))
    }

    fn fixed(&mut self) -> Option<u64> {
        let (head, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn section(&mut self) -> Option<(u8, Self)> {
        let (&tag, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        let length = usize::try_from(self.number()?).ok()?;
        let (body, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some((tag, Reader { bytes: body, base: self.base }))
    }

    fn end(&self) -> Option<()> {
        self.bytes.is_empty().then_some(())
    }

    /// Whether the rest is a row of fields.
    fn check_fields(mut self) -> Option<()> {
        while !self.bytes.is_empty() {
            self.section()?;
        }
        Some(())
    }

    fn rules(&mut self, unknown: &mut Vec<u8>) -> Option<Rules> {
        let mut rules = Rules::DEFAULT;
        let mut seen = 0u64;
        while !self.bytes.is_empty() {
            let whole = self.bytes;
            let (tag, word) = (self.number()?, self.number()?);
            match u16::try_from(tag).ok().filter(|tag| Rules::DEFAULT.word(*tag).is_some()) {
                Some(tag) => {
                    let bit = 1u64.checked_shl(u32::from(tag))?;
                    if seen & bit > 0 || !rules.decode_field(tag, word) {
                        return None;
                    }
                    seen |= bit;
                }
                None => {
                    let length = whole.len().saturating_sub(self.bytes.len());
                    unknown.extend_from_slice(whole.get(..length)?);
                }
            }
        }
        Some(rules)
    }

    fn in_use(&mut self) -> Option<u32> {
        let epoch = self.number_u32()?;
        self.end()?;
        Some(epoch)
    }

    fn recent(&mut self) -> Option<RecentGrants> {
        let next = self.number()?;
        let mut grants = Vec::new();
        while !self.bytes.is_empty() {
            if grants.len() >= RECENT_MAX {
                return None;
            }
            grants.push(Recent { ticket: Ticket(next.wrapping_sub(self.number()?)), peak: self.number()? });
        }
        Some(RecentGrants::from_parts(grants, next))
    }

    fn shown(&mut self) -> Option<Shown> {
        let shown = Shown {
            available: self.number_u32()?,
            phase: Phase::from_code(u8::try_from(self.number()?).ok()?)?,
            effective_rpm: self.number_u32()?,
            estimated_rpm: self.number_u32()?,
            models_slowed: self.number_u32()?,
            refused_permille: self.number_u32()?,
            epoch: self.number_u32()?,
        };
        self.end()?;
        Some(shown)
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

    fn window(&mut self) -> Option<WindowGuard> {
        let (window, newest) = (self.span()?, self.number()?);
        let mut counts = [0; KEPT];
        self.sparse(&mut counts, |count, [value]: [u32; 1]| *count = value)?;
        self.end()?;
        Some(WindowGuard::from_parts(window, newest, counts))
    }

    fn seen(&mut self) -> Option<Vec<Seen>> {
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

    fn slowed(&mut self) -> Option<Slowed> {
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

    fn served(&mut self) -> Option<[Served; Priority::ALL.len()]> {
        let mut all = [Served::default(); Priority::ALL.len()];
        for served in &mut all {
            *served = Served { count: self.number()?, waited: self.span()? };
        }
        self.end()?;
        Some(all)
    }

    fn line(&mut self, slowed: &[Slowed], unknown: &mut Vec<u8>) -> Option<Line> {
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

    fn retreat(&mut self) -> Option<Retreat> {
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

    fn sparse<T, const N: usize>(&mut self, places: &mut [T], set: impl Fn(&mut T, [u32; N])) -> Option<()> {
        let count = self.number()?;
        let mut places = places.iter_mut();
        if count > places.len() as u64 {
            return None;
        }
        for _ in 0..count {
            let place = places.nth(usize::try_from(self.number()?).ok()?)?;
            let mask = self.number()?;
            if mask >> N > 0 {
                return None;
            }
            let mut row = [0; N];
            for (at, number) in row.iter_mut().enumerate() {
                if mask >> at & 1 > 0 {
                    *number = self.number_u32()?;
                }
            }
            set(place, row);
        }
        Some(())
    }
}

/// Heads of line in one worker's line: one for each class, or in the form of version 1 for each lane.
const HEADS_MAX: usize = SLOWED_MAX + 1;

/// In place of a class's number: its key follows.
const ANOTHER_CLASS: u8 = 31;

/// The highest bit of each byte, which says that another follows.
const CONTINUED: u64 = 0x8080_8080_8080_8080;

/// The 56 lower bits, seven in each byte.
fn spread(value: u64) -> u64 {
    let halves = (value & 0x00ff_ffff_f000_0000) << 4 | value & 0x0fff_ffff;
    let quarters = (halves & 0x0fff_c000_0fff_c000) << 2 | halves & 0x0000_3fff_0000_3fff;
    (quarters & 0x3f80_3f80_3f80_3f80) << 1 | quarters & 0x007f_007f_007f_007f
}

/// The reverse, whatever the highest bits of the bytes are.
fn gather(bytes: u64) -> u64 {
    let quarters = (bytes & 0x7f00_7f00_7f00_7f00) >> 1 | bytes & 0x007f_007f_007f_007f;
    let halves = (quarters & 0x3fff_0000_3fff_0000) >> 2 | quarters & 0x0000_3fff_0000_3fff;
    (halves & 0x0fff_ffff_0000_0000) >> 4 | halves & 0x0fff_ffff
}

/// A difference, taken as a signed number, so that small ones of either sign are short.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64) >> 63) as u64
}

fn unzigzag(code: u64) -> u64 {
    (code >> 1) ^ (code & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn there_and_back(value: u64, base: u64) {
        let mut out = Writer { bytes: Vec::new(), base };
        out.number(value);
        let alone = out.bytes.len();
        assert_eq!(alone, (value | 1).ilog2() as usize / 7 + 1, "{value}");
        out.instant(Instant::from_micros(value));
        for padding in [0, 8] {
            let bytes = [out.bytes.as_slice(), &vec![0xff; padding]].concat();
            let mut from = Reader { bytes: &bytes, base };
            assert_eq!(from.number(), Some(value));
            assert_eq!(from.instant().map(Instant::as_micros), Some(value));
            assert_eq!(from.bytes.len(), padding);
        }
    }

    #[test]
    fn numbers_and_times_of_any_length_come_back() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1 << bits) - 1, (1 << bits) | 0x55, u64::MAX >> bits] {
                // A time that lies 2^63 from the base reads as none.
                for base in [1, 1_000_000_000, 1 << 50] {
                    there_and_back(value, base);
                }
            }
        }
    }

    #[test]
    fn numbers_without_an_end_are_none() {
        for length in 0..12 {
            assert_eq!(Reader { bytes: &vec![0xff; length], base: 0 }.number(), None);
        }
        assert_eq!(
            Reader { bytes: &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], base: 0 }.number(),
            None
        );
    }
}
