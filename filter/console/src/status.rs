//! `/status` and `/events`: the state of the whole process as JSON.

use super::history::Entry;
use super::overrides::RulesView;
use super::reply::{Reply, json};
use super::view::{ANSWERS, Counters, LedgerView, LimitView, SlowedModel};
use nimgate_core::control::rate::{Estimate, Phase};
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::units::{Instant, Micros};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// What the caller gathered.
pub struct Gathered {
    pub limits: Vec<LimitView>,
    /// Requests that passed through, since the process began.
    pub passthrough: u64,
    /// Since when the process runs.
    pub uptime: Micros,
    pub can_change: bool,
    pub now: Instant,
}

impl Gathered {
    /// The answer to `/status`.
    pub fn status(&self) -> Reply {
        Reply::json(200, &self.document())
    }

    /// The answer to `/events`: one event, after which the browser comes again. A filter can't hold a response open.
    pub fn event(&self) -> Reply {
        let mut body = format!("retry: {}\nevent: status\ndata: ", AGAIN.as_millis()).into_bytes();
        body.extend_from_slice(&json(&self.document()));
        body.extend_from_slice(b"\n\n");
        Reply::new(200, "text/event-stream", body)
    }

    fn document(&self) -> Status<'_> {
        let ledgers: Vec<&LedgerView> = self.limits.iter().filter_map(|limit| limit.ledger.as_ref()).collect();
        let count =
            |of: fn(&Counters) -> u64| self.limits.iter().map(|limit| of(&limit.counters)).fold(0, u64::saturating_add);
        let nvidia = count(Counters::total);
        Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.uptime.as_secs_f64(),
            requests: Requests {
                total: nvidia.saturating_add(self.passthrough),
                nvidia,
                passthrough: self.passthrough,
                ratelimited: count(|counters| counters.ended(Outcome::RateLimited)),
            },
            errors: Errors {
                queue_full_rejects: count(|counters| counters.ended(Outcome::QueueFull)),
                upstream_errors: count(Counters::upstream_errors),
            },
            queue: QueueStatus::of(&ledgers),
            token_bucket: TokenBucket::of(&ledgers, self.now),
            retreat: RetreatStatus::of(&ledgers),
            can_change: self.can_change,
            limits: self.limits.iter().map(|limit| LimitStatus::of(limit, self.now)).collect(),
        }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    uptime_seconds: f64,
    requests: Requests,
    errors: Errors,
    queue: QueueStatus,
    token_bucket: TokenBucket,
    retreat: RetreatStatus,
    can_change: bool,
    limits: Vec<LimitStatus<'a>>,
}

#[derive(Serialize)]
struct Requests {
    total: u64,
    nvidia: u64,
    passthrough: u64,
    ratelimited: u64,
}

#[derive(Serialize)]
struct Errors {
    queue_full_rejects: u64,
    upstream_errors: u64,
}

#[derive(Serialize)]
struct QueueStatus {
    size: u32,
    max_size: u32,
    /// Outside the full queue.
    fallback: u32,
    by_priority: ByPriority<u32>,
}

#[derive(Serialize)]
struct TokenBucket {
    tokens: u32,
    capacity: u32,
    rate_rpm: f64,
    next_token_seconds: f64,
}

#[derive(Serialize)]
struct RetreatStatus {
    state: &'static str,
    effective_rpm: f64,
    base_rpm: f64,
    upstream_429_rate: f64,
    closed_seconds: f64,
    /// What is believed of the upstream's real limit; `null` if it has never refused, or long ago.
    estimated_limit: Option<Learned>,
}

#[derive(Serialize, Clone, Copy)]
struct Learned {
    rpm: f64,
    age_seconds: f64,
}

impl From<Estimate> for Learned {
    fn from(estimate: Estimate) -> Self {
        Self { rpm: f64::from(estimate.rate.get()) / 1_000.0, age_seconds: estimate.age.as_secs_f64() }
    }
}

#[derive(Serialize)]
struct ModelStatus {
    name: String,
    state: &'static str,
    effective_rpm: f64,
    estimated_limit: Option<Learned>,
    workers_full: bool,
}

#[derive(Serialize)]
struct LimitStatus<'a> {
    name: &'a str,
    configured: bool,
    requests: LimitRequests,
    errors: Errors,
    answers: Counts<{ ANSWERS.len() }>,
    fallbacks: u64,
    /// What would have become of the requests that came while the limit was in shadow mode.
    shadow: Counts<{ Outcome::SHADOW.len() }>,
    #[serde(flatten)]
    state: Option<LimitState>,
    history: &'a [Entry],
}

#[derive(Serialize)]
struct LimitRequests {
    total: u64,
    ratelimited: u64,
    outcomes: Counts<{ Outcome::ALL.len() }>,
}

#[derive(Serialize)]
struct LimitState {
    queue: QueueStatus,
    waits: ByPriority<Waits>,
    token_bucket: TokenBucket,
    retreat: RetreatStatus,
    slowed_models: Vec<ModelStatus>,
    rules: RulesView,
}

#[derive(Serialize, Clone, Copy, Default)]
struct Waits {
    /// How long the request at the head of the line has waited.
    oldest_seconds: Option<f64>,
    /// How long one that comes now would wait.
    expected_seconds: f64,
    /// Requests that got their token.
    granted: u64,
    /// How long those waited, all together.
    granted_wait_seconds: f64,
}

/// Values by the names of the four levels.
struct ByPriority<T>([T; Priority::ALL.len()]);

impl<T: Serialize> Serialize for ByPriority<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (priority, value) in Priority::ALL.into_iter().zip(&self.0) {
            map.serialize_entry(priority.name(), value)?;
        }
        map.end()
    }
}

/// Counters by name.
struct Counts<const N: usize>([(&'static str, u64); N]);

impl<const N: usize> Counts<N> {
    fn of(names: [&'static str; N], counts: [u64; N]) -> Self {
        let mut named = names.map(|name| (name, 0));
        for (entry, count) in named.iter_mut().zip(counts) {
            entry.1 = count;
        }
        Self(named)
    }
}

impl<const N: usize> Serialize for Counts<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(N))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn sum(ledgers: &[&LedgerView], of: impl Fn(&LedgerView) -> u32) -> u32 {
    ledgers.iter().map(|ledger| of(ledger)).fold(0, u32::saturating_add)
}

fn rpm(ledgers: &[&LedgerView], of: impl Fn(&LedgerView) -> u32) -> f64 {
    ledgers.iter().map(|ledger| f64::from(of(ledger)) / 1_000.0).sum()
}

impl QueueStatus {
    fn of(ledgers: &[&LedgerView]) -> Self {
        Self {
            size: sum(ledgers, LedgerView::queued),
            max_size: sum(ledgers, |ledger| ledger.active.queue_max),
            fallback: sum(ledgers, LedgerView::outside),
            by_priority: ByPriority(Priority::ALL.map(|priority| {
                let lane = Lane::Queued(priority).index();
                sum(ledgers, |ledger| ledger.snapshot.waiting.get(lane).copied().unwrap_or(0))
            })),
        }
    }
}

impl TokenBucket {
    fn of(ledgers: &[&LedgerView], now: Instant) -> Self {
        let next = ledgers.iter().map(|ledger| ledger.snapshot.token_at.since(now)).min();
        Self {
            tokens: sum(ledgers, |ledger| ledger.snapshot.available),
            capacity: sum(ledgers, |ledger| ledger.snapshot.capacity),
            rate_rpm: rpm(ledgers, |ledger| ledger.snapshot.rate.get()),
            next_token_seconds: next.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl RetreatStatus {
    /// Of several limits the worst state and the highest share of 429s.
    fn of(ledgers: &[&LedgerView]) -> Self {
        let worst = ledgers
            .iter()
            .map(|ledger| ledger.snapshot.phase)
            .max_by_key(|phase| match phase {
                Phase::Normal => 0,
                Phase::Recover => 1,
                Phase::Retreat => 2,
            })
            .unwrap_or_default();
        let share = ledgers.iter().map(|ledger| ledger.snapshot.throttled_permille).max().unwrap_or(0);
        Self {
            state: worst.name(),
            effective_rpm: rpm(ledgers, |ledger| ledger.snapshot.rate.get()),
            base_rpm: rpm(ledgers, |ledger| ledger.snapshot.base.get()),
            upstream_429_rate: f64::from(share) / 1_000.0,
            closed_seconds: ledgers.iter().map(|ledger| ledger.closed).max().unwrap_or_default().as_secs_f64(),
            // Of several limits there is no one estimate.
            estimated_limit: match ledgers {
                [ledger] => ledger.snapshot.estimate.map(Learned::from),
                _ => None,
            },
        }
    }
}

impl ModelStatus {
    fn of(slowed: &SlowedModel) -> Self {
        Self {
            name: slowed.name.as_str().to_owned(),
            state: slowed.phase.name(),
            effective_rpm: f64::from(slowed.rate.get()) / 1_000.0,
            estimated_limit: slowed.estimate.map(Learned::from),
            workers_full: slowed.worker_full,
        }
    }
}

impl<'a> LimitStatus<'a> {
    fn of(view: &'a LimitView, now: Instant) -> Self {
        let counters = &view.counters;
        Self {
            name: &view.name,
            configured: view.is_configured,
            requests: LimitRequests {
                total: counters.total(),
                ratelimited: counters.ended(Outcome::RateLimited),
                outcomes: Counts(Outcome::ALL.map(|outcome| (outcome.label(), counters.ended(outcome)))),
            },
            errors: Errors {
                queue_full_rejects: counters.ended(Outcome::QueueFull),
                upstream_errors: counters.upstream_errors(),
            },
            answers: Counts::of(ANSWERS, counters.answers),
            fallbacks: counters.fallbacks,
            shadow: Counts::of(Outcome::SHADOW.map(Outcome::label), counters.shadow),
            state: view.ledger.as_ref().map(|ledger| LimitState {
                queue: QueueStatus::of(&[ledger]),
                waits: ByPriority(Priority::ALL.map(|priority| Waits::of(ledger, priority))),
                token_bucket: TokenBucket::of(&[ledger], now),
                retreat: RetreatStatus::of(&[ledger]),
                slowed_models: ledger.slowed.iter().map(ModelStatus::of).collect(),
                rules: RulesView::of(&ledger.active, &ledger.configured, ledger.epoch),
            }),
            history: &view.history,
        }
    }
}

impl Waits {
    fn of(ledger: &LedgerView, priority: Priority) -> Self {
        let lane = Lane::Queued(priority).index();
        let served = ledger.served.get(priority as usize).copied().unwrap_or_default();
        Self {
            oldest_seconds: ledger.oldest.get(lane).copied().flatten().map(Micros::as_secs_f64),
            expected_seconds: ledger.expected.get(lane).copied().unwrap_or_default().as_secs_f64(),
            granted: served.count,
            granted_wait_seconds: served.waited.as_secs_f64(),
        }
    }
}

/// When a browser asks again.
const AGAIN: Micros = Micros::from_secs(1);

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
