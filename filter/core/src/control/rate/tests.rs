//! The retreat's behaviour, and the table of what each event does in each state.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const RULES: RetreatRules = RetreatRules::DEFAULT;

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

fn answer(granted_millis: u64, throttled: bool) -> Feedback {
    Feedback { granted_at: at(granted_millis), throttled, retry_after: None }
}

/// Sends a request at the retreat's rate, as far as the gate lets it, from `from` until `until`; each is answered at once
/// by `served`. Answers when the last tick was.
fn run(retreat: &mut Retreat, rules: RetreatRules, from: u64, until: u64, mut served: impl FnMut(u64) -> bool) -> u64 {
    let mut credit = 0u64;
    let mut now = from;
    while now < until {
        now += 100;
        retreat.advance(rules, at(now));
        credit = (credit + 100 * u64::from(retreat.rate().get())).min(60_000_000);
        if credit == 60_000_000 && at(now) >= retreat.closed_until() {
            credit = 0;
            retreat.granted(rules, at(now));
            retreat.step(rules, at(now), answer(now, !served(now)));
        }
    }
    now
}

/// An upstream with a limit in each rolling minute.
fn rolling(limit: usize) -> impl FnMut(u64) -> bool {
    let mut admitted: Vec<u64> = Vec::new();
    move |now| {
        admitted.retain(|then| then + 60_000 > now);
        let free = admitted.len() < limit;
        if free {
            admitted.push(now);
        }
        free
    }
}

#[test]
fn one_burst_is_one_cut() {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(10_000));
    let first = retreat.step(RULES, at(10_000), answer(9_000, true)).unwrap();
    assert_eq!((first.from, first.to, first.reason), (Phase::Normal, Phase::Retreat, Reason::Refused));
    let rate = retreat.rate();
    for _ in 0..50 {
        assert_eq!(retreat.step(RULES, at(11_000), answer(9_000, true)), None);
    }
    assert_eq!(retreat.rate(), rate);
}

/// Refused, and refused again: the gate is half open from 1 s on, and closed until the first try at 8.5 s.
fn half_open() -> Retreat {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(0));
    retreat.step(RULES, at(0), answer(0, true));
    retreat.step(RULES, at(1_000), answer(500, true));
    assert_eq!((retreat.half_open, retreat.closed_until()), (true, at(8_500)));
    retreat
}

#[test]
fn only_an_answer_to_a_request_sent_after_the_cut_reopens_the_gate() {
    let mut retreat = half_open();
    for granted in [0, 500, 999] {
        assert_eq!(retreat.step(RULES, at(2_000), answer(granted, false)), None);
    }
    assert_eq!((retreat.half_open, retreat.closed_until()), (true, at(8_500)), "sent before the last refusal");
    retreat.advance(RULES, at(8_500));
    retreat.granted(RULES, at(8_500));
    assert_eq!(retreat.closed_until(), at(16_000), "one at a time");
    retreat.step(RULES, at(9_000), answer(999, false));
    assert_eq!((retreat.half_open, retreat.closed_until()), (true, at(16_000)), "not the one that was tried");
    retreat.step(RULES, at(9_000), answer(8_500, false));
    assert_eq!((retreat.half_open, retreat.closed_until()), (false, at(9_000)));
}

#[test]
fn a_pardon_opens_the_gate() {
    let mut retreat = half_open();
    retreat.acquit(RULES, at(1));
    assert_eq!(retreat, half_open(), "full speed was left before: others were refused too");
    retreat.acquit(RULES, at(0));
    assert_eq!((retreat.phase(), retreat.rate()), (Phase::Normal, RULES.base));
    assert_eq!(retreat.closed_until(), Instant::ZERO);
    retreat.granted(RULES, at(2_000));
    assert_eq!(retreat.closed_until(), Instant::ZERO, "not one at a time any more");
    assert_eq!(retreat.estimate(RULES, at(2_000)), None);
}

#[test]
fn a_stray_429_is_forgiven() {
    let mut retreat = Retreat::new(RULES);
    let now = run(&mut retreat, RULES, 0, 200_000, |_| true);
    retreat.granted(RULES, at(now));
    retreat.step(RULES, at(now), answer(now, true));
    assert_eq!(retreat.phase(), Phase::Retreat);
    assert!(retreat.rate() >= RULES.base.scaled(95, 100), "a cut of {} is for a stray 429", retreat.rate());
    run(&mut retreat, RULES, now, now + 16_000, |_| true);
    assert_eq!((retreat.phase(), retreat.rate()), (Phase::Normal, RULES.base));
}

#[test]
fn finds_a_hidden_limit_with_few_refusals_and_stays_there() {
    for limit in [10, 25, 35] {
        let mut retreat = Retreat::new(RULES);
        let mut upstream = rolling(limit);
        let mut refused = 0;
        let mut served = |now| {
            let served = upstream(now);
            refused += usize::from(!served);
            served
        };
        let now = run(&mut retreat, RULES, 0, 180_000, &mut served);
        let found = retreat.estimate(RULES, at(now)).map_or(0, |estimate| estimate.rate.as_rpm() as usize);
        let rate = retreat.rate().as_rpm() as usize;
        assert!(rate.abs_diff(limit) <= 1 + limit / 10, "{rate} after three minutes at {limit}, believing {found}");
        run(&mut retreat, RULES, now, 3_600_000, &mut served);
        assert!(refused <= 25, "{refused} refusals in an hour at {limit}");
    }
}

#[test]
fn comes_back_when_the_limit_rises() {
    let mut retreat = Retreat::new(RULES);
    let now = run(&mut retreat, RULES, 0, 1_800_000, rolling(25));
    assert!(retreat.rate() < MilliRpm::from_rpm(27));
    run(&mut retreat, RULES, now, now + 8 * 60_000, |_| true);
    assert_eq!((retreat.phase(), retreat.rate()), (Phase::Normal, RULES.base));
}

#[test]
fn an_outage_costs_one_request_in_a_window_and_ends_at_once() {
    let mut retreat = Retreat::new(RULES);
    let mut now = run(&mut retreat, RULES, 0, 120_000, |_| true);
    let mut tried = 0;
    now = run(&mut retreat, RULES, now, now + 3_600_000, |_| {
        tried += 1;
        false
    });
    assert!((55..=75).contains(&tried), "{tried} tries in an hour");
    assert!(retreat.rate() > RULES.base.scaled(1, 8), "{} is left", retreat.rate());
    run(&mut retreat, RULES, now, now + 6 * 60_000, |_| true);
    assert!(retreat.rate() >= RULES.base.scaled(9, 10));
}

#[test]
fn half_open_lets_one_request_through_at_a_time() {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(0));
    retreat.step(RULES, at(0), answer(0, true));
    retreat.step(RULES, at(1_000), answer(500, true));
    let opens = retreat.closed_until();
    assert!(opens > at(1_000));
    retreat.advance(RULES, opens);
    retreat.granted(RULES, opens);
    assert!(retreat.closed_until() > opens, "the next waits for the answer");
    let granted = opens.since(at(0)).as_millis();
    retreat.step(RULES, opens.after(Micros::from_millis(200)), answer(granted, false));
    assert!(retreat.closed_until() <= opens.after(Micros::from_millis(200)), "the gate is open again");
}

#[test]
fn retry_after_closes_the_gate_up_to_the_cap() {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(0));
    let pause = Feedback { retry_after: Some(Micros::from_secs(1_000_000_000)), ..answer(0, true) };
    assert_eq!(retreat.step(RULES, at(0), pause).unwrap().reason, Reason::RetryAfter);
    assert_eq!(retreat.closed_until(), at(300_000));
    assert_eq!(retreat.advance(RULES, at(300_000)), None);
    assert_eq!(retreat.advance(RULES, at(330_000)).unwrap().to, Phase::Recover);
}

#[test]
fn time_without_requests_brings_it_back_too() {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(0));
    retreat.step(RULES, at(0), answer(0, true));
    let all_at_once = retreat.advance(RULES, at(FORGET_WINDOWS * 60_000 + 60_000)).unwrap();
    assert_eq!((all_at_once.from, all_at_once.to), (Phase::Retreat, Phase::Normal));
    assert_eq!(retreat.rate(), RULES.base);
}

#[test]
fn windows_of_other_lengths_are_the_same_in_other_spans() {
    let quick = RetreatRules { window: Micros::from_secs(6), base: MilliRpm::from_rpm(400), ..RULES };
    let (mut slow, mut fast) = (Retreat::new(RULES), Retreat::new(quick));
    for (retreat, rules, unit) in [(&mut slow, RULES, 10), (&mut fast, quick, 1)] {
        retreat.advance(rules, at(0));
        retreat.step(rules, at(0), answer(0, true));
        retreat.advance(rules, at(unit * 3_000));
    }
    assert_eq!(slow.phase(), fast.phase());
    assert!(slow.rate().get().abs_diff(fast.rate().get() / 10) <= 1);
}

#[test]
fn what_was_learned_fades_and_helps_the_next_time() {
    let mut retreat = Retreat::new(RULES);
    run(&mut retreat, RULES, 0, 1_200_000, rolling(25));
    let fresh = retreat.estimate(RULES, at(1_200_000)).unwrap();
    assert!((24..=26).contains(&fresh.rate.as_rpm()), "{}", fresh.rate);
    let later = 1_200_000 + 150 * 60_000;
    retreat.advance(RULES, at(later));
    let faded = retreat.estimate(RULES, at(later)).unwrap();
    assert!(faded.rate > fresh.rate && faded.age > fresh.age);
    assert_eq!(retreat.estimate(RULES, at(later + FORGET_WINDOWS * 60_000)), None);
}

#[test]
fn switched_off_counts_but_never_slows() {
    let off = RetreatRules { enabled: false, ..RULES };
    let mut retreat = Retreat::new(off);
    retreat.advance(off, at(0));
    assert_eq!(retreat.step(off, at(0), answer(0, true)), None);
    assert_eq!(retreat.throttled_permille(at(0)), 1_000);
    assert_eq!(retreat.rate(), RULES.base);
}

#[test]
fn switching_off_ends_a_retreat_and_a_new_base_is_taken_up() {
    let mut retreat = Retreat::new(RULES);
    retreat.advance(RULES, at(0));
    retreat.step(RULES, at(0), answer(0, true));
    let slower = RetreatRules { base: MilliRpm::from_rpm(10), ..RULES };
    retreat.advance(slower, at(1_000));
    assert_eq!(retreat.rate(), MilliRpm::from_rpm(10));
    let off = RetreatRules { enabled: false, ..RULES };
    assert_eq!(retreat.advance(off, at(2_000)).unwrap().reason, Reason::SwitchedOff);
    assert_eq!(retreat.rate(), RULES.base);
}

#[test]
fn the_share_of_429s_is_that_of_the_last_window() {
    let off = RetreatRules { enabled: false, ..RULES };
    let mut retreat = Retreat::new(off);
    retreat.advance(off, at(0));
    retreat.step(off, at(0), answer(0, true));
    assert_eq!(retreat.throttled_permille(at(50_000)), 1_000);
    assert_eq!(retreat.throttled_permille(at(70_000)), 0);
    retreat.advance(off, Instant::from_micros(u64::MAX));
    retreat.step(off, Instant::from_micros(u64::MAX), answer(0, true));
    assert!(retreat.throttled_permille(at(0)) <= 1_000);
}

/// Every state against every event. The table is the specification: a change of behaviour shows as a change here.
#[test]
fn states_and_events() {
    type Make = fn() -> Retreat;
    type Happen = fn(&mut Retreat);
    let states: [(&str, Make); 5] = [
        ("NORMAL", || {
            let mut retreat = Retreat::new(RULES);
            run(&mut retreat, RULES, 0, 200_000, |_| true);
            retreat
        }),
        ("NORMAL, idle before", || {
            let mut retreat = Retreat::new(RULES);
            retreat.advance(RULES, at(200_000));
            retreat
        }),
        ("RETREAT", || {
            let mut retreat = Retreat::new(RULES);
            retreat.advance(RULES, at(195_000));
            retreat.step(RULES, at(195_000), answer(195_000, true));
            retreat
        }),
        ("RETREAT, half open", || {
            let mut retreat = Retreat::new(RULES);
            retreat.advance(RULES, at(195_000));
            retreat.step(RULES, at(195_000), answer(195_000, true));
            retreat.step(RULES, at(196_000), answer(195_500, true));
            retreat.granted(RULES, at(199_800));
            retreat
        }),
        ("RECOVER, at the ceiling", || {
            let mut retreat = Retreat::new(RULES);
            run(&mut retreat, RULES, 0, 200_000, rolling(25));
            retreat
        }),
    ];
    let events: [(&str, Happen); 6] = [
        ("served", |r| {
            r.step(RULES, at(200_000), answer(199_900, false));
        }),
        ("429", |r| {
            r.step(RULES, at(200_000), answer(199_900, true));
        }),
        ("429, asked long ago", |r| {
            r.step(RULES, at(200_000), answer(1_000, true));
        }),
        ("429, Retry-After 20", |r| {
            let asked = Some(Micros::from_secs(20));
            r.step(RULES, at(200_000), Feedback { retry_after: asked, ..answer(199_900, true) });
        }),
        ("15 s pass", |r| {
            r.advance(RULES, at(215_000));
        }),
        ("switched off", |r| {
            r.advance(RetreatRules { enabled: false, ..RULES }, at(200_000));
        }),
    ];
    let mut table = String::new();
    for (state, make) in states {
        for (event, happen) in events {
            let mut retreat = make();
            let before = (retreat.phase(), retreat.rate());
            happen(&mut retreat);
            let closed = retreat.closed_until().since(at(200_000)).as_millis();
            table.push_str(&format!(
                "{state:24} {event:20} {} {} -> {} {}{}{}\n",
                before.0.name(),
                before.1,
                retreat.phase().name(),
                retreat.rate(),
                if closed > 0 { format!(", closed {closed} ms") } else { String::new() },
                if retreat.half_open { ", half open" } else { "" },
            ));
        }
    }
    let expected = include_str!("table.txt");
    assert!(table == expected, "the table has changed; if that is meant, put this into retreat/table.txt:\n{table}");
}

#[test]
fn a_window_of_an_hour_brings_no_long_silence() {
    let rules = RetreatRules { window: Micros::from_secs(3_600), ..RULES };
    let mut retreat = Retreat::new(rules);
    retreat.advance(rules, at(0));
    for (granted, now) in [(0, 1_000), (1_000, 2_000), (2_000, 3_000), (3_000, 4_000)] {
        retreat.advance(rules, at(now));
        retreat.step(rules, at(now), answer(granted, true));
        let closed = retreat.closed_until().since(at(now));
        assert!(closed <= Micros::from_secs(15), "closed for {} ms", closed.as_millis());
    }
    retreat.advance(rules, at(20_000));
    retreat.granted(rules, at(20_000));
    assert!(
        retreat.closed_until().since(at(20_000)) <= Micros::from_secs(8),
        "single requests as often as in a minute"
    );
}
