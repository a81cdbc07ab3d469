//! One run: demand, the filter's queue, bucket and window guard, a controller that sets their rate, and the upstream.

use crate::controllers::{Controller, Feedback};
use crate::demand::{LEVELS, Request, TIMEOUTS, exponential};
use crate::upstream::{Admission, Upstream};
use crate::{SECOND, Time, WINDOW};
use nimgate_core::supply::bucket::Bucket;
use nimgate_core::supply::window::{WindowGuard, WindowRules};
use nimgate_core::units::{Instant, Micros};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// What a run is made of, apart from demand, upstream and controller.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The configured rate in requests per minute.
    pub rate_rpm: u32,
    /// When the run ends.
    pub end: Time,
    /// The mean time until an admitted request is answered.
    pub latency: Time,
    /// The mean time until a refused one is.
    pub refusal_latency: Time,
    /// Between which times refusals come instead, if they come late.
    pub refusal_late: Option<(Time, Time)>,
    /// Which Retry-After refusals carry.
    pub retry_after: RetryAfter,
}

/// What 429s say of when to come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryAfter {
    /// Nothing.
    Absent,
    /// What is true: when the limiter would admit one.
    True,
    /// A day.
    Absurd,
    /// Five minutes, where a weak model refuses.
    OfWeak,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When requests were admitted.
    pub admitted: Vec<Time>,
    /// When requests were refused with 429.
    pub refused: Vec<Time>,
    /// When requests were answered 503 because their model's workers were busy.
    pub worker_full: usize,
    /// When tokens were granted while someone waited, or the queue was found empty: the ends of idle spans.
    pub longest_idle: Time,
    /// How long `urgent` requests waited for their token, or until they gave up.
    pub urgent_waits: Vec<Time>,
    /// The effective rate, each ten seconds, in requests per minute.
    pub rates: Vec<(Time, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Arrive(usize),
    Reach { granted_at: Time, request: Request },
    Answer { granted_at: Time, request: Request, admission: u8, retry_after: Option<Time> },
    Look,
    Sample,
}

/// The time from a grant until its request reaches the upstream.
const TRANSIT: Time = 30_000;

/// Runs the demand through a controller.
pub fn run(
    setting: Setting,
    demand: &[Request],
    mut upstream: Upstream,
    controller: &mut dyn Controller,
    rng: &mut fastrand::Rng,
) -> Record {
    let origin = |now: Time| Instant::from_micros(ORIGIN + now);
    let quota = WindowRules { window: Micros::new(WINDOW), quota: setting.rate_rpm, margin: MARGIN };
    let mut bucket = Bucket::with_tokens(controller.flow().capacity, origin(0));
    let mut guard = WindowGuard::new(quota, origin(0));
    let mut queues: [VecDeque<Request>; LEVELS] = Default::default();
    let mut record = Record::default();
    let mut events = BinaryHeap::new();
    let mut sequence = 0u64;
    let mut at = |events: &mut BinaryHeap<_>, time: Time, event| {
        sequence += 1;
        events.push(Reverse((time, sequence, event)));
    };
    if !demand.is_empty() {
        at(&mut events, demand[0].at, Event::Arrive(0));
    }
    at(&mut events, 0, Event::Sample);
    let mut idle_since: Option<Time> = None;
    let mut next_look = Time::MAX;
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now >= setting.end {
            break;
        }
        let instant = origin(now);
        bucket.refill(controller.flow(), instant);
        guard.advance(quota, instant);
        controller.advance(instant);
        bucket.refill(controller.flow(), instant);
        match event {
            Event::Arrive(index) => {
                let request = demand[index];
                queues[request.level].push_back(request);
                if let Some(next) = demand.get(index + 1) {
                    at(&mut events, next.at, Event::Arrive(index + 1));
                }
            }
            Event::Reach { granted_at, request } => {
                let admission = upstream.receive(request, now);
                let mut retry_after = None;
                let mean = match admission {
                    Admission::Admitted => {
                        record.admitted.push(now);
                        setting.latency
                    }
                    Admission::Refused => {
                        record.refused.push(now);
                        retry_after = match setting.retry_after {
                            RetryAfter::Absent => None,
                            RetryAfter::Absurd => Some(86_400 * SECOND),
                            RetryAfter::OfWeak => upstream.is_weak(request.model).then_some(300 * SECOND),
                            RetryAfter::True => {
                                let open = (1..=60).find(|s| upstream.would_admit(request, now + s * SECOND));
                                Some(open.unwrap_or(60) * SECOND)
                            }
                        };
                        setting.refusal_latency
                    }
                    Admission::WorkerFull => {
                        record.worker_full += 1;
                        setting.refusal_latency
                    }
                };
                let latency = match setting.refusal_late {
                    Some((from, to)) if admission == Admission::Refused => rng.u64(from..=to),
                    _ => (mean as f64 * (0.5 + 0.5 * exponential(rng))) as Time,
                };
                at(
                    &mut events,
                    now + latency,
                    Event::Answer { granted_at, request, admission: admission as u8, retry_after },
                );
            }
            Event::Answer { granted_at, request, admission, retry_after } => {
                let admitted = admission == Admission::Admitted as u8;
                if admitted {
                    upstream.finish(request.model);
                }
                controller.answered(
                    instant,
                    &Feedback {
                        granted_at: origin(granted_at),
                        model: request.model,
                        credential: request.credential,
                        admitted,
                        worker_full: admission == Admission::WorkerFull as u8,
                        retry_after: retry_after.map(Micros::new),
                    },
                );
            }
            Event::Look => {
                if now >= next_look {
                    next_look = Time::MAX;
                }
            }
            Event::Sample => {
                record.rates.push((now, f64::from(controller.flow().rate.get()) / 1e3));
                at(&mut events, now + 10 * SECOND, Event::Sample);
            }
        }
        for (level, queue) in queues.iter_mut().enumerate() {
            while queue.front().is_some_and(|request| request.at + TIMEOUTS[level] <= now) {
                queue.pop_front();
                if level == 0 {
                    record.urgent_waits.push(TIMEOUTS[0]);
                }
            }
        }
        // Grant what may be granted.
        loop {
            let open = |request: &Request, controller: &mut dyn Controller| {
                controller.model_open_at(request.model, instant) <= instant
            };
            let found = (0..LEVELS)
                .find_map(|level| queues[level].iter().position(|r| open(r, controller)).map(|place| (level, place)));
            let Some((level, place)) = found else { break };
            idle_since.get_or_insert(now);
            if instant < controller.closed_until()
                || !bucket.is_ready()
                || guard.room(quota, instant) == 0
                || bucket.take(controller.flow()).is_err()
            {
                break;
            }
            guard.count(1);
            let Some(request) = queues[level].remove(place) else { break };
            controller.granted(instant, &request);
            if request.level == 0 {
                record.urgent_waits.push(now - request.at);
            }
            if let Some(since) = idle_since.take() {
                record.longest_idle = record.longest_idle.max(now - since);
            }
            at(&mut events, now + TRANSIT, Event::Reach { granted_at: now, request });
        }
        if queues.iter().all(VecDeque::is_empty) {
            idle_since = None;
            continue;
        }
        // Look again when a token may be there, or soon, since answers and time change the rate.
        let token = bucket
            .ready_at(controller.flow())
            .max(guard.opens_at(quota, instant, 1))
            .max(controller.closed_until())
            .as_micros()
            .saturating_sub(ORIGIN);
        let look = token.clamp(now + 1_000, now + SECOND);
        if look < next_look {
            next_look = look;
            at(&mut events, look, Event::Look);
        }
    }
    if let Some(since) = idle_since {
        record.longest_idle = record.longest_idle.max(setting.end - since);
    }
    record
}

/// The clock of the core at the start of a run; not zero, which stands for "never" there.
const ORIGIN: u64 = 1_000_000_000_000;

/// Requests are granted and arrive at the same moment here, so the margin is smaller than the filter's default. The
/// figures of the study are held to it.
const MARGIN: Micros = Micros::new(WINDOW / 256);
