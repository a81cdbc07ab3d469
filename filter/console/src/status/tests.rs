//! The document, from ledgers in memory.

use super::*;
use crate::view::read_ledger;
use nimgate_config::Config;
use nimgate_core::limit::ledger::{Held, Ledger};
use nimgate_core::limit::record::tlv;
use nimgate_core::model::ModelKey;
use nimgate_core::order::queue::Queue as Line;
use nimgate_core::request::Request;
use nimgate_core::store::{MemoryStore, Store};
use nimgate_core::units::{RequestId, WorkerId};
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn at(secs: u64) -> Instant {
    Instant::ZERO.after(Micros::from_secs(1_000 + secs))
}

/// A limit with one token, for which two requests have come: one got it, the other waits.
fn view(name: &str) -> LimitView {
    let rules = Config::parse(b"").unwrap().limits[0].rules;
    let mut ledger = Ledger::new(rules, 1, at(0));
    let mut line = Line::default();
    for id in 1..=2 {
        let request = Request::new(RequestId(id), Lane::Queued(Priority::High), ModelKey::NONE);
        let arrival = line.push(request, at(0));
        let (turn, _) = ledger.turn(WorkerId(1), &line, Held::default(), Some(&arrival), at(0), &mut Vec::new());
        if turn.granted.len() == 1 {
            line.remove(arrival.id);
        }
    }
    let mut store = MemoryStore::at(at(1));
    store.swap(&tlv::key(name), &ledger.encode(), None).unwrap();
    let mut counters = Counters::default();
    counters.outcomes[Outcome::Forwarded.index()] = 5;
    counters.outcomes[Outcome::RateLimited.index()] = 2;
    counters.outcomes[Outcome::QueueFull.index()] = 1;
    counters.answers[4] = 3;
    counters.shadow = [6, 0, 9];
    LimitView {
        name: name.to_owned(),
        is_configured: true,
        counters,
        history: vec![Entry::of_rules(ledger.epoch(), ledger.snapshot(at(1)).rate, "<b>", 7)],
        ledger: read_ledger(name, &mut store).unwrap(),
    }
}

fn gathered(limits: Vec<LimitView>) -> Gathered {
    Gathered { limits, passthrough: 4, uptime: Micros::from_secs(9), can_change: true, now: at(1) }
}

fn document(limits: Vec<LimitView>) -> serde_json::Value {
    serde_json::from_slice(&gathered(limits).status().body).unwrap()
}

#[test]
fn one_limit_is_the_whole() {
    let status = document(vec![view("a")]);
    assert_eq!(status["requests"], serde_json::json!({"total": 12, "nvidia": 8, "passthrough": 4, "ratelimited": 2}));
    assert_eq!(status["errors"], serde_json::json!({"queue_full_rejects": 1, "upstream_errors": 3}));
    assert_eq!(status["queue"]["size"], 1);
    assert_eq!(status["queue"], status["limits"][0]["queue"]);
    assert_eq!(status["token_bucket"], status["limits"][0]["token_bucket"]);
    assert_eq!(status["retreat"]["state"], "NORMAL");
    assert_eq!(status["retreat"]["base_rpm"], 40.0);
    let waits = &status["limits"][0]["waits"]["high"];
    assert_eq!((waits["oldest_seconds"].as_f64(), waits["granted"].as_u64()), (Some(1.0), Some(1)));
    assert!(status["limits"][0]["waits"]["low"]["oldest_seconds"].is_null());
    assert_eq!(status["limits"][0]["rules"]["source"], "configuration");
    let shadow = serde_json::json!({"forwarded": 6, "rate_limited": 0, "queue_full": 9});
    assert_eq!(status["limits"][0]["shadow"], shadow);
}

#[test]
fn several_limits_are_summed() {
    let status = document(vec![view("a"), view("b")]);
    assert_eq!(status["requests"]["nvidia"], 16);
    assert_eq!(status["queue"]["by_priority"]["high"], 2);
    assert_eq!(status["token_bucket"]["capacity"], 8);
    assert_eq!(status["retreat"]["effective_rpm"], 80.0);
}

#[test]
fn without_limits_there_are_zeros() {
    let status = document(Vec::new());
    assert_eq!((status["queue"]["size"].as_u64(), status["requests"]["total"].as_u64()), (Some(0), Some(4)));
}

#[test]
fn a_limit_whose_record_is_lost_is_listed_without_its_state() {
    let status = document(vec![LimitView { ledger: None, ..view("a") }]);
    assert_eq!(status["limits"][0]["requests"]["total"], 8);
    assert!(status["limits"][0].get("queue").is_none());
}

#[test]
fn an_event_is_one_line_of_data() {
    let reply = gathered(vec![view("a")]).event();
    let text = String::from_utf8(reply.body.into_owned()).unwrap();
    assert!(text.starts_with("retry: 1000\nevent: status\ndata: {") && text.ends_with("}\n\n"));
    assert_eq!(text.trim_end().lines().count(), 3);
    assert!(!text.contains('<'));
}
