//! The upstream's `Retry-After`, read with suspicion: it comes from outside and closes the gate for everyone.

use crate::units::Micros;
use std::time::UNIX_EPOCH;

/// How long the upstream asks to wait, given the wall clock's seconds since 1970.
///
/// Seconds and HTTP dates are understood (RFC 9110, section 10.2.3), fractions of seconds too, because some gateways
/// send them. Of several values the longest counts. `None` for nothing, nonsense and negative numbers; a date that has
/// passed is no wait at all. The caller caps the result.
pub fn parse(value: &[u8], wall_clock_s: u64) -> Option<Micros> {
    let text = core::str::from_utf8(value).ok()?.trim();
    date(text, wall_clock_s).or_else(|| text.split(',').filter_map(|part| seconds(part.trim())).max())
}

fn seconds(text: &str) -> Option<Micros> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let up = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    // More digits than fit are a long time, not an error.
    Some(Micros::from_secs(whole.parse::<u64>().unwrap_or(u64::MAX).saturating_add(up)))
}

fn date(text: &str, wall_clock_s: u64) -> Option<Micros> {
    let at = httpdate::parse_http_date(text).ok()?;
    let secs = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Some(Micros::from_secs(secs.saturating_sub(wall_clock_s)))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const NOW: u64 = 784_111_777;

    #[test]
    fn seconds_and_dates() {
        for (value, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("1.5", Some(2)),
            ("2.0", Some(2)),
            ("5, 9", Some(9)),
            ("9, nonsense", Some(9)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("", None),
            (".5", None),
            ("soon", None),
            ("1e9", None),
        ] {
            assert_eq!(parse(value.as_bytes(), NOW), expected.map(Micros::from_secs), "{value}");
        }
        assert_eq!(parse(b"\xff", NOW), None);
        assert_eq!(parse("9".repeat(40).as_bytes(), NOW), Some(Micros::from_secs(u64::MAX)));
    }
}
