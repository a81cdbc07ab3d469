//! Where a string ends: the search for its quotation mark.
//!
//! Strings differ. Names and short values end within the first sixteen bytes, so those are looked at first. After them
//! come lines of 64 bytes. As long as a line has no quotation mark, no backslash in it matters but a last one, so only
//! quotation marks are searched. Only where there is one are the backslashes before it looked at.

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
        if has_quotation(line)
            && let End::At(at) = Marks::of_line(line).end(in_escape)
        {
            return StringEnd::Before(place(bytes, rest).saturating_add(at).saturating_add(1));
        }
        in_escape = line.last() == Some(&b'\\') && Marks::of_line(line).ends_in_escape(in_escape);
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
    bits(blocks.iter().fold(u8x16::splat(0), |found, block| found | u8x16::from(*block).cmp_eq(quotation))) != 0
}

/// Where quotation marks and backslashes stand in some bytes: one bit for each byte, the first byte's the lowest.
#[derive(Clone, Copy)]
struct Marks {
    quotations: u64,
    backslashes: u64,
    /// The bit of the last byte.
    last: u32,
}

/// Where a string ends in some bytes.
enum End {
    At(usize),
    /// Not there. Says whether the last byte is a backslash to which the next byte belongs.
    Beyond(bool),
}

impl Marks {
    #[inline]
    fn of_block(block: [u8; BLOCK]) -> Self {
        let block = u8x16::from(block);
        Self {
            quotations: bits(block.cmp_eq(u8x16::splat(b'"'))),
            backslashes: bits(block.cmp_eq(u8x16::splat(b'\\'))),
            last: 15,
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
        Self { quotations, backslashes, last: 63 }
    }

    #[inline]
    fn end(self, in_escape: bool) -> End {
        let mut marks = (self.quotations | self.backslashes) & !u64::from(in_escape);
        let mut escape = false;
        while marks != 0 {
            let at = marks.trailing_zeros();
            let mark = 1u64.rotate_left(at);
            if self.quotations & mark != 0 {
                return End::At(at as usize);
            }
            // The backslash and the byte that belongs to it are done with.
            marks &= !(mark | mark << 1);
            escape = at == self.last;
        }
        End::Beyond(escape)
    }

    /// Whether a line that ends with a backslash leaves the next byte to it: of a run of backslashes every other one does.
    fn ends_in_escape(self, in_escape: bool) -> bool {
        match self.backslashes.leading_ones() {
            // The line is one run, and goes on from the one before.
            64 => in_escape,
            run => run % 2 == 1,
        }
    }
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
