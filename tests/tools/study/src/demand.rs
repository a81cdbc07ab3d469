//! Who asks for what: requests of four levels and several models, at random times, the same for every controller.

use crate::Time;

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When it comes.
    pub at: Time,
    /// Its level, 0 is `urgent`.
    pub level: usize,
    /// Which model it asks for.
    pub model: u64,
}

/// Levels of priority.
pub const LEVELS: usize = 4;

/// Models asked for, all equally often.
pub const MODELS: u64 = 4;

/// The model that fares worse than the others in the scenarios about models.
pub const WEAK_MODEL: u64 = 0;

/// How long each level waits: `low` half a minute, the others two, as in the default configuration.
pub const TIMEOUTS: [Time; LEVELS] = [120_000_000, 120_000_000, 120_000_000, 30_000_000];

/// Requests at `rpm` per minute until `end`, with exponential gaps.
pub fn requests(rpm: f64, end: Time, rng: &mut fastrand::Rng) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut at = 0.0;
    loop {
        at += exponential(rng) * 60e6 / rpm;
        if at >= end as f64 {
            return requests;
        }
        let level = match rng.u32(0..10) {
            0 => 0,
            1 | 2 => 1,
            3..=7 => 2,
            _ => 3,
        };
        requests.push(Request { at: at as Time, level, model: rng.u64(0..MODELS) });
    }
}

/// An exponentially distributed number with mean 1.
pub fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}
