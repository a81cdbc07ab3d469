//! The rules, which configuration they are of, and what the gauges show of them.

use super::bytes::{Reader, Writer};
use crate::control::rate::Phase;
use crate::event::Shown;
use crate::limit::rules::Rules;

impl Writer {
    pub(super) fn rules(&mut self, rules: &Rules, unknown: &[u8]) {
        rules.encode_fields(|tag, word| {
            self.number(u64::from(tag));
            self.number(word);
        });
        self.bytes.extend_from_slice(unknown);
    }

    pub(super) fn shown(&mut self, shown: Shown) {
        for value in [
            shown.available,
            shown.phase as u32,
            shown.effective_rpm,
            shown.estimated_rpm,
            shown.models_slowed,
            shown.refused_permille,
            shown.epoch,
        ] {
            self.number(u64::from(value));
        }
    }
}

impl Reader<'_> {
    pub(super) fn rules(&mut self, unknown: &mut Vec<u8>) -> Option<Rules> {
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

    pub(super) fn in_use(&mut self) -> Option<u32> {
        let epoch = self.number_u32()?;
        self.end()?;
        Some(epoch)
    }

    pub(super) fn shown(&mut self) -> Option<Shown> {
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
}
