//! Where a string ends: the search for its quotation mark.
//!
//! Strings differ. Names and short values end within the first sixteen bytes, so those are looked at first. After them
//! come lines of 64 bytes. As long as a line has no quotation mark, no backslash in it matters but a last one, so only
//! quotation marks are searched. Only where there is one are the backslashes looked at, all at once.

use wide::u8x16;

/// How far a string goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StringEnd {
    /// Its quotation mark is the byte before this place.
    Before(usize),
    /// It goes on after these bytes; the last of them may be a backslash to which the next byte belongs.
    Beyond { in_escape: bool },
}

/// The bytes that the engine compares at once.
const BLOCK: usize = 16;

/// The bytes that are looked at together: as many as a mask has bits.
const LINE: usize = 64;

/// Finds the end of the string that these bytes go on with, beginning outside an escape. What follows a backslash does
/// not count, whatever it is.
pub(super) fn end_of_string(bytes: &[u8]) -> StringEnd {
    let mut rest = bytes;
    let mut in_escape = false;
    if let Some((block, tail)) = rest.split_first_chunk::<BLOCK>() {
        match Marks::of_block(*block).end(in_escape) {
            End::At(at) => return StringEnd::Before(at.saturating_add(1)),
            End::Beyond(escape) => in_escape = escape,
        }
        rest = tail;
    }
    while let Some((line, tail)) = rest.split_first_chunk::<LINE>() {
        let ends_in_backslash = line.last() == Some(&b'\\');
        if has_quotation(line) || ends_in_backslash {
            match Marks::of_line(line).end(in_escape) {
                End::At(at) => return StringEnd::Before(place(bytes, rest).saturating_add(at).saturating_add(1)),
                End::Beyond(escape) => in_escape = escape,
            }
        } else {
            in_escape = false;
        }
        rest = tail;
    }
    while let Some((block, tail)) = rest.split_first_chunk::<BLOCK>() {
        match Marks::of_block(*block).end(in_escape) {
            End::At(at) => return StringEnd::Before(place(bytes, rest).saturating_add(at).saturating_add(1)),
            End::Beyond(escape) => in_escape = escape,
        }
        rest = tail;
    }
    in_few(bytes, rest, in_escape)
}

#[inline]
fn has_quotation(line: &[u8; LINE]) -> bool {
    let quotation = u8x16::splat(b'"');
    let (blocks, _) = line.as_chunks::<BLOCK>();
    blocks.iter().fold(u8x16::splat(0), |found, block| found | u8x16::from(*block).cmp_eq(quotation)).any()
}

/// Where quotation marks and backslashes stand in some bytes: one bit for each byte, the first byte's the lowest.
#[derive(Clone, Copy)]
struct Marks {
    quotations: u64,
    backslashes: u64,
    /// How many bytes there are.
    width: u32,
}

/// Where a string ends in some bytes.
enum End {
    At(usize),
    /// Not there. Says whether the last byte is a backslash to which the next byte belongs.
    Beyond(bool),
}

/// Every other bit, beginning with the lowest.
const EVEN: u64 = 0x5555_5555_5555_5555;

impl Marks {
    #[inline]
    fn of_block(block: [u8; BLOCK]) -> Self {
        let block = u8x16::from(block);
        Self {
            quotations: bits(block.cmp_eq(u8x16::splat(b'"'))),
            backslashes: bits(block.cmp_eq(u8x16::splat(b'\\'))),
            width: 16,
        }
    }

    #[inline]
    fn of_line(line: &[u8; LINE]) -> Self {
        let (blocks, _) = line.as_chunks::<BLOCK>();
        let (mut quotations, mut backslashes) = (0u64, 0u64);
        // From the end, so that the first block comes to lie lowest.
        for block in blocks.iter().rev() {
            let marks = Self::of_block(*block);
            quotations = quotations << 16 | marks.quotations;
            backslashes = backslashes << 16 | marks.backslashes;
        }
        Self { quotations, backslashes, width: 64 }
    }

    /// Where the string ends. Without a turn for each mark: how many there are is as good as random to a processor, and a
    /// wrong guess costs it more than all else here.
    #[inline]
    fn end(self, in_escape: bool) -> End {
        // The byte that belongs to a backslash before these is no mark.
        let backslashes = self.backslashes & !u64::from(in_escape);
        let (escaped, escapes_next) = after_odd_runs(backslashes, self.width);
        match self.quotations & !(escaped | u64::from(in_escape)) {
            0 => End::Beyond(escapes_next),
            quotations => End::At(quotations.trailing_zeros() as usize),
        }
    }
}

/// The bytes directly after a run of an odd number of backslashes, which belong to its last one; and whether the byte after
/// the last of `width` bytes is one.
#[inline]
fn after_odd_runs(backslashes: u64, width: u32) -> (u64, bool) {
    let starts = backslashes & !(backslashes << 1);
    // A bit added where a run begins is carried to the place after its end. If the two are an odd number of bits apart, one
    // of them is even and the other is not.
    let (after_even, _) = backslashes.overflowing_add(starts & EVEN);
    let (after_odd, beyond) = backslashes.overflowing_add(starts & !EVEN);
    let escaped = (after_even & !EVEN | after_odd & EVEN) & !backslashes;
    // A width is an even number, so a run to its end is odd if it began at an odd place.
    (escaped, beyond || escaped.checked_shr(width).unwrap_or(0) & 1 != 0)
}

/// The same byte by byte, for the last ones.
fn in_few(bytes: &[u8], rest: &[u8], escaped: bool) -> StringEnd {
    let mut in_escape = escaped;
    for (at, byte) in rest.iter().enumerate() {
        match byte {
            _ if in_escape => in_escape = false,
            b'\\' => in_escape = true,
            b'"' => return StringEnd::Before(place(bytes, rest).saturating_add(at).saturating_add(1)),
            _ => {}
        }
    }
    StringEnd::Beyond { in_escape }
}

/// One bit for each byte of what a comparison gave, the first byte's the lowest.
fn bits(compared: u8x16) -> u64 {
    u64::from(compared.move_mask().cast_unsigned())
}

/// Where `rest`, the end of `bytes`, begins in it.
fn place(bytes: &[u8], rest: &[u8]) -> usize {
    bytes.len().saturating_sub(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn agrees(bytes: &[u8]) {
        assert_eq!(end_of_string(bytes), in_few(bytes, bytes, false), "{}", bytes.escape_ascii());
    }

    #[test]
    fn blocks_are_read_like_single_bytes() {
        for length in 0..100 {
            let mut bytes = vec![b'a'; length];
            agrees(&bytes);
            for first in 0..length {
                for (mark, other) in [(b'"', b'"'), (b'\\', b'"'), (b'\\', b'\\')] {
                    bytes[first] = mark;
                    agrees(&bytes);
                    for second in (first + 1..length).filter(|second| second - first < 3 || second % 7 == 0) {
                        bytes[second] = other;
                        agrees(&bytes);
                        bytes[second] = b'a';
                    }
                    bytes[first] = b'a';
                }
            }
        }
    }

    #[test]
    fn crowds_of_marks_are_read_like_single_bytes() {
        // Every order of marks, again and again at another place of a line.
        let mut state = 1u32;
        let mut bytes = Vec::new();
        for round in 0..20_000usize {
            bytes.clear();
            for _ in 0..round % 331 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Few quotation marks, so that most strings go on for some lines.
                bytes.push(match state >> 24 {
                    0..=2 => b'"',
                    3..=140 => b'\\',
                    _ => b'a',
                });
            }
            agrees(&bytes);
        }
    }

    #[test]
    fn runs_of_backslashes_are_read_in_pairs() {
        for before in 0..40 {
            for run in (0..40).chain(60..68).chain(120..150) {
                for after in [0, 1, 20] {
                    let text = ["a".repeat(before), "\\".repeat(run), "\"".to_owned(), "a".repeat(after)].concat();
                    let expected = if run % 2 == 0 {
                        StringEnd::Before(before + run + 1)
                    } else {
                        StringEnd::Beyond { in_escape: false }
                    };
                    assert_eq!(end_of_string(text.as_bytes()), expected, "{text}");
                }
                let open = ["a".repeat(before), "\\".repeat(run)].concat();
                assert_eq!(end_of_string(open.as_bytes()), StringEnd::Beyond { in_escape: run % 2 == 1 });
            }
        }
    }
}
