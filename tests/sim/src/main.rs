//! `nimgate-sim`: runs seeds until all have passed or one has not, and says how to run that one again.

use nimgate_sim::mutant::Mutant;
use nimgate_sim::plan::Plan;
use nimgate_sim::run::{Planted, Report, run};
use nimgate_sim::{machine, vm::Machine};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const USAGE: &str = "usage: nimgate-sim [--seeds N] [--requests M] [--start-seed S] [--workers 1..8] [--threads T]
                   [--trace] [--planted] [--mutants FILE] [--only NAME]

Runs N seeds with M requests in all. With --trace every line of what happens is shown. With --planted each bug planted in
the host is looked for instead, and it is said which check finds it; with --mutants each bug planted in the module, of which
FILE (written by scripts/lib/plant_mutants.py) is the list, or the --only one. T threads share the work, two if not given.";

struct Asked {
    seeds: u64,
    requests: u64,
    start: u64,
    workers: Option<usize>,
    threads: usize,
    trace: bool,
    planted: bool,
    mutants: Option<PathBuf>,
    only: Option<String>,
}

fn asked() -> Result<Asked, lexopt::Error> {
    use lexopt::prelude::*;
    let mut asked = Asked {
        seeds: 1_000,
        requests: 100_000,
        start: 1,
        workers: None,
        threads: 2,
        trace: false,
        planted: false,
        mutants: None,
        only: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seeds") => asked.seeds = parser.value()?.parse()?,
            Long("requests") => asked.requests = parser.value()?.parse()?,
            Long("start-seed") => asked.start = parser.value()?.parse()?,
            Long("workers") => asked.workers = Some(parser.value()?.parse()?),
            Long("threads") => asked.threads = parser.value()?.parse()?,
            Long("planted") => asked.planted = true,
            Long("mutants") => asked.mutants = Some(parser.value()?.into()),
            Long("only") => asked.only = Some(parser.value()?.string()?),
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
    let result = match (&asked.mutants, asked.planted) {
        (Some(file), _) => bugs_of(file).map(|bugs| planted(&machine, &asked, bugs, false)),
        (None, true) => Ok(planted(&machine, &asked, bugs_of_the_host(), true)),
        (None, false) => Ok(seeds(&machine, &asked)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

/// Does `work` for the numbers from 0 to `count`, on several threads; the results come as they are done.
fn share<T: Send>(threads: usize, count: u64, work: impl Fn(u64) -> T + Sync, done: impl FnMut(T) + Send) {
    let (next, done) = (AtomicU64::new(0), Mutex::new(done));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = work(number);
                    let mut done = done.lock().expect("no other thread has failed");
                    done(result);
                }
            });
        }
    });
}

fn seeds(machine: &Arc<Machine>, asked: &Asked) -> ExitCode {
    let each = (asked.requests / asked.seeds).max(1);
    let began = Instant::now();
    let (mut passed, mut failed, mut grants, mut total, mut worst) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut ends = BTreeMap::new();
    let threads = if asked.trace { 1 } else { asked.threads };
    let work = |number| {
        let seed = asked.start + number;
        let plan = Plan::new(seed, each, asked.workers);
        let report = run(machine, plan.clone(), None, asked.trace);
        (seed, plan, report)
    };
    share(threads, asked.seeds, work, |(seed, plan, report): (u64, Plan, Report)| {
        grants += report.grants;
        worst = worst.max(report.worst_idle);
        for (end, count) in report.ends {
            *ends.entry(end).or_insert(0u64) += count;
            total += count;
        }
        let Some(violation) = report.violation else {
            passed += 1;
            return;
        };
        failed += 1;
        println!("seed {seed}: {} is broken: {}\n{plan:?}", violation.number, violation.what);
        for line in report.trace {
            println!("  {line}");
        }
        let workers = asked.workers.map(|workers| format!(" --workers {workers}")).unwrap_or_default();
        println!("again: nimgate-sim --seeds 1 --requests {each} --start-seed {seed}{workers}");
    });
    let secs = began.elapsed().as_secs_f64();
    println!("{total} requests in {secs:.1} s, {grants} granted, longest idle token {worst} us; {ends:?}");
    println!("seeds: {passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A planted bug: its name, itself, and the invariants of which one must be found broken.
struct Bug {
    name: String,
    planted: Planted,
    numbers: Vec<String>,
}

fn bugs_of_the_host() -> Vec<Bug> {
    let all = Mutant::ALL.into_iter();
    all.map(|(mutant, numbers)| Bug {
        name: format!("{mutant:?}"),
        planted: Planted::Host(mutant),
        numbers: numbers.iter().map(|number| (*number).to_owned()).collect(),
    })
    .collect()
}

/// The bugs planted in the module: a list of their names and invariants, in the order of their numbers, which begin at 1.
fn bugs_of(file: &PathBuf) -> Result<Vec<Bug>, String> {
    let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let list: Vec<(String, Vec<String>)> =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let numbered = list.into_iter().zip(1..);
    Ok(numbered.map(|((name, numbers), number)| Bug { name, planted: Planted::Filter(number), numbers }).collect())
}

/// Invariants that bugs of the filter break, and those of the host do not or after others.
const OF_THE_FILTER: [&str; 4] = ["I5", "I9", "I21", "I22"];

/// Looks for each planted bug in so many seeds.
fn planted(machine: &Arc<Machine>, asked: &Asked, mut bugs: Vec<Bug>, host: bool) -> ExitCode {
    let began = Instant::now();
    bugs.retain(|bug| asked.only.as_ref().is_none_or(|only| *only == bug.name));
    let (mut failed, mut requests) = (0, 0u64);
    let mut caught = BTreeSet::new();
    let work = |number: u64| {
        let bug = &bugs[number as usize];
        let mut others: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut requests = 0;
        let found = (asked.start..asked.start + asked.seeds).find_map(|seed| {
            let report = run(machine, Plan::new(seed, 150, asked.workers), Some(bug.planted), asked.trace);
            requests += report.ends.values().sum::<u64>();
            let number = report.violation?.number;
            others.entry(number).or_default().push(seed);
            // A seed that breaks without the bug too says nothing of it.
            let is_wanted = bug.numbers.iter().any(|wanted| wanted == number);
            let is_its_own = || run(machine, Plan::new(seed, 150, asked.workers), None, false).violation.is_none();
            (is_wanted && is_its_own()).then_some((seed, number))
        });
        (bug, found, others, requests)
    };
    share(asked.threads, bugs.len() as u64, work, |(bug, found, others, played)| {
        requests += played;
        failed += u64::from(found.is_none());
        match found {
            Some((seed, number)) => {
                caught.insert(number);
                println!("{}: {number} with seed {seed}", bug.name);
            }
            None => {
                println!("{}: not found by {:?}; seeds that broke others: {others:?}", bug.name, bug.numbers);
            }
        }
    });
    for number in (1..=22).map(|number| format!("I{number}")) {
        let of_the_filter = OF_THE_FILTER.contains(&number.as_str());
        if of_the_filter != host && asked.only.is_none() && !caught.contains(number.as_str()) {
            failed += 1;
            println!("{number}: no planted bug breaks it");
        }
    }
    let secs = began.elapsed().as_secs_f64();
    println!("planted bugs: {} looked for with {requests} requests in {secs:.1} s, {failed} failed", bugs.len());
    if failed == 0 && !bugs.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
