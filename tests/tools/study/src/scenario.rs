//! The scenarios: what the upstream does, how much is asked for, and what the answers take.

use crate::demand::{self, Request};
use crate::engine::{RetryAfter, Setting};
use crate::upstream::{Description, Kind};
use crate::{SECOND, Time, WINDOW};

/// The configured rate in every scenario, in requests per minute.
pub const RATE_RPM: u32 = 40;

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in the tables.
    pub name: &'static str,
    /// What it plays.
    pub about: &'static str,
    /// Whether the upstream stays as it is, or moves during the run.
    pub class: Class,
    /// The mean of what the upstream allows, in requests per minute.
    pub allowed_rpm: f64,
    setting: Setting,
    upstream: Description,
    outside: Outside,
    spurious_every: Option<Time>,
}

/// Whether the limit holds still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Steady,
    Moving,
}

/// Others on the same account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outside {
    Nobody,
    /// For five minutes each: nothing, a quarter, half of the limit, a quarter.
    VaryingHalf,
}

/// How much is asked for, as a share of what is allowed.
pub const DEMANDS: [(&str, f64); 3] = [("low", 0.4), ("exact", 1.0), ("threefold", 3.0)];

/// Of one run: all that is random is drawn here, so that every controller meets the same.
pub struct Instance {
    pub setting: Setting,
    pub demand: Vec<Request>,
    pub upstream: Description,
}

const HOUR: Time = 60 * WINDOW;

fn scenario(name: &'static str, about: &'static str, class: Class, kind: Kind, rpm: u64) -> Scenario {
    Scenario {
        name,
        about,
        class,
        allowed_rpm: rpm as f64,
        setting: Setting {
            rate_rpm: RATE_RPM,
            end: HOUR,
            latency: 4 * SECOND,
            refusal_latency: SECOND / 5,
            retry_after: RetryAfter::Absent,
        },
        upstream: Description {
            kind,
            limits: vec![(0, rpm)],
            burst: 5,
            concurrency: None,
            weak_model_rpm: None,
            worker_full: None,
            spurious: Vec::new(),
        },
        outside: Outside::Nobody,
        spurious_every: None,
    }
}

/// All scenarios, in the order of the tables.
pub fn all() -> Vec<Scenario> {
    use Class::{Moving, Steady};
    let bucket25 = |name, about| scenario(name, about, Steady, Kind::TokenBucket, 25);
    let sliding = |name, about, class| scenario(name, about, class, Kind::SlidingWindow, 40);
    let mut all = vec![
        sliding("as configured", "a rolling window of exactly the configured 40", Steady),
        bucket25("bucket", "a token bucket of 25 rpm, burst 5"),
        scenario("fixed window", "25 in each fixed minute", Steady, Kind::FixedWindow, 25),
        scenario("rolling window", "25 in any minute", Steady, Kind::SlidingWindow, 25),
    ];
    let mut concurrency = scenario("concurrency", "6 at once, answers take 10 s", Steady, Kind::None, 36);
    concurrency.upstream.concurrency = Some(6);
    concurrency.setting.latency = 10 * SECOND;
    all.push(concurrency);
    let mut quick = bucket25("quick answers", "the bucket, answers take 0.2 s");
    quick.setting.latency = SECOND / 5;
    all.push(quick);
    let mut slow = bucket25("slow answers", "the bucket, answers take 30 s, refusals 5 s");
    slow.setting.latency = 30 * SECOND;
    slow.setting.refusal_latency = 5 * SECOND;
    all.push(slow);
    let mut said = bucket25("Retry-After", "the bucket says truly when to come back");
    said.setting.retry_after = RetryAfter::True;
    all.push(said);
    let mut absurd = bucket25("absurd Retry-After", "the bucket says to come back tomorrow");
    absurd.setting.retry_after = RetryAfter::Absurd;
    all.push(absurd);
    let mut weak = sliding("weak model", "40 in any minute, but one model of four has 5", Steady);
    weak.upstream.weak_model_rpm = Some(5);
    weak.allowed_rpm = 35.0;
    all.push(weak);
    let mut full = sliding("workers full", "one model's workers are full for half the hour", Steady);
    full.upstream.worker_full = Some((15 * WINDOW, 45 * WINDOW, 3));
    full.allowed_rpm = 36.0;
    all.push(full);
    let mut spurious = sliding("spurious 429s", "each six minutes a second of 429s for no reason", Moving);
    spurious.spurious_every = Some(6 * WINDOW);
    all.push(spurious);
    let mut moving = sliding("drop and rise", "40, from minute 20 on 15, from minute 40 on 40 again", Moving);
    moving.upstream.limits = vec![(0, 40), (20 * WINDOW, 15), (40 * WINDOW, 40)];
    moving.allowed_rpm = 95.0 / 3.0;
    all.push(moving);
    let mut rise = bucket25("rise", "a bucket of 25 rpm, from minute 30 on of 40");
    rise.class = Moving;
    rise.upstream.limits = vec![(0, 25), (30 * WINDOW, 40)];
    rise.allowed_rpm = 32.5;
    all.push(rise);
    let mut outside = sliding("outside consumer", "others take up to half of 40, changing each five minutes", Moving);
    outside.outside = Outside::VaryingHalf;
    outside.allowed_rpm = 30.0;
    all.push(outside);
    all
}

impl Scenario {
    /// Draws what is random.
    pub fn instance(&self, demand_factor: f64, seed: u64) -> Instance {
        let mut rng = fastrand::Rng::with_seed(seed);
        let demand = demand::requests(self.allowed_rpm * demand_factor, self.setting.end, &mut rng);
        let mut upstream = self.upstream.clone();
        if self.outside == Outside::VaryingHalf {
            upstream.limits = left_by_others(self.setting.end, &mut rng);
        }
        if let Some(every) = self.spurious_every {
            let mut at = every;
            while at < self.setting.end {
                upstream.spurious.push(at + rng.u64(0..WINDOW));
                at += every;
            }
        }
        Instance { setting: self.setting, demand, upstream }
    }

    /// When the limit rises for the last time, and to what.
    pub fn rise(&self) -> Option<(Time, u64)> {
        match self.upstream.limits.as_slice() {
            _ if self.outside != Outside::Nobody => None,
            [.., (_, before), (at, after)] if after > before => Some((*at, *after)),
            _ => None,
        }
    }
}

/// What others leave of the limit, looked at each five seconds: what they have taken in the last window is gone. Their
/// requests come at random, for five minutes each at none, a quarter, half, and a quarter of the limit.
fn left_by_others(end: Time, rng: &mut fastrand::Rng) -> Vec<(Time, u64)> {
    let mut taken = Vec::new();
    for (phase, share) in [0.0, 0.25, 0.5, 0.25].into_iter().cycle().enumerate() {
        let start = phase as Time * 5 * WINDOW;
        if start >= end {
            break;
        }
        if share > 0.0 {
            let part = demand::requests(f64::from(RATE_RPM) * share, 5 * WINDOW, rng);
            taken.extend(part.into_iter().map(|request| start + request.at));
        }
    }
    let mut limits = vec![(0, u64::from(RATE_RPM))];
    for at in (5 * SECOND..end).step_by(5_000_000) {
        let recent = taken.iter().filter(|then| (at.saturating_sub(WINDOW)..at).contains(then)).count() as u64;
        limits.push((at, u64::from(RATE_RPM).saturating_sub(recent).max(1)));
    }
    limits
}
