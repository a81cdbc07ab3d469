//! A stream's way as the host sees it: it asks for a token, gets it or is refused, goes on, and is over.

use crate::checks::Commit;
use crate::mutant::Mutant;
use crate::plan::{MILLI, NAMES};
use crate::state::{End, Kind, Phase};
use crate::world::World;
use std::rc::Rc;

impl World {
    /// A callback of a request's stream looks at a limit's ledger for the first time: it asks for a token.
    pub fn asks(&self, vm: usize, context: u32, l: usize, at: u64) {
        let mut state = self.state.borrow_mut();
        let Some(r) = state.request_of(vm, context) else { return };
        if state.requests[r].phase != Phase::Open {
            return;
        }
        if state.requests[r].kind == Kind::Passing || state.requests[r].limit != l {
            state.broken("I19", format!("request {r} is metered by limit {l} and should not be"));
        }
        state.requests[r].phase = Phase::Waiting;
        state.requests[r].arrived = at;
        state.checks.limits[l].asked += 1;
        state.waiting.insert(r);
    }

    /// The clock is read after that look: this is when the request came, unless it looks again because it lost a race.
    pub fn arrives(&self, vm: usize, context: u32, at: u64) {
        let mut state = self.state.borrow_mut();
        if let Some(r) = state.request_of(vm, context)
            && state.requests[r].phase == Phase::Waiting
            && state.requests[r].published_at == 0
        {
            state.requests[r].arrived = at;
        }
    }

    /// The filter lets a request go. `shadow` says whether shadow mode was on in what it had read, if that is known.
    pub fn granted(&self, r: usize, commit: Commit, shadow: Option<bool>) {
        let mut state = self.state.borrow_mut();
        state.note(|| format!("request {r} is granted by change {}", commit.number));
        let limit = &state.checks.limits[state.requests[r].limit];
        let surely_enforced = (shadow == Some(false) && !limit.is_shadow_unsure(state.plan.faults.refusals))
            || !limit.ever(|settings| settings.shadow);
        if shadow != Some(true) && surely_enforced {
            state.check_grant(r, commit);
        } else if state.requests[r].phase != Phase::Waiting {
            let phase = state.requests[r].phase;
            state.broken("I4", format!("request {r} is let go while {phase:?}"));
        }
        state.waiting.remove(&r);
        let (now, l) = (state.now, state.requests[r].limit);
        // In shadow mode nothing is reserved, so nothing comes back.
        if shadow != Some(true) {
            state.checks.limits[l].went_to(commit.number, r);
        }
        let request = &mut state.requests[r];
        if request.phase == Phase::Waiting {
            (request.phase, request.granted, request.granted_at) = (Phase::Sent, commit, now);
        }
    }

    /// The filter answers a request itself.
    pub fn refused(&self, r: usize, details: &[u8], at: u64, shadow: bool) {
        let mut state = self.state.borrow_mut();
        state.note(|| format!("request {r} is refused: {}", String::from_utf8_lossy(details)));
        let request = &state.requests[r];
        if request.phase != Phase::Waiting {
            let phase = request.phase;
            state.broken("I4", format!("request {r} is refused while {phase:?}"));
            return;
        }
        let ((least, most), arrived) = (state.timeouts(r, at), request.arrived);
        let full = details == b"nimgate_queue_full";
        let dropped = state.mutant == Some(Mutant::DropReply);
        if shadow {
            state.broken("I21", format!("request {r} is refused in shadow mode"));
        }
        // Where the host refuses a look, it is not seen from which reading of the callback's clock the filter counts.
        let undated = if state.plan.faults.refusals > 0 && state.plan.races > 0 { 20 * MILLI } else { 0 };
        if !full && at + undated < arrived + least {
            state.broken("I11", format!("request {r} is refused before its deadline"));
        }
        let late = (arrived + most).max(state.desks[state.requests[r].worker].stalled_until) + state.lateness();
        if !full && at > late {
            state.broken("I11", format!("request {r} is refused long after its deadline"));
        }
        state.requests[r].details = if full { "nimgate_queue_full" } else { "nimgate_rate_limited" };
        if !dropped {
            state.requests[r].phase = Phase::Answered;
            state.waiting.remove(&r);
        }
    }

    /// The filter has resumed a request. Its client may leave at just that moment.
    pub fn resumed(self: &Rc<Self>, r: usize) {
        let leaves = {
            let mut state = self.state.borrow_mut();
            let request = &mut state.requests[r];
            if matches!(request.phase, Phase::Over(_)) {
                return;
            }
            let is_allowed = request.kept.resume();
            let is_first = request.sent == 0;
            if !is_allowed {
                state.broken("I3", format!("request {r} is resumed though nothing stopped it"));
            }
            if !is_first {
                // A piece of its body goes on.
                return;
            }
            let permille = state.plan.leave / 3;
            permille > 0 && state.rng.chance(permille)
        };
        if leaves { self.leave(r) } else { self.forward(r) }
    }

    /// A request goes on to the upstream.
    pub fn forward(self: &Rc<Self>, r: usize) {
        let mut state = self.state.borrow_mut();
        let times = if state.mutant == Some(Mutant::DuplicateResume) && state.rng.chance(50) { 2 } else { 1 };
        let request = &mut state.requests[r];
        match request.phase {
            Phase::Over(_) => return,
            Phase::Waiting | Phase::Open => {
                state.broken("I2", format!("request {r} goes on without a grant"));
                return;
            }
            _ => {}
        }
        request.held = false;
        request.sent += times;
        let (sent, name) = (request.sent, NAMES[request.limit].as_bytes());
        let marked =
            request.headers.iter().find(|(name, _)| name == "x-nimgate-limit").map(|(_, value)| value.as_slice());
        let expected = (request.kind != Kind::Passing).then_some(name);
        let is_marked = marked == expected;
        if is_marked == request.unread {
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
        let (vm, context, silent, is_answered) = {
            let mut state = self.state.borrow_mut();
            let request = &state.requests[r];
            let (vm, context, priority, phase) = (request.worker, request.context, request.priority, request.phase);
            let l = request.limit;
            if let Phase::Over(before) = phase {
                state.broken("I3", format!("request {r} ends as {end:?} after it ended as {before:?}"));
                return;
            }
            let label = match (end, phase) {
                (End::Forwarded, _) => Some("forwarded"),
                (End::RateLimited, _) => Some("rate_limited"),
                (End::QueueFull, _) => Some("queue_full"),
                (End::Timeout, _) => Some("upstream_timeout"),
                (End::Unreachable, _) => Some("upstream_unreachable"),
                (End::TooLarge, _) => Some("payload_too_large"),
                (End::Left, Phase::Waiting) => Some("client_left"),
                _ => None,
            };
            if let Some(label) = label {
                // Before a request has asked for a token no limit has it.
                let limit = (phase != Phase::Open).then_some(l);
                *state.expected.entry((limit, priority, label)).or_default() += 1;
            }
            if phase == Phase::Waiting && state.requests[r].published.is_some() {
                state.desks[vm].untold[l] += 1;
            }
            state.note(|| format!("request {r} is over: {end:?}"));
            let request = &state.requests[r];
            let is_stuck = end == End::Forwarded && request.kept.gone < request.shown;
            if is_stuck && state.plan.is_calm() && state.now > request.last_piece + 100 * MILLI {
                state.broken("I3", format!("a piece of the body of request {r} has not gone on"));
            }
            let silent = state.mutant == Some(Mutant::DropLeave) && end == End::Left;
            state.suspects(r);
            state.requests[r].phase = Phase::Over(end);
            state.waiting.remove(&r);
            (vm, context, silent, phase == Phase::Answering)
        };
        if !silent {
            self.call::<_, ()>(vm, "proxy_on_log", context, context);
            self.call::<_, u32>(vm, "proxy_on_done", context, context);
            self.call::<_, ()>(vm, "proxy_on_delete", context, context);
        }
        let mut state = self.state.borrow_mut();
        state.desks[vm].contexts.remove(&context);
        if let (true, Some(model)) = (is_answered, state.requests[r].model) {
            let l = state.requests[r].limit;
            state.checks.limits[l].coming[model] -= 1;
        }
    }
}
