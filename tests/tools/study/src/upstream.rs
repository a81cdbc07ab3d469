//! The upstream: hidden limits of several kinds, and whatever else makes it refuse.

use crate::demand::{Request, WEAK_MODEL};
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
    /// Models with limits of their own, in requests per minute, counted in sliding windows.
    pub weak: Vec<(u64, u64)>,
    /// A credential with a limit of its own, in the same way.
    pub weak_credential: Option<(u64, u64)>,
    /// Models whose workers take only so many requests at once.
    pub pools: Vec<(u64, usize)>,
    /// Whether a full pool is named as such, or answers a plain 429.
    pub pools_named: bool,
    /// The share of requests that are refused for no reason.
    pub stray: f64,
    /// Spans in which all is refused.
    pub lockouts: Vec<(Time, Time)>,
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
    weak: Vec<(u64, Limiter)>,
    weak_credential: Option<(u64, Limiter)>,
    pool: Option<Limiter>,
    in_flight: Vec<u64>,
    rng: fastrand::Rng,
}

impl Upstream {
    pub fn new(description: Rc<Description>, seed: u64) -> Self {
        let sliding = |rpm| Limiter::new(Rules { kind: Kind::SlidingWindow, rpm, burst: 1, window_s: 60 }, 0);
        let bucket = |rpm| Limiter::new(Rules { kind: Kind::TokenBucket, rpm, burst: 2, window_s: 60 }, 0);
        Self {
            account: Self::account(&description, 0, 0),
            epoch: 0,
            admitted: VecDeque::new(),
            weak: description.weak.iter().map(|(model, rpm)| (*model, sliding(*rpm))).collect(),
            weak_credential: description.weak_credential.map(|(credential, rpm)| (credential, sliding(rpm))),
            pool: description.worker_full.map(|(.., rpm)| bucket(rpm)),
            in_flight: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
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
    pub fn receive(&mut self, request: Request, now: Time) -> Admission {
        let stray = self.description.stray > 0.0 && self.rng.f64() < self.description.stray;
        if stray { Admission::Refused } else { self.admit(request, now) }
    }

    /// The same, but for refusals without a reason.
    pub fn admit(&mut self, Request { model, credential, .. }: Request, now: Time) -> Admission {
        self.advance(now);
        if self.description.lockouts.iter().any(|(from, until)| (*from..*until).contains(&now)) {
            return Admission::Refused;
        }
        if self.description.spurious.iter().any(|at| (*at..at + SECOND).contains(&now)) {
            return Admission::Refused;
        }
        if model == WEAK_MODEL {
            let full = self.description.worker_full.is_some_and(|(from, until, _)| (from..until).contains(&now));
            if full && self.pool.as_mut().is_some_and(|pool| !pool.admit(now)) {
                return Admission::WorkerFull;
            }
        }
        let own = self.weak_credential.iter_mut().filter(|(weak, _)| *weak == credential);
        if !own.chain(self.weak.iter_mut().filter(|(weak, _)| *weak == model)).all(|(_, own)| own.admit(now)) {
            return Admission::Refused;
        }
        let pool = self.description.pools.iter().find(|(of, _)| *of == model);
        if pool.is_some_and(|(_, most)| self.in_flight.iter().filter(|of| **of == model).count() >= *most) {
            return if self.description.pools_named { Admission::WorkerFull } else { Admission::Refused };
        }
        if self.description.concurrency.is_some_and(|most| self.in_flight.len() >= most) || !self.account_admits(now) {
            return Admission::Refused;
        }
        self.in_flight.push(model);
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
    pub fn finish(&mut self, model: u64) {
        if let Some(at) = self.in_flight.iter().position(|of| *of == model) {
            self.in_flight.swap_remove(at);
        }
    }

    /// Whether a request would be admitted now.
    pub fn would_admit(&self, request: Request, now: Time) -> bool {
        let mut trial = Self {
            description: Rc::clone(&self.description),
            account: self.account.clone(),
            admitted: self.admitted.clone(),
            weak: self.weak.clone(),
            weak_credential: self.weak_credential.clone(),
            pool: self.pool.clone(),
            in_flight: self.in_flight.clone(),
            rng: self.rng.clone(),
            ..*self
        };
        trial.admit(request, now) == Admission::Admitted
    }

    /// Whether a model has a limit of its own.
    pub fn is_weak(&self, model: u64) -> bool {
        self.weak.iter().any(|(weak, _)| *weak == model)
    }

    /// The limit now, in requests per minute.
    pub fn limit(&self) -> u64 {
        self.description.limits.get(self.epoch).map_or(1, |(_, rpm)| *rpm)
    }
}
