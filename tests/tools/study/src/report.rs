//! What is reported of a run.

use crate::engine::Record;
use crate::scenario::Class;
use crate::{Time, WINDOW};
use serde::Serialize;

/// The figures of one controller in one scenario under one demand, over all seeds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Admitted requests as a share of the omniscient scheduler's.
    pub goodput: f64,
    /// The lowest of all seeds.
    pub goodput_worst: f64,
    /// 429s as a share of all answers.
    pub refused: f64,
    /// 503s of full workers as a share of all answers.
    pub worker_full: f64,
    /// 429s in the first ten windows, in which the limit is learned.
    pub refused_at_first: f64,
    /// The share of 429s after those.
    pub refused_later: f64,
    /// The longest time, in seconds, in which someone waited and nobody got a token.
    pub longest_idle_s: f64,
    /// Windows from the limit's rise until a window begins that holds 95 % of it; the mean over all seeds.
    pub back_after: Option<f64>,
    /// The longest of all seeds.
    pub back_after_worst: Option<f64>,
    /// The wait of `urgent` requests in seconds: median and 99th percentile.
    pub urgent_p50_s: f64,
    pub urgent_p99_s: f64,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub scenario: &'static str,
    pub about: &'static str,
    pub class: Class,
    pub demand: &'static str,
    pub controller: &'static str,
    pub figures: Figures,
    /// The effective rate over time and the limit, of the first seed.
    pub rates: Vec<(f64, f64)>,
}

/// What the distance between two probes costs, and what it brings.
#[derive(Clone, Debug, Serialize)]
pub struct Trade {
    /// Windows between two probes.
    pub probe_windows: u32,
    /// 429s as a share of all answers before a rolling window of 25 rpm, asked three-fold.
    pub refused: f64,
    /// Goodput there.
    pub goodput: f64,
    /// Windows until a limit that rises from 25 to 40 is used; the longest of all seeds.
    pub back_after_worst: f64,
}

impl Trade {
    /// Studies one distance.
    pub fn at(probe_windows: u32, seeds: u64) -> Self {
        let figures = |name: &str| {
            let scenario = crate::scenario::all().into_iter().find(|scenario| scenario.name == name);
            let which = [crate::controllers::Which::Nimgate { probe_windows }];
            let lines = scenario.map(|scenario| crate::study(&scenario, ("threefold", 3.0), &which, seeds));
            lines.and_then(|mut lines| lines.pop()).map(|line| line.figures).unwrap_or_default()
        };
        let (steady, rise) = (figures("rolling window"), figures("rise"));
        Self {
            probe_windows,
            refused: steady.refused,
            goodput: steady.goodput,
            back_after_worst: rise.back_after_worst.unwrap_or(f64::NAN),
        }
    }
}

/// Puts the runs of several seeds together: of each the record, and the omniscient scheduler's.
pub fn figures(runs: &[(Record, Record)], rise: Option<(Time, u64)>) -> Figures {
    let n = runs.len() as f64;
    let mut figures = Figures { goodput_worst: f64::INFINITY, ..Figures::default() };
    let mut waits: Vec<Time> = Vec::new();
    let mut back = Vec::new();
    for (record, omniscient) in runs {
        let goodput = record.admitted.len() as f64 / omniscient.admitted.len().max(1) as f64;
        let answers = (record.admitted.len() + record.refused.len() + record.worker_full).max(1) as f64;
        figures.goodput += goodput / n;
        figures.goodput_worst = figures.goodput_worst.min(goodput);
        figures.refused += record.refused.len() as f64 / answers / n;
        figures.worker_full += record.worker_full as f64 / answers / n;
        figures.refused_at_first += record.refused.iter().filter(|at| **at < 10 * WINDOW).count() as f64 / n;
        figures.longest_idle_s = figures.longest_idle_s.max(record.longest_idle as f64 / 1e6);
        let later = |times: &[Time]| times.iter().filter(|at| **at >= 10 * WINDOW).count() as f64;
        let refused_later = later(&record.refused);
        figures.refused_later += refused_later / (refused_later + later(&record.admitted)).max(1.0) / n;
        waits.extend(&record.urgent_waits);
        if let Some((at, limit)) = rise {
            back.push(back_after(&record.admitted, at, limit));
        }
    }
    waits.sort_unstable();
    let wait = |permille: usize| waits.get(waits.len() * permille / 1000).map_or(0.0, |wait| *wait as f64 / 1e6);
    figures.urgent_p50_s = wait(500);
    figures.urgent_p99_s = wait(990);
    if !back.is_empty() {
        figures.back_after = Some(back.iter().sum::<f64>() / back.len() as f64);
        figures.back_after_worst = back.into_iter().reduce(f64::max);
    }
    figures
}

/// Windows from the rise at `at` until a window begins that holds 95 % of `limit`.
fn back_after(admitted: &[Time], at: Time, limit: u64) -> f64 {
    let after: Vec<Time> = admitted.iter().copied().filter(|then| *then >= at).collect();
    let needed = (limit as f64 * 0.95).ceil() as usize;
    let found = after.windows(needed).find(|part| part[needed - 1] - part[0] <= WINDOW);
    found.map_or(f64::INFINITY, |part| (part[0] - at) as f64 / WINDOW as f64)
}
