//! Shadow mode: every request is let go at once, and stays in the queue to see what would have become of it.
//!
//! The queue, the ledger and the order are the same as ever. Only what comes out of them is not done but reported.

use super::{Action, Output};
use crate::event::Event;
use crate::order::queue::Queue;
use crate::outcome::Outcome;
use crate::priority::Priority;
use crate::request::Request;
use crate::units::{Instant, LimitId, Micros, RequestId};
use hashbrown::HashMap;

/// The requests of one limit that are on their way, and in the queue as if they were not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shadow {
    is_on: bool,
    gone: HashMap<RequestId, Priority>,
}

impl Shadow {
    /// The requests that are on their way.
    pub(super) fn gone(&self) -> impl Iterator<Item = RequestId> {
        self.gone.keys().copied()
    }

    /// Turns what was decided into what is done. `on` says whether the active rules are those of the shadow mode.
    pub(super) fn cast(
        &mut self,
        on: bool,
        arrival: Option<&Request>,
        queue: &Queue,
        output: &mut Output,
        id: LimitId,
        now: Instant,
    ) {
        let switched_on = on && !self.is_on;
        self.is_on = on;
        if !on && self.gone.is_empty() {
            return;
        }
        let at_once = |request| Action::Resume { request, waited: Micros::ZERO, granted_at: now };
        let mut done = Vec::with_capacity(output.actions.len());
        for action in output.actions.drain(..) {
            let (request, waited, outcome) = match action {
                Action::Resume { request, waited, .. } => (request, waited, Outcome::Forwarded),
                Action::Reply { request, waited, outcome, .. } => (request, waited, outcome),
                Action::Wake(_) => {
                    done.push(action);
                    continue;
                }
            };
            let here = arrival.filter(|arrival| arrival.id == request).map(|arrival| arrival.lane.priority());
            match (self.gone.remove(&request), here) {
                (Some(level), _) => output.events.push((id, Event::Shadowed { level, outcome, waited })),
                (None, Some(level)) if on => {
                    output.events.push((id, Event::Shadowed { level, outcome, waited }));
                    done.push(at_once(request));
                }
                (None, None) if on => done.push(Action::Resume { request, waited, granted_at: now }),
                _ => done.push(action),
            }
        }
        if on {
            // Who waited when the mode was switched on goes now; afterwards only the arrival can be new.
            let new = arrival.and_then(|arrival| queue.get(arrival.id));
            let before = queue.all().filter(|_| switched_on);
            for waiting in before.chain(new) {
                if self.gone.insert(waiting.id, waiting.lane.priority()).is_none() {
                    done.push(at_once(waiting.id));
                }
            }
        } else {
            // The mode was switched off, and the decision that saw it has taken those who are gone out of the queue.
            self.gone.clear();
        }
        output.actions = done;
    }
}
