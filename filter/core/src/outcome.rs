//! Every way in which a metered request can end: the one source of status, error type, message, metric label and code.
//!
//! A request ends in exactly one of these. What the client reads, what the operator counts and what the log says are
//! derived here and nowhere else, so that they can't drift apart.

use serde::Serialize;

/// How a metered request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It went to the upstream, whatever the upstream answered.
    Forwarded,
    /// No token before its deadline.
    RateLimited,
    /// The queue, and what may wait outside it, was full.
    QueueFull,
    /// The upstream took the request and did not answer in time.
    UpstreamTimeout,
    /// The upstream could not be reached, or broke off before its answer began.
    UpstreamUnreachable,
    /// The body did not fit into Envoy's buffer while it was held.
    PayloadTooLarge,
    /// The body could not be read and `on_unclassifiable` is `reject`.
    Unreadable,
    /// The client went away while the request waited.
    ClientLeft,
}

impl Outcome {
    /// All outcomes, in the order of [`Outcome::index`].
    pub const ALL: [Self; 8] = [
        Self::Forwarded,
        Self::RateLimited,
        Self::QueueFull,
        Self::UpstreamTimeout,
        Self::UpstreamUnreachable,
        Self::PayloadTooLarge,
        Self::Unreadable,
        Self::ClientLeft,
    ];

    /// What shadow mode says would have become of a request. The others need a request that is really held.
    pub const SHADOW: [Self; 3] = [Self::Forwarded, Self::RateLimited, Self::QueueFull];

    /// The outcome's place in [`Outcome::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The metric label and the error's `code`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::RateLimited => "rate_limited",
            Self::QueueFull => "queue_full",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Unreadable => "unreadable",
            Self::ClientLeft => "client_left",
        }
    }

    /// The outcome of a metered request that Envoy answered by itself, from the status and the code details of that
    /// answer; `None` where the answer is another filter's or the operator's affair and stays as it is.
    ///
    /// `granted` says whether the request was on its way to the upstream; before that, Envoy's own time limits are the
    /// end of its wait. The details are those of Envoy's "response code details" documentation.
    pub fn of_local_reply(status: u16, details: &[u8], granted: bool) -> Option<Self> {
        let says = |what: &[u8]| details.starts_with(what);
        match (status, granted) {
            (413, _) => Some(Self::PayloadTooLarge),
            (504, true) => Some(Self::UpstreamTimeout),
            (408 | 504, _) if says(b"stream_idle_timeout") || says(b"response_timeout") => {
                Some(if granted { Self::UpstreamTimeout } else { Self::RateLimited })
            }
            (502 | 503, true)
                if says(b"upstream_")
                    || says(b"no_healthy_upstream")
                    || says(b"cluster_not_found")
                    || says(b"no_cluster") =>
            {
                Some(Self::UpstreamUnreachable)
            }
            _ => None,
        }
    }

    /// What the client gets, or `None` where nimgate answers nothing.
    pub const fn failure(self) -> Option<Failure> {
        let (status, kind) = match self {
            Self::Forwarded | Self::ClientLeft => return None,
            Self::RateLimited => (429, "RateLimitedError"),
            Self::QueueFull => (503, "QueueFullError"),
            Self::UpstreamTimeout => (504, "TimeoutException"),
            Self::UpstreamUnreachable => (502, "ConnectError"),
            Self::PayloadTooLarge => (413, "PayloadTooLarge"),
            Self::Unreadable => (400, "InvalidRequestError"),
        };
        Some(Failure { status, kind, code: self.label() })
    }
}

/// An answer of nimgate's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    pub status: u16,
    /// The error's `type`, a name that users of the Python sidecar know.
    pub kind: &'static str,
    pub code: &'static str,
}

impl Failure {
    /// The JSON body.
    pub fn body(self, message: &str) -> Vec<u8> {
        serde_json::to_vec(&ErrorBody::new(self.kind, self.code, None, message)).unwrap_or_default()
    }
}

/// The body of every refusal, in the shape that OpenAI's clients parse.
#[derive(Serialize, Debug)]
pub struct ErrorBody<'a> {
    error: Error<'a>,
}

#[derive(Serialize, Debug)]
struct Error<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// `kind` is the error's `type`; `param` names the field that is wrong.
    pub fn new(kind: &'a str, code: &'a str, param: Option<&'a str>, message: &'a str) -> Self {
        Self { error: Error { message, kind, param, code } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn labels_are_distinct_and_indexed_in_order() {
        for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), at);
            assert_eq!(Outcome::ALL.iter().filter(|o| o.label() == outcome.label()).count(), 1);
        }
    }

    #[test]
    fn an_error_body_is_what_openai_clients_parse() {
        let body = Outcome::QueueFull.failure().unwrap().body("full \"now\"\n");
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(parsed["error"]["type"], "QueueFullError");
        assert_eq!(parsed["error"]["code"], "queue_full");
        assert_eq!(parsed["error"]["message"], "full \"now\"\n");
        assert!(parsed["error"]["param"].is_null());
    }
}
