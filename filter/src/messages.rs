//! The sentences that clients read, and the forms of the rate-limit headers.
//!
//! Each sentence says who refused, which limit, which setting, and what to do: a client that takes nimgate's answer for
//! the upstream's, or the other way round, looks in the wrong place for hours.

use crate::classify::Reason;
use crate::ledger::Rules;
use crate::ledger::Snapshot;
use crate::outcome::Outcome;
use crate::priority::Priority;
use crate::units::{Instant, Micros};

/// What the sentence for a failed request is about.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// How the request ended.
    pub outcome: Outcome,
    /// The limit that metered it; empty if none did.
    pub limit: &'a str,
    /// The rules in force for it.
    pub rules: Option<&'a Rules>,
    /// The level at which it was served.
    pub priority: Priority,
    /// Why its body could not be read.
    pub reason: Option<Reason>,
}

impl Failed<'_> {
    /// The sentence. It never holds anything that a client sent.
    pub fn message(&self) -> String {
        let Self { limit, rules, .. } = *self;
        let rpm = rules.map_or(0, |rules| rules.retreat.base.as_rpm());
        match self.outcome {
            Outcome::RateLimited => {
                let (setting, wait) = match (self.priority, rules) {
                    (Priority::Low, Some(rules)) => ("low_priority_timeout_s", rules.patience.low),
                    (_, Some(rules)) => ("request_timeout_s", rules.patience.others),
                    (_, None) => ("request_timeout_s", Micros::ZERO),
                };
                format!(
                    "nimgate, not the upstream, refused this request: limit `{limit}` ({rpm} requests per minute) had no \
                     token for it within its longest wait at priority {} ({setting}: {} s). Retry after the time in \
                     Retry-After, or ask for a higher priority.",
                    self.priority.name(),
                    wait.as_secs_ceil(),
                )
            }
            Outcome::QueueFull => format!(
                "nimgate, not the upstream, refused this request: the queue of limit `{limit}` is full \
                 (queue_max_size: {}). Retry after the time in Retry-After.",
                rules.map_or(0, |rules| rules.queue_max),
            ),
            Outcome::UpstreamTimeout => format!(
                "The upstream of limit `{limit}` took the request and did not answer in time; Envoy's timeout for the \
                 route or the stream ended it. The request may have been carried out.",
            ),
            Outcome::UpstreamUnreachable => format!(
                "The upstream of limit `{limit}` could not be reached, or closed the connection before it answered.",
            ),
            Outcome::PayloadTooLarge => {
                let held = if limit.is_empty() {
                    "while nimgate reads its model".to_owned()
                } else {
                    format!("while it waits for a token of limit `{limit}`")
                };
                format!(
                    "The request's body is larger than what Envoy holds {held} (request_body_buffer_limit of the \
                     route, or per_connection_buffer_limit_bytes of the listener).",
                )
            }
            Outcome::Unreadable => format!(
                "nimgate, not the upstream, refused this request: its body can't be read as a JSON object with a model \
                 ({}; on_unclassifiable: reject). Send plain UTF-8 JSON without compression.",
                self.reason.map_or("unreadable", Reason::label),
            ),
            Outcome::Forwarded | Outcome::ClientLeft => String::new(),
        }
    }
}

/// The values of `x-ratelimit-limit-requests`, `-remaining-requests` and `-reset-requests`.
fn ratelimit_headers(snapshot: &Snapshot, now: Instant) -> [(&'static str, String); 3] {
    [
        ("x-ratelimit-limit-requests", snapshot.rate.as_rpm().max(1).to_string()),
        ("x-ratelimit-remaining-requests", snapshot.available.to_string()),
        ("x-ratelimit-reset-requests", duration(snapshot.full_at.since(now))),
    ]
}

/// The headers that a metered response gets: how long the request waited, and the state of the limit if it is known.
pub fn told_headers(waited: Micros, snapshot: Option<&Snapshot>, now: Instant) -> Vec<(&'static str, String)> {
    let mut headers = vec![("x-nimgate-queue-ms", waited.as_millis().to_string())];
    headers.extend(snapshot.into_iter().flat_map(|snapshot| ratelimit_headers(snapshot, now)));
    headers
}

/// A duration as OpenAI writes it: `20ms`, `1.5s`, `6m0s`.
pub fn duration(span: Micros) -> String {
    let millis = span.as_millis_ceil();
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let (secs, fraction) = (rest / 1_000, rest % 1_000);
    let secs = match fraction {
        0 => format!("{secs}s"),
        fraction => format!("{secs}.{}s", format!("{fraction:03}").trim_end_matches('0')),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => secs,
        (0, minutes) => format!("{minutes}m{secs}"),
        (hours, minutes) => format!("{hours}h{minutes}m{secs}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn durations_as_openai_writes_them() {
        for (millis, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Micros::from_millis(millis)), text);
        }
        assert_eq!(duration(Micros::new(1)), "1ms");
    }

    #[test]
    fn each_failure_has_a_sentence_that_names_the_limit() {
        for outcome in Outcome::ALL {
            let failed = Failed {
                outcome,
                limit: "batch",
                rules: None,
                priority: Priority::Low,
                reason: Some(Reason::Compressed),
            };
            let message = failed.message();
            assert_eq!(message.is_empty(), outcome.failure().is_none());
            if outcome.failure().is_some() && outcome != Outcome::Unreadable {
                assert!(message.contains("`batch`"), "{message}");
            }
        }
    }
}
