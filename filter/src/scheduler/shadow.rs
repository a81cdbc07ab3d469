//! Shadow mode: every request is let go at once, and stays in the queue to see what would have become of it.
//!
//! The queue, the ledger and the order are the same as ever. Only what comes out of them is not done but reported.

use super::Action;
use crate::ledger::Arrival;
use crate::observe::Observer;
use crate::outcome::Outcome;
use crate::priority::Priority;
use crate::queue::Queue;
use crate::units::{LimitId, Micros, RequestId};
use hashbrown::HashMap;

/// The requests of one limit that are on their way, and in the queue as if they were not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shadow {
    is_on: bool,
    gone: HashMap<RequestId, Priority>,
}

impl Shadow {
    /// Turns what was decided into what is done. `on` says whether the rules in force are those of the shadow mode.
    pub(super) fn cast(
        &mut self,
        on: bool,
        arrival: Option<Arrival>,
        queue: &mut Queue,
        actions: Vec<Action>,
        id: LimitId,
        observer: &mut impl Observer,
    ) -> Vec<Action> {
        let switched_on = on && !self.is_on;
        self.is_on = on;
        if !on && self.gone.is_empty() {
            return actions;
        }
        let mut done = Vec::with_capacity(actions.len());
        for action in actions {
            let (request, waited, outcome) = match action {
                Action::Resume { request, waited } => (request, waited, Outcome::Forwarded),
                Action::Reply { request, waited, outcome, .. } => (request, waited, outcome),
                Action::Wake(_) => {
                    done.push(action);
                    continue;
                }
            };
            let here = arrival.filter(|arrival| arrival.request == request).map(|arrival| arrival.lane.priority());
            match (self.gone.remove(&request), here) {
                (Some(priority), _) => observer.shadowed(id, priority, outcome, waited),
                (None, Some(priority)) if on => {
                    observer.shadowed(id, priority, outcome, waited);
                    done.push(Action::Resume { request, waited: Micros::ZERO });
                }
                (None, None) if on => done.push(Action::Resume { request, waited }),
                _ => done.push(action),
            }
        }
        if on {
            // Who waited when the mode was switched on goes now; afterwards only the arrival can be new.
            let new = arrival.and_then(|arrival| queue.get(arrival.request));
            let before = queue.all().filter(|_| switched_on);
            for waiting in before.chain(new) {
                if self.gone.insert(waiting.request, waiting.lane.priority()).is_none() {
                    done.push(Action::Resume { request: waiting.request, waited: Micros::ZERO });
                }
            }
        } else {
            // The mode was switched off: those who are gone must not take tokens from those who wait.
            for (request, _) in self.gone.drain() {
                queue.remove(request);
            }
        }
        done
    }
}
