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
    pub fn new(base: MilliRpm) -> Self {
        let rules = RetreatRules {
            enabled: true,
            base,
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
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
        self.pace.models.open_at(ModelKey(model + 1))
    }

    fn granted(&mut self, now: Instant, model: u64) {
        self.pace.granted(self.rules, now, ModelKey(model + 1));
    }

    fn answered(&mut self, now: Instant, answer: &Answer) {
        let verdict = match (answer.admitted, answer.worker_full) {
            (true, _) => Verdict::Served,
            (_, true) => Verdict::WorkersFull,
            _ => Verdict::Throttled,
        };
        let before = self.pace.account.rate();
        let transition = self.pace.answer(
            self.rules,
            now,
            pace::Answer {
                granted_at: answer.granted_at,
                verdict,
                retry_after: answer.retry_after,
                model: (ModelKey(answer.model + 1), ModelName::new("")),
            },
        );
        if !answer.admitted && std::env::var_os("TRACE").is_some() {
            eprintln!(
                "{:7.2} 429 granted {:5.2} s ago, model {}, {} {before} -> {} {:?} {:?}",
                (now.as_micros() - 1_000_000_000_000) as f64 / 60e6,
                now.since(answer.granted_at).as_secs_f64(),
                answer.model,
                answer.worker_full,
                self.pace.account.rate(),
                transition.map(|t| t.reason),
                self.pace.models.slowed().iter().map(|s| (s.key.0 - 1, s.retreat.rate().get())).collect::<Vec<_>>(),
            );
        }
    }
}
