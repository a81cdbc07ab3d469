//! Runs the study and writes its figures as JSON: `nimgate-study [--seeds N] [--only SCENARIO]
//! [--controller NAME] [--out FILE]`.

use nimgate_study::controllers::Which;
use nimgate_study::report::{Line, Trade};
use nimgate_study::scenario::{self, COMPANY_DEMAND, DEMANDS};
use nimgate_study::study;
use serde::Serialize;

#[derive(Serialize)]
struct Study {
    seeds: u64,
    lines: Vec<Line>,
    trade: Vec<Trade>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut seeds = 20u64;
    let mut out = None;
    let mut only: Option<String> = None;
    let mut controllers = Which::ALL.to_vec();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => seeds = value()?.parse()?,
            "--only" => only = Some(value()?),
            "--controller" => {
                let name = value()?;
                controllers.retain(|which| which.name() == name);
                if controllers.is_empty() {
                    let names = Which::ALL.map(Which::name).join(", ");
                    return Err(format!("--controller {name}: there are {names}").into());
                }
            }
            "--out" => out = Some(value()?),
            _ => {
                return Err(format!(
                    "{argument} is not an option; there are --seeds N, --only SCENARIO, --controller NAME and --out FILE"
                )
                .into());
            }
        }
    }
    let mut lines = Vec::new();
    let scenarios = scenario::all().into_iter().map(|scenario| (scenario, DEMANDS.as_slice()));
    let in_company = scenario::in_company().into_iter().map(|scenario| (scenario, [COMPANY_DEMAND].as_slice()));
    for (scenario, demands) in scenarios.chain(in_company) {
        if only.as_ref().is_some_and(|only| !scenario.name.contains(only)) {
            continue;
        }
        for demand in demands.iter().copied() {
            for line in study(&scenario, demand, &controllers, seeds) {
                let figures = &line.figures;
                println!(
                    "{:20} {:10} {:13} goodput {:6.2} % (worst {:6.2}), 429 {:6.2} %, 503 {:5.2} %, longest idle {:5.1} s",
                    line.scenario,
                    line.demand,
                    line.controller,
                    figures.goodput * 100.0,
                    figures.goodput_worst * 100.0,
                    figures.refused * 100.0,
                    figures.worker_full * 100.0,
                    figures.longest_idle_s,
                );
                lines.push(line);
            }
        }
    }
    let trade: &[u32] = if only.is_some() { &[] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 15, 20] };
    let trade = trade.iter().map(|windows| Trade::at(*windows, seeds)).collect();
    if let Some(out) = out {
        std::fs::write(out, serde_json::to_vec(&Study { seeds, lines, trade })?)?;
    }
    Ok(())
}
