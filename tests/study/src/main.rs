//! Runs the study and writes its figures as JSON: `nimgate-study [--seeds N] [--out FILE]`.

use nimgate_study::report::{Line, figures};
use nimgate_study::scenario::{self, DEMANDS, RATE_RPM};
use nimgate_study::upstream::Upstream;
use nimgate_study::{controllers, engine, omniscient};
use std::rc::Rc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut seeds = 10u64;
    let mut out = None;
    let mut only: Option<String> = None;
    let mut names: Vec<&'static str> = controllers::NAMES.to_vec();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => seeds = value()?.parse()?,
            "--out" => out = Some(value()?),
            "--scenario" => only = Some(value()?),
            "--nimgate-only" => names.truncate(1),
            _ => return Err(format!("{argument} is not an option").into()),
        }
    }
    let mut lines = Vec::new();
    for scenario in scenario::all() {
        if only.as_ref().is_some_and(|name| name != scenario.name) {
            continue;
        }
        for (demand, factor) in DEMANDS {
            let mut runs: Vec<Vec<_>> = names.iter().map(|_| Vec::new()).collect();
            for seed in 1..=seeds {
                let instance = scenario.instance(factor, seed);
                let description = Rc::new(instance.upstream);
                let rng = || fastrand::Rng::with_seed(seed.wrapping_mul(7919));
                let upstream = || Upstream::new(Rc::clone(&description));
                let best = omniscient::run(instance.setting, &instance.demand, upstream(), &mut rng());
                for (name, runs) in names.iter().zip(&mut runs) {
                    let mut controller = controllers::by_name(name, RATE_RPM, scenario.allowed_rpm);
                    let record =
                        engine::run(instance.setting, &instance.demand, upstream(), &mut *controller, &mut rng());
                    runs.push((record, best.clone()));
                }
            }
            for (name, runs) in names.iter().zip(runs) {
                let figures = figures(&runs, scenario.rise().filter(|_| factor > 1.0));
                eprintln!(
                    "{:20} {:10} {:13} goodput {:6.2} % (worst {:6.2}), 429 {:6.2} %, 503 {:5.2} %, first {:4.1}, idle {:6.1} s, back {:5.2} / {:5.2}, urgent {:5.1} / {:5.1} s",
                    scenario.name,
                    demand,
                    name,
                    figures.goodput * 100.0,
                    figures.goodput_worst * 100.0,
                    figures.refused * 100.0,
                    figures.worker_full * 100.0,
                    figures.refused_at_first,
                    figures.longest_idle_s,
                    figures.back_after.unwrap_or(f64::NAN),
                    figures.back_after_worst.unwrap_or(f64::NAN),
                    figures.urgent_p50_s,
                    figures.urgent_p99_s
                );
                lines.push(Line {
                    scenario: scenario.name,
                    about: scenario.about,
                    class: scenario.class,
                    demand,
                    controller: name,
                    figures,
                    rates: runs.first().map_or(Vec::new(), |(record, _)| {
                        record.rates.iter().map(|(at, rate)| (*at as f64 / 60e6, *rate)).collect()
                    }),
                });
            }
        }
    }
    if let Some(out) = out {
        std::fs::write(out, serde_json::to_vec(&lines)?)?;
    }
    Ok(())
}
