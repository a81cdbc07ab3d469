//! Additive increase, multiplicative decrease, with the constants of Netflix's concurrency limiter (0.9 and 1), applied
//! to a rate: at most one cut in a window, one request per minute more after each window without a 429.

use super::{Controller, Feedback, capacity};
use crate::WINDOW;
use nimgate_core::supply::bucket::Flow;
use nimgate_core::units::{Instant, Micros, MilliRpm};

pub struct Aimd {
    base: MilliRpm,
    rate: MilliRpm,
    cut_at: Instant,
    raise_at: Instant,
    closed_until: Instant,
}

impl Aimd {
    pub fn new(base: MilliRpm) -> Self {
        Self { base, rate: base, cut_at: Instant::ZERO, raise_at: Instant::ZERO, closed_until: Instant::ZERO }
    }
}

impl Controller for Aimd {
    fn advance(&mut self, now: Instant) {
        while self.rate < self.base && now >= self.raise_at {
            self.rate = self.rate.plus(MilliRpm::from_rpm(1)).min(self.base);
            self.raise_at = self.raise_at.after(Micros::new(WINDOW));
        }
    }

    fn flow(&self) -> Flow {
        Flow { rate: self.rate, capacity: capacity(self.base) }
    }

    fn closed_until(&self) -> Instant {
        self.closed_until
    }

    fn answered(&mut self, now: Instant, answer: &Feedback) {
        if answer.admitted || answer.worker_full {
            return;
        }
        if let Some(pause) = answer.retry_after {
            self.closed_until = self.closed_until.max(now.after(pause.min(Micros::from_secs(300))));
        }
        if answer.granted_at >= self.cut_at && now >= self.cut_at.after(Micros::new(WINDOW)) {
            self.rate = self.rate.scaled(9, 10).max(MilliRpm::from_rpm(1));
            self.cut_at = now;
        }
        self.raise_at = now.after(Micros::new(WINDOW));
    }
}
