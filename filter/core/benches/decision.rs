//! What one decision costs: a worker's whole transaction on the ledger, from the bytes in the store to the bytes in the
//! store, by how many requests wait and by how many workers have some.
//!
//! `cargo bench -p nimgate-core` prints the times; only their ratios mean something on another machine.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use nimgate_core::control::rate::RetreatRules;
use nimgate_core::limit::ledger::{Held, Ledger};
use nimgate_core::limit::record::v1;
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelKey;
use nimgate_core::order::queue::Queue;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use std::hint::black_box;

const START: Instant = Instant::from_micros(1_000_000_000);

fn rules() -> Rules {
    Rules {
        queue_max: 1_000_000,
        window: Micros::ZERO,
        retreat: RetreatRules { base: MilliRpm::from_rpm(40), ..RetreatRules::DEFAULT },
        ..Rules::DEFAULT
    }
}

/// A queue with `waiting` requests, spread over the levels.
fn queue(waiting: u32) -> Queue {
    let mut queue = Queue::default();
    for id in 0..waiting {
        let priority = Priority::ALL[(id % 4) as usize];
        let request = Request::new(RequestId(id), Lane::Queued(priority), ModelKey::NONE);
        queue.push(request, START.after(Micros::new(u64::from(id))));
    }
    queue
}

/// The stored ledger when `workers` workers have someone waiting, the first of them `queue`.
fn record(workers: u32, queue: &Queue, now: Instant) -> Vec<u8> {
    let mut ledger = Ledger::new(rules(), 0, START);
    let other = self::queue(10);
    for worker in (1..=workers).rev() {
        ledger.advance(now, &mut Vec::new());
        let queue = if worker == 1 { queue } else { &other };
        ledger.turn(WorkerId(worker), queue, Held::default(), None, now, &mut Vec::new());
    }
    ledger.encode()
}

/// One transaction: read, decide, write.
fn transact(record: &[u8], queue: &Queue, arrival: Option<Request>, now: Instant) -> (Vec<u8>, usize) {
    let Some(mut ledger) = Ledger::decode(record) else { return (Vec::new(), 0) };
    let mut events = Vec::new();
    ledger.advance(now, &mut events);
    let (turn, _) = ledger.turn(WorkerId(1), queue, Held::default(), arrival.as_ref(), now, &mut events);
    (ledger.encode(), turn.granted.len())
}

/// A token is there and the worker's head of line gets it.
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

/// The same, with lines of other workers.
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
                    let request = Request::new(RequestId(u32::MAX), Lane::Queued(Priority::High), ModelKey::NONE);
                    let arrival = queue.push(request, now);
                    let written = transact(black_box(&record), queue, Some(arrival), now);
                    queue.remove(arrival.id);
                    written
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// Reading a record and writing it again, in both forms.
fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read and write a record, by workers");
    for workers in [1, 8, 64] {
        let ledger = Ledger::decode(&record(workers, &queue(1_000), START)).expect("it was just written");
        let (one, two) = (v1::Record::from(&ledger).encode(), ledger.encode());
        println!("{workers} workers: version 1 {} bytes, version 2 {}", one.len(), two.len());
        group.bench_function(BenchmarkId::new("version 1", workers), |bencher| {
            bencher.iter(|| {
                let record = v1::Record::decode(black_box(&one))?;
                Some(v1::Record::from(&Ledger::from(record)).encode())
            });
        });
        group.bench_function(BenchmarkId::new("version 2", workers), |bencher| {
            bencher.iter(|| Ledger::decode(black_box(&two)).map(|ledger| ledger.encode()));
        });
    }
    group.finish();
}

criterion_group!(decision, by_waiting, by_workers, come_and_go, codec);
criterion_main!(decision);
