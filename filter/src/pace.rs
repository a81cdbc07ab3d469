//! How fast to go: the account's retreat, and that of each model which the upstream slows down by itself.

use crate::models::{ModelKey, ModelName, Models};
use crate::retreat::{self, Retreat, RetreatRules, Transition};
use crate::units::{Instant, Micros};

/// What an answer of the upstream says of the pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing against it: any answer that is none of the others.
    Served,
    /// Too many requests: 429.
    Throttled,
    /// The workers that serve the model are full: NVIDIA's 503 `ResourceExhausted`.
    WorkersFull,
}

/// One answer of the upstream. Replies that Envoy or the filter made are no answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// When the request got its token.
    pub granted_at: Instant,
    /// What it says.
    pub verdict: Verdict,
    /// How long the upstream asks to wait.
    pub retry_after: Option<Micros>,
    /// The model that was asked for, and its name; [`ModelKey::NONE`] where none was read.
    pub model: (ModelKey, ModelName),
}

/// The pace of one limit, shared by all workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pace {
    /// The account's retreat.
    pub account: Retreat,
    /// The models that go slower.
    pub models: Models,
}

impl Pace {
    /// The start: full speed for all.
    pub fn new(rules: RetreatRules) -> Self {
        Self { account: Retreat::new(rules), models: Models::default() }
    }

    /// Lets time pass, and takes up a changed configuration.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant) -> Option<Transition> {
        let models = self.models.advance(rules, now);
        self.account.advance(rules, now).or(models)
    }

    /// A token was granted. Call [`Pace::advance`] first.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant, model: ModelKey) {
        self.account.granted(rules, now);
        self.models.granted(rules, now, model);
    }

    /// Takes in an answer. Call [`Pace::advance`] first.
    pub fn answer(&mut self, rules: RetreatRules, now: Instant, answer: Answer) -> Option<Transition> {
        let (key, _) = answer.model;
        let heard = |throttled| retreat::Answer {
            granted_at: answer.granted_at,
            throttled,
            retry_after: answer.retry_after.filter(|_| throttled),
        };
        match answer.verdict {
            Verdict::Served => {
                self.models.served(answer.granted_at, key);
                self.models.eased(rules, now, key, heard(false));
                self.account.step(rules, now, heard(false))
            }
            Verdict::WorkersFull => {
                self.account.note(heard(false));
                self.models.slow(rules, now, answer.model, heard(true), true)
            }
            Verdict::Throttled => match self.models.refused(rules, now, key, &self.account) {
                Some(since) => {
                    self.account.note(heard(true));
                    self.account.acquit(rules, since);
                    self.models.slow(rules, now, answer.model, heard(true), false)
                }
                None => self.account.step(rules, now, heard(true)),
            },
        }
    }
}
