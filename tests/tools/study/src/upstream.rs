//! The upstream: hidden limits of several kinds, and whatever else makes it refuse.

use crate::demand::WEAK_MODEL;
use crate::{SECOND, Time, WINDOW};
use limiter::{Limiter, Rules};
use std::collections::VecDeque;
use std::rc::Rc;

pub use limiter::Kind;

/// The fake upstream's limiters, so that the study and the tests on a real Envoy mean the same.
#[path = "../../fake-nvidia/src/limiter.rs"]
#[allow(dead_code, reason = "the fake upstream uses more of it")]
mod limiter;

/// What the upstream says to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It will be answered.
    Admitted,
    /// 429.
    Refused,
    /// 503: the pool of workers for its model is full.
    WorkerFull,
}

/// What an upstream is built from.
#[derive(Clone, Debug)]
pub struct Description {
    /// How requests are counted.
    pub kind: Kind,
    /// The limit in requests per minute, from each time on.
    pub limits: Vec<(Time, u64)>,
    /// The bucket's capacity.
    pub burst: u64,
    /// The most requests at once.
    pub concurrency: Option<usize>,
    /// The weak model's own limit, counted in a sliding window.
    pub weak_model_rpm: Option<u64>,
    /// While the weak model's pool of workers is mostly full: from, until, and how many requests a minute it still takes.
    pub worker_full: Option<(Time, Time, u64)>,
    /// Times at which, for a second, every request is refused for no reason.
    pub spurious: Vec<Time>,
}

/// The upstream at work.
#[derive(Clone, Debug)]
pub struct Upstream {
    description: Rc<Description>,
    account: Limiter,
    epoch: usize,
    admitted: VecDeque<Time>,
    weak_model: Option<Limiter>,
    pool: Option<Limiter>,
    in_flight: usize,
}

impl Upstream {
    pub fn new(description: Rc<Description>) -> Self {
        let sliding = |rpm| Limiter::new(Rules { kind: Kind::SlidingWindow, rpm, burst: 1, window_s: 60 }, 0);
        let bucket = |rpm| Limiter::new(Rules { kind: Kind::TokenBucket, rpm, burst: 2, window_s: 60 }, 0);
        Self {
            account: Self::account(&description, 0, 0),
            epoch: 0,
            admitted: VecDeque::new(),
            weak_model: description.weak_model_rpm.map(sliding),
            pool: description.worker_full.map(|(.., rpm)| bucket(rpm)),
            in_flight: 0,
            description,
        }
    }

    fn account(description: &Description, epoch: usize, now: Time) -> Limiter {
        let rpm = description.limits.get(epoch).map_or(1, |(_, rpm)| *rpm);
        Limiter::new(Rules { kind: description.kind, rpm, burst: description.burst, window_s: 60 }, now)
    }

    /// Lets time pass: the limit changes. A rolling window keeps what it has let in; a bucket starts full.
    pub fn advance(&mut self, now: Time) {
        while let Some((at, _)) = self.description.limits.get(self.epoch + 1).copied().filter(|(at, _)| *at <= now) {
            self.epoch += 1;
            self.account = Self::account(&self.description, self.epoch, at);
        }
    }

    /// A request of ours arrives.
    pub fn receive(&mut self, model: u64, now: Time) -> Admission {
        self.advance(now);
        if self.description.spurious.iter().any(|at| (*at..at + SECOND).contains(&now)) {
            return Admission::Refused;
        }
        if model == WEAK_MODEL {
            let full = self.description.worker_full.is_some_and(|(from, until, _)| (from..until).contains(&now));
            if full && self.pool.as_mut().is_some_and(|pool| !pool.admit(now)) {
                return Admission::WorkerFull;
            }
            if self.weak_model.as_mut().is_some_and(|own| !own.admit(now)) {
                return Admission::Refused;
            }
        }
        if self.description.concurrency.is_some_and(|most| self.in_flight >= most) || !self.account_admits(now) {
            return Admission::Refused;
        }
        self.in_flight += 1;
        Admission::Admitted
    }

    /// Counts a request against the account's limit. A rolling window is kept here, since its limit may change.
    fn account_admits(&mut self, now: Time) -> bool {
        if self.description.kind != Kind::SlidingWindow {
            return self.account.admit(now);
        }
        while self.admitted.front().is_some_and(|then| then + WINDOW <= now) {
            self.admitted.pop_front();
        }
        let free = (self.admitted.len() as u64) < self.limit();
        if free {
            self.admitted.push_back(now);
        }
        free
    }

    /// A request that was admitted has been answered.
    pub fn finish(&mut self) {
        self.in_flight -= 1;
    }

    /// Whether a request would be admitted now.
    pub fn would_admit(&self, model: u64, now: Time) -> bool {
        let mut trial = Self {
            description: Rc::clone(&self.description),
            account: self.account.clone(),
            admitted: self.admitted.clone(),
            weak_model: self.weak_model.clone(),
            pool: self.pool.clone(),
            ..*self
        };
        trial.receive(model, now) == Admission::Admitted
    }

    /// The limit now, in requests per minute.
    pub fn limit(&self) -> u64 {
        self.description.limits.get(self.epoch).map_or(1, |(_, rpm)| *rpm)
    }
}
