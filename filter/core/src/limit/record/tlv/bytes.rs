//! What every section is made of: numbers, points in time, and nested sections.

use crate::units::{Instant, Micros};

/// Appends to a record.
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    /// What points in time are counted back from, in microseconds.
    pub(super) base: u64,
}

impl Writer {
    #[inline]
    pub(super) fn number(&mut self, value: u64) {
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
    pub(super) fn instant(&mut self, at: Instant) {
        let code = match at.as_micros() {
            0 => 0,
            at => zigzag(self.base.wrapping_sub(at)).wrapping_add(1),
        };
        self.number(code);
    }

    /// A section or field; its length is written in two bytes, so that the body need not be known before.
    pub(super) fn section(&mut self, tag: u8, body: impl FnOnce(&mut Self)) {
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

    /// A row of counts of which most are zero: how many are not, and for each how many are skipped before it, which of
    /// its numbers are not zero, and those.
    pub(super) fn sparse<const N: usize>(&mut self, rows: impl Iterator<Item = [u32; N]> + Clone) {
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

/// What is left to read of a record, or of a section.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// What points in time are counted back from, in microseconds.
    pub(super) base: u64,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn number(&mut self) -> Option<u64> {
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

    pub(super) fn number_u32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.number()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn span(&mut self) -> Option<Micros> {
        self.number().map(Micros::new)
    }

    pub(super) fn instant(&mut self) -> Option<Instant> {
        let micros = match self.number()? {
            0 => 0,
            code => self.base.wrapping_sub(unzigzag(code.wrapping_sub(1))),
        };
        Some(Instant::from_micros(micros))
    }

    pub(super) fn fixed(&mut self) -> Option<u64> {
        let (head, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*head))
    }

    pub(super) fn section(&mut self) -> Option<(u8, Self)> {
        let (&tag, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        let length = usize::try_from(self.number()?).ok()?;
        let (body, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some((tag, Reader { bytes: body, base: self.base }))
    }

    pub(super) fn end(&self) -> Option<()> {
        self.bytes.is_empty().then_some(())
    }

    /// Whether the rest is a row of fields.
    pub(super) fn check_fields(mut self) -> Option<()> {
        while !self.bytes.is_empty() {
            self.section()?;
        }
        Some(())
    }

    pub(super) fn sparse<T, const N: usize>(
        &mut self,
        places: &mut [T],
        mut set: impl FnMut(&mut T, [u32; N]),
    ) -> Option<()> {
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
