//! `nimgate-sim`: runs seeds until all have passed or one has not, and says how to run that one again.

use nimgate_sim::{machine, plan::Plan, run::run};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str =
    "usage: nimgate-sim [--seeds N] [--requests M] [--start-seed S] [--workers 1..8] [--trace] [--planted]

Runs N seeds with M requests in all. With --trace every line of what happens is shown. With --planted
each planted bug is looked for instead, and it is said which check finds it.";

struct Asked {
    seeds: u64,
    requests: u64,
    start: u64,
    workers: Option<usize>,
    trace: bool,
    planted: bool,
}

fn asked() -> Result<Asked, lexopt::Error> {
    use lexopt::prelude::*;
    let mut asked = Asked { seeds: 1_000, requests: 100_000, start: 1, workers: None, trace: false, planted: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seeds") => asked.seeds = parser.value()?.parse()?,
            Long("requests") => asked.requests = parser.value()?.parse()?,
            Long("start-seed") => asked.start = parser.value()?.parse()?,
            Long("workers") => asked.workers = Some(parser.value()?.parse()?),
            Long("planted") => asked.planted = true,
            Long("trace") => asked.trace = true,
            Short('h') | Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if asked.seeds == 0 || asked.workers.is_some_and(|workers| !(1..=8).contains(&workers)) {
        return Err("at least one seed, and 1 to 8 workers".into());
    }
    Ok(asked)
}

fn main() -> ExitCode {
    let (asked, machine) = match (asked(), machine()) {
        (Ok(asked), Ok(machine)) => (asked, machine),
        (Err(error), _) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
        (_, Err(error)) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let each = (asked.requests / asked.seeds).max(1);
    if asked.planted {
        return planted(&machine, asked.seeds);
    }
    let began = Instant::now();
    let (mut passed, mut failed, mut grants, mut total, mut worst) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut ends = BTreeMap::new();
    for seed in asked.start..asked.start + asked.seeds {
        let plan = Plan::new(seed, each, asked.workers);
        let report = run(&machine, plan.clone(), None, asked.trace);
        grants += report.grants;
        worst = worst.max(report.worst_idle);
        for (end, count) in report.ends {
            *ends.entry(end).or_insert(0u64) += count;
            total += count;
        }
        let Some(violation) = report.violation else {
            passed += 1;
            continue;
        };
        failed += 1;
        println!("seed {seed}: {} is broken: {}\n{plan:?}", violation.number, violation.what);
        for line in report.trace {
            println!("  {line}");
        }
        let workers = asked.workers.map(|workers| format!(" --workers {workers}")).unwrap_or_default();
        println!("again: nimgate-sim --seeds 1 --requests {each} --start-seed {seed}{workers}");
    }
    let secs = began.elapsed().as_secs_f64();
    println!("{total} requests in {secs:.1} s, {grants} granted, longest idle token {worst} us; {ends:?}");
    println!("seeds: {passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Looks for each planted bug in so many seeds.
fn planted(machine: &std::rc::Rc<nimgate_sim::vm::Machine>, seeds: u64) -> ExitCode {
    let mut failed = 0;
    let mut caught = BTreeSet::new();
    let all = nimgate_sim::mutant::Mutant::ALL;
    for (mutant, numbers) in all {
        let mut others = BTreeMap::new();
        let found = (1..=seeds).find_map(|seed| {
            let number = run(machine, Plan::new(seed, 150, None), Some(mutant), false).violation?.number;
            *others.entry(number).or_insert(0) += 1;
            numbers.contains(&number).then_some((seed, number))
        });
        match found {
            Some((seed, number)) => {
                caught.insert(number);
                println!("{mutant:?}: {number} with seed {seed}");
            }
            None => println!("{mutant:?}: not found by {numbers:?}; seeds that broke others: {others:?}"),
        }
        failed += usize::from(found.is_none());
    }
    for number in (1..=20).map(|number| format!("I{number}")) {
        if !caught.contains(number.as_str()) {
            failed += 1;
            println!("{number}: no planted bug breaks it");
        }
    }
    println!("planted bugs: {} passed, {failed} failed", all.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
