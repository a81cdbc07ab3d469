//! What one decision costs: a worker's whole transaction on the ledger, from the bytes in the store to the bytes in the
//! store, by how many requests wait and by how many workers have some.
//!
//! `cargo bench -p nimgate --no-default-features` prints the times; only their ratios mean something on another machine.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use nimgate::ledger::{Arrival, Ledger, Rules};
use nimgate::models::ModelKey;
use nimgate::priority::{Lane, Priority};
use nimgate::queue::{Patience, Queue};
use nimgate::retreat::RetreatRules;
use nimgate::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use std::hint::black_box;

const START: Instant = Instant::from_micros(1_000_000_000);

fn rules() -> Rules {
    Rules {
        capacity: 4,
        queue_max: 1_000_000,
        aging: None,
        window: Micros::ZERO,
        patience: Patience { low: Micros::from_secs(30), others: Micros::from_secs(120) },
        may_fall_back: false,
        shadow: false,
        retreat: RetreatRules {
            enabled: true,
            base: MilliRpm::from_rpm(40),
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
            window: Micros::from_secs(60),
        },
    }
}

/// A queue with `waiting` requests, spread over the levels.
fn queue(waiting: u32) -> Queue {
    let mut queue = Queue::default();
    for id in 0..waiting {
        let priority = Priority::ALL[(id % 4) as usize];
        queue.push(RequestId(id), Lane::Queued(priority), ModelKey::NONE, START.after(Micros::new(u64::from(id))));
    }
    queue
}

/// The stored ledger when `workers` workers have someone waiting, the first of them `queue`.
fn record(workers: u32, queue: &Queue, now: Instant) -> Vec<u8> {
    let mut ledger = Ledger::new(rules(), 0, START);
    let other = self::queue(10);
    for worker in (1..=workers).rev() {
        ledger.advance(now);
        ledger.turn(WorkerId(worker), if worker == 1 { queue } else { &other }, None, now);
    }
    ledger.encode()
}

/// One transaction: read, decide, write.
fn transact(record: &[u8], queue: &Queue, arrival: Option<Arrival>, now: Instant) -> (Vec<u8>, usize) {
    let Some(mut ledger) = Ledger::decode(record) else { return (Vec::new(), 0) };
    ledger.advance(now);
    let (turn, _) = ledger.turn(WorkerId(1), queue, arrival, now);
    (ledger.encode(), turn.granted.len())
}

/// A token is there and the worker's foremost request gets it.
fn by_waiting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("grant, by requests waiting, 1 worker");
    for waiting in [10, 1_000, 100_000] {
        let queue = queue(waiting);
        let record = record(1, &queue, START.after(Micros::from_secs(1)));
        let now = START.after(Micros::from_secs(3));
        group.bench_function(BenchmarkId::from_parameter(waiting), |bencher| {
            bencher.iter(|| {
                let (record, granted) = transact(black_box(&record), &queue, None, now);
                assert!(granted > 0);
                record
            });
        });
    }
    group.finish();
}

/// The same, with other workers on the board.
fn by_workers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision, by workers, 1000 waiting");
    for workers in [1, 8, 64] {
        let queue = queue(1_000);
        let record = record(workers, &queue, START.after(Micros::from_secs(1)));
        let now = START.after(Micros::from_secs(3));
        group.bench_function(BenchmarkId::from_parameter(workers), |bencher| {
            bencher.iter(|| transact(black_box(&record), &queue, None, now));
        });
    }
    group.finish();
}

/// A request comes and waits, then leaves: what the queue itself costs.
fn come_and_go(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("come and go, by requests waiting");
    for waiting in [10, 1_000, 100_000] {
        let record = record(1, &queue(waiting), START.after(Micros::from_secs(1)));
        let now = START.after(Micros::from_secs(1));
        group.bench_function(BenchmarkId::from_parameter(waiting), |bencher| {
            bencher.iter_batched_ref(
                || queue(waiting),
                |queue| {
                    let waiting = queue.push(RequestId(u32::MAX), Lane::Queued(Priority::High), ModelKey::NONE, now);
                    let arrival = Arrival::from(waiting);
                    let written = transact(black_box(&record), queue, Some(arrival), now);
                    queue.remove(waiting.request);
                    written
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(decision, by_waiting, by_workers, come_and_go);
criterion_main!(decision);
