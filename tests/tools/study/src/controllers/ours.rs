//! The filter's own controller: the very code that runs in Envoy.

use super::{Controller, Feedback, capacity};
use crate::demand::Request;
use nimgate_core::control::answer::{self, Signal};
use nimgate_core::control::controller::RateController;
use nimgate_core::control::rate::RetreatRules;
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::supply::bucket::Flow;
use nimgate_core::units::{Instant, MilliRpm};

pub struct Ours {
    rules: RetreatRules,
    controller: RateController,
}

impl Ours {
    pub fn new(base: MilliRpm, probe_windows: u32) -> Self {
        let rules = RetreatRules { base, probe_windows, ..RetreatRules::DEFAULT };
        Self { rules, controller: RateController::new(rules) }
    }
}

impl Controller for Ours {
    fn advance(&mut self, now: Instant) {
        self.controller.advance(self.rules, now, &mut Vec::new());
    }

    fn flow(&self) -> Flow {
        let account = &self.controller.account;
        Flow { rate: self.controller.rate(), capacity: account.burst(self.rules, capacity(self.rules.base)) }
    }

    fn closed_until(&self) -> Instant {
        self.controller.account.closed_until()
    }

    fn model_open_at(&mut self, model: u64, _: Instant) -> Instant {
        self.controller.models.open_at(key(model))
    }

    fn granted(&mut self, now: Instant, request: &Request) {
        self.controller.granted(self.rules, now, key(request.model));
    }

    fn answered(&mut self, now: Instant, answer: &Feedback) {
        let signal = match (answer.admitted, answer.worker_full) {
            (true, _) => Signal::Served,
            (_, true) => Signal::WorkersFull,
            _ => Signal::Throttled,
        };
        self.controller.answer(
            self.rules,
            now,
            answer::Answer {
                granted_at: answer.granted_at,
                signal,
                retry_after: answer.retry_after,
                model: (key(answer.model), ModelName::NONE),
            },
            &mut Vec::new(),
        );
    }
}

fn key(model: u64) -> ModelKey {
    ModelKey(model + 1)
}
