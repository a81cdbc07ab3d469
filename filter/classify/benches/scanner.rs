//! What reading a body for its `model` costs, natively, against serde_json skipping over the same bytes and against
//! copying them, which is the limit.
//!
//! Run with `cargo bench -p nimgate --no-default-features --bench scanner`.

#[path = "common/corpus.rs"]
mod corpus;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nimgate_classify::model::Scanner;
use std::hint::black_box;

fn scan(body: &[u8]) -> u32 {
    let mut scanner = Scanner::new();
    let mut found = 0;
    scanner.feed(body, &mut |model| found += u32::from(!model.is_empty()));
    found + scanner.finish().map_or(0, |found| found.models)
}

fn scanner(criterion: &mut Criterion) {
    for (kind, make) in corpus::KINDS {
        let mut group = criterion.benchmark_group(kind);
        for size in [1 << 10, 16 << 10, 64 << 10, 1 << 20, 4 << 20] {
            let body = make(size);
            assert_eq!(scan(&body), 2, "the model of {kind} is found");
            group.throughput(Throughput::Bytes(body.len() as u64));
            group
                .bench_with_input(BenchmarkId::new("scanner", size), &body, |b, body| b.iter(|| scan(black_box(body))));
            group.bench_with_input(BenchmarkId::new("serde_json", size), &body, |b, body| {
                b.iter(|| serde_json::from_slice::<serde::de::IgnoredAny>(black_box(body)).is_ok());
            });
            let mut copy = vec![0; body.len()];
            group.bench_with_input(BenchmarkId::new("memcpy", size), &body, |b, body| {
                b.iter(|| black_box(&mut copy).copy_from_slice(black_box(body)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, scanner);
criterion_main!(benches);
