//! What a seed stands for: the workers, the configuration, the load, the upstream, and the faults of one run.

use crate::mutant::Mutant;
use crate::rng::Rng;

/// The configuration that the filter is given, as far as the checks need to know it. Times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub rate_rpm: u64,
    pub capacity: u64,
    pub queue_max: u64,
    pub aging: Option<u64>,
    /// The window of the guard, 0 for none.
    pub window: u64,
    pub low: u64,
    pub others: u64,
    pub fallback: bool,
    pub floor_rpm: u64,
    pub retry_after_max: u64,
}

impl Settings {
    /// The most grants in a window.
    pub fn quota(&self) -> u64 {
        (self.rate_rpm * self.window / (60 * SECOND)).max(1)
    }

    /// How long a request of this priority may wait.
    pub fn patience(&self, priority: usize, fallback: bool) -> u64 {
        match (priority, fallback) {
            (3, _) => self.low,
            (_, false) => self.others,
            (_, true) => 30 * SECOND,
        }
    }

    /// The plugin configuration. A planted bug tells the filter something else than what the checks hold it to.
    pub fn json(&self, mutant: Option<Mutant>) -> String {
        let times = |bug, factor| if mutant == Some(bug) { factor } else { 1 };
        let aging = self.aging.map(|aging| format!("\"aging_s\":{},", aging / SECOND)).unwrap_or_default();
        format!(
            "{{\"limits\":[{{\"name\":\"nvidia\",\"models\":[\"nvidia/*\"],\"hosts\":[\"api.test\"],\
             \"rate_rpm\":{},\"bucket_capacity\":{},\"queue_max_size\":{},\"window_s\":{},{aging}\
             \"low_priority_timeout_s\":{},\"request_timeout_s\":{},\"queue_full_policy\":\"{}\",\
             \"retreat\":{{\"floor_rpm\":{},\"retry_after_max_s\":{}}}}}],\"log_level\":\"error\"}}",
            self.rate_rpm * times(Mutant::WrongRate, 10),
            self.capacity,
            self.queue_max * times(Mutant::WrongQueueMax, 2),
            self.window * times(Mutant::NoWindow, 0) / SECOND,
            self.low * times(Mutant::WrongPatience, 2) / SECOND,
            self.others * times(Mutant::WrongPatience, 2) / SECOND,
            if self.fallback { "passthrough" } else { "reject" },
            self.floor_rpm,
            self.retry_after_max / SECOND,
        )
    }
}

/// Which faults a run has. Each is on or off by itself, since a fault that is always there hides what others do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Swaps are lost for no reason, so many times in a thousand.
    pub lost_cas: u64,
    /// Timers fire so much later, at most.
    pub late_ticks: u64,
    /// Wake-ups get lost, so many times in a thousand.
    pub lost_wakes: u64,
    /// Workers stall, for so long at most.
    pub stalls: u64,
    /// Workers crash.
    pub crashes: bool,
    /// The clock steps back, by so much at most.
    pub clock: u64,
    /// The ledger is overwritten with something unreadable.
    pub corrupt: bool,
    /// Upstream limits below the configured rate.
    pub throttles: bool,
    /// New configurations come.
    pub reloads: bool,
    /// Calls to shared data, queues and properties are refused, so many times in a thousand.
    pub refusals: u64,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub requests: u64,
    pub settings: Settings,
    /// The mean time between two arrivals.
    pub gap: u64,
    /// How many of a thousand clients leave early.
    pub leave: u64,
    /// How many of a thousand requests are none of the filter's business.
    pub passing: u64,
    /// How many of a thousand requests are metered by the model in their body.
    pub bodies: u64,
    /// How often, in a thousand times, another worker runs inside a call to shared data.
    pub races: u64,
    /// The upstream's `retry-after`, if it sends one.
    pub retry_after: Option<u64>,
    pub faults: Faults,
}

pub const MILLI: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;
/// One token, in units of which each request per minute adds one in each microsecond.
pub const TOKEN: i64 = 60_000_000;

impl Plan {
    /// The run of a seed with so many requests; `workers` if given fixes what else is drawn.
    pub fn new(seed: u64, requests: u64, workers: Option<usize>) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D));
        let drawn = rng.between(1, 8) as usize;
        let settings = settings(&mut rng, None);
        let load = rng.between(30, 250);
        let calm = rng.chance(350);
        let mut faults = Faults::default();
        let mut on = |permille| !calm && rng.chance(permille);
        let (cas, late, wakes, stalls) = (on(400), on(400), on(400), on(400));
        faults.crashes = on(350);
        let clock = on(300);
        faults.corrupt = on(300);
        faults.reloads = on(400);
        faults.throttles = rng.chance(300);
        faults.refusals = if !calm && rng.chance(250) { rng.between(5, 200) } else { 0 };
        faults.lost_cas = if cas { rng.between(50, 500) } else { 0 };
        faults.late_ticks = if late { rng.between(5, 200) * MILLI } else { 0 };
        faults.lost_wakes = if wakes { rng.between(100, 1_000) } else { 0 };
        faults.stalls = if stalls { rng.pick(&[50, 500, 5_000, 15_000]) * MILLI } else { 0 };
        faults.clock = if clock { rng.between(1, 40) * MILLI } else { 0 };
        Self {
            seed,
            workers: workers.unwrap_or(drawn),
            requests,
            gap: (TOKEN as u64 / settings.rate_rpm * 100 / load).max(1),
            settings,
            leave: rng.pick(&[0, 30, 300]),
            passing: rng.pick(&[0, 100]),
            bodies: rng.pick(&[0, 200, 700]),
            races: rng.pick(&[0, 100, 500]),
            retry_after: rng.chance(500).then(|| rng.between(1, 8) * SECOND),
            faults,
        }
    }

    /// Whether nothing happens that Envoy would not do on a good day.
    pub fn is_calm(&self) -> bool {
        let f = &self.faults;
        f.lost_cas == 0
            && f.late_ticks == 0
            && f.lost_wakes == 0
            && f.stalls == 0
            && f.refusals == 0
            && !f.crashes
            && f.clock == 0
            && !f.corrupt
            && !f.reloads
    }
}

/// Draws a configuration. A reload keeps the patience and the order, so that what waits is still held to them.
pub fn settings(rng: &mut Rng, before: Option<Settings>) -> Settings {
    let rate_rpm = rng.pick(&[60, 600, 3_000, 6_000, 30_000, 60_000]);
    let drawn = Settings {
        rate_rpm,
        capacity: rng.pick(&[1, 2, 5, 20, 100]),
        queue_max: rng.pick(&[5, 20, 100, 1_000]),
        aging: rng.pick(&[None, None, Some(SECOND), Some(3 * SECOND)]),
        window: rng.pick(&[0, 0, 1, 3]) * SECOND,
        low: rng.between(1, 5) * SECOND,
        others: rng.between(2, 20) * SECOND,
        fallback: rng.chance(400),
        floor_rpm: rng.between(1, rate_rpm / 4),
        retry_after_max: rng.between(2, 10) * SECOND,
    };
    match before {
        Some(before) => Settings {
            rate_rpm: drawn.rate_rpm,
            capacity: drawn.capacity,
            floor_rpm: drawn.floor_rpm,
            queue_max: drawn.queue_max,
            ..before
        },
        None => drawn,
    }
}
