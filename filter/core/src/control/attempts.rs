//! How often Envoy's router has sent a request, as it says in `x-envoy-attempt-count` on the response. The filter sees the
//! last attempt's answer only, but the upstream has counted all of them.

/// The attempts after the first, that went without a token. Nonsense counts as none; more than [`RETRIES_MAX`] as so many,
/// since without `include_attempt_count_in_response` the header is the upstream's to forge.
pub fn retries(value: &[u8]) -> u32 {
    let attempts: u32 = core::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    attempts.saturating_sub(1).min(RETRIES_MAX)
}

/// More than any sensible retry policy allows.
const RETRIES_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_first_attempt_has_a_token() {
        let cases: [(&[u8], u32); 7] =
            [(b"1", 0), (b"2", 1), (b"5", 4), (b"0", 0), (b"-3", 0), (b"4000000000", 10), (b"\xff", 0)];
        for (value, expected) in cases {
            assert_eq!(retries(value), expected, "{value:?}");
        }
    }
}
