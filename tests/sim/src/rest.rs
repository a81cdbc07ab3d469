//! The end of a run, at which everything must be at rest and every count be right.

use crate::checks::PRIORITIES;
use crate::state::Phase;
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
            for priority in crate::checks::PRIORITIES {
                let value = state.metric(&format!("limit=.=nvidia;.;priority=.={priority};.;nimgate_queue_length"));
                if value != 0 {
                    state.broken("I12", format!("the queue length of {priority} is {value} at rest"));
                }
            }
            let outside = state.metric("limit=.=nvidia;.;nimgate_fallback_length");
            if outside != 0 {
                state.broken("I12", format!("{outside} wait outside the queue at rest"));
            }
            let (available, capacity) = (
                state.metric("limit=.=nvidia;.;nimgate_tokens_available"),
                state.metric("limit=.=nvidia;.;nimgate_token_capacity"),
            );
            let settings = state.plan.settings;
            let full = if settings.window > 0 { capacity.min(settings.quota() as i64) } else { capacity };
            if available != full || capacity != settings.capacity as i64 {
                state.broken("I12", format!("{available} of {capacity} tokens at rest, of {}", settings.capacity));
            }
            let rate = state.metric("limit=.=nvidia;.;nimgate_effective_rpm");
            if rate != settings.rate_rpm as i64 {
                state.broken("I16", format!("the effective rate at rest is {rate}, not {}", settings.rate_rpm));
            }
        }
        self.check_outcomes();
    }

    /// The counters against what the simulation has seen itself.
    pub fn check_outcomes(&self) {
        let mut state = self.state.borrow_mut();
        let labels = ["forwarded", "rate_limited", "queue_full", "client_left", "upstream_timeout", "unreadable"];
        for (at, priority) in PRIORITIES.into_iter().enumerate() {
            for label in labels {
                let name =
                    format!("limit=.=nvidia;.;priority=.={priority};.;outcome=.={label};.;nimgate_requests_total");
                let (counted, seen) = (state.metric(&name), state.expected.get(&(at, label)).copied().unwrap_or(0));
                if counted != seen {
                    state.broken("I20", format!("{priority} {label}: counted {counted}, seen {seen}"));
                }
            }
        }
        let (counted, seen) = (state.metric("nimgate_passthrough_total"), state.passed);
        if counted != seen {
            state.broken("I20", format!("passed: counted {counted}, seen {seen}"));
        }
    }
}
