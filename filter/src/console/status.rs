//! `/status` and `/events`: the state of the whole process as JSON.

use super::history::Entry;
use super::picture::{ANSWERS, Counters, Looked, Picture, SlowedModel};
use super::reply::{Reply, json};
use super::steering::Standing;
use crate::outcome::Outcome;
use crate::priority::{Lane, Priority};
use crate::retreat::{Estimate, Phase};
use crate::units::{Instant, Micros};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// What the caller gathered.
pub struct Gathered {
    /// All limits.
    pub limits: Vec<Picture>,
    /// Requests that passed through, since the process began.
    pub passthrough: u64,
    /// Since when the process runs.
    pub uptime: Micros,
    /// Whether limits can be changed.
    pub can_change: bool,
    /// The time of all this.
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
        let looked: Vec<&Looked> = self.limits.iter().filter_map(|limit| limit.ledger.as_ref()).collect();
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
            queue: Queue::of(&looked),
            token_bucket: TokenBucket::of(&looked, self.now),
            retreat: Retreat::of(&looked),
            can_change: self.can_change,
            limits: self.limits.iter().map(|limit| Limit::of(limit, self.now)).collect(),
        }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    uptime_seconds: f64,
    requests: Requests,
    errors: Errors,
    queue: Queue,
    token_bucket: TokenBucket,
    retreat: Retreat,
    can_change: bool,
    limits: Vec<Limit<'a>>,
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
struct Queue {
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
struct Retreat {
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
struct Model {
    name: String,
    state: &'static str,
    effective_rpm: f64,
    estimated_limit: Option<Learned>,
    workers_full: bool,
}

#[derive(Serialize)]
struct Limit<'a> {
    name: &'a str,
    configured: bool,
    requests: LimitRequests,
    errors: Errors,
    answers: Named<{ ANSWERS.len() }>,
    fallbacks: u64,
    /// What would have become of the requests that came while the limit was in shadow mode.
    shadow: Named<{ Outcome::SHADOW.len() }>,
    #[serde(flatten)]
    state: Option<LimitState>,
    history: &'a [Entry],
}

#[derive(Serialize)]
struct LimitRequests {
    total: u64,
    ratelimited: u64,
    outcomes: Named<{ Outcome::ALL.len() }>,
}

#[derive(Serialize)]
struct LimitState {
    queue: Queue,
    waits: ByPriority<Waits>,
    token_bucket: TokenBucket,
    retreat: Retreat,
    slowed_models: Vec<Model>,
    rules: Standing,
}

#[derive(Serialize, Clone, Copy, Default)]
struct Waits {
    /// How long the foremost has waited.
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
struct Named<const N: usize>([(&'static str, u64); N]);

impl<const N: usize> Named<N> {
    fn of(names: [&'static str; N], counts: [u64; N]) -> Self {
        let mut named = names.map(|name| (name, 0));
        for (entry, count) in named.iter_mut().zip(counts) {
            entry.1 = count;
        }
        Self(named)
    }
}

impl<const N: usize> Serialize for Named<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(N))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn sum(looked: &[&Looked], of: impl Fn(&Looked) -> u32) -> u32 {
    looked.iter().map(|looked| of(looked)).fold(0, u32::saturating_add)
}

fn rpm(looked: &[&Looked], of: impl Fn(&Looked) -> u32) -> f64 {
    looked.iter().map(|looked| f64::from(of(looked)) / 1_000.0).sum()
}

impl Queue {
    fn of(looked: &[&Looked]) -> Self {
        Self {
            size: sum(looked, Looked::queued),
            max_size: sum(looked, |looked| looked.in_force.queue_max),
            fallback: sum(looked, Looked::outside),
            by_priority: ByPriority(Priority::ALL.map(|priority| {
                let lane = Lane::Queued(priority).index();
                sum(looked, |looked| looked.snapshot.waiting.get(lane).copied().unwrap_or(0))
            })),
        }
    }
}

impl TokenBucket {
    fn of(looked: &[&Looked], now: Instant) -> Self {
        let next = looked.iter().map(|looked| looked.snapshot.token_at.since(now)).min();
        Self {
            tokens: sum(looked, |looked| looked.snapshot.available),
            capacity: sum(looked, |looked| looked.snapshot.capacity),
            rate_rpm: rpm(looked, |looked| looked.snapshot.rate.get()),
            next_token_seconds: next.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl Retreat {
    /// Of several limits the worst state and the highest share of 429s.
    fn of(looked: &[&Looked]) -> Self {
        let worst = looked
            .iter()
            .map(|looked| looked.snapshot.phase)
            .max_by_key(|phase| match phase {
                Phase::Normal => 0,
                Phase::Recover => 1,
                Phase::Retreat => 2,
            })
            .unwrap_or_default();
        let share = looked.iter().map(|looked| looked.snapshot.throttled_permille).max().unwrap_or(0);
        Self {
            state: worst.name(),
            effective_rpm: rpm(looked, |looked| looked.snapshot.rate.get()),
            base_rpm: rpm(looked, |looked| looked.snapshot.base.get()),
            upstream_429_rate: f64::from(share) / 1_000.0,
            closed_seconds: looked.iter().map(|looked| looked.closed).max().unwrap_or_default().as_secs_f64(),
            // Of several limits there is no one estimate.
            estimated_limit: match looked {
                [looked] => looked.snapshot.estimate.map(Learned::from),
                _ => None,
            },
        }
    }
}

impl Model {
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

impl<'a> Limit<'a> {
    fn of(picture: &'a Picture, now: Instant) -> Self {
        let counters = &picture.counters;
        Self {
            name: &picture.name,
            configured: picture.is_configured,
            requests: LimitRequests {
                total: counters.total(),
                ratelimited: counters.ended(Outcome::RateLimited),
                outcomes: Named(Outcome::ALL.map(|outcome| (outcome.label(), counters.ended(outcome)))),
            },
            errors: Errors {
                queue_full_rejects: counters.ended(Outcome::QueueFull),
                upstream_errors: counters.upstream_errors(),
            },
            answers: Named::of(ANSWERS, counters.answers),
            fallbacks: counters.fallbacks,
            shadow: Named::of(Outcome::SHADOW.map(Outcome::label), counters.shadow),
            state: picture.ledger.as_ref().map(|looked| LimitState {
                queue: Queue::of(&[looked]),
                waits: ByPriority(Priority::ALL.map(|priority| Waits::of(looked, priority))),
                token_bucket: TokenBucket::of(&[looked], now),
                retreat: Retreat::of(&[looked]),
                slowed_models: looked.slowed.iter().map(Model::of).collect(),
                rules: Standing::of(&looked.in_force, &looked.configured, looked.epoch),
            }),
            history: &picture.history,
        }
    }
}

impl Waits {
    fn of(looked: &Looked, priority: Priority) -> Self {
        let lane = Lane::Queued(priority).index();
        let served = looked.served.get(priority as usize).copied().unwrap_or_default();
        Self {
            oldest_seconds: looked.oldest.get(lane).copied().flatten().map(Micros::as_secs_f64),
            expected_seconds: looked.expected.get(lane).copied().unwrap_or_default().as_secs_f64(),
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
