//! Changes of rules, on a ledger in memory.

use super::*;
use nimgate_config::Config;
use nimgate_core::limit::ledger::Ledger;
use nimgate_core::limit::record::tlv;
use nimgate_core::store::MemoryStore;
use nimgate_core::units::{Instant, Micros, MilliRpm};
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn now() -> Instant {
    Instant::ZERO.after(Micros::from_secs(1_000))
}

/// A store with the ledgers of limits `a` and `b`, under the default rules.
fn store() -> (MemoryStore, Vec<String>) {
    let mut store = MemoryStore::at(now());
    let names = vec!["a".to_owned(), "b".to_owned()];
    for name in &names {
        let rules = Config::parse(b"").unwrap().limits[0].rules;
        let ledger = Ledger::new(rules, rules.capacity, now());
        store.swap(&tlv::key(name), &ledger.encode(), None).unwrap();
    }
    (store, names)
}

fn ledger(store: &mut MemoryStore, name: &str) -> Ledger {
    Ledger::decode(&store.load(&tlv::key(name)).unwrap().unwrap().0).unwrap()
}

fn refused(body: &str, names: &[String], store: &mut MemoryStore) -> (u16, String) {
    let reply = apply(body.as_bytes(), names, store).unwrap_err();
    (reply.status, String::from_utf8(reply.body.into_owned()).unwrap())
}

#[test]
fn a_change_is_in_force_and_the_configuration_is_remembered() {
    let (mut store, names) = store();
    let applied = apply(br#"{"limit": "a", "rate_rpm": 30, "epoch": 1}"#, &names, &mut store).unwrap();
    assert!(applied.is_change() && applied.epoch == 2);
    let after = ledger(&mut store, "a");
    assert_eq!(after.rules().retreat.base, MilliRpm::from_rpm(30));
    assert_eq!(after.configured().retreat.base, MilliRpm::from_rpm(40));
    assert_eq!(after.retreat().rate(), MilliRpm::from_rpm(30));
    assert_eq!(ledger(&mut store, "b").epoch(), 1);
    let body: serde_json::Value = serde_json::from_slice(&applied.reply().body).unwrap();
    assert_eq!(body["rules"]["source"], "console");
    assert_eq!(body["rules"]["in_force"]["rate_rpm"], 30);
    assert_eq!(body["rules"]["configured"]["rate_rpm"], 40);

    let back = apply(br#"{"limit": "a", "rate_rpm": null}"#, &names, &mut store).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&back.reply().body).unwrap();
    assert_eq!((body["rules"]["source"].as_str(), body["rules"]["epoch"].as_u64()), (Some("configuration"), Some(3)));
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let (mut store, names) = store();
    let same = apply(br#"{"limit": "a", "rate_rpm": 40}"#, &names, &mut store).unwrap();
    assert!(!same.is_change() && same.epoch == 1);
    assert_eq!(ledger(&mut store, "a").epoch(), 1);
}

#[test]
fn a_refusal_changes_nothing_and_names_the_field() {
    let (mut store, names) = store();
    for (body, status, words) in [
        (r#"{"limit": "a", "queue_max_size": 5, "rate_rpm": 0}"#, 400, r#""param":"rate_rpm""#),
        (r#"{"rate_rpm": 30}"#, 400, r#""param":"limit""#),
        (r#"{"limit": "c", "rate_rpm": 30}"#, 404, "unknown_limit"),
        (r#"{"limit": "a", "rate_rpm": 30, "epoch": 2}"#, 409, "superseded"),
        ("rate_rpm=30", 400, "expected value"),
    ] {
        let (got, text) = refused(body, &names, &mut store);
        assert_eq!(got, status, "{body}: {text}");
        assert!(text.contains(words), "{body}: {text}");
    }
    assert_eq!(ledger(&mut store, "a").epoch(), 1);
}

#[test]
fn the_only_limit_need_not_be_named() {
    let (mut store, names) = store();
    assert!(apply(br#"{"rate_rpm": 30}"#, &names[..1], &mut store).is_ok());
}

#[test]
fn a_record_that_can_not_be_read_is_left_alone() {
    let (mut store, names) = store();
    let (_, version) = store.load(&tlv::key("a")).unwrap().unwrap();
    store.swap(&tlv::key("a"), b"rubbish", Some(version)).unwrap();
    assert_eq!(refused(r#"{"limit": "a", "rate_rpm": 30}"#, &names, &mut store).0, 503);
    assert_eq!(store.load(&tlv::key("a")).unwrap().unwrap().0, b"rubbish");
}
