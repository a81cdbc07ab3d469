//! The rate controller of a limit: the retreat of the account, and that of each model with a lower limit of its own.

use super::answer::{Answer, Signal};
use super::books::Books;
use super::rate::{Feedback, Retreat, RetreatRules, Transition};
use super::scope::{Cause, Models};
use crate::model::ModelKey;
use crate::units::Instant;

/// The rate controller of one limit, shared by all workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RateController {
    pub account: Retreat,
    pub models: Models,
}

impl RateController {
    /// The start: full speed for all.
    pub fn new(rules: RetreatRules) -> Self {
        Self { account: Retreat::new(rules), models: Models { books: Some(Books::default()), ..Models::default() } }
    }

    /// Lets time pass, and takes up changed rules. What changes its state is added to `changes`.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant, changes: &mut Vec<Transition>) {
        self.models.advance(rules, now, changes);
        changes.extend(self.account.advance(rules, now));
    }

    /// When time alone changes the state of the account or of a model next; `None` while all go at full speed.
    pub fn due_at(&self) -> Option<Instant> {
        let models = self.models.slowed().iter().filter_map(|slowed| slowed.retreat.due_at());
        models.chain(self.account.due_at()).min()
    }

    /// A token was granted. Call [`RateController::advance`] first.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant, model: ModelKey) {
        self.account.granted(rules, now);
        self.models.granted(rules, now, model);
    }

    /// Takes in an answer. Call [`RateController::advance`] first. What changes its state is added to `changes`.
    pub fn answer(&mut self, rules: RetreatRules, now: Instant, answer: Answer, changes: &mut Vec<Transition>) {
        let (key, _) = answer.model;
        let feedback = |throttled| Feedback {
            granted_at: answer.granted_at,
            throttled,
            retry_after: answer.retry_after.filter(|_| throttled),
        };
        match answer.signal {
            Signal::Served => {
                self.models.served(rules, now, answer.granted_at, key);
                changes.extend(self.models.eased(rules, now, key, feedback(false)));
                changes.extend(self.account.step(rules, now, feedback(false)));
            }
            Signal::WorkersFull => {
                self.account.note(feedback(false));
                self.models.slow(rules, now, answer.model, feedback(true), true, changes);
            }
            Signal::Throttled => match self.models.refused(rules, now, key, feedback(true), &self.account, changes) {
                cause @ (Cause::Model(_) | Cause::ModelAmongOthers) => {
                    self.account.note(feedback(true));
                    if let Cause::Model(since) = cause {
                        changes.extend(self.account.acquit(rules, since));
                    }
                    self.models.slow(rules, now, answer.model, feedback(true), false, changes);
                }
                Cause::Unclear => {
                    self.account.note(feedback(true));
                    self.account.keep_pause(rules, now, answer.retry_after);
                }
                Cause::Account => changes.extend(self.account.step(rules, now, feedback(true))),
            },
        }
    }
}
