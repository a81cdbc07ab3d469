//! `/health` and `/health/ready`: is the process up, and would a request get through?
//!
//! Ready means: the upstream can be reached, some limit has room in its queue, and gives tokens before a request that
//! waits for one gives up. One limit of several that is full or closed does not take the others' traffic away.
//!
//! The upstream is asked by a request of the filter's own, at most once in [`FRESH`] for the whole process: what came of
//! it lies in shared data, so that no number of askers, however quick, can flood the upstream.

use super::reply::Reply;
use super::view::LimitView;
use nimgate_config::console::ProbeConfig;
use nimgate_core::limit::ledger::VERSION;
use nimgate_core::store::{Store, StoreError};
use nimgate_core::units::{Instant, Micros};
use serde::Serialize;

/// The answer to `/health`: that it is given at all says everything.
pub fn alive() -> Reply {
    #[derive(Serialize)]
    struct Alive {
        status: &'static str,
        version: &'static str,
    }
    Reply::json(200, &Alive { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// What came of asking the upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probed {
    /// It answered with this status.
    Answered(u16),
    /// It did not answer, or the connection broke.
    Silent,
    /// Envoy knows no such cluster, or can't send there.
    NoCluster,
}

impl Probed {
    /// Whether the upstream can be reached. A refusal (401, 404, 429) is an answer too; what Envoy says in the
    /// upstream's place is 503 or 504.
    pub(crate) const fn is_reachable(self) -> bool {
        matches!(self, Self::Answered(status) if status < 500)
    }

    fn words(self, cluster: &str) -> String {
        match self {
            Self::Answered(status) if self.is_reachable() => format!("cluster `{cluster}` answered {status}"),
            Self::Answered(status) => {
                format!("cluster `{cluster}` answered {status}, which may be Envoy's word for no answer")
            }
            Self::Silent => format!("cluster `{cluster}` did not answer"),
            Self::NoCluster => {
                format!("Envoy can't send to cluster `{cluster}`: it has no such cluster, or no host in it")
            }
        }
    }
}

/// A result, and when it was had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    pub at: Instant,
    pub result: Probed,
}

impl Probe {
    /// The latest result for what is probed, if there is one.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses.
    pub fn read<S: Store>(probe: &ProbeConfig, store: &mut S) -> Result<Option<Self>, StoreError> {
        Ok(store.load(&key(probe))?.and_then(|(bytes, _)| Self::decode(&bytes)))
    }

    /// Puts a result in place of the one before.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses, or others were quicker too many times.
    pub fn write<S: Store>(self, probe: &ProbeConfig, store: &mut S) -> Result<(), StoreError> {
        store.measure_and_replace(&key(probe), |_, _| (Some(self.encode()), ()))
    }

    /// Whether it is recent enough to be given again.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.since(self.at) < FRESH
    }

    fn encode(self) -> Vec<u8> {
        let code: u32 = match self.result {
            Probed::Answered(status) => u32::from(status),
            Probed::Silent => SILENT,
            Probed::NoCluster => NO_CLUSTER,
        };
        [self.at.as_micros().to_le_bytes().as_slice(), code.to_le_bytes().as_slice()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (at, code) = bytes.split_first_chunk()?;
        let result = match u32::from_le_bytes(*code.first_chunk()?) {
            SILENT => Probed::Silent,
            NO_CLUSTER => Probed::NoCluster,
            status => Probed::Answered(u16::try_from(status).ok()?),
        };
        Some(Self { at: Instant::from_micros(u64::from_le_bytes(*at)), result })
    }
}

fn key(probe: &ProbeConfig) -> String {
    format!("nimgate/{VERSION}/probe/{}/{}{}", probe.cluster, probe.host, probe.path)
}

/// The answer to `/health/ready`. Without a probe the first one is under way, and nothing is known yet.
pub fn readiness(probe: &ProbeConfig, probed: Option<Probe>, limits: &[LimitView], now: Instant) -> Reply {
    #[derive(Serialize)]
    struct Readiness<'a> {
        ready: bool,
        upstream: Upstream,
        limits: Vec<LimitCheck<'a>>,
    }
    #[derive(Serialize)]
    struct Upstream {
        ok: bool,
        message: String,
        age_seconds: Option<f64>,
    }
    #[derive(Serialize)]
    struct LimitCheck<'a> {
        name: &'a str,
        ok: bool,
        queue: bool,
        tokens: bool,
        message: String,
    }
    let upstream = Upstream {
        ok: probed.is_some_and(|probed| probed.result.is_reachable()),
        message: match probed {
            Some(probed) => probed.result.words(&probe.cluster),
            None => format!("cluster `{}` is being asked for the first time", probe.cluster),
        },
        age_seconds: probed.map(|probed| now.since(probed.at).as_secs_f64()),
    };
    let limits: Vec<LimitCheck<'_>> = limits
        .iter()
        .filter(|limit| limit.is_configured)
        .map(|limit| {
            let (queue, tokens) =
                limit.ledger.as_ref().map_or((false, false), |ledger| (ledger.has_room(), ledger.gives_tokens(now)));
            let message = match (&limit.ledger, queue, tokens) {
                (None, ..) => "its record can't be read".to_owned(),
                (Some(ledger), false, _) => {
                    format!("its queue is full (queue_max_size: {})", ledger.active.queue_max)
                }
                (Some(ledger), true, false) => format!(
                    "its next token comes in {} s, later than a request waits",
                    ledger.snapshot.token_at.since(now).as_secs_ceil()
                ),
                (Some(ledger), true, true) => {
                    format!("{} of {} places in its queue are taken", ledger.queued(), ledger.active.queue_max)
                }
            };
            LimitCheck { name: &limit.name, ok: queue && tokens, queue, tokens, message }
        })
        .collect();
    let ready = upstream.ok && (limits.is_empty() || limits.iter().any(|limit| limit.ok));
    let reply = Reply::json(if ready { 200 } else { 503 }, &Readiness { ready, upstream, limits });
    if ready { reply } else { reply.with("retry-after", "1") }
}

/// For how long a result is reused before the upstream is asked again.
pub(crate) const FRESH: Micros = Micros::from_secs(5);

const SILENT: u32 = 0x1_0000;
const NO_CLUSTER: u32 = 0x1_0001;

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
