//! What the filter's controller reaches in the study, as far as it is promised in docs/retreat.md. Time is virtual and
//! every run has its seed, so these are no matter of a machine's speed.

use nimgate_core::control::rate::RetreatRules;
use nimgate_study::controllers::Which;
use nimgate_study::report::Figures;
use nimgate_study::scenario::{COMPANY_DEMAND, DEMANDS, all, in_company};
use nimgate_study::study;

const SEEDS: u64 = 4;
const OURS: Which = Which::Nimgate { probe_windows: RetreatRules::DEFAULT.probe_windows };

fn figures(scenario: &str, demand: usize, which: Which) -> Figures {
    let scenario = all().into_iter().find(|one| one.name == scenario).expect("there is such a scenario");
    study(&scenario, DEMANDS[demand], &[which], SEEDS).remove(0).figures
}

#[test]
fn a_rolling_window_as_configured_is_used_without_one_refusal() {
    let figures = figures("as configured", 2, OURS);
    assert!(figures.goodput >= 0.98 && figures.refused == 0.0, "{figures:?}");
}

#[test]
fn hidden_limits_are_used_and_refusals_are_rare() {
    for scenario in ["bucket", "fixed window", "rolling window", "quick answers", "slow answers", "Retry-After"] {
        let figures = figures(scenario, 2, OURS);
        assert!(figures.goodput >= 0.97, "{scenario}: {figures:?}");
        // Refusals that ask for a pause are never taken for strays, and it takes some more of them to find the limit.
        let most = if scenario == "Retry-After" { 0.024 } else { 0.02 };
        assert!(figures.refused <= most && figures.refused_later <= 0.02, "{scenario}: {figures:?}");
    }
}

#[test]
fn strays_cost_little_more_than_they_refuse() {
    for (name, least) in [("1 % stray", 0.97), ("2 % stray", 0.94), ("5 % stray", 0.95), ("10 % stray", 0.92)] {
        let scenario = in_company().into_iter().find(|one| one.name == name).expect("there is such a scenario");
        let of = |which| study(&scenario, COMPANY_DEMAND, &[which], SEEDS).remove(0).figures;
        let (ours, none) = (of(OURS), of(Which::None));
        assert!(ours.goodput >= least * none.goodput, "{name}: {ours:?}, {none:?}");
    }
}

#[test]
fn late_refusals_are_counted() {
    for (name, most) in [("late by 60 s", 0.25), ("late by 300 s", 0.5)] {
        let scenario = in_company().into_iter().find(|one| one.name == name).expect("there is such a scenario");
        let of = |which| study(&scenario, COMPANY_DEMAND, &[which], SEEDS).remove(0).figures;
        let (ours, none) = (of(OURS), of(Which::None));
        assert!(
            ours.goodput >= 0.94 * none.goodput && ours.refused <= most * none.refused,
            "{name}: {ours:?}, {none:?}"
        );
    }
}

#[test]
fn trouble_of_one_model_is_not_the_others() {
    for scenario in ["weak model", "workers full"] {
        let (ours, none) = (figures(scenario, 2, OURS), figures(scenario, 2, Which::None));
        assert!(ours.goodput >= 0.96 && ours.goodput > none.goodput + 0.05, "{scenario}: {ours:?}, {none:?}");
        assert!(ours.refused + ours.worker_full <= 0.015, "{scenario}: {ours:?}");
    }
}

#[test]
fn several_weak_models_do_not_drag_the_account_down() {
    for name in ["2 of 8 weak", "2 of 12 weak", "3 of 10 weak", "4 of 8 weak", "2 of 4 weak", "popular weak"] {
        let scenario = in_company().into_iter().find(|one| one.name == name).expect("there is such a scenario");
        let lines = study(&scenario, COMPANY_DEMAND, &[OURS, Which::None], SEEDS);
        let (ours, none) = (&lines[0].figures, &lines[1].figures);
        assert!(ours.goodput >= 0.92 && ours.goodput > none.goodput + 0.05, "{name}: {ours:?}, {none:?}");
        assert!(ours.refused <= 0.055 && ours.refused < none.refused / 2.0, "{name}: {ours:?}, {none:?}");
    }
}

#[test]
fn a_pause_that_weak_models_ask_for_does_not_hold_the_others() {
    let scenario =
        in_company().into_iter().find(|one| one.name == "weak, Retry-After").expect("there is such a scenario");
    let lines = study(&scenario, COMPANY_DEMAND, &[OURS, Which::None], SEEDS);
    let (ours, none) = (&lines[0].figures, &lines[1].figures);
    assert!(ours.goodput >= 0.95 && ours.goodput_worst > none.goodput, "{ours:?}, {none:?}");
    assert!(ours.refused <= 0.01, "{ours:?}");
}

#[test]
fn a_limit_that_moves_is_followed() {
    for scenario in ["spurious 429s", "drop and rise", "rise"] {
        let figures = figures(scenario, 2, OURS);
        assert!(figures.goodput >= 0.90 && figures.refused <= 0.03, "{scenario}: {figures:?}");
        assert!(figures.back_after_worst.is_none_or(|windows| windows <= 8.0), "{scenario}: {figures:?}");
    }
}

#[test]
fn nobody_is_refused_who_asks_for_little() {
    for scenario in all() {
        let figures = study(&scenario, DEMANDS[0], &[OURS], SEEDS).remove(0).figures;
        assert!(figures.goodput >= 0.96, "{}: {figures:?}", scenario.name);
    }
}

#[test]
fn a_run_is_its_seed() {
    let again = |_| format!("{:?}", figures("outside consumer", 1, OURS));
    assert_eq!(again(()), again(()));
}
