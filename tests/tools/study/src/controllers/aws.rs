//! The client-side rate limiter of AWS's adaptive retry mode, after its published description: CUBIC with its constants,
//! the sending rate measured in half-second steps, a token bucket that is enabled by the first throttling answer.

use super::{Controller, Feedback, capacity};
use nimgate_core::supply::bucket::Flow;
use nimgate_core::units::{Instant, MilliRpm};

pub struct Aws {
    base: MilliRpm,
    enabled: bool,
    /// Requests per second, like all rates here.
    fill_rate: f64,
    measured: f64,
    last_step: f64,
    sent: u32,
    last_max: f64,
    last_throttle: f64,
}

const BETA: f64 = 0.7;
const SCALE: f64 = 0.4;
const SMOOTH: f64 = 0.8;
const MIN_FILL_RATE: f64 = 0.5;

impl Aws {
    pub fn new(base: MilliRpm) -> Self {
        Self {
            base,
            enabled: false,
            fill_rate: 0.0,
            measured: 0.0,
            last_step: 0.0,
            sent: 0,
            last_max: 0.0,
            last_throttle: 0.0,
        }
    }

    fn measure(&mut self, now: f64) {
        let step = (now * 2.0).floor() / 2.0;
        self.sent += 1;
        if step > self.last_step {
            let rate = f64::from(self.sent) / (step - self.last_step);
            self.measured = rate * SMOOTH + self.measured * (1.0 - SMOOTH);
            self.sent = 0;
            self.last_step = step;
        }
    }
}

impl Controller for Aws {
    fn advance(&mut self, _: Instant) {}

    fn flow(&self) -> Flow {
        let rate = MilliRpm::new((self.fill_rate * 60e3) as u32);
        let rate = if self.enabled { rate.min(self.base) } else { self.base };
        Flow { rate: rate.max(MilliRpm::from_rpm(1)), capacity: capacity(self.base) }
    }

    fn answered(&mut self, now: Instant, answer: &Feedback) {
        let now = now.as_micros() as f64 / 1e6;
        self.measure(now);
        let rate = if !answer.admitted {
            let used = if self.enabled { self.measured.min(self.fill_rate) } else { self.measured };
            self.last_max = used;
            self.last_throttle = now;
            self.enabled = true;
            used * BETA
        } else {
            let window = (self.last_max * (1.0 - BETA) / SCALE).cbrt();
            SCALE * (now - self.last_throttle - window).powi(3) + self.last_max
        };
        let new = rate.min(2.0 * self.measured);
        self.fill_rate = new.max(MIN_FILL_RATE);
    }
}
