//! Writes the seeds of the ledger's corpus again, after a change of the record's form:
//! `cargo test -p nimgate-fuzz -- --ignored`.

use nimgate_config::Config;
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::limit::ledger::{Held, Ledger};
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::order::queue::Queue;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::units::{Instant, Micros, RequestId, WorkerId};
use std::path::Path;

#[test]
#[ignore = "it writes into the corpus"]
fn ledgers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/ledger");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let rules = Config::parse(b"").expect("the empty configuration is valid").limits[0].rules;
    let now = Instant::from_micros(1_000_000_000);
    let mut ledger = Ledger::new(rules, 4, now);
    let mut queues: [Queue; 3] = Default::default();
    for step in 0..12u32 {
        let now = now.after(Micros::from_millis(u64::from(step) * 700));
        ledger.advance(now, &mut Vec::new());
        let worker = step as usize % 3;
        let lane = Lane::Queued(Priority::ALL[step as usize % 4]);
        let request = Request::new(RequestId(step), lane, ModelKey(u64::from(step % 3)));
        let arrival = queues[worker].push(request, now);
        let (turn, _) = ledger.turn(
            WorkerId(worker as u32 + 1),
            &queues[worker],
            Held::default(),
            Some(&arrival),
            now,
            &mut Vec::new(),
        );
        for (granted, _) in turn.granted {
            queues[worker].remove(granted.id);
        }
        let signal = [Signal::Served, Signal::Throttled, Signal::WorkersFull][worker];
        let model = (ModelKey(u64::from(step % 3)), ModelName::new("nvidia/m"));
        ledger.answer(Answer { granted_at: now, signal, retry_after: None, model }, now, &mut Vec::new());
        std::fs::write(folder.join(format!("step-{step:02}")), ledger.encode()).expect("the file can be written");
    }
}
