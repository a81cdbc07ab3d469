//! Writes the seeds of the ledger's corpus anew, after a change of the record's form:
//! `cargo test -p nimgate-fuzz -- --ignored`.

use nimgate::config::Config;
use nimgate::ledger::{Arrival, Ledger};
use nimgate::models::{ModelKey, ModelName};
use nimgate::pace::{Answer, Verdict};
use nimgate::priority::{Lane, Priority};
use nimgate::queue::Queue;
use nimgate::units::{Instant, Micros, RequestId, WorkerId};
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
        ledger.advance(now);
        let worker = step as usize % 3;
        let lane = Lane::Queued(Priority::ALL[step as usize % 4]);
        let arrival = Arrival::from(queues[worker].push(RequestId(step), lane, ModelKey(u64::from(step % 3)), now));
        let (turn, _) = ledger.turn(WorkerId(worker as u32 + 1), &queues[worker], Some(arrival), now);
        for granted in turn.granted {
            queues[worker].remove(granted.request);
        }
        let verdict = [Verdict::Served, Verdict::Throttled, Verdict::WorkersFull][worker];
        let model = (ModelKey(u64::from(step % 3)), ModelName::new("nvidia/m"));
        ledger.answer(Answer { granted_at: now, verdict, retry_after: None, model }, now);
        std::fs::write(folder.join(format!("step-{step:02}")), ledger.encode()).expect("the file can be written");
    }
}
