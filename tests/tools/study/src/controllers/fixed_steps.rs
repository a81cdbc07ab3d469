//! The fixed three-step machine: half the rate at 5 % of 429s, hold half a window, back in tenths each sixth of a window.

use super::{Controller, Feedback, capacity};
use nimgate_core::supply::bucket::Flow;
use nimgate_core::units::{Instant, Micros, MilliRpm};
use std::collections::VecDeque;

pub struct FixedSteps {
    base: MilliRpm,
    rate: MilliRpm,
    retreating: bool,
    due_at: Instant,
    cut_at: Instant,
    closed_until: Instant,
    answers: VecDeque<(Instant, bool)>,
}

const HOLD: Micros = Micros::from_secs(30);
const RAISE_EVERY: Micros = Micros::from_secs(10);
const WINDOW: Micros = Micros::from_secs(60);

impl FixedSteps {
    pub fn new(base: MilliRpm) -> Self {
        Self {
            base,
            rate: base,
            retreating: false,
            due_at: Instant::ZERO,
            cut_at: Instant::ZERO,
            closed_until: Instant::ZERO,
            answers: VecDeque::new(),
        }
    }
}

impl Controller for FixedSteps {
    fn advance(&mut self, now: Instant) {
        while self.rate < self.base && now >= self.due_at {
            if self.retreating {
                self.retreating = false;
            } else {
                self.rate = self.rate.plus(self.base.scaled(1, 10)).min(self.base);
            }
            self.due_at = self.due_at.after(RAISE_EVERY);
        }
    }

    fn flow(&self) -> Flow {
        Flow { rate: self.rate, capacity: capacity(self.base) }
    }

    fn closed_until(&self) -> Instant {
        self.closed_until
    }

    fn answered(&mut self, now: Instant, answer: &Feedback) {
        let refused = !answer.admitted && !answer.worker_full;
        self.answers.push_back((now, refused));
        while self.answers.front().is_some_and(|(at, _)| at.after(WINDOW) < now) {
            self.answers.pop_front();
        }
        if !refused {
            return;
        }
        if let Some(pause) = answer.retry_after {
            self.closed_until = self.closed_until.max(now.after(pause.min(Micros::from_secs(300))));
        }
        let share = self.answers.iter().filter(|(_, refused)| *refused).count() as f64 / self.answers.len() as f64;
        let cut = self.rate < self.base || answer.retry_after.is_some() || share >= 0.05;
        if answer.granted_at >= self.cut_at && cut {
            self.cut_at = now;
            self.due_at = now.after(HOLD).max(self.closed_until);
            self.rate = self.rate.scaled(1, 2).max(MilliRpm::from_rpm(1));
            self.retreating = true;
        }
    }
}
