//! What must hold for any bytes. Each function is a fuzz target; the corpus of each is replayed by an ordinary test.

use models::Models;
use nimgate_classify::model::{DEPTH_MAX, MODEL_BYTES_MAX};
use nimgate_config::Config;
use nimgate_config::change::Change;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::control::retry_after;
use nimgate_core::limit::ledger::{Held, Ledger};
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::order::queue::Queue;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::units::{Instant, Micros, RequestId, WorkerId};
use scan::scan;
use serde_json::Value;

#[path = "../../../filter/classify/tests/support/models.rs"]
mod models;
#[path = "../../../filter/classify/tests/support/scan.rs"]
mod scan;

/// A target: its name and what it checks.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("scanner", scanner),
    ("chunks", chunks),
    ("configuration", configuration),
    ("retry_after", retry_after),
    ("ledger", ledger),
];

/// Whatever serde_json reads as an object, the scanner reads alike: no metered model is missed.
pub fn scanner(body: &[u8]) {
    let (models, end) = scan([body]);
    let Ok(Models(values)) = serde_json::from_slice::<Models>(body) else { return };
    let strings: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    // What is longer or deeper than the scanner goes is unreadable to it, and metered by default.
    if body.len() >= DEPTH_MAX || strings.iter().any(|model| model.len() > MODEL_BYTES_MAX) {
        return;
    }
    assert_eq!(models, strings);
    assert_eq!(end.is_ok(), values.iter().all(Value::is_string));
}

/// The pieces in which a body comes make no difference. The first byte says how long they are.
pub fn chunks(data: &[u8]) {
    let Some((size, body)) = data.split_first() else { return };
    assert_eq!(scan([body]), scan(body.chunks(usize::from(*size).max(1))));
}

/// A configuration is taken or refused with one sentence, and so is a change of it.
pub fn configuration(text: &[u8]) {
    if let Err(refused) = Config::parse(text) {
        let sentence = refused.to_string();
        assert!(!sentence.is_empty() && !sentence.contains(char::is_control), "{sentence:?}");
    }
    if let Err(refused) = Change::parse(text) {
        assert!(!refused.to_string().is_empty());
    }
}

/// What is understood is so at any time, and never grows as time passes.
pub fn retry_after(value: &[u8]) {
    let now = retry_after::parse(value, 1_750_000_000);
    let later = retry_after::parse(value, 1_750_000_100);
    assert_eq!(now.is_some(), later.is_some());
    // A date comes nearer; a span stays what it is.
    assert!(later <= now, "{now:?} becomes {later:?}");
}

/// A record is refused, or it is the one that is written again; and whatever it holds, decisions can be made on it.
pub fn ledger(record: &[u8]) {
    let Some(mut ledger) = Ledger::decode(record) else { return };
    assert_eq!(Ledger::decode(&ledger.encode()).as_ref(), Some(&ledger));
    let now = Instant::from_micros(1_000_000_000_000);
    let mut queue = Queue::default();
    for (id, priority) in Priority::ALL.into_iter().enumerate() {
        queue.push(Request::new(RequestId(id as u32), Lane::Queued(priority), ModelKey(id as u64)), now);
    }
    for step in 0..4 {
        let now = now.after(Micros::from_secs(step * 20));
        ledger.advance(now, &mut Vec::new());
        queue.set_governed(ledger.models().slowed().iter().map(|slowed| slowed.key));
        let (turn, _) = ledger.turn(WorkerId(1), &queue, Held::default(), None, now, &mut Vec::new());
        for (granted, _) in turn.granted {
            queue.remove(granted.id);
        }
        for signal in [Signal::Served, Signal::Throttled, Signal::WorkersFull] {
            let model = (ModelKey(step), ModelName::new("nvidia/m"));
            ledger.answer(Answer { granted_at: now, signal, retry_after: None, model }, now, &mut Vec::new());
        }
        ledger.charge(3);
        let rules = ledger.rules().retreat;
        let snapshot = ledger.snapshot(now);
        assert!(snapshot.rate <= rules.base.max(rules.floor));
    }
    let _ = ledger.encode();
}
