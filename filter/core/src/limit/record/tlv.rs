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

use super::super::form::Form;
use super::super::in_use::InUse;
use super::super::ledger::Ledger;
use crate::control::controller::RateController;
use crate::control::scope::{Models, SLOWED_MAX};
use crate::control::strays::Strays;
use crate::model::ModelKey;
use crate::order::peers::{Line, Peers, WORKERS_MAX};
use crate::units::{Instant, WorkerId};
use bytes::{Reader, Writer};

mod bytes;
mod control;
mod order;
mod rules;
mod strays;
mod supply;

/// What stands in the record's third byte, and in its key.
pub const VERSION: u8 = 2;

/// Tags from here on must be understood, or nothing may be granted.
pub const CRITICAL: u8 = 0x80;

/// The most bytes of unknown content that are kept; a record with more is refused.
const KEPT_BYTES_MAX: usize = 16 * 1024;

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
    pub const BOOKS: u8 = 16;
    pub const STRAYS: u8 = 17;
    /// Where the ledger lives. Whoever can't read it must not grant.
    pub const HOME: u8 = super::CRITICAL;
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
pub struct Location {
    /// The state of the move between the two keys.
    pub state: MoveState,
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
pub enum MoveState {
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
    pub location: Location,
    /// The ledger; `None` if it is [`MoveState::Away`].
    pub ledger: Option<Ledger>,
    /// The rest.
    pub kept: Kept,
}

/// The bytes of a record.
pub fn encode(location: Location, ledger: Option<&Ledger>, kept: &Kept) -> Vec<u8> {
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
        out.number(location.state as u64);
        out.number(location.generation);
        out.instant(location.lease);
        out.number(location.origin as u64);
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
    let location = Location {
        state: match home.number()? {
            0 => MoveState::Away,
            1 => MoveState::Here,
            2 => MoveState::Leaving,
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
    let (mut recent, mut freed_at, mut shown, mut strays) = (None, None, None, None);
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
            tag::BUCKET => once(&mut bucket, body.bucket()?)?,
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
            tag::DUE => once(&mut due, body.due()?)?,
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
            tag::BOOKS => once(&mut models.books, body.books()?)?,
            tag::STRAYS => {
                once(&mut strays, body.strays()?)?;
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
    if location.state == MoveState::Away {
        return Some(Decoded { location, ledger: None, kept });
    }
    let rules = rules?;
    models.books.get_or_insert_default();
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
        controller: RateController { account: account?, models, strays: Some(strays.unwrap_or_default()) },
        due,
        freed_at: freed_at.unwrap_or_default(),
        served: served.unwrap_or_default(),
        shown,
        peers: Peers::from_lines(lines),
    };
    Some(Decoded { location, ledger: Some(ledger), kept })
}

/// A section that may stand in a record only once.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

impl Writer {
    fn ledger(&mut self, ledger: &Ledger, kept: &Kept) {
        self.section(tag::RULES, |out| out.rules(ledger.rules(), &kept.rules));
        if ledger.configured() != ledger.rules() || kept.configured != kept.rules {
            self.section(tag::CONFIGURED, |out| out.rules(ledger.configured(), &kept.configured));
        }
        self.section(tag::IN_USE, |out| out.number(u64::from(ledger.epoch())));
        self.section(tag::BUCKET, |out| out.bucket(&ledger.bucket));
        self.section(tag::WINDOW, |out| out.window(&ledger.guard));
        if ledger.owed > 0 {
            self.section(tag::OWED, |out| out.number(u64::from(ledger.owed)));
        }
        self.section(tag::ACCOUNT, |out| out.retreat(&ledger.controller.account));
        if !ledger.controller.models.seen.is_empty() {
            self.section(tag::SEEN, |out| out.seen(&ledger.controller.models.seen));
        }
        if let Some(books) = &ledger.controller.models.books
            && !books.books.is_empty()
        {
            self.section(tag::BOOKS, |out| out.books(books));
        }
        if let Some(strays) = ledger.controller.strays.as_ref().filter(|strays| **strays != Strays::default()) {
            self.section(tag::STRAYS, |out| out.strays(strays));
        }
        for slowed in &ledger.controller.models.slowed {
            self.section(tag::SLOWED, |out| {
                out.slowed(slowed);
                if let Some((_, raw)) = kept.slowed.iter().find(|(key, _)| *key == slowed.key) {
                    out.bytes.extend_from_slice(raw);
                }
            });
        }
        self.section(tag::SERVED, |out| out.served(&ledger.served));
        if let Some(due) = ledger.due {
            self.section(tag::DUE, |out| out.due(due));
        }
        if ledger.recent.parts().1 > 0 {
            self.section(tag::RECENT, |out| out.recent(&ledger.recent));
        }
        self.section(tag::SLOTS, |out| out.instant(ledger.freed_at));
        if let Some(shown) = ledger.shown {
            self.section(tag::SHOWN, |out| out.shown(shown));
        }
        for line in ledger.peers.lines() {
            let kept = kept.lines.iter().find(|(worker, _)| *worker == line.worker);
            let unknown = kept.map_or(&[][..], |(_, raw)| raw);
            self.section(tag::LINE, |out| out.line(line, &ledger.controller.models.slowed, unknown));
        }
    }
}
