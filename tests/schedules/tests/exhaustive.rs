//! All schedules of three workers, by the explorer.
//!
//! `cargo test --profile schedules -p nimgate-schedules --test exhaustive -- --nocapture` tells their numbers; with
//! `--include-ignored` the large cases are explored too, which takes some minutes and some 10 GB of memory.

use Try::{Arrive, Leave};
use nimgate::priority::Priority::{High, Low, Normal, Urgent};
use nimgate_schedules::Bug;
use nimgate_schedules::explorer::{Case, Explored, Try, Violation, WORKERS, explore};

/// Three tries of each worker: all levels, one client that leaves before its worker's last request comes and one after,
/// and a better request behind a worse one.
fn three_tries_each() -> [Vec<Try>; WORKERS] {
    [
        vec![Arrive(Low), Arrive(High), Leave],
        vec![Arrive(Normal), Arrive(Urgent), Arrive(Normal)],
        vec![Arrive(Urgent), Leave, Arrive(Low)],
    ]
}

/// Fewer tries, for cases in which the clock moves.
fn five_tries() -> [Vec<Try>; WORKERS] {
    [vec![Arrive(Low), Arrive(High)], vec![Arrive(Normal), Leave], vec![Arrive(Urgent)]]
}

/// The clock moves on to a token that is there for less than the grace, and then on past the grace.
const TO_THE_TOKEN_AND_PAST_THE_GRACE: [u64; 2] = [1_010, 1_200];

fn case(capacity: u32, tries: [Vec<Try>; WORKERS], clock: &[u64]) -> Case {
    Case { capacity, tries, clock: clock.to_vec(), is_literal: false, bug: Bug::None }
}

fn all_hold(name: &str, case: &Case) -> Explored {
    let began = std::time::Instant::now();
    match explore(case) {
        Ok(explored) => {
            let Explored { states, steps, ends, schedules, longest } = explored;
            println!(
                "{name}: {schedules} schedules of at most {longest} steps; {states} states, {steps} steps, {ends} ends \
                 in {:.1?}",
                began.elapsed()
            );
            explored
        }
        Err(Violation { what, schedule }) => panic!("{name}: {what}, after\n{}", schedule.join("\n")),
    }
}

#[test]
fn three_workers_three_tries_each() {
    for capacity in 1..=3 {
        all_hold(&format!("3 workers × 3 tries, {capacity} tokens"), &case(capacity, three_tries_each(), &[]));
    }
    let same = || vec![Arrive(Normal), Arrive(Normal), Arrive(Normal)];
    all_hold("3 workers × 3 equal requests, 2 tokens", &case(2, [same(), same(), same()], &[]));
}

#[test]
fn a_clock_that_moves_between_any_two_steps() {
    all_hold("3 workers, 5 tries, 2 steps of the clock", &case(1, five_tries(), &TO_THE_TOKEN_AND_PAST_THE_GRACE));
}

#[test]
#[ignore = "large, see the head of the file"]
fn three_workers_three_tries_each_and_a_clock_that_moves() {
    all_hold("3 workers × 3 tries, 1 step of the clock", &case(1, three_tries_each(), &[1_200]));
}

/// What the explorer leaves out of the state makes no difference.
fn literal_is_the_same(name: &str, case: &Case) {
    let merged = all_hold(&format!("{name}, merged"), case);
    let literal = all_hold(&format!("{name}, literal"), &Case { is_literal: true, ..case.clone() });
    assert_eq!((merged.schedules, merged.longest), (literal.schedules, literal.longest));
    assert!(merged.states < literal.states, "nothing was merged");
}

#[test]
fn merging_makes_no_difference() {
    literal_is_the_same("3 workers × 3 tries, 1 token", &case(1, three_tries_each(), &[]));
    literal_is_the_same("3 workers, 5 tries, 1 step of the clock", &case(1, five_tries(), &[1_200]));
}

#[test]
#[ignore = "large, see the head of the file"]
fn merging_makes_no_difference_when_the_clock_moves_twice() {
    literal_is_the_same(
        "3 workers, 5 tries, 2 steps of the clock",
        &case(1, five_tries(), &TO_THE_TOKEN_AND_PAST_THE_GRACE),
    );
}

#[test]
fn finds_every_planted_bug() {
    for bug in Bug::PLANTED {
        let clock = &TO_THE_TOKEN_AND_PAST_THE_GRACE;
        let cases = [case(1, three_tries_each(), &[]), case(1, five_tries(), clock)];
        match cases.into_iter().find_map(|case| explore(&Case { bug, ..case }).err()) {
            None => panic!("{bug:?} was not found"),
            Some(Violation { what, schedule }) => println!("{bug:?}: {what}, after {} steps", schedule.len()),
        }
    }
}
