//! All schedules of a few workers, by loom: each is run whole, from the start to the end.
//!
//! Three workers with three tries each have too many for that: were each try a look and a swap and nothing else, there
//! would be 298,336,028,518,200. Loom goes through those with few preemptions; for the others see `exhaustive.rs`.

use loom::sync::{Arc, Mutex};
use nimgate_core::priority::Priority;
use nimgate_core::units::WorkerId;
use nimgate_schedules::Bug;
use nimgate_schedules::locked::{Lock, SharedStore, Values, come_to_rest};
use nimgate_schedules::worker::{Worker, at_ms};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

struct LoomLock(Mutex<Values>);

impl Lock for LoomLock {
    fn locked<T>(&self, work: impl FnOnce(&mut Values) -> T) -> T {
        work(&mut self.0.lock().expect("no worker has panicked"))
    }
}

const CAPACITY: u32 = 1;

/// Loom's threads have 32 KiB of stack by default. A decision takes 30 of them: the ledger is some kilobytes
/// large and lies in several frames at once (12 KiB in `Home::decide`, 5 in `Limit::transact`, 6 where the record is
/// read), and loom's own lock takes 9 more. Loom passes the number on to `generator`, which counts words.
const STACK_WORDS: usize = 512 * 1024 / size_of::<usize>();

/// Starts a thread whose stack is large enough for a decision.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(STACK_WORDS).spawn(work).expect("loom starts all threads")
}

/// What one worker does: a request comes; after a step of the clock, longer than what an old time is forgiven for,
/// another; a little later a third. With every other worker the second is urgent, and instead of a third its client
/// leaves, if it still waits.
fn work(number: u32, tries: u32, lock: &LoomLock, bug: Bug) -> (Worker, Vec<WorkerId>) {
    let mut store = SharedStore::new(lock, bug);
    let mut worker = Worker::new(number, CAPACITY, bug);
    let mut wakes = Vec::new();
    for attempt in 0..tries {
        store.now = at_ms([0, 1_200, 1_300][attempt as usize]);
        wakes.extend(match (attempt, number % 2) {
            (1, 1) => worker.arrive(Priority::Urgent, store.now, &mut store),
            (2, 1) => {
                worker.leave();
                worker.wake(false, &mut store)
            }
            _ => worker.arrive(Priority::Low, store.now, &mut store),
        });
    }
    (worker, wakes)
}

/// Runs every schedule of `workers` workers with `tries` requests each, or those with at most so many `preemptions`;
/// answers how many there were.
fn every_schedule(workers: u32, tries: u32, preemptions: Option<usize>, bug: Bug) -> u64 {
    let schedules = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&schedules);
    let mut model = loom::model::Builder::new();
    model.max_branches = 100_000;
    model.preemption_bound = preemptions;
    model.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        // The thread in which loom calls this has a small stack, and does nothing but wait.
        spawn(move || one_schedule(workers, tries, bug)).join().expect("no worker has panicked");
    });
    schedules.load(Ordering::Relaxed)
}

/// Runs all workers side by side, and then what comes when all have done what they had to.
fn one_schedule(workers: u32, tries: u32, bug: Bug) {
    let lock = Arc::new(LoomLock(Mutex::new(Values::default())));
    let threads: Vec<_> = (2..=workers)
        .map(|number| {
            let lock = Arc::clone(&lock);
            spawn(move || work(number, tries, &lock, bug))
        })
        .collect();
    let mut done = vec![work(1, tries, &lock, bug)];
    done.extend(threads.into_iter().map(|thread| thread.join().expect("no worker has panicked")));
    let (mut workers, wakes): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    come_to_rest(&mut workers, wakes.concat(), &*lock, CAPACITY, bug);
}

#[test]
fn two_workers_three_tries_each() {
    println!("loom, 2 workers × 3 tries: {} schedules, all there are", every_schedule(2, 3, None, Bug::None));
}

#[test]
fn three_workers_one_try_each() {
    println!("loom, 3 workers × 1 try: {} schedules, all there are", every_schedule(3, 1, None, Bug::None));
}

#[test]
fn three_workers_three_tries_each_with_few_preemptions() {
    for preemptions in [0, 1, 2, 3, 4] {
        let schedules = every_schedule(3, 3, Some(preemptions), Bug::None);
        println!("loom, 3 workers × 3 tries: {schedules} schedules, all with at most {preemptions} preemptions");
    }
}

#[test]
#[ignore = "takes minutes: cargo test --profile proofs -p nimgate-schedules --test loom -- --ignored --nocapture"]
fn three_workers_three_tries_each_with_more_preemptions() {
    let schedules = every_schedule(3, 3, Some(6), Bug::None);
    println!("loom, 3 workers × 3 tries: {schedules} schedules, all with at most 6 preemptions");
}

#[test]
fn finds_every_planted_bug() {
    for bug in Bug::PLANTED {
        let found = catch_unwind(AssertUnwindSafe(|| every_schedule(2, 3, None, bug)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
