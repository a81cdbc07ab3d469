//! Readiness, from probes and ledgers in memory.

use super::*;
use crate::config::Config;
use crate::console::picture::{Counters, look};
use crate::ledger::{Ledger, Rules};
use crate::models::{ModelKey, ModelName};
use crate::pace::{Answer, Verdict};
use crate::store::MemoryStore;
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

fn picture(name: &str, ledger: &Ledger) -> Picture {
    let mut store = MemoryStore::default();
    store.swap(&Ledger::key(name), &ledger.encode(), None).unwrap();
    Picture {
        name: name.to_owned(),
        is_configured: true,
        counters: Counters::default(),
        history: Vec::new(),
        ledger: look(name, now(), &mut store).unwrap(),
    }
}

fn told(result: Option<Probed>, limits: &[Picture]) -> (u16, serde_json::Value) {
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
        let (got, body) = told(result, &[]);
        assert_eq!((got, body["ready"].as_bool()), (status, Some(status == 200)), "{body}");
    }
}

#[test]
fn one_limit_that_works_is_enough() {
    let good = picture("good", &Ledger::new(rules(), 1, now()));
    let full = picture("full", &Ledger::new(Rules { queue_max: 0, ..rules() }, 1, now()));
    let mut closed = Ledger::new(rules(), 1, now());
    let pause = Some(Micros::from_secs(200));
    closed.answer(
        Answer {
            granted_at: now(),
            verdict: Verdict::Throttled,
            retry_after: pause,
            model: (ModelKey::NONE, ModelName::NONE),
        },
        now(),
    );
    let closed = picture("closed", &closed);
    let answered = Some(Probed::Answered(200));
    assert_eq!(told(answered, std::slice::from_ref(&good)).0, 200);
    assert_eq!(told(answered, &[full.clone(), good]).0, 200);
    let (status, body) = told(answered, &[full, closed]);
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
