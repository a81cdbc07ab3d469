//! In which form a ledger is written, and so what it can say.

use super::rules::{Rules, Timeouts};
use crate::units::Micros;

/// Who shares the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// Workers of version 1 too: their order rule, their lines, and no feature that they don't know.
    One,
    /// Workers of this version or later only.
    #[default]
    Two,
}

/// These rules as version 1 knows them; other knobs have their defaults. Its margin of the window is none of its rules
/// (see [`crate::supply::window::WindowGuard::as_in_version_1`]).
pub fn known_to_version_1(rules: &Rules) -> Rules {
    let Rules { capacity, window, shadow, queue_max, may_fall_back, aging, timeouts, retreat, .. } = *rules;
    let Timeouts { low, others, .. } = timeouts;
    let timeouts = Timeouts { low, others, ..Timeouts::DEFAULT };
    let window_margin = Micros::ZERO;
    let known = Rules { capacity, window, window_margin, shadow, queue_max, may_fall_back, aging, ..Rules::DEFAULT };
    Rules { timeouts, retreat, ..known }
}
