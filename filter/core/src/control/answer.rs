//! What an upstream's answer means for the rate. The one place that reads statuses and bodies for that.

use crate::model::{ModelKey, ModelName};
use crate::units::{Instant, Micros};

/// What an answer says of the rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Nothing against it: any answer that is none of the others.
    Served,
    /// Too many requests: 429.
    Throttled,
    /// The workers that serve the model are full: NVIDIA's 503 `ResourceExhausted`.
    WorkersFull,
}

/// One answer of the upstream. Replies that Envoy or the filter made are no answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// When the request got its token.
    pub granted_at: Instant,
    /// What it says.
    pub signal: Signal,
    /// How long the upstream asks to wait.
    pub retry_after: Option<Micros>,
    /// The model that was asked for, and its name; [`ModelKey::NONE`] where none was read.
    pub model: (ModelKey, ModelName),
}

impl Signal {
    /// What a status says; `None` where only the body can tell, see [`Signal::of_body`]. `obey_503` takes a 503 with
    /// `Retry-After` for a 429.
    pub const fn of_status(status: u16, has_retry_after: bool, obey_503: bool) -> Option<Self> {
        match status {
            429 => Some(Self::Throttled),
            503 if obey_503 && has_retry_after => Some(Self::Throttled),
            503 => None,
            _ => Some(Self::Served),
        }
    }

    /// What the beginning of a 503's body says: NVIDIA's words for a full pool of workers of one model are
    /// `ResourceExhausted: Worker local total request limit reached (33/32)`.
    pub fn of_body(body: &[u8]) -> Self {
        let says = |what: &str| memchr::memmem::find(body, what.as_bytes()).is_some();
        if says("ResourceExhausted") || says("request limit reached") { Self::WorkersFull } else { Self::Served }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn only_429_and_by_configuration_503_with_retry_after_say_that_there_were_too_many() {
        let statuses_with = |signal, has_retry_after, obey_503| -> Vec<u16> {
            (100..=599).filter(|status| Signal::of_status(*status, has_retry_after, obey_503) == signal).collect()
        };
        for (has_retry_after, obey_503) in [(false, false), (false, true), (true, false)] {
            assert_eq!(statuses_with(Some(Signal::Throttled), has_retry_after, obey_503), [429]);
            assert_eq!(statuses_with(None, has_retry_after, obey_503), [503], "its body tells");
        }
        assert_eq!(statuses_with(Some(Signal::Throttled), true, true), [429, 503]);
        assert!(statuses_with(None, true, true).is_empty());
        // A status never says that workers are full.
        assert!(statuses_with(Some(Signal::WorkersFull), true, true).is_empty());
    }

    #[test]
    fn a_503_says_that_workers_are_full_in_nvidias_words_only() {
        for (body, expected) in [
            (
                r#"{"detail":"ResourceExhausted: Worker local total request limit reached (33/32)"}"#,
                Signal::WorkersFull,
            ),
            ("ResourceExhausted", Signal::WorkersFull),
            ("Worker local total request limit reached (33/32)", Signal::WorkersFull),
            ("no healthy upstream", Signal::Served),
            ("upstream request timeout", Signal::Served),
            ("", Signal::Served),
        ] {
            assert_eq!(Signal::of_body(body.as_bytes()), expected, "{body}");
        }
    }
}
