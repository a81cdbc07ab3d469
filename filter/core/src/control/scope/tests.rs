//! Whose limit a refusal is: seen through [`RateController`], which joins account and models.

use super::*;
use crate::control::answer::{Answer, Signal};
use crate::control::controller::RateController;
use crate::control::rate::Phase;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const RULES: RetreatRules = RetreatRules::DEFAULT;
const NAMES: [&str; 4] = ["nvidia/weak", "nvidia/b", "meta/c", "qwen/d"];

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Micros::from_millis(1_000_000 + millis))
}

fn model(at: usize) -> (ModelKey, ModelName) {
    (ModelKey::of(NAMES[at]), ModelName::new(NAMES[at]))
}

/// Sends requests for the models in turn for so many minutes, each as soon as account and model let it, and answered at
/// once by `signal`. Returns how many were sent for each, and how many of those were not served.
fn run(controller: &mut RateController, minutes: u64, mut signal: impl FnMut(usize, u64) -> Signal) -> [(u32, u32); 4] {
    let mut sent = [(0, 0); 4];
    let mut credit = 0u64;
    let mut turn = 0;
    for now in (0..minutes * 60_000).step_by(100) {
        controller.advance(RULES, at(now), &mut Vec::new());
        credit = (credit + 100 * u64::from(controller.rate().get())).min(60_000_000);
        let next =
            (turn..turn + 4).map(|which| which % 4).find(|which| controller.models.open_at(model(*which).0) <= at(now));
        let Some(which) = next.filter(|_| credit == 60_000_000 && at(now) >= controller.account.closed_until()) else {
            continue;
        };
        (credit, turn) = (0, which + 1);
        controller.granted(RULES, at(now), model(which).0);
        let signal = signal(which, now);
        sent[which].0 += 1;
        sent[which].1 += u32::from(signal != Signal::Served);
        controller.answer(
            RULES,
            at(now),
            Answer { granted_at: at(now), signal, retry_after: None, model: model(which) },
            &mut Vec::new(),
        );
    }
    sent
}

#[test]
fn a_model_with_a_limit_of_its_own_is_slowed_alone() {
    let mut controller = RateController::new(RULES);
    let mut admitted: Vec<u64> = Vec::new();
    let sent = run(&mut controller, 30, |which, now| {
        admitted.retain(|then| then + 60_000 > now);
        match which {
            0 if admitted.len() >= 5 => Signal::Throttled,
            0 => {
                admitted.push(now);
                Signal::Served
            }
            _ => Signal::Served,
        }
    });
    assert_eq!(controller.account.phase(), Phase::Normal);
    let slowed = controller.models.slowed();
    assert_eq!(slowed.iter().map(|slowed| slowed.name.as_str()).collect::<Vec<_>>(), ["nvidia/weak"]);
    let rate = slowed[0].retreat.rate().as_rpm();
    assert!((4..=6).contains(&rate), "{rate} for a limit of 5");
    assert!(sent[0].1 <= 25 && sent[0].0 - sent[0].1 >= 30 * 4, "{sent:?}");
    assert!(sent[1..].iter().map(|(sent, _)| sent).sum::<u32>() >= 30 * 33, "the others use what is left: {sent:?}");
}

/// Streaks could not tell: each weak model's refusals cleared the other's record, and the account paid.
#[test]
fn two_models_with_limits_of_their_own_are_both_found() {
    let mut controller = RateController::new(RULES);
    let mut admitted: [Vec<u64>; 2] = Default::default();
    let sent = run(&mut controller, 30, |which, now| {
        let Some(own) = admitted.get_mut(which) else { return Signal::Served };
        own.retain(|then| then + 60_000 > now);
        if own.len() >= 2 {
            return Signal::Throttled;
        }
        own.push(now);
        Signal::Served
    });
    assert_eq!((controller.account.phase(), controller.models.slowed().len()), (Phase::Normal, 2));
    assert!(sent[2..].iter().map(|(sent, _)| sent).sum::<u32>() >= 30 * 30, "the others use what is left: {sent:?}");
}

fn answer(which: usize, granted: u64, signal: Signal, pause: Option<u64>) -> Answer {
    Answer { granted_at: at(granted), signal, retry_after: pause.map(Micros::from_secs), model: model(which) }
}

/// The weak model's first refusal is taken for the account's until there are enough to tell. The pause that it asked for
/// is short, and all keep it; it must not outlive the pardon for the other models.
#[test]
fn a_pardon_opens_the_gate_that_the_refusals_of_a_model_have_closed() {
    let mut controller = RateController::new(RULES);
    controller.advance(RULES, at(0), &mut Vec::new());
    for now in 0..6 {
        controller.granted(RULES, at(now), model(1).0);
        controller.answer(RULES, at(now), answer(1, now, Signal::Served, None), &mut Vec::new());
    }
    for now in [1_000, 1_100, 1_200] {
        controller.granted(RULES, at(now), model(0).0);
    }
    controller.answer(RULES, at(2_000), answer(0, 1_000, Signal::Throttled, Some(15)), &mut Vec::new());
    assert_eq!((controller.account.phase(), controller.account.closed_until()), (Phase::Retreat, at(17_000)));
    controller.answer(RULES, at(3_000), answer(0, 1_100, Signal::Throttled, None), &mut Vec::new());
    assert_eq!(
        controller.account.closed_until(),
        at(17_000),
        "the second one is no evidence against the account any more"
    );
    assert_eq!(controller.models.slowed(), [], "and not yet enough against the model");
    controller.answer(RULES, at(4_000), answer(0, 1_200, Signal::Throttled, Some(60)), &mut Vec::new());
    assert_eq!((controller.account.phase(), controller.account.rate()), (Phase::Normal, RULES.base));
    controller.granted(RULES, at(4_000), model(1).0);
    assert!(controller.account.closed_until() <= at(4_000), "the others go on");
    assert_eq!(controller.models.open_at(model(0).0), at(64_000), "and the weak one waits");
}

/// A controller after requests for all models, the first of which was then asked for a pause of 300 s.
fn paused_once() -> RateController {
    let mut controller = RateController::new(RULES);
    controller.advance(RULES, at(0), &mut Vec::new());
    for which in 0..4 {
        controller.granted(RULES, at(0), model(which).0);
    }
    controller.answer(RULES, at(500), answer(0, 0, Signal::Throttled, Some(300)), &mut Vec::new());
    controller
}

#[test]
fn a_long_pause_holds_the_model_that_it_was_asked_for() {
    let mut controller = paused_once();
    assert_eq!((controller.account.phase(), controller.account.closed_until()), (Phase::Normal, Instant::ZERO));
    assert_eq!((0..4).map(|which| controller.models.open_at(model(which).0)).max(), Some(at(300_500)));
    assert_eq!(controller.models.open_at(model(1).0), Instant::ZERO);
    // Others were let in, so three more of them are three more weak models.
    for now in [5_000, 10_000, 20_000] {
        controller.advance(RULES, at(now), &mut Vec::new());
        controller.granted(RULES, at(now), model(3).0);
    }
    for which in [1, 2] {
        controller.granted(RULES, at(20_000), model(which).0);
        controller.answer(RULES, at(20_100), answer(which, 20_000, Signal::Throttled, Some(300)), &mut Vec::new());
    }
    assert_eq!((controller.account.phase(), controller.models.slowed().len()), (Phase::Normal, 3));
}

#[test]
fn a_pause_that_three_models_in_a_row_are_asked_for_is_the_accounts() {
    let mut controller = paused_once();
    let mut changes = Vec::new();
    for (which, now) in [(1, 2_000), (2, 4_000)] {
        assert_eq!(controller.account.phase(), Phase::Normal, "before {which}");
        controller.advance(RULES, at(now), &mut changes);
        controller.granted(RULES, at(now), model(which).0);
        controller.answer(RULES, at(now + 500), answer(which, now, Signal::Throttled, Some(300)), &mut changes);
    }
    assert_eq!((controller.account.phase(), controller.account.closed_until()), (Phase::Retreat, at(304_500)));
    assert_eq!(controller.models.slowed(), [], "{changes:?}");
    assert_eq!(changes.iter().filter(|change| change.reason == Reason::OthersRefusedToo).count(), 2);
}

#[test]
fn where_only_one_model_is_asked_for_its_pause_is_the_accounts() {
    let mut controller = RateController::new(RULES);
    controller.advance(RULES, at(0), &mut Vec::new());
    controller.granted(RULES, at(0), model(0).0);
    controller.answer(RULES, at(500), answer(0, 0, Signal::Throttled, Some(300)), &mut Vec::new());
    assert_eq!((controller.account.closed_until(), controller.models.slowed().len()), (at(300_500), 0));
}

#[test]
fn a_limit_of_the_account_is_not_blamed_on_models() {
    let mut controller = RateController::new(RULES);
    let mut admitted: Vec<u64> = Vec::new();
    run(&mut controller, 30, |_, now| {
        admitted.retain(|then| then + 60_000 > now);
        if admitted.len() >= 20 {
            return Signal::Throttled;
        }
        admitted.push(now);
        Signal::Served
    });
    assert_eq!(controller.models.slowed(), []);
    assert!((18..=22).contains(&controller.account.rate().as_rpm()), "{}", controller.account.rate());
}

#[test]
fn full_workers_slow_their_model_only() {
    let mut controller = RateController::new(RULES);
    let full = |which, now| if which == 0 && now > 60_000 { Signal::WorkersFull } else { Signal::Served };
    let sent = run(&mut controller, 20, full);
    assert_eq!(controller.account.phase(), Phase::Normal);
    assert!(sent[0].1 <= 35, "about one try in a minute: {sent:?}");
    assert!(sent[1..].iter().map(|(sent, _)| sent).sum::<u32>() >= 20 * 36, "{sent:?}");
    let mut changes = Vec::new();
    controller.advance(RULES, at(100 * 3_600_000), &mut changes);
    let transition = *changes.last().unwrap();
    assert_eq!((transition.to, transition.model), (Phase::Normal, Some(ModelName::new("nvidia/weak"))));
    assert_eq!(controller.models.slowed(), []);
}

#[test]
fn without_a_model_it_is_the_account() {
    let mut controller = RateController::new(RULES);
    controller.advance(RULES, at(0), &mut Vec::new());
    let unknown = (ModelKey::NONE, ModelName::NONE);
    // A single refusal, with nothing served before, says too little.
    for signal in [Signal::WorkersFull, Signal::Throttled, Signal::Throttled] {
        controller.answer(
            RULES,
            at(0),
            Answer { granted_at: at(0), signal, retry_after: None, model: unknown },
            &mut Vec::new(),
        );
    }
    assert_eq!((controller.account.phase(), controller.models.slowed().len()), (Phase::Retreat, 0));
}

#[test]
fn however_many_names_there_are_few_are_kept() {
    let mut controller = RateController::new(RULES);
    for number in 0..10_000u64 {
        let name = format!("nvidia/{number}");
        let now = at(number);
        controller.advance(RULES, now, &mut Vec::new());
        controller.granted(RULES, now, ModelKey::of(&name));
        let signal = if number % 3 == 0 { Signal::WorkersFull } else { Signal::Served };
        let model = (ModelKey::of(&name), ModelName::new(&name));
        controller.answer(RULES, now, Answer { granted_at: now, signal, retry_after: None, model }, &mut Vec::new());
    }
    assert!(controller.models.seen.len() <= SEEN_MAX && controller.models.slowed.len() <= SLOWED_MAX);
}

#[test]
fn names_are_cut_between_characters() {
    assert_eq!(ModelName::new("nvidia/a").as_str(), "nvidia/a");
    let long = "ä".repeat(40);
    assert_eq!(ModelName::new(&long).as_str(), "ä".repeat(24));
    assert_eq!(ModelName::new(&format!("x{long}")).as_str(), format!("x{}", "ä".repeat(23)));
    assert_ne!(ModelKey::of(""), ModelKey::NONE);
}
