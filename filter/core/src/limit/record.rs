//! The forms in which a ledger lies in shared data.
//!
//! [`v1`] is what modules up to commit fc05618 read and write, and can't grow. [`tlv`] describes itself: what a reader
//! does not know it keeps. [`super::home`] decides which of the two a limit has now.

use super::ledger::Ledger;
use crate::units::Instant;
use tlv::{Kept, Location, MoveState, Origin};

pub mod tlv;
pub mod v1;

/// The version of what this module keeps in shared data. It is part of the keys.
pub const VERSION: u8 = tlv::VERSION;

impl Ledger {
    /// The bytes of a record that only modules of this version use.
    pub fn encode(&self) -> Vec<u8> {
        let location = Location {
            state: MoveState::Here,
            generation: 0,
            lease: Instant::from_micros(u64::MAX),
            origin: Origin::Known,
        };
        tlv::encode(location, Some(self), &Kept::default())
    }

    /// Reads a record of version 2; `None` when it is not one, or holds no ledger.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        tlv::decode(bytes).ok()?.ledger
    }
}
