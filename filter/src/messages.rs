//! The sentences that clients read, and the forms of the rate-limit headers.
//!
//! Each sentence says who refused, which limit, which setting, and what to do: a client that takes nimgate's answer for
//! the upstream's, or the other way round, looks in the wrong place for hours.

use crate::classify::Reason;
use crate::ledger::Rules;
use crate::ledger::Snapshot;
use crate::outcome::Outcome;
use crate::priority::{Lane, Priority};
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
    /// Where its wait ran out; `None` if it was Envoy that ended it.
    pub lane: Option<Lane>,
}

impl Failed<'_> {
    /// The sentence. It never holds anything that a client sent.
    pub fn message(&self) -> String {
        let limit = self.limit;
        match self.outcome {
            Outcome::RateLimited => self.rate_limited(),
            Outcome::QueueFull => format!(
                "nimgate, not the upstream, refused this request: the queue of limit `{limit}` is full \
                 (queue_max_size: {}). Retry after the time in Retry-After.",
                self.rules.map_or(0, |rules| rules.queue_max),
            ),
            Outcome::UpstreamTimeout => format!(
                "nimgate let this request go, but the upstream of limit `{limit}` did not answer in time: Envoy's timeout \
                 or idle_timeout of the route ended it. It may have been carried out. Retry if that does no harm; if it \
                 comes again, raise that timeout.",
            ),
            Outcome::UpstreamUnreachable => format!(
                "nimgate let this request go, but Envoy could not reach the upstream of limit `{limit}`, or the upstream \
                 closed the connection before it answered. Retry; if it lasts, check the Envoy cluster of that limit.",
            ),
            Outcome::PayloadTooLarge => {
                let held = if limit.is_empty() {
                    "while nimgate reads its model".to_owned()
                } else {
                    format!("while it waits for a token of limit `{limit}`")
                };
                format!(
                    "Envoy and nimgate, not the upstream, refused this request: its body is larger than what Envoy holds \
                     {held} (request_body_buffer_limit of the route, or per_connection_buffer_limit_bytes of the \
                     listener). Send less, or raise that setting.",
                )
            }
            Outcome::Unreadable => {
                let advice = match self.reason {
                    Some(Reason::BodyHidden) => {
                        "Envoy does not show it: set allow_on_headers_stop_iteration: true in the Wasm plugin's \
                         configuration"
                    }
                    _ => "Send plain UTF-8 JSON without compression",
                };
                format!(
                    "nimgate, not the upstream, refused this request: its body can't be read as a JSON object with a \
                     model ({}; on_unclassifiable: reject). {advice}.",
                    self.reason.map_or("unreadable", Reason::label),
                )
            }
            Outcome::Forwarded | Outcome::ClientLeft => String::new(),
        }
    }

    fn rate_limited(&self) -> String {
        let Self { limit, priority, .. } = *self;
        let rpm = self.rules.map_or(0, |rules| rules.retreat.base.as_rpm());
        let patience = |lane| self.rules.map_or(0, |rules| rules.patience.of(lane).as_secs_ceil());
        let setting = match priority {
            Priority::Low => "low_priority_timeout_s",
            _ => "request_timeout_s",
        };
        let wait = match self.lane {
            Some(lane @ Lane::Fallback(_)) => {
                format!("{} s outside its full queue (queue_full_policy: passthrough)", patience(lane))
            }
            Some(lane) => format!("its longest wait at priority {} ({setting}: {} s)", priority.name(), patience(lane)),
            None => format!(
                "the time that Envoy leaves a silent stream (stream_idle_timeout, or idle_timeout of the route), which is \
                 less than {setting}: {} s and should be more",
                patience(Lane::Queued(priority))
            ),
        };
        let or = if priority == Priority::Urgent { "" } else { ", or ask for a higher priority" };
        format!(
            "nimgate, not the upstream, refused this request: limit `{limit}` ({rpm} requests per minute) had no token for \
             it within {wait}. Retry after the time in Retry-After{or}.",
        )
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

    fn rules() -> Rules {
        let json = br#"{"limits": [{"name": "batch", "rate_rpm": 77, "queue_max_size": 9, "low_priority_timeout_s": 7,
                                    "request_timeout_s": 50}]}"#;
        crate::config::Config::parse(json).unwrap().limits[0].rules
    }

    #[test]
    fn each_failure_says_who_refused_which_limit_which_setting_and_what_to_do() {
        let rules = rules();
        let (queued, outside) = (Lane::Queued(Priority::Low), Lane::Fallback(Priority::Normal));
        let refused = "nimgate, not the upstream, refused";
        let went = "nimgate let this request go, but";
        let broken = Some(Reason::Compressed);
        let hidden = Some(Reason::BodyHidden);
        let table = [
            (Outcome::RateLimited, Priority::Low, Some(queued), None, "low_priority_timeout_s: 7 s", "higher priority"),
            (
                Outcome::RateLimited,
                Priority::High,
                Some(Lane::Queued(Priority::High)),
                None,
                "request_timeout_s: 50 s",
                "Retry",
            ),
            (
                Outcome::RateLimited,
                Priority::Normal,
                Some(outside),
                None,
                "queue_full_policy: passthrough",
                "Retry-After",
            ),
            (
                Outcome::RateLimited,
                Priority::Normal,
                None,
                None,
                "stream_idle_timeout",
                "request_timeout_s: 50 s and should",
            ),
            (Outcome::QueueFull, Priority::Normal, Some(queued), None, "queue_max_size: 9", "Retry-After"),
            (Outcome::UpstreamTimeout, Priority::Normal, None, None, "idle_timeout of the route", "raise that timeout"),
            (Outcome::UpstreamUnreachable, Priority::Normal, None, None, "Envoy cluster", "check"),
            (Outcome::PayloadTooLarge, Priority::Normal, None, None, "request_body_buffer_limit", "raise that setting"),
            (Outcome::Unreadable, Priority::Normal, None, broken, "on_unclassifiable: reject", "without compression"),
            (
                Outcome::Unreadable,
                Priority::Normal,
                None,
                hidden,
                "on_unclassifiable",
                "allow_on_headers_stop_iteration",
            ),
        ];
        for (outcome, priority, lane, reason, setting, advice) in table {
            let failed = Failed { outcome, limit: "batch", rules: Some(&rules), priority, reason, lane };
            let said = failed.message();
            let who = match outcome {
                Outcome::UpstreamTimeout | Outcome::UpstreamUnreachable => went,
                Outcome::PayloadTooLarge => "Envoy and nimgate, not the upstream, refused",
                _ => refused,
            };
            assert!(said.starts_with(who), "{said}");
            // No limit has taken a request whose body can't be read.
            assert!(said.contains("limit `batch`") || outcome == Outcome::Unreadable, "{said}");
            assert!(said.contains(setting), "{said}");
            assert!(said.contains(advice), "{said}");
            assert!(said.ends_with('.') && !said.contains("  "), "{said}");
        }
        for outcome in Outcome::ALL {
            let in_table = table.iter().any(|row| row.0 == outcome);
            assert_eq!(in_table, outcome.failure().is_some(), "{outcome:?} must stand in the table, or say nothing");
        }
        let urgent = Failed {
            outcome: Outcome::RateLimited,
            limit: "batch",
            rules: Some(&rules),
            priority: Priority::Urgent,
            reason: None,
            lane: Some(Lane::Queued(Priority::Urgent)),
        };
        assert!(urgent.message().contains("77 requests per minute") && !urgent.message().contains("higher"));
    }
}
