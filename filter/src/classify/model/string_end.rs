//! Where a string ends: the search for its quotation mark, sixteen bytes at a time.
//!
//! Strings differ. Names and short values end within the first block. Code has an escape every few bytes, where starting
//! a search anew at each would cost more than the bytes between. Prose and base64 have none for long, and there a search
//! that does nothing else is faster still.

use memchr::memchr2;
use wide::u8x16;

/// How far a string goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StringEnd {
    /// Its quotation mark is the byte before this place.
    Before(usize),
    /// It goes on behind these bytes; the last of them may be a backslash to which the next byte belongs.
    Beyond { in_escape: bool },
}

/// The bytes looked at at once, and with that the bits of a mask that stand for some.
const BLOCK: usize = 16;

/// So many blocks without any mark are followed by more.
const QUIET_BLOCKS: u32 = 4;

/// Finds the end of the string that these bytes go on with, beginning outside an escape. What is behind a backslash does
/// not count, whatever it is.
pub(super) fn end_of_string(bytes: &[u8]) -> StringEnd {
    let quotation = u8x16::splat(b'"');
    let backslash = u8x16::splat(b'\\');
    let mut rest = bytes;
    // One bit, if the first byte of the next block belongs to a backslash before it.
    let mut escaped = 0u32;
    let mut quiet = 0u32;
    while let Some((block, tail)) = rest.split_first_chunk::<BLOCK>() {
        let block = u8x16::from(*block);
        let ends = block.cmp_eq(quotation);
        let mut marks = bits(ends | block.cmp_eq(backslash)) & !escaped;
        escaped = 0;
        if marks == 0 {
            quiet = quiet.saturating_add(1);
            rest = tail;
            if quiet >= QUIET_BLOCKS {
                let Some(found) = memchr2(b'"', b'\\', rest) else { return StringEnd::Beyond { in_escape: false } };
                rest = rest.get(found..).unwrap_or_default();
                quiet = 0;
            }
            continue;
        }
        quiet = 0;
        let ends = bits(ends);
        while marks != 0 {
            let at = marks.trailing_zeros();
            let mark = 1u32.rotate_left(at);
            if ends & mark != 0 {
                return StringEnd::Before(place(bytes, rest).saturating_add(at as usize).saturating_add(1));
            }
            // The backslash and the byte that belongs to it are done with.
            marks &= !(mark | mark << 1);
            escaped = (mark << 1) >> BLOCK;
        }
        rest = tail;
    }
    in_few(bytes, rest, escaped != 0)
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
fn bits(compared: u8x16) -> u32 {
    compared.move_mask().cast_unsigned()
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
            for run in 0..40 {
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
