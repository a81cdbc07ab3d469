//! The path of a request in one spelling, so that a pattern can't be dodged by another.
//!
//! Upstreams treat `/v1//chat/completions`, `/v1/./chat/completions` and `/v1/chat%2Fcompletions` much as they treat
//! the plain form. A request must not escape its limit by such a spelling, so patterns are matched against the path
//! after percent-decoding, without query and parameters, with dot segments resolved and slashes merged.

/// The normalised path, beginning with one slash.
pub fn normalise(path: &[u8]) -> Vec<u8> {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
    let decoded = decode(path.get(..end).unwrap_or(path));
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or(segment);
        match name {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut out = Vec::with_capacity(decoded.len());
    for segment in segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn other_spellings_of_one_path_are_one() {
        for spelling in [
            "/v1/chat/completions",
            "/v1//chat/completions/",
            "/v1/./chat/x/../completions?a=/b",
            "/v1/chat%2Fcompletions",
            "/v1/%63hat;a=b/completions",
            "\\v1\\chat/completions#x",
            "/../v1/chat/completions",
        ] {
            assert_eq!(normalise(spelling.as_bytes()), b"/v1/chat/completions", "{spelling}");
        }
        assert_eq!(normalise(b""), b"/");
        assert_eq!(normalise(b"/%zz%4"), b"/%zz%4");
    }
}
