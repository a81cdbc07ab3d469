//! The filter's own controller: the very code that runs in Envoy.

use super::{Answer, Controller, capacity};
use nimgate::bucket::Flow;
use nimgate::models::{ModelKey, ModelName};
use nimgate::pace::{self, Pace, Verdict};
use nimgate::retreat::RetreatRules;
use nimgate::units::{Instant, Micros, MilliRpm};

pub struct Ours {
    rules: RetreatRules,
    pace: Pace,
}

impl Ours {
    pub fn new(base: MilliRpm, probe_windows: u32) -> Self {
        let rules = RetreatRules {
            enabled: true,
            base,
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows,
            window: Micros::from_secs(60),
        };
        Self { rules, pace: Pace::new(rules) }
    }
}

impl Controller for Ours {
    fn advance(&mut self, now: Instant) {
        self.pace.advance(self.rules, now);
    }

    fn flow(&self) -> Flow {
        let account = &self.pace.account;
        Flow { rate: account.rate(), capacity: account.burst(self.rules, capacity(self.rules.base)) }
    }

    fn closed_until(&self) -> Instant {
        self.pace.account.closed_until()
    }

    fn model_open_at(&mut self, model: u64, _: Instant) -> Instant {
        self.pace.models.open_at(key(model))
    }

    fn granted(&mut self, now: Instant, model: u64) {
        self.pace.granted(self.rules, now, key(model));
    }

    fn answered(&mut self, now: Instant, answer: &Answer) {
        let verdict = match (answer.admitted, answer.worker_full) {
            (true, _) => Verdict::Served,
            (_, true) => Verdict::WorkersFull,
            _ => Verdict::Throttled,
        };
        self.pace.answer(
            self.rules,
            now,
            pace::Answer {
                granted_at: answer.granted_at,
                verdict,
                retry_after: answer.retry_after,
                model: (key(answer.model), ModelName::NONE),
            },
        );
    }
}

fn key(model: u64) -> ModelKey {
    ModelKey(model + 1)
}
