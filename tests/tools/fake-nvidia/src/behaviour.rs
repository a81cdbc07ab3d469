//! What a request asks of the fake through its `x-fake-*` headers. Envoy forwards them, so a test can choose a fault
//! for one request among many without touching the others. A header that can't be understood is an error the client
//! sees at once: a misspelt fault that silently did nothing would make a test pass that tests nothing.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

/// Chunks are made before they are sent; this bounds what one request can make us hold.
const MOST_CHUNKS: usize = 100_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Course {
    #[default]
    Answer,
    Hang,
    Reset,
    CloseBeforeHeaders,
    ResetMidStream,
    SlowStream,
}

#[derive(Debug, Default)]
pub struct Behaviour {
    pub course: Course,
    pub latency: Option<Duration>,
    pub status: Option<StatusCode>,
    pub gap: Option<Duration>,
    pub chunks: Option<usize>,
    pub retry_after: Vec<HeaderValue>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Behaviour {
    pub fn read(headers: &HeaderMap) -> Result<Self, String> {
        let mut behaviour = Self {
            latency: number(headers, "x-fake-latency-ms")?.map(Duration::from_millis),
            gap: number(headers, "x-fake-gap-ms")?.map(Duration::from_millis),
            ..Self::default()
        };
        if let Some(status) = number(headers, "x-fake-status")? {
            // An interim answer is no answer, and would leave the client waiting for one.
            let status = u16::try_from(status)
                .ok()
                .filter(|status| (200..=999).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok())
                .ok_or("x-fake-status: must be from 200 to 999")?;
            behaviour.status = Some(status);
        }
        if let Some(chunks) = number(headers, "x-fake-chunks")? {
            let chunks = usize::try_from(chunks)
                .ok()
                .filter(|&chunks| chunks <= MOST_CHUNKS)
                .ok_or_else(|| format!("x-fake-chunks: must be at most {MOST_CHUNKS}"))?;
            behaviour.chunks = Some(chunks);
        }
        if let Some(course) = headers.get("x-fake-behaviour") {
            behaviour.course = match course.as_bytes() {
                b"hang" => Course::Hang,
                b"reset" => Course::Reset,
                b"close-before-headers" => Course::CloseBeforeHeaders,
                b"reset-mid-stream" => Course::ResetMidStream,
                b"slow-stream" => Course::SlowStream,
                _ => return Err(format!("x-fake-behaviour: unknown value {course:?}")),
            };
        }
        for lines in headers.get_all("x-fake-retry-after") {
            for line in lines.as_bytes().split(|&byte| byte == b'|') {
                behaviour.retry_after.push(value(line)?);
            }
        }
        for line in headers.get_all("x-fake-header") {
            behaviour.headers.push(header_line(line.as_bytes())?);
        }
        Ok(behaviour)
    }
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, String> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| format!("{name}: not a whole number: {value:?}"))
}

fn value(bytes: &[u8]) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(bytes.trim_ascii()).map_err(|_| "x-fake-*: a value not allowed in a header".to_owned())
}

fn header_line(line: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let colon = line.iter().position(|&byte| byte == b':');
    let (name, rest) =
        colon.and_then(|colon| line.split_at_checked(colon)).ok_or("x-fake-header: must be `Name: value`")?;
    let name = HeaderName::from_bytes(name.trim_ascii()).map_err(|_| "x-fake-header: not a header name".to_owned())?;
    // The body's framing is the server's; a second opinion on it would break the connection, not test anything.
    if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
        return Err(format!("x-fake-header: {name} can't be set"));
    }
    Ok((name, value(rest.strip_prefix(b":").unwrap_or(rest))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&'static str, &'static str)]) -> Result<Behaviour, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Behaviour::read(&headers)
    }

    #[test]
    fn no_headers_ask_for_nothing() {
        let nothing = read(&[("x-priority", "high")]).unwrap();
        assert_eq!(nothing.course, Course::Answer);
        assert!(nothing.status.is_none() && nothing.latency.is_none());
        assert!(nothing.headers.is_empty() && nothing.retry_after.is_empty());
    }

    #[test]
    fn retry_after_splits_at_bars_and_keeps_what_stands_between() {
        let asked = read(&[("x-fake-retry-after", "7|Wed, 21 Oct 2026 07:28:00 GMT| -1 ")]);
        assert_eq!(asked.unwrap().retry_after, ["7", "Wed, 21 Oct 2026 07:28:00 GMT", "-1"]);
    }

    #[test]
    fn header_lines_keep_their_order_and_colons() {
        let asked =
            read(&[("x-fake-header", "X-B: http://a:1/"), ("x-fake-header", "x-a:2"), ("x-fake-header", "x-b: 3")]);
        let headers = asked.unwrap().headers;
        let lines: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(lines, [("x-b", "http://a:1/"), ("x-a", "2"), ("x-b", "3")]);
    }

    #[test]
    fn what_can_not_be_understood_is_refused() {
        for (name, value) in [
            ("x-fake-behaviour", "explode"),
            ("x-fake-status", "100"),
            ("x-fake-status", "1000"),
            ("x-fake-status", "ok"),
            ("x-fake-latency-ms", "-1"),
            ("x-fake-chunks", "100001"),
            ("x-fake-header", "no colon"),
            ("x-fake-header", "bad name: x"),
            ("x-fake-header", "Content-Length: 3"),
        ] {
            let refusal = read(&[(name, value)]).expect_err(value);
            assert!(refusal.starts_with(name), "{refusal}");
        }
    }
}
