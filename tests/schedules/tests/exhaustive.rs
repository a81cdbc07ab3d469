//! All schedules of three workers, by the explorer.
//!
//! `cargo test --profile proofs -p nimgate-schedules --test exhaustive -- --nocapture` tells their numbers; with
//! `--include-ignored` the large cases are explored too, which takes some minutes and some 10 GB of memory.

use Try::{Arrive, AskOther, AskWeak, Configure, End, Leave, Override, Retry, Slow};
use nimgate_core::limit::rules::Rules;
use nimgate_core::priority::Priority::{High, Low, Normal, Urgent};
use nimgate_core::units::Micros;
use nimgate_schedules::Bug;
use nimgate_schedules::explorer::{Case, Explored, Try, Violation, WORKERS, explore};
use nimgate_schedules::worker::{account, rules};

/// Three tries of each worker: all levels, one client that leaves before its worker's last request comes and one after,
/// and a better request behind a worse one.
fn three_tries_each() -> [Vec<Try>; WORKERS] {
    [
        vec![Arrive(Low), Arrive(High), Leave],
        vec![Arrive(Normal), Arrive(Urgent), Arrive(Normal)],
        vec![Arrive(Urgent), Leave, Arrive(Low)],
    ]
}

/// Fewer, for a literal exploration.
fn seven_tries() -> [Vec<Try>; WORKERS] {
    [vec![Arrive(Low), Arrive(High), Leave], vec![Arrive(Normal), Arrive(Urgent)], vec![Arrive(Urgent), Leave]]
}

/// Fewer tries, for cases in which the clock moves.
fn five_tries() -> [Vec<Try>; WORKERS] {
    [vec![Arrive(Low), Arrive(High)], vec![Arrive(Normal), Leave], vec![Arrive(Urgent)]]
}

/// The clock moves on to a token that is there for less than the grace, and then on past the grace.
const TO_THE_TOKEN_AND_PAST_THE_GRACE: [u64; 2] = [1_010, 1_200];

fn case(capacity: u32, tries: [Vec<Try>; WORKERS], clock: &[u64]) -> Case {
    let rules = rules(capacity);
    Case { rules, changed: rules, other: None, tries, clock: clock.to_vec(), is_literal: false, bug: Bug::None }
}

/// So many streams at a time, and streams that end.
fn streams_that_end(cap: u32) -> Case {
    let tries = [vec![Arrive(Low), End], vec![Arrive(Normal), End], vec![Arrive(Urgent)]];
    let rules = Rules { max_in_flight: Some(cap), ..rules(2) };
    Case { rules, changed: rules, ..case(2, tries, &[1_010]) }
}

/// A model is slowed while requests for it and for another come; it may go again when the clock has passed 7.5 s.
fn a_slowed_model() -> Case {
    let tries = [vec![Slow, AskWeak(Low)], vec![AskWeak(Urgent)], vec![Arrive(Normal)]];
    case(1, tries, &[1_010, 7_600])
}

/// Retries are charged, and a configuration lets the bucket hold more.
fn retries_and_a_configuration() -> Case {
    let tries = [vec![Arrive(Low), Retry(2)], vec![Arrive(Normal), Configure], vec![Arrive(Urgent)]];
    Case { changed: rules(3), ..case(2, tries, &[1_010]) }
}

/// An operator lets the bucket hold more, or more streams go at once, while requests wait.
fn an_operator() -> [Case; 2] {
    let tries = [vec![Arrive(Low), Arrive(High)], vec![Arrive(Normal), Override], vec![Arrive(Urgent)]];
    let of = |rules, changed| Case { rules, changed, ..case(1, tries.clone(), &[1_010]) };
    let capped = |cap| Rules { max_in_flight: Some(cap), ..rules(3) };
    [of(rules(1), rules(2)), of(capped(1), capped(2))]
}

/// An account of forty a minute as it is, and one whose window of three seconds may hold two although four tokens are there.
fn windows() -> [Case; 2] {
    let of = |rules, clock: &[u64]| Case { rules, changed: rules, ..case(4, three_or_less(), clock) };
    let short = Rules { window: Micros::from_secs(3), ..account() };
    [of(account(), &[1_510]), of(short, &[1_510, 4_200])]
}

/// Six requests, so that some wait for the fifth and sixth token.
fn three_or_less() -> [Vec<Try>; WORKERS] {
    [vec![Arrive(Low), Arrive(High)], vec![Arrive(Normal), Arrive(Urgent)], vec![Arrive(Urgent)]]
}

/// Two limits with requests in the same workers, so that a timer finds tokens of both. The first gives as many tokens as
/// `capacity` at the start, the second one.
fn several_limits(capacity: u32) -> Case {
    let tries = [vec![Arrive(Low), AskOther(High)], vec![AskOther(Normal), Arrive(Normal)], vec![AskOther(Urgent)]];
    Case { other: Some(rules(1)), ..case(capacity, tries, &[1_010]) }
}

/// The same, with a client that leaves and a request of the first limit that ends.
fn several_limits_and_streams() -> Case {
    let tries = [vec![Arrive(Low), AskOther(High), End], vec![AskOther(Normal), Arrive(Normal), Leave], vec![]];
    let rules = Rules { max_in_flight: Some(1), ..rules(2) };
    Case { rules, changed: rules, other: Some(self::rules(1)), ..case(2, tries, &[1_010]) }
}

/// Shadow mode comes, by a configuration or by an operator, while requests wait.
fn shadow_mode() -> [Case; 2] {
    [Configure, Override].map(|change| {
        let tries = [vec![Arrive(Low), Arrive(High)], vec![Arrive(Normal), change], vec![Arrive(Urgent)]];
        Case { changed: Rules { shadow: true, ..rules(1) }, ..case(1, tries, &[1_010]) }
    })
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
    literal_is_the_same("3 workers, 7 tries, 1 token", &case(1, seven_tries(), &[]));
    literal_is_the_same("3 workers, 5 tries, 1 step of the clock", &case(1, five_tries(), &[1_200]));
    literal_is_the_same("two limits, streams of one", &several_limits_and_streams());
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
fn streams_that_end_free_their_slot_for_the_best() {
    for cap in [1, 2] {
        all_hold(&format!("3 workers, 5 tries, {cap} in flight, 1 step of the clock"), &streams_that_end(cap));
    }
}

#[test]
fn a_slowed_model_goes_when_it_may() {
    all_hold("3 workers, 4 tries, a slowed model, 2 steps of the clock", &a_slowed_model());
}

#[test]
fn retries_are_paid_and_rules_change() {
    all_hold("3 workers, 5 tries, retries, rules, 1 step of the clock", &retries_and_a_configuration());
}

#[test]
fn an_operator_changes_the_rules() {
    for (at, case) in an_operator().iter().enumerate() {
        all_hold(&format!("an operator, {at}"), case);
    }
}

#[test]
fn shadow_mode_holds_nobody() {
    for (at, case) in shadow_mode().iter().enumerate() {
        all_hold(&format!("shadow mode, {at}"), case);
    }
}

#[test]
fn no_window_holds_too_many() {
    for (at, case) in windows().iter().enumerate() {
        all_hold(&format!("a window, {at}"), case);
    }
}

#[test]
fn several_limits_of_the_same_workers() {
    for capacity in [1, 2] {
        all_hold(&format!("two limits, {capacity} tokens and 1"), &several_limits(capacity));
    }
    all_hold("two limits, streams of one", &several_limits_and_streams());
}

#[test]
fn finds_every_planted_bug_of_several_limits() {
    for bug in Bug::OF_SEVERAL_LIMITS {
        let cases = [several_limits(1), several_limits(2), several_limits_and_streams()];
        match cases.into_iter().find_map(|case| explore(&Case { bug, ..case }).err()) {
            None => panic!("{bug:?} was not found"),
            Some(Violation { what, schedule }) => println!("{bug:?}: {what}, after {} steps", schedule.len()),
        }
    }
}

#[test]
fn finds_every_planted_bug_of_streams_and_models() {
    for bug in Bug::OF_STREAMS {
        let cases = [streams_that_end(1), streams_that_end(2), a_slowed_model(), retries_and_a_configuration()];
        let mut cases = cases.into_iter().chain(an_operator()).chain(windows()).chain(shadow_mode());
        match cases.find_map(|case| explore(&Case { bug, ..case }).err()) {
            None => panic!("{bug:?} was not found"),
            Some(Violation { what, schedule }) => println!("{bug:?}: {what}, after {} steps", schedule.len()),
        }
    }
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
