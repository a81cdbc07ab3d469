//! What a single request asks for with its `x-fake-*` headers, which Envoy forwards like any other.

use hyper::HeaderMap;

/// How the answer is to misbehave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Misbehaviour {
    #[default]
    None,
    /// Never answer.
    Hang,
    /// Close the connection before any answer.
    Reset,
    /// Send the first piece of a stream, then close.
    ResetMidStream,
    /// A stream with gaps.
    SlowStream,
}

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    pub latency_ms: Option<u64>,
    pub status: Option<u16>,
    pub headers: Vec<(String, String)>,
    pub misbehaviour: Misbehaviour,
    pub gap_ms: u64,
    pub chunks: usize,
}

impl Behaviour {
    /// Reads the headers; what makes no sense is left out.
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let misbehaviour = match text("x-fake-behaviour") {
            Some("hang") => Misbehaviour::Hang,
            Some("reset" | "close-before-headers") => Misbehaviour::Reset,
            Some("reset-mid-stream") => Misbehaviour::ResetMidStream,
            Some("slow-stream") => Misbehaviour::SlowStream,
            _ => Misbehaviour::None,
        };
        let mut added: Vec<(String, String)> = headers
            .get_all("x-fake-header")
            .iter()
            .filter_map(|value| value.to_str().ok()?.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        if let Some(values) = text("x-fake-retry-after") {
            added.extend(
                values
                    .split('|')
                    .map(|value| ("retry-after".to_owned(), value.to_owned())),
            );
        }
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        Self {
            latency_ms: number("x-fake-latency-ms"),
            status: number("x-fake-status").and_then(|status| u16::try_from(status).ok()),
            headers: added,
            misbehaviour,
            gap_ms: number("x-fake-gap-ms").unwrap_or(match misbehaviour {
                Misbehaviour::SlowStream => 100,
                _ => 10,
            }),
            chunks: number("x-fake-chunks").map_or(8, |chunks| chunks as usize),
        }
    }
}
