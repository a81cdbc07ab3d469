//! The sentences that clients read, and the forms of the rate-limit headers.
//!
//! Each sentence says who refused, which limit, which setting, and what to do: a client that takes nimgate's answer for
//! the upstream's, or the other way round, looks in the wrong place for hours.

use crate::limit::ledger::Snapshot;
use crate::limit::rules::Rules;
use crate::outcome::Outcome;
use crate::priority::{Lane, Priority};
use crate::units::{Instant, Micros};

/// Why a request could not be classified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unread {
    /// The reason, as in the metric's label.
    pub label: &'static str,
    /// What Envoy did not hand over at all.
    pub hidden: Hidden,
}

/// A part of a request that Envoy did not hand over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hidden {
    /// None: the filter has seen the whole request.
    Nothing,
    Headers,
    Body,
}

/// What is full where it is not the queue: what may be held of requests' bodies, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// By one worker.
    Worker(u64),
    /// By the requests of one connection.
    Connection(u64),
}

/// What the sentence for a failed request is about.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    pub outcome: Outcome,
    /// The limit that metered it; empty if none did.
    pub limit: &'a str,
    pub rules: Option<&'a Rules>,
    /// The level at which it was served.
    pub priority: Priority,
    /// Why its body could not be read.
    pub unread: Option<Unread>,
    /// Where its wait ran out; `None` if it was Envoy that ended it.
    pub lane: Option<Lane>,
    /// What is full, or too small, if it is not the queue, or Envoy's buffer.
    pub full: Option<Full>,
}

impl Failed<'_> {
    /// The sentence. It never holds anything that a client sent.
    pub fn message(&self) -> String {
        let limit = self.limit;
        match self.outcome {
            Outcome::RateLimited => self.rate_limited(),
            Outcome::QueueFull | Outcome::PayloadTooLarge if self.full.is_some() => self.bodies_full(),
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
                let (problem, advice) = match self.unread.map_or(Hidden::Nothing, |unread| unread.hidden) {
                    Hidden::Headers => ("Envoy did not hand over its headers", "Retry"),
                    Hidden::Body => (
                        "its body can't be read as a JSON object with a model",
                        "Envoy does not show it: set allow_on_headers_stop_iteration: true in the Wasm plugin's \
                         configuration",
                    ),
                    Hidden::Nothing => (
                        "its body can't be read as a JSON object with a model",
                        "Send plain UTF-8 JSON without compression",
                    ),
                };
                format!(
                    "nimgate, not the upstream, refused this request: {problem} ({}; on_unclassifiable: reject). \
                     {advice}.",
                    self.unread.map_or("unreadable", |unread| unread.label),
                )
            }
            Outcome::Forwarded | Outcome::ClientLeft => String::new(),
        }
    }

    /// The sentence for a body that may not be held.
    fn bodies_full(&self) -> String {
        let alone = self.outcome == Outcome::PayloadTooLarge;
        let why = match self.full {
            Some(Full::Worker(max)) if alone => format!(
                "its body alone is larger than what one worker of Envoy may hold (bodies.worker_max_bytes: {max}). Send \
                 less, or raise that setting"
            ),
            Some(Full::Worker(max)) => format!(
                "with it, this worker of Envoy would hold more of requests' bodies than it may \
                 (bodies.worker_max_bytes: {max}). Retry after the time in Retry-After"
            ),
            Some(Full::Connection(max)) => format!(
                "with it, requests on its connection that wait would hold more of their bodies than they may \
                 (bodies.connection_max_bytes: {max}), and nothing else on that connection could go on. Retry after the \
                 time in Retry-After, or use more connections"
            ),
            None => String::new(),
        };
        format!("nimgate, not the upstream, refused this request: {why}.")
    }

    fn rate_limited(&self) -> String {
        let Self { limit, priority, .. } = *self;
        let rpm = self.rules.map_or(0, |rules| rules.retreat.base.as_rpm());
        let timeout = |lane| self.rules.map_or(0, |rules| rules.timeouts.of(lane).as_secs_ceil());
        let setting = self.rules.map_or("request_timeout_s", |rules| rules.timeouts.setting(priority));
        let wait = match self.lane {
            Some(lane @ Lane::Fallback(_)) => {
                format!("{} s outside its full queue (queue_full_policy: passthrough)", timeout(lane))
            }
            Some(lane) => format!("its longest wait at priority {} ({setting}: {} s)", priority.name(), timeout(lane)),
            None => format!(
                "the time that Envoy leaves a silent stream (stream_idle_timeout, or idle_timeout of the route), which is \
                 less than {setting}: {} s and should be more",
                timeout(Lane::Queued(priority))
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

/// The headers that a metered response gets: how long the request waited, and the state of the limit at a time if it is
/// known.
pub fn response_headers(waited: Micros, snapshot: Option<&(Snapshot, Instant)>) -> Vec<(&'static str, String)> {
    let mut headers = vec![("x-nimgate-queue-ms", waited.as_millis().to_string())];
    headers.extend(snapshot.into_iter().flat_map(|(snapshot, now)| ratelimit_headers(snapshot, *now)));
    headers
}

/// A duration as OpenAI writes it: `20ms`, `1.5s`, `6m0s`.
pub(crate) fn duration(span: Micros) -> String {
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
    use crate::control::rate::RetreatRules;
    use crate::limit::rules::Timeouts;
    use crate::units::MilliRpm;
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
        Rules {
            window: Micros::ZERO,
            queue_max: 9,
            timeouts: Timeouts { low: Micros::from_secs(7), others: Micros::from_secs(50), ..Timeouts::DEFAULT },
            retreat: RetreatRules {
                base: MilliRpm::from_rpm(77),
                retry_after_max: Micros::ZERO,
                ..RetreatRules::DEFAULT
            },
            ..Rules::DEFAULT
        }
    }

    #[test]
    fn each_failure_says_who_refused_which_limit_which_setting_and_what_to_do() {
        let rules = rules();
        let (queued, outside) = (Lane::Queued(Priority::Low), Lane::Fallback(Priority::Normal));
        let refused = "nimgate, not the upstream, refused";
        let went = "nimgate let this request go, but";
        let broken = Some(Unread { label: "compressed", hidden: Hidden::Nothing });
        let hidden = Some(Unread { label: "body_hidden", hidden: Hidden::Body });
        let headless = Some(Unread { label: "headers_hidden", hidden: Hidden::Headers });
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
            (Outcome::Unreadable, Priority::Normal, None, headless, "headers_hidden; on_unclassifiable", "Retry"),
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
        for (outcome, priority, lane, unread, setting, advice) in table {
            let failed = Failed { outcome, limit: "batch", rules: Some(&rules), priority, unread, lane, full: None };
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
            unread: None,
            lane: Some(Lane::Queued(Priority::Urgent)),
            full: None,
        };
        for (outcome, full, setting, advice) in [
            (Outcome::QueueFull, Full::Worker(5), "bodies.worker_max_bytes: 5", "Retry-After"),
            (Outcome::QueueFull, Full::Connection(6), "bodies.connection_max_bytes: 6", "more connections"),
            (Outcome::PayloadTooLarge, Full::Worker(7), "bodies.worker_max_bytes: 7", "raise that setting"),
        ] {
            let said = Failed { outcome, full: Some(full), limit: "", ..urgent }.message();
            assert!(said.starts_with(refused) && said.contains(setting) && said.contains(advice), "{said}");
            assert!(said.ends_with('.') && !said.contains("  "), "{said}");
        }
        assert!(urgent.message().contains("77 requests per minute") && !urgent.message().contains("higher"));
        let timeouts = Timeouts { own_urgent: Some(Micros::from_secs(3)), ..rules.timeouts };
        let own = Failed { rules: Some(&Rules { timeouts, ..rules }), ..urgent };
        assert!(own.message().contains("(max_wait_s.urgent: 3 s)"), "{}", own.message());
    }
}
