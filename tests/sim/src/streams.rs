//! A stream's way as the host sees it: it asks for a token, gets it or is refused, goes on, and is over.

use crate::checks::Commit;
use crate::mutant::Mutant;
use crate::state::{End, Kind, Phase};
use crate::world::World;
use std::rc::Rc;

impl World {
    /// A callback of a request's stream looks at the ledger for the first time: it asks for a token.
    pub fn asks(&self, vm: usize, context: u32, at: u64) {
        let mut state = self.state.borrow_mut();
        let Some(r) = state.request_of(vm, context) else { return };
        if state.requests[r].phase != Phase::Open {
            return;
        }
        if state.requests[r].kind == Kind::Passing {
            state.broken("I19", format!("request {r} is metered and should not be"));
        }
        state.requests[r].phase = Phase::Waiting;
        state.requests[r].arrived = at;
        state.waiting.insert(r);
    }

    /// The filter lets a request go.
    pub fn granted(&self, r: usize, commit: Commit) {
        let mut state = self.state.borrow_mut();
        state.note(|| format!("request {r} is granted by change {}", commit.number));
        state.check_grant(r, commit);
        state.waiting.remove(&r);
        if state.requests[r].phase == Phase::Waiting {
            state.requests[r].phase = Phase::Sent;
        }
    }

    /// The filter answers a request itself.
    pub fn refused(&self, r: usize, details: &[u8], at: u64) {
        let mut state = self.state.borrow_mut();
        state.note(|| format!("request {r} is refused: {}", String::from_utf8_lossy(details)));
        let request = &state.requests[r];
        if request.phase != Phase::Waiting {
            let phase = request.phase;
            state.broken("I4", format!("request {r} is refused while {phase:?}"));
            return;
        }
        let early = request.arrived + state.plan.settings.patience(request.priority, request.fallback);
        let full = details == b"nimgate_queue_full";
        let dropped = state.mutant == Some(Mutant::DropReply);
        if !full && at < early {
            state.broken("I11", format!("request {r} is refused before its deadline"));
        }
        let late = early.max(state.desks[state.requests[r].worker].stalled_until) + state.lateness();
        if !full && at > late {
            state.broken("I11", format!("request {r} is refused long after its deadline"));
        }
        state.requests[r].details = if full { "nimgate_queue_full" } else { "nimgate_rate_limited" };
        if !dropped {
            state.requests[r].phase = Phase::Answered;
            state.waiting.remove(&r);
        }
    }

    /// A request goes on to the upstream.
    pub fn forward(self: &Rc<Self>, r: usize) {
        let mut state = self.state.borrow_mut();
        let times = if state.mutant == Some(Mutant::DuplicateResume) && state.rng.chance(50) { 2 } else { 1 };
        let request = &mut state.requests[r];
        if matches!(request.phase, Phase::Over(_)) {
            return;
        }
        request.held = false;
        request.sent += times;
        let sent = request.sent;
        let marked = request.headers.iter().any(|(name, value)| name == "x-nimgate-limit" && value == b"nvidia");
        if marked == (request.kind == Kind::Passing) {
            state.broken("I19", format!("request {r} has the wrong mark for the upstream"));
        }
        if sent != 1 {
            state.broken("I3", format!("request {r} is sent {sent} times"));
        }
        state.arrives_upstream(r);
    }

    /// A reply of the filter goes to the client, past the filter's own response callbacks.
    pub fn reply(self: &Rc<Self>, r: usize, status: u16, headers: Vec<(String, Vec<u8>)>, body: &[u8]) {
        let (vm, context, end) = {
            let mut state = self.state.borrow_mut();
            if state.mutant == Some(Mutant::DropReply) || matches!(state.requests[r].phase, Phase::Over(_)) {
                return;
            }
            let request = &mut state.requests[r];
            request.status = status;
            request.response = headers;
            request.response.push((":status".to_owned(), status.to_string().into_bytes()));
            let end = if request.details == "nimgate_queue_full" { End::QueueFull } else { End::RateLimited };
            (request.worker, request.context, end)
        };
        let size = body.len() as u32;
        self.call::<_, u32>(vm, "proxy_on_response_headers", context, (context, 3u32, 0u32));
        self.call::<_, u32>(vm, "proxy_on_response_body", context, (context, size, 1u32));
        self.finish(r, end);
    }

    /// A request is over: the filter is told, and the context goes.
    pub fn finish(self: &Rc<Self>, r: usize, end: End) {
        let (vm, context, silent) = {
            let mut state = self.state.borrow_mut();
            let request = &state.requests[r];
            let (vm, context, priority, phase) = (request.worker, request.context, request.priority, request.phase);
            if let Phase::Over(before) = phase {
                state.broken("I3", format!("request {r} ends as {end:?} after it ended as {before:?}"));
                return;
            }
            let label = match (end, phase) {
                (End::Forwarded, _) => Some("forwarded"),
                (End::RateLimited, _) => Some("rate_limited"),
                (End::QueueFull, _) => Some("queue_full"),
                (End::Left, Phase::Waiting) => Some("client_left"),
                _ => None,
            };
            if let Some(label) = label {
                *state.expected.entry((priority, label)).or_default() += 1;
            }
            if phase == Phase::Waiting && state.requests[r].published.is_some() {
                state.desks[vm].untold += 1;
            }
            state.note(|| format!("request {r} is over: {end:?}"));
            let silent = state.mutant == Some(Mutant::DropLeave) && end == End::Left;
            state.requests[r].phase = Phase::Over(end);
            state.waiting.remove(&r);
            (vm, context, silent)
        };
        if !silent {
            self.call::<_, ()>(vm, "proxy_on_log", context, context);
            self.call::<_, u32>(vm, "proxy_on_done", context, context);
            self.call::<_, ()>(vm, "proxy_on_delete", context, context);
        }
        self.state.borrow_mut().desks[vm].contexts.remove(&context);
    }
}
