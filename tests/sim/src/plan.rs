//! What a seed stands for: the workers, the configuration, the load, the upstream, and the faults of one run.

use crate::mutant::Mutant;
use crate::rng::Rng;

/// How many limits a configuration has at most.
pub const LIMITS_MAX: usize = 3;

/// The limits' names, the hosts that they are matched by, and the first parts of their models' names.
pub const NAMES: [&str; LIMITS_MAX] = ["nvidia", "second", "third"];
pub const HOSTS: [&str; LIMITS_MAX] = ["api.test", "second.test", "third.test"];

/// The configuration of one limit, as far as the checks need to know it. Times in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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
    pub shadow: bool,
    /// Whether 429s slow the limit down.
    pub retreat: bool,
    pub obey_503: bool,
    pub probe_windows: u64,
    pub floor_rpm: u64,
    pub retry_after_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rate_rpm: 40,
            capacity: 4,
            queue_max: 100,
            aging: None,
            window: 60 * SECOND,
            low: 30 * SECOND,
            others: 120 * SECOND,
            fallback: false,
            shadow: false,
            retreat: true,
            obey_503: false,
            probe_windows: 5,
            floor_rpm: 1,
            retry_after_max: 10 * SECOND,
        }
    }
}

impl Settings {
    /// The most grants in a window.
    pub fn quota(&self) -> u64 {
        (self.rate_rpm * self.window / (60 * SECOND)).max(1)
    }

    /// How much longer than the window a grant counts: little, since requests take no time on their way here.
    pub fn window_margin(&self) -> u64 {
        self.window / 256
    }

    /// The window in which the rate controller counts.
    pub fn counting_window(&self) -> u64 {
        if self.window == 0 { 60 * SECOND } else { self.window }
    }

    /// How long a request of this priority may wait.
    pub fn timeout(&self, priority: usize, fallback: bool) -> u64 {
        match (priority, fallback) {
            (3, _) => self.low,
            (_, false) => self.others,
            (_, true) => 30 * SECOND,
        }
    }

    /// Whether the filter takes these settings: a window must have room for a request and lose no more than a tenth to
    /// rounding, and the floor is below the rate.
    pub fn is_valid(&self) -> bool {
        let milli = self.window / SECOND * self.rate_rpm * 1_000 / 60;
        let whole = milli / 1_000 * 1_000;
        self.floor_rpm <= self.rate_rpm && (self.window == 0 || whole > 0 && (milli - whole) * 10 <= milli)
    }

    /// The fields that a configuration and `POST /config` share. A planted bug tells the filter something else than what
    /// the checks hold it to.
    pub fn fields(&self, mutant: Option<Mutant>) -> String {
        let times = |bug, factor| if mutant == Some(bug) { factor } else { 1 };
        format!(
            "\"rate_rpm\":{},\"bucket_capacity\":{},\"queue_max_size\":{},\"window_s\":{},\"window_margin_ms\":{},\
             \"low_priority_timeout_s\":{},\"request_timeout_s\":{},\"queue_full_policy\":\"{}\",\"mode\":\"{}\",\
             \"retreat\":{{\"enabled\":{},\"obey_503\":{},\"probe_windows\":{},\"floor_rpm\":{},\"retry_after_max_s\":{}}}",
            self.rate_rpm * times(Mutant::WrongRate, 10),
            self.capacity,
            self.queue_max * times(Mutant::WrongQueueMax, 2),
            self.window * times(Mutant::NoWindow, 0) / SECOND,
            self.window_margin() / MILLI,
            self.low * times(Mutant::WrongTimeout, 2) / SECOND,
            self.others * times(Mutant::WrongTimeout, 2) / SECOND,
            if self.fallback { "passthrough" } else { "reject" },
            if self.shadow { "shadow" } else { "enforce" },
            self.retreat,
            self.obey_503,
            self.probe_windows,
            self.floor_rpm,
            self.retry_after_max / SECOND,
        )
    }
}

/// The plugin configuration with these limits.
pub fn json(limits: &[Settings], mutant: Option<Mutant>) -> String {
    let each = limits.iter().enumerate().map(|(at, settings)| {
        let (name, host, fields) = (NAMES[at], HOSTS[at], settings.fields(mutant));
        let aging = settings.aging.map(|aging| format!(",\"aging_s\":{}", aging / SECOND)).unwrap_or_default();
        format!("{{\"name\":\"{name}\",\"models\":[\"{name}/*\"],\"hosts\":[\"{host}\"],{fields}{aging}}}")
    });
    format!("{{\"limits\":[{}],\"log_level\":\"error\"}}", each.collect::<Vec<_>>().join(","))
}

/// What the upstream hides about a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModelKind {
    /// It counts with the account alone.
    Plain,
    /// It has a limit of its own, far below the account's.
    Weak,
    /// Its workers are full of others' requests, so many times in a thousand: 503 `ResourceExhausted`.
    Full(u64),
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

/// What the world of a run has besides requests that come and are answered; so many times in a thousand, or so often.
/// Nothing of this is a fault: the checks are as strict with it as without.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// The models of each limit.
    pub models: Vec<ModelKind>,
    /// Envoy's router has tried several times before it passes an answer on.
    pub retries: u64,
    /// Envoy answers by itself: timeouts, unreachable upstreams, bodies that are too large.
    pub local: u64,
    /// The upstream answers with errors that say nothing of its limits.
    pub odd: u64,
    /// An operator changes rules through `POST /config`, so often.
    pub posts: u64,
    /// Someone looks at `/status`, so often.
    pub polls: u64,
    /// A connection closes with all its streams, so often.
    pub closes: u64,
    /// A request that is metered by its host has a body, which comes while it waits.
    pub uploads: u64,
    /// The limits' mode changes with `POST /config` too.
    pub modes: bool,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub requests: u64,
    pub limits: Vec<Settings>,
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
    pub world: Features,
    pub faults: Faults,
}

pub const MILLI: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;
/// One token, in units of which each request per minute adds one in each microsecond.
pub const TOKEN: i64 = 60_000_000;

impl Plan {
    /// One limit, and no fault: nothing comes or goes but what a test sends.
    pub fn still(workers: usize, settings: Settings) -> Self {
        Self {
            seed: 1,
            workers,
            requests: 0,
            limits: vec![settings],
            gap: SECOND,
            leave: 0,
            passing: 0,
            bodies: 0,
            races: 0,
            retry_after: None,
            world: Features { models: vec![ModelKind::Plain], ..Features::default() },
            faults: Faults::default(),
        }
    }

    /// The run of a seed with so many requests; `workers` if given fixes what else is drawn.
    pub fn new(seed: u64, requests: u64, workers: Option<usize>) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D));
        let drawn = rng.between(1, 8) as usize;
        let several = if rng.chance(300) { rng.between(2, LIMITS_MAX as u64) } else { 1 };
        let limits: Vec<Settings> = (0..several).map(|_| settings(&mut rng)).collect();
        let load = rng.between(30, 250);
        let calm = rng.chance(400);
        let mut faults = Faults::default();
        let mut on = |permille| !calm && rng.chance(permille);
        let (cas, late, wakes, stalls) = (on(400), on(400), on(400), on(400));
        faults.crashes = on(350);
        let clock = on(300);
        faults.corrupt = on(300);
        faults.reloads = on(400);
        faults.throttles = rng.chance(350);
        faults.refusals = if !calm && rng.chance(250) { rng.between(5, 200) } else { 0 };
        faults.lost_cas = if cas { rng.between(50, 500) } else { 0 };
        faults.late_ticks = if late { rng.between(5, 200) * MILLI } else { 0 };
        faults.lost_wakes = if wakes { rng.between(100, 1_000) } else { 0 };
        faults.stalls = if stalls { rng.pick(&[50, 500, 5_000, 15_000]) * MILLI } else { 0 };
        faults.clock = if clock { rng.between(1, 40) * MILLI } else { 0 };
        let total: u64 = limits.iter().map(|settings| settings.rate_rpm).sum();
        let bodies = rng.pick(&[0, 200, 700]);
        let mut world = world(&mut rng, bodies);
        if faults.corrupt {
            // Whoever finds a broken record begins it with the settings that it has seen last.
            world.posts = 0;
        }
        Self {
            seed,
            workers: workers.unwrap_or(drawn),
            requests,
            gap: (TOKEN as u64 / total * 100 / load).max(1),
            limits,
            leave: rng.pick(&[0, 30, 300]),
            passing: rng.pick(&[0, 100]),
            bodies,
            races: rng.pick(&[0, 100, 500]),
            retry_after: rng.chance(500).then(|| rng.between(1, 8) * SECOND),
            world,
            faults,
        }
    }

    /// More events than any run has that ends: a request takes some dozens, and a limit that recovers some for each of its
    /// quarters of a window, for hours.
    pub fn steps_max(&self) -> u64 {
        50_000 + 1_000 * self.requests
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

fn world(rng: &mut Rng, bodies: u64) -> Features {
    let mut models = vec![ModelKind::Plain];
    if bodies > 0 && rng.chance(500) {
        let count = rng.between(1, 3);
        models.extend((0..count).map(|_| {
            let full = ModelKind::Full(rng.pick(&[100, 500, 1_000]));
            rng.pick(&[ModelKind::Plain, ModelKind::Weak, full])
        }));
    }
    Features {
        models,
        retries: rng.pick(&[0, 0, 0, 50, 400]),
        local: rng.pick(&[0, 0, 50]),
        odd: rng.pick(&[0, 0, 100]),
        posts: rng.pick(&[0, 0, 1, 6]),
        polls: rng.pick(&[0, 0, 10]),
        closes: rng.pick(&[0, 0, 5]),
        uploads: rng.pick(&[0, 0, 300]),
        modes: rng.chance(250),
    }
}

/// Draws the settings of a limit.
pub fn settings(rng: &mut Rng) -> Settings {
    let rate_rpm = rng.pick(&[2, 40, 40, 60, 600, 600, 3_000, 6_000, 30_000, 60_000]);
    let slow = rate_rpm < 600;
    // The rate, bucket and window that NVIDIA's limits make of it, and anything else.
    let usual = rate_rpm == 40 && rng.chance(700);
    let drawn = Settings {
        rate_rpm,
        capacity: if usual { 4 } else { rng.pick(&[1, 2, 5, 20, 100]) },
        queue_max: rng.pick(&[5, 20, 100, 1_000]),
        aging: rng.pick(&[None, None, Some(SECOND), Some(3 * SECOND)]),
        window: if slow { rng.pick(&[0, 60]) } else { rng.pick(&[0, 0, 1, 3]) } * SECOND,
        low: if slow { rng.between(5, 60) } else { rng.between(1, 5) } * SECOND,
        others: if slow { rng.between(10, 200) } else { rng.between(2, 20) } * SECOND,
        fallback: rng.chance(400),
        shadow: rng.chance(120),
        retreat: rng.chance(900),
        obey_503: rng.chance(200),
        probe_windows: rng.between(1, 8),
        floor_rpm: rng.between(1, (rate_rpm / 4).max(1)),
        retry_after_max: rng.between(2, 10) * SECOND,
    };
    if usual { Settings { window: 60 * SECOND, ..drawn } } else { drawn }
}

/// Draws other settings for a limit: one of them or several, and always such that the filter takes them.
pub fn changed(rng: &mut Rng, before: Settings, modes: bool) -> Settings {
    let drawn = settings(rng);
    let mut new = before;
    // Often but one thing, and one that is at odds with what has been counted or waits.
    let which = match rng.between(0, 5) {
        0 => 3 << 4,
        1 if modes => 3 << 8,
        _ => rng.bits(),
    };
    for knob in (0..13).filter(|knob| which >> knob & 3 == 3) {
        let kept = new;
        match knob {
            // Within one order of magnitude, so that the load of the run keeps its meaning.
            0 => new.rate_rpm = (before.rate_rpm * rng.pick(&[50, 80, 150, 300]) / 100).clamp(1, 1_000_000),
            1 => new.capacity = drawn.capacity,
            2 => new.queue_max = drawn.queue_max,
            3 => new.aging = drawn.aging,
            4 => new.window = rng.pick(&[0, SECOND, 3 * SECOND, 10 * SECOND, drawn.window]),
            5 => new.low = drawn.low,
            6 => new.others = drawn.others,
            7 => new.fallback = drawn.fallback,
            8 if modes => new.shadow = !before.shadow,
            9 => new.retreat = drawn.retreat,
            10 => new.obey_503 = drawn.obey_503,
            11 => new.probe_windows = drawn.probe_windows,
            12 => new.retry_after_max = drawn.retry_after_max,
            _ => new.floor_rpm = drawn.floor_rpm.min(new.rate_rpm),
        }
        if !new.is_valid() {
            new = kept;
        }
    }
    new
}
