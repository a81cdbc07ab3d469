//! The rate controller of a limit: the retreat of the account, and that of each model with a lower limit of its own.

use super::answer::{Answer, Signal};
use super::books::Books;
use super::rate::{Feedback, Retreat, RetreatRules, Transition};
use super::scope::{Cause, Models};
use super::strays::{Meaning, Strays};
use crate::model::ModelKey;
use crate::units::{Instant, MilliRpm};

/// The rate controller of one limit, shared by all workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RateController {
    pub account: Retreat,
    pub models: Models,
    /// What is known of refusals that no rate causes; `None` in a record of version 1, which has no room for that.
    pub(crate) strays: Option<Strays>,
}

impl RateController {
    /// The start: full speed for all.
    pub fn new(rules: RetreatRules) -> Self {
        Self {
            account: Retreat::new(rules),
            models: Models { books: Some(Books::default()), ..Models::default() },
            strays: Some(Strays::default()),
        }
    }

    /// Lets time pass, and takes up changed rules. What changes its state is added to `changes`.
    pub fn advance(&mut self, rules: RetreatRules, now: Instant, changes: &mut Vec<Transition>) {
        self.models.advance(rules, now, changes);
        changes.extend(self.account.advance(rules, now));
        if let Some(strays) = &mut self.strays {
            strays.advance(rules, now, &mut self.account, changes);
        }
    }

    /// The rate at which the account's requests go.
    pub fn rate(&self) -> MilliRpm {
        self.strays.as_ref().map_or(self.account.rate(), |strays| strays.rate(&self.account))
    }

    /// When time alone changes the state of the account or of a model next; `None` while all go at full speed.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        let models = self.models.slowed().iter().filter_map(|slowed| slowed.retreat.due_at());
        let test = self.strays.as_ref().and_then(|strays| strays.due_at(now));
        models.chain(self.account.due_at()).chain(test).min()
    }

    /// A token was granted. Call [`RateController::advance`] first.
    pub fn granted(&mut self, rules: RetreatRules, now: Instant, model: ModelKey) {
        self.account.granted(rules, now);
        if let Some(strays) = &mut self.strays {
            strays.granted(now, &self.account);
        }
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
                let was_half_open = self.account.is_half_open();
                changes.extend(self.account.step(rules, now, feedback(false)));
                if let Some(strays) = &mut self.strays {
                    let account = (&mut self.account, was_half_open);
                    strays.served(rules, now, answer.granted_at, account, changes);
                }
            }
            Signal::WorkersFull => {
                self.account.note(feedback(false));
                self.models.slow(rules, now, answer.model, feedback(true), true, changes);
            }
            Signal::Throttled => match self.cause(rules, now, key, feedback(true), changes) {
                (cause @ (Cause::Model(_) | Cause::ModelAmongOthers), booked) => {
                    self.account.note(feedback(true));
                    if let Some(strays) = &mut self.strays {
                        strays.refused_elsewhere(answer.granted_at);
                        strays.forgive(booked);
                    }
                    if let Cause::Model(since) = cause {
                        changes.extend(match &mut self.strays {
                            Some(strays) => strays.acquit(rules, now, &mut self.account),
                            None => self.account.acquit(rules, since),
                        });
                    }
                    self.models.slow(rules, now, answer.model, feedback(true), false, changes);
                }
                (Cause::Unclear, _) => {
                    self.account.note(feedback(true));
                    if let Some(strays) = &mut self.strays {
                        strays.refused_unclear(rules, now, feedback(true));
                    }
                    self.account.keep_pause(rules, now, answer.retry_after);
                }
                (Cause::Account, _) => self.account_refused(rules, now, feedback(true), changes),
            },
        }
    }

    /// Whose a refusal is, and how many were booked to the account before that turn out to be a model's.
    fn cause(
        &mut self,
        rules: RetreatRules,
        now: Instant,
        key: ModelKey,
        answer: Feedback,
        changes: &mut Vec<Transition>,
    ) -> (Cause, u32) {
        let strays = self.strays.as_ref().map_or(0.0, Strays::share);
        let booked = self.models.books.as_ref().map_or(0, |books| books.refused(key));
        let cause = self.models.refused(rules, now, key, answer, (&self.account, strays), changes);
        (cause, booked)
    }

    /// A refusal is booked to the account.
    fn account_refused(&mut self, rules: RetreatRules, now: Instant, answer: Feedback, changes: &mut Vec<Transition>) {
        let Some(strays) = self.strays.as_mut().filter(|_| rules.enabled) else {
            changes.extend(self.account.step(rules, now, answer));
            return;
        };
        match strays.refused(rules, now, answer, &mut self.account, changes) {
            Meaning::Nothing => self.account.ignore(answer),
            Meaning::Limit(evidence) => {
                let before = self.account.rate();
                let step = self.account.step_with(rules, now, answer, evidence);
                if step.is_some() {
                    strays.cut(rules, now, before);
                }
                changes.extend(step);
            }
        }
    }
}
