//! Very many schedules of more workers, drawn at random by shuttle, and with them what the workers do: requests of any
//! priority, clients that leave, time that passes, wake-ups that are taken up at once, later, or at the end.
//!
//! `NIMGATE_SCHEDULES` says how many (100,000). A failure prints the schedule; shuttle's `replay` runs it again.

use nimgate_core::priority::Priority;
use nimgate_core::units::{Micros, WorkerId};
use nimgate_schedules::Bug;
use nimgate_schedules::locked::{Lock, SharedStore, Values, come_to_rest};
use nimgate_schedules::worker::Worker;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Arc, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind};

struct ShuttleLock(Mutex<Values>);

impl Lock for ShuttleLock {
    fn locked<T>(&self, work: impl FnOnce(&mut Values) -> T) -> T {
        work(&mut self.0.lock().expect("no worker has panicked"))
    }
}

const WORKERS: u32 = 4;
const TRIES: u32 = 5;
const CAPACITY: u32 = 2;

type Mail = std::sync::Arc<std::sync::Mutex<Vec<WorkerId>>>;

/// What one worker does. The mail needs no lock of shuttle's: it is only a choice whether it is taken up early.
fn work(number: u32, lock: &ShuttleLock, mail: &Mail, bug: Bug) -> Worker {
    let mut store = SharedStore::new(lock, bug);
    let mut worker = Worker::new(number, CAPACITY, bug);
    for _ in 0..TRIES {
        store.now = store.now.after(Micros::from_millis([0, 1, 40, 600, 1_300][thread_rng().gen_range(0..5)]));
        let now = store.now;
        let what = thread_rng().gen_range(0..8);
        let wakes = match what {
            0 => {
                worker.leave();
                worker.wake(false, &mut store)
            }
            1 => {
                mail.lock().expect("no worker has panicked").retain(|woken| *woken != worker.id());
                worker.wake(true, &mut store)
            }
            2 => worker.wake(false, &mut store),
            _ => worker.arrive(Priority::ALL[thread_rng().gen_range(0..4)], now, &mut store),
        };
        mail.lock().expect("no worker has panicked").extend(wakes);
    }
    worker
}

fn many_schedules(bug: Bug) -> usize {
    let schedules = match std::env::var("NIMGATE_SCHEDULES") {
        Ok(number) => number.parse().expect("NIMGATE_SCHEDULES is a number of schedules"),
        Err(_) => 100_000,
    };
    shuttle::check_random(
        move || {
            let lock = Arc::new(ShuttleLock(Mutex::new(Values::default())));
            let mail = Mail::default();
            let threads: Vec<_> = (1..=WORKERS)
                .map(|number| {
                    let (lock, mail) = (Arc::clone(&lock), Mail::clone(&mail));
                    shuttle::thread::spawn(move || work(number, &lock, &mail, bug))
                })
                .collect();
            let mut workers: Vec<_> =
                threads.into_iter().map(|thread| thread.join().expect("no worker has panicked")).collect();
            let wakes = std::mem::take(&mut *mail.lock().expect("no worker has panicked"));
            come_to_rest(&mut workers, wakes, &*lock, CAPACITY, bug);
        },
        schedules,
    );
    schedules
}

#[test]
fn four_workers_five_tries_each() {
    println!("shuttle, {WORKERS} workers × {TRIES} tries: {} schedules", many_schedules(Bug::None));
}

#[test]
fn finds_every_planted_bug() {
    for bug in Bug::PLANTED {
        let found = catch_unwind(AssertUnwindSafe(|| many_schedules(bug)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
