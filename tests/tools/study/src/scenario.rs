//! The scenarios: what the upstream does, how much is asked for, and what the answers take.

use crate::demand::{self, Company, Request};
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
    company: Company,
}

/// Whether the limit holds still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Steady,
    Moving,
    /// Refusals of several causes at the same time.
    Company,
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
            refusal_late: None,
            retry_after: RetryAfter::Absent,
        },
        upstream: Description {
            kind,
            limits: vec![(0, rpm)],
            burst: 5,
            concurrency: None,
            weak: Vec::new(),
            weak_credential: None,
            pools: Vec::new(),
            pools_named: true,
            stray: 0.0,
            lockouts: Vec::new(),
            worker_full: None,
            spurious: Vec::new(),
        },
        outside: Outside::Nobody,
        spurious_every: None,
        company: Company::equal(4),
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
    weak.upstream.weak = vec![(0, 5)];
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

/// The scenarios in which refusals have several causes, or causes that are no rate of the account, in the order of their
/// table. Each is asked for [`COMPANY_DEMAND`] times what the account allows.
pub fn in_company() -> Vec<Scenario> {
    let account = |name, about, rpm| scenario(name, about, Class::Company, Kind::SlidingWindow, rpm);
    let mut all = Vec::new();
    let mut add = |name, about, change: &dyn Fn(&mut Scenario)| {
        let mut scenario = account(name, about, u64::from(RATE_RPM));
        change(&mut scenario);
        all.push(scenario);
    };
    fn weak(scenario: &mut Scenario, models: usize, weak: u64, rpm: u64) {
        scenario.company = Company::equal(models);
        scenario.upstream.weak = (0..weak).map(|model| (model, rpm)).collect();
    }
    add("2 of 8 weak", "two of eight models allow 1 a minute", &|s| weak(s, 8, 2, 1));
    add("2 of 12 weak", "two of twelve models allow 1 a minute", &|s| weak(s, 12, 2, 1));
    add("3 of 10 weak", "three of ten models allow 2 a minute", &|s| weak(s, 10, 3, 2));
    add("4 of 8 weak", "four of eight models allow 3 a minute", &|s| weak(s, 8, 4, 3));
    add("2 of 4 weak", "two of four models allow 5 a minute", &|s| weak(s, 4, 2, 5));
    add("popular weak", "the two most popular of eight models (Zipf) allow 1 a minute", &|s| {
        weak(s, 8, 2, 1);
        s.company = Company::zipf(8);
        s.allowed_rpm = 37.9;
    });
    add("weak, Retry-After", "two of eight models allow 1 a minute, and ask for 300 s", &|s| {
        weak(s, 8, 2, 1);
        s.setting.retry_after = RetryAfter::OfWeak;
    });
    add("weak and account", "two of eight models allow 1 a minute, the account 25", &|s| {
        weak(s, 8, 2, 1);
        s.upstream.limits = vec![(0, 25)];
        s.allowed_rpm = 25.0;
    });
    add("1 % stray", "1 % of all requests are refused for no reason", &|s| s.upstream.stray = 0.01);
    add("2 % stray", "2 % of all requests are refused for no reason", &|s| s.upstream.stray = 0.02);
    add("5 % stray", "5 % of all requests are refused for no reason", &|s| s.upstream.stray = 0.05);
    add("10 % stray", "10 % of all requests are refused for no reason", &|s| s.upstream.stray = 0.1);
    add("weak and stray", "5 % stray, and two of eight models allow 1 a minute", &|s| {
        weak(s, 8, 2, 1);
        s.upstream.stray = 0.05;
    });
    add("one credential", "one of ten credentials allows 1 a minute", &|s| {
        s.company.credentials = 10;
        s.upstream.weak_credential = Some((0, 1));
    });
    add("lockout", "all is refused from minute 10 to 40", &|s| {
        s.upstream.lockouts = vec![(10 * WINDOW, 40 * WINDOW)];
        s.allowed_rpm = 20.0;
    });
    for (name, about, late) in [
        ("late by 60 s", "the account allows 25, refusals come after 60 s", (60, 60)),
        ("late by 300 s", "the account allows 25, refusals come after 300 s", (300, 300)),
        ("late by 60-300 s", "the account allows 25, refusals come after 60 to 300 s", (60, 300)),
    ] {
        add(name, about, &|s| {
            s.upstream.limits = vec![(0, 25)];
            s.allowed_rpm = 25.0;
            s.setting.refusal_late = Some((late.0 * SECOND, late.1 * SECOND));
        });
    }
    for (name, about, named) in [
        ("pool of 4", "one of four models has four workers, answers take 30 s, and refusals say so", true),
        ("pool of 4, unnamed", "the same with plain 429s", false),
    ] {
        add(name, about, &|s| {
            s.upstream.pools = vec![(0, 4)];
            s.upstream.pools_named = named;
            s.setting.latency = 30 * SECOND;
        });
    }
    all
}

/// How much is asked for in the scenarios of [`in_company`], as a share of what the account allows.
pub const COMPANY_DEMAND: (&str, f64) = ("twice", 2.0);

impl Scenario {
    /// Draws what is random.
    pub fn instance(&self, demand_factor: f64, seed: u64) -> Instance {
        let mut rng = fastrand::Rng::with_seed(seed);
        let demand = demand::requests(&self.company, self.allowed_rpm * demand_factor, self.setting.end, &mut rng);
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
            let part = demand::requests(&Company::equal(4), f64::from(RATE_RPM) * share, 5 * WINDOW, rng);
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
