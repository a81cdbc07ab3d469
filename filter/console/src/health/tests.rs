//! Readiness, from probes and ledgers in memory.

use super::*;
use crate::view::{Counters, read_ledger};
use nimgate_config::Config;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::limit::ledger::Ledger;
use nimgate_core::limit::record::tlv;
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::store::MemoryStore;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn now() -> Instant {
    Instant::ZERO.after(Micros::from_secs(1_000))
}

fn probe() -> ProbeConfig {
    Config::parse(br#"{"console": {}}"#).unwrap().console.unwrap().upstream
}

fn rules() -> Rules {
    Config::parse(b"").unwrap().limits[0].rules
}

fn view(name: &str, ledger: &Ledger) -> LimitView {
    let mut store = MemoryStore::at(now());
    store.swap(&tlv::key(name), &ledger.encode(), None).unwrap();
    LimitView {
        name: name.to_owned(),
        is_configured: true,
        counters: Counters::default(),
        history: Vec::new(),
        ledger: read_ledger(name, &mut store).unwrap(),
    }
}

fn readiness_of(result: Option<Probed>, limits: &[LimitView]) -> (u16, serde_json::Value) {
    let reply = readiness(&probe(), result.map(|result| Probe { at: now(), result }), limits, now());
    (reply.status, serde_json::from_slice(&reply.body).unwrap())
}

#[test]
fn only_an_answer_below_500_is_an_upstream() {
    for (result, status) in [
        (Some(Probed::Answered(200)), 200),
        (Some(Probed::Answered(401)), 200),
        (Some(Probed::Answered(503)), 503),
        (Some(Probed::Silent), 503),
        (Some(Probed::NoCluster), 503),
        (None, 503),
    ] {
        let (got, body) = readiness_of(result, &[]);
        assert_eq!((got, body["ready"].as_bool()), (status, Some(status == 200)), "{body}");
    }
}

#[test]
fn one_limit_that_works_is_enough() {
    let good = view("good", &Ledger::new(rules(), 1, now()));
    let full = view("full", &Ledger::new(Rules { queue_max: 0, ..rules() }, 1, now()));
    let mut closed = Ledger::new(rules(), 1, now());
    let pause = Some(Micros::from_secs(200));
    closed.answer(
        Answer {
            granted_at: now(),
            signal: Signal::Throttled,
            retry_after: pause,
            model: (ModelKey::NONE, ModelName::NONE),
        },
        now(),
        &mut Vec::new(),
    );
    let closed = view("closed", &closed);
    let answered = Some(Probed::Answered(200));
    assert_eq!(readiness_of(answered, std::slice::from_ref(&good)).0, 200);
    assert_eq!(readiness_of(answered, &[full.clone(), good]).0, 200);
    let (status, body) = readiness_of(answered, &[full, closed]);
    assert_eq!(status, 503);
    assert!(body["limits"][0]["message"].as_str().unwrap().contains("queue is full"), "{body}");
    assert!(body["limits"][1]["message"].as_str().unwrap().contains("next token comes in 200 s"), "{body}");
}

#[test]
fn results_are_kept_and_grow_old() {
    let mut store = MemoryStore::default();
    assert_eq!(Probe::read(&probe(), &mut store), Ok(None));
    for result in [Probed::Answered(204), Probed::Silent, Probed::NoCluster] {
        let kept = Probe { at: now(), result };
        kept.write(&probe(), &mut store).unwrap();
        assert_eq!(Probe::read(&probe(), &mut store), Ok(Some(kept)));
        assert!(kept.is_fresh(now()) && !kept.is_fresh(now().after(FRESH)));
    }
}
