//! The end of a run, at which everything must be at rest and every count be right.

use crate::checks::PRIORITIES;
use crate::plan::NAMES;
use crate::state::{Phase, State};
use crate::world::World;

impl World {
    /// Nothing is due any more: everyone must have been served, and the gauges must show an empty house.
    pub fn at_rest(&self) {
        {
            let mut state = self.state.borrow_mut();
            let open = state.requests.iter().position(|request| !matches!(request.phase, Phase::Over(_)));
            if let Some(r) = open {
                let phase = state.requests[r].phase;
                state.broken("I3", format!("request {r} is still {phase:?} at the end"));
            }
            for l in 0..state.plan.limits.len() {
                state.limit_at_rest(l);
            }
        }
        self.check_outcomes();
    }

    /// The counters against what the simulation has seen itself.
    pub fn check_outcomes(&self) {
        let mut state = self.state.borrow_mut();
        for limit in (0..state.plan.limits.len()).map(Some).chain([None]) {
            let name = limit.map_or("none", |l| NAMES[l]);
            for (at, priority) in PRIORITIES.into_iter().enumerate() {
                for label in OUTCOMES {
                    let metric =
                        format!("limit=.={name};.;priority=.={priority};.;outcome=.={label};.;nimgate_requests_total");
                    let seen = state.expected.get(&(limit, at, label)).copied().unwrap_or(0);
                    let counted = state.metric(&metric);
                    if counted != seen {
                        state.broken("I20", format!("{name} {priority} {label}: counted {counted}, seen {seen}"));
                    }
                }
            }
        }
        for l in 0..state.plan.limits.len() {
            for class in ["2xx", "4xx", "429", "5xx"] {
                let counted = state.limit_metric(l, &format!("class=.={class};.;nimgate_upstream_responses_total"));
                let seen = state.answers.get(&(l, class)).copied().unwrap_or(0);
                if counted != seen {
                    state.broken("I20", format!("answers of limit {l} with {class}: counted {counted}, seen {seen}"));
                }
            }
            let (counted, seen) = (state.limit_metric(l, "nimgate_upstream_retries_total"), state.retries[l]);
            // Open: attempts before an answer of Envoy's own, which the filter counts though its decision is refused.
            if counted < seen || (counted > seen && (state.plan.world.local == 0 || state.plan.faults.refusals == 0)) {
                state.broken("I20", format!("retries of limit {l}: counted {counted}, seen {seen}"));
            }
        }
        let (counted, seen) = (state.metric("nimgate_passthrough_total"), state.passed);
        if counted != seen {
            state.broken("I20", format!("passed: counted {counted}, seen {seen}"));
        }
    }
}

impl State {
    fn limit_at_rest(&mut self, l: usize) {
        // Who recounts after a damaged record, and loses what another adds in that moment, mends that when nobody waits, unless
        // it crashes before.
        let unmended = self.checks.limits[l].begun_anew && self.plan.races > 0 && self.checks.crashes > 0;
        for priority in PRIORITIES {
            let value = self.limit_metric(l, &format!("priority=.={priority};.;nimgate_queue_length"));
            if value != 0 && !unmended {
                self.broken("I12", format!("the queue length of {priority} is {value} at rest"));
            }
        }
        let outside = self.limit_metric(l, "nimgate_fallback_length");
        if outside != 0 && !unmended {
            self.broken("I12", format!("{outside} wait outside the queue at rest"));
        }
        let (available, capacity) =
            (self.limit_metric(l, "nimgate_tokens_available"), self.limit_metric(l, "nimgate_token_capacity"));
        let limit = &self.checks.limits[l];
        // Whether what an operator changed survived a configuration that the filter has never noticed is not known.
        let settled = !(self.checks.lenient && limit.posted);
        let settings = limit.settings;
        let full = if settings.window > 0 { capacity.min(settings.quota() as i64) } else { capacity };
        // A limit that nobody has asked anything shows nothing.
        if self.checks.limits[l].asked > 0 && settled && (available != full || capacity != settings.capacity as i64) {
            self.broken("I12", format!("{available} of {capacity} tokens at rest, of {}", settings.capacity));
        }
        let unreadable = self.limit_metric(l, "nimgate_ledger_corrupt_total");
        if unreadable > 0 && !self.plan.faults.corrupt {
            self.broken("I14", format!("{unreadable} records of limit {l} could not be read, and nobody damaged any"));
        }
        let rate = self.limit_metric(l, "nimgate_effective_rpm");
        if settled && rate != settings.rate_rpm as i64 {
            self.broken("I16", format!("the effective rate at rest is {rate}, not {}", settings.rate_rpm));
        }
        let slowed = self.limit_metric(l, "nimgate_models_slowed");
        if slowed != 0 {
            self.broken("I16", format!("{slowed} models are slowed at rest"));
        }
        // In a run that is in shadow mode from its beginning to its end everyone is accounted for.
        let shadowed: i64 = PRIORITIES
            .iter()
            .flat_map(|priority| {
                ["forwarded", "rate_limited", "queue_full"].map(|outcome| {
                    self.limit_metric(l, &format!("priority=.={priority};.;outcome=.={outcome};.;nimgate_shadow_total"))
                })
            })
            .sum();
        let limit = &self.checks.limits[l];
        let (always, never) = (!limit.ever(|settings| !settings.shadow), !limit.ever(|settings| settings.shadow));
        let asked = limit.asked;
        if (never && shadowed != 0) || (always && self.checks.crashes == 0 && shadowed != asked) {
            self.broken("I21", format!("shadow mode accounts for {shadowed} requests of limit {l}, of {asked}"));
        }
    }
}

/// The outcomes that a request may have here.
const OUTCOMES: [&str; 8] = [
    "forwarded",
    "rate_limited",
    "queue_full",
    "upstream_timeout",
    "upstream_unreachable",
    "payload_too_large",
    "unreadable",
    "client_left",
];
