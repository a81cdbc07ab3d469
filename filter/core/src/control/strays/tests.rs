use crate::control::answer::{Answer, Signal};
use crate::control::controller::RateController;
use crate::control::rate::{Phase, Reason, RetreatRules, Transition};
use crate::model::{ModelKey, ModelName};
use crate::units::{Instant, Micros, MilliRpm};
use std::collections::BTreeMap;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const RULES: RetreatRules = RetreatRules { base: MilliRpm::from_rpm(40), ..RetreatRules::DEFAULT };
const MINUTE: u64 = 60_000;

fn at(ms: u64) -> Instant {
    Instant::from_micros(1_000_000_000 + ms * 1_000)
}

/// What an upstream says to a request, and after how many milliseconds.
type Says = (bool, u64);

/// An hour, or so many minutes, of as many requests as the controller lets go.
struct Run {
    controller: RateController,
    changes: Vec<(u64, Transition)>,
    served: Vec<u64>,
    refused: Vec<u64>,
    random: u64,
}

impl Run {
    fn new() -> Self {
        Self {
            controller: RateController::new(RULES),
            changes: Vec::new(),
            served: Vec::new(),
            refused: Vec::new(),
            random: 1,
        }
    }

    /// One of so many, at random.
    fn one_of(random: &mut u64, of: u64) -> bool {
        // Knuth's linear congruential generator; its high bits are good enough.
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33).is_multiple_of(of)
    }

    fn go(&mut self, minutes: u64, mut upstream: impl FnMut(&mut u64, &[u64], u64) -> Says) {
        let model = (ModelKey::NONE, ModelName::NONE);
        let mut answers: BTreeMap<(u64, u64), bool> = BTreeMap::new();
        let mut credit = 0u64;
        for now in (0..minutes * MINUTE).step_by(100) {
            let mut changes = Vec::new();
            self.controller.advance(RULES, at(now), &mut changes);
            credit = (credit + 100 * u64::from(self.controller.rate().get())).min(60_000_000);
            if credit == 60_000_000 && at(now) >= self.controller.account.closed_until() {
                credit = 0;
                self.controller.granted(RULES, at(now), model.0);
                let (is_served, after) = upstream(&mut self.random, &self.served, now);
                if is_served {
                    self.served.push(now);
                } else {
                    self.refused.push(now);
                }
                answers.insert((now + after, now), is_served);
            }
            while let Some(((due, granted), is_served)) = answers.first_key_value().map(|(key, value)| (*key, *value))
                && due <= now
            {
                answers.remove(&(due, granted));
                let signal = if is_served { Signal::Served } else { Signal::Throttled };
                let answer = Answer { granted_at: at(granted), signal, retry_after: None, model };
                self.controller.answer(RULES, at(now), answer, &mut changes);
            }
            self.changes.extend(changes.into_iter().map(|change| (now, change)));
        }
    }

    fn share(&self) -> f64 {
        self.controller.strays.as_ref().expect("a new record has them").share()
    }

    fn served_per_minute(&self, from: u64, until: u64) -> f64 {
        let those = self.served.iter().filter(|at| (from * MINUTE..until * MINUTE).contains(at));
        those.count() as f64 / (until - from) as f64
    }
}

fn in_last_minute(served: &[u64], now: u64) -> usize {
    served.iter().rev().take_while(|then| **then + MINUTE > now).count()
}

#[test]
fn strays_cost_little_more_than_what_is_refused() {
    for (of, least) in [(50, 36.0), (20, 35.0), (12, 33.0)] {
        let mut run = Run::new();
        run.go(60, |random, _, _| (!Run::one_of(random, of), 200));
        let served = run.served_per_minute(0, 60);
        assert!(served >= least, "1 of {of} is refused, and {served} a minute are served");
    }
}

#[test]
fn the_share_of_strays_is_learned_and_forgotten() {
    let mut run = Run::new();
    run.go(120, |random, _, now| (now > 60 * MINUTE || !Run::one_of(random, 15), 200));
    let learned = run.changes.iter().find(|(_, change)| change.reason == Reason::Strays).expect("it is learned");
    assert!(learned.0 < 30 * MINUTE, "after {} s", learned.0 / 1_000);
    assert_eq!(learned.1.to, Phase::Normal, "and the rate is restored");
    assert_eq!(run.share(), 0.0, "a later test finds that it is over");
    assert_eq!(run.controller.rate(), RULES.base);
}

#[test]
fn a_limit_is_not_taken_for_strays() {
    let mut run = Run::new();
    run.go(120, |_, served, now| (in_last_minute(served, now) < 20, 200));
    assert_eq!(run.share(), 0.0);
    assert!((18..=22).contains(&run.controller.rate().as_rpm()), "{}", run.controller.rate());
    let refused = run.refused.iter().filter(|at| **at > 10 * MINUTE).count();
    assert!(refused * 25 <= run.served.len(), "{refused} refused, {} served", run.served.len());
}

#[test]
fn a_limit_is_found_among_strays() {
    let mut run = Run::new();
    run.go(60, |random, served, now| (in_last_minute(served, now) < 20 && !Run::one_of(random, 20), 200));
    let refused = run.refused.iter().filter(|at| **at > 20 * MINUTE).count() as f64;
    let served = run.served_per_minute(20, 60);
    assert!(served >= 15.0, "{served} a minute are served");
    assert!(refused <= 0.2 * 40.0 * served, "{refused} are refused in forty minutes");
}

#[test]
fn refusals_that_come_late_count_for_their_time() {
    for late in [60_000, 300_000] {
        let mut run = Run::new();
        run.go(120, |_, served, now| {
            let is_served = in_last_minute(served, now) < 25;
            (is_served, if is_served { 4_000 } else { late })
        });
        let served = run.served_per_minute(30, 120);
        let refused = run.refused.iter().filter(|at| **at > 30 * MINUTE).count() as f64 / 90.0;
        assert!(served >= 23.0, "{late} ms late: {served} a minute are served");
        // With no retreat fifteen a minute are.
        assert!(refused <= 4.0, "{late} ms late: {refused} a minute are refused");
    }
}

#[test]
fn after_a_lockout_the_rate_from_before_is_back() {
    let mut run = Run::new();
    run.go(60, |_, _, now| (!(20 * MINUTE..50 * MINUTE).contains(&now), 200));
    assert!(run.refused.len() < 60, "{} are refused in half an hour", run.refused.len());
    assert!(run.served_per_minute(52, 60) >= 37.0, "{}", run.served_per_minute(52, 60));
}

#[test]
fn a_pause_is_kept_also_where_strays_are_known() {
    let mut run = Run::new();
    run.go(60, |random, _, _| (!Run::one_of(random, 15), 200));
    assert!(run.share() > 0.0);
    let now = at(60 * MINUTE);
    let model = (ModelKey::NONE, ModelName::NONE);
    let refused =
        Answer { granted_at: now, signal: Signal::Throttled, retry_after: Some(Micros::from_secs(10)), model };
    run.controller.advance(RULES, now, &mut Vec::new());
    run.controller.granted(RULES, now, model.0);
    run.controller.answer(RULES, now, refused, &mut Vec::new());
    assert!(run.controller.account.closed_until() >= at(60 * MINUTE + 10_000));
}

#[test]
fn switched_off_no_test_goes_on() {
    let mut run = Run::new();
    run.go(2, |_, _, _| (true, 200));
    let strays = run.controller.strays.as_mut().expect("a new record has them");
    strays.test_from = at(MINUTE);
    strays.test_rate = MilliRpm::from_rpm(10);
    assert_eq!(run.controller.rate().as_rpm(), 10);
    let mut changes = Vec::new();
    run.controller.advance(RetreatRules { enabled: false, ..RULES }, at(2 * MINUTE), &mut changes);
    assert_eq!(run.controller.rate(), RULES.base);
    assert_eq!(changes.iter().map(|change| change.reason).collect::<Vec<_>>(), [Reason::TestEnds]);
}

#[test]
fn what_was_booked_to_the_account_by_mistake_is_forgiven() {
    let mut history = crate::control::history::History::default();
    history.advance(RULES.window, at(0));
    for n in 0..4u64 {
        history.advance(RULES.window, at(n * 10_000));
        history.granted();
        history.refused(at(n * 10_000), true);
    }
    history.forgive(3);
    let sum = history.since(at(0));
    assert_eq!((sum.granted, sum.refused, sum.let_in()), (4, 1, 0));
    assert_eq!(history.since(at(30_000)).refused, 0, "the latest first");
}
