//! Who asks for what: requests of four levels and several models, at random times, the same for every controller.

use crate::Time;

/// A request of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Request {
    /// When it comes.
    pub at: Time,
    /// Its level, 0 is `urgent`.
    pub level: usize,
    /// Which model it asks for.
    pub model: u64,
    /// Whose credentials it carries.
    pub credential: u64,
}

/// Levels of priority.
pub const LEVELS: usize = 4;

/// Who asks: for which models how often, and with how many credentials.
#[derive(Clone, PartialEq, Debug)]
pub struct Company {
    /// How often each model is asked for, in relation to the others.
    pub models: Vec<f64>,
    /// Credentials, all used equally often.
    pub credentials: u64,
}

impl Company {
    /// So many models, all asked for equally often, with one credential.
    pub fn equal(models: usize) -> Self {
        Self { models: vec![1.0; models], credentials: 1 }
    }

    /// So many models, of which the one at place `n` is asked for `1/n` times as often as the first (Zipf's law).
    pub fn zipf(models: usize) -> Self {
        Self { models: (1..=models).map(|place| 1.0 / place as f64).collect(), credentials: 1 }
    }

    fn model(&self, rng: &mut fastrand::Rng) -> u64 {
        if self.models.iter().all(|weight| *weight == 1.0) {
            return rng.u64(0..self.models.len() as u64);
        }
        let mut drawn = rng.f64() * self.models.iter().sum::<f64>();
        let found = self.models.iter().position(|weight| {
            drawn -= weight;
            drawn < 0.0
        });
        found.unwrap_or(self.models.len() - 1) as u64
    }

    fn credential(&self, rng: &mut fastrand::Rng) -> u64 {
        if self.credentials > 1 { rng.u64(0..self.credentials) } else { 0 }
    }
}

/// The model that fares worse than the others in the scenarios about models.
pub const WEAK_MODEL: u64 = 0;

/// How long each level waits: `low` half a minute, the others two, as in the default configuration.
pub const TIMEOUTS: [Time; LEVELS] = [120_000_000, 120_000_000, 120_000_000, 30_000_000];

/// Requests at `rpm` per minute until `end`, with exponential gaps.
pub fn requests(company: &Company, rpm: f64, end: Time, rng: &mut fastrand::Rng) -> Vec<Request> {
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
        let (model, credential) = (company.model(rng), company.credential(rng));
        requests.push(Request { at: at as Time, level, model, credential });
    }
}

/// An exponentially distributed number with mean 1.
pub fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}
