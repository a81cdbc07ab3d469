//! A study of the 429 retreat in virtual time: the filter's controller and others that are known, each before the same
//! upstreams with hidden limits and the same demand, compared with a scheduler that knows everything.

pub mod controllers;
pub mod demand;
pub mod engine;
pub mod omniscient;
pub mod report;
pub mod scenario;
pub mod upstream;

use controllers::Which;
use report::Line;
use scenario::{RATE_RPM, Scenario};
use std::rc::Rc;
use upstream::Upstream;

/// Virtual time, in microseconds.
pub type Time = u64;

/// A second of virtual time.
pub const SECOND: Time = 1_000_000;

/// The window in which upstreams count, and in which the study counts.
pub const WINDOW: Time = 60 * SECOND;

/// Runs one scenario under one demand before several controllers, all with the same seeds.
pub fn study(scenario: &Scenario, demand: (&'static str, f64), which: &[Which], seeds: u64) -> Vec<Line> {
    let (name, factor) = demand;
    let mut runs: Vec<Vec<_>> = which.iter().map(|_| Vec::new()).collect();
    for seed in 1..=seeds {
        let instance = scenario.instance(factor, seed);
        let description = Rc::new(instance.upstream);
        let rng = || fastrand::Rng::with_seed(seed.wrapping_mul(7919));
        let upstream = || Upstream::new(Rc::clone(&description), seed.wrapping_mul(104_729));
        let best = omniscient::run(instance.setting, &instance.demand, upstream(), &mut rng());
        for (which, runs) in which.iter().zip(&mut runs) {
            let mut controller = which.make(RATE_RPM, scenario.allowed_rpm);
            let record = engine::run(instance.setting, &instance.demand, upstream(), &mut *controller, &mut rng());
            runs.push((record, best.clone()));
        }
    }
    let rise = scenario.rise().filter(|_| factor > 1.0);
    which
        .iter()
        .zip(runs)
        .map(|(which, runs)| Line {
            scenario: scenario.name,
            about: scenario.about,
            class: scenario.class,
            demand: name,
            controller: which.name(),
            figures: report::figures(&runs, rise),
            rates: runs.first().map_or(Vec::new(), |(record, _)| {
                record.rates.iter().map(|(at, rate)| (*at as f64 / WINDOW as f64, *rate)).collect()
            }),
        })
        .collect()
}
