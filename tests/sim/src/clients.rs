//! What clients and the upstream do, and the callbacks that this leads to.

use crate::checks::Commit;
use crate::mutant::Mutant;
use crate::plan::{MILLI, Plan, SECOND};
use crate::rng::Rng;
use crate::state::{End, Event, Kind, Phase, Request};
use crate::world::World;
use std::rc::Rc;

/// Draws a client's request.
pub fn draw(rng: &mut Rng, plan: &Plan, r: usize) -> Request {
    let probe = r >= plan.requests as usize;
    let kind = match (rng.chance(plan.passing), rng.chance(plan.bodies)) {
        (true, _) => Kind::Passing,
        (false, true) => Kind::Model,
        (false, false) => Kind::Host,
    };
    let worker = if probe { r % plan.workers } else { rng.between(0, plan.workers as u64 - 1) as usize };
    Request {
        worker,
        context: 0,
        root: 0,
        connection: 0,
        priority: rng.between(0, 3) as usize,
        kind,
        phase: Phase::Unborn,
        headers: Vec::new(),
        held: true,
        body: if kind == Kind::Model { br#"{"messages":[],"model":"nvidia/test"}"#.to_vec() } else { Vec::new() },
        shown: 0,
        response: Vec::new(),
        details: "",
        arrived: 0,
        published: None,
        published_at: 0,
        fallback: false,
        sent: 0,
        status: 0,
    }
}

impl World {
    pub fn arrive(self: &Rc<Self>, r: usize) {
        let (vm, context, root, ends) = {
            let mut state = self.state.borrow_mut();
            let next = r + 1;
            if next < state.plan.requests as usize {
                let gap = 2 * state.plan.gap;
                let wait = state.rng.between(0, gap);
                state.after(wait, Event::Arrive(next));
            }
            let leaves = state.plan.leave;
            if state.rng.chance(leaves) {
                let wait = state.rng.between(0, 3 * SECOND);
                state.after(wait, Event::Leave(r));
            }
            let vm = state.requests[r].worker;
            let desk = &mut state.desks[vm];
            desk.next_context += 1;
            let (context, current) = (desk.next_context, desk.root);
            desk.contexts.insert(context, Some(r));
            let open = desk.connections.len() as u64;
            let again = open > 0 && state.rng.chance(300) && r < state.plan.requests as usize;
            let (connection, root) = if again {
                let which = state.rng.between(0, open - 1) as usize;
                state.desks[vm].connections[which]
            } else {
                state.connections += 1;
                let opened = (state.connections, current);
                state.desks[vm].connections.push(opened);
                opened
            };
            let mutant = state.mutant;
            let request = &mut state.requests[r];
            (request.context, request.root, request.phase) = (context, root, Phase::Open);
            request.connection = connection;
            let metered = request.kind == Kind::Host || mutant == Some(Mutant::MeterAll);
            let host = if metered { "api.test" } else { "other.test" };
            let level = match mutant {
                Some(Mutant::SwapPriorityOfOne) if vm == 0 => 3 - request.priority,
                Some(Mutant::SwapPriority) => 3 - request.priority,
                _ => request.priority,
            };
            let pairs = [(":method", "POST"), (":path", "/v1/chat/completions"), (":authority", host)];
            request.headers = pairs.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
            let level = crate::checks::PRIORITIES[level];
            request.headers.push(("x-priority".to_owned(), level.as_bytes().to_vec()));
            request.headers.push(("content-type".to_owned(), b"application/json".to_vec()));
            let ends = request.kind != Kind::Model;
            state.note(|| format!("request {r} ({level}) comes to worker {vm} as context {context}"));
            (vm, context, root, ends)
        };
        self.call::<_, ()>(vm, "proxy_on_context_create", context, (context, root));
        let answer = self.call::<_, u32>(vm, "proxy_on_request_headers", context, (context, 5u32, u32::from(ends)));
        self.went(r, answer);
        if !ends {
            let mut state = self.state.borrow_mut();
            let wait = state.rng.between(0, 20 * MILLI);
            state.after(wait, Event::Body(r));
        }
    }

    /// A piece of a body comes.
    pub fn body(self: &Rc<Self>, r: usize) {
        let (vm, context, shown, ends) = {
            let mut state = self.state.borrow_mut();
            let piece = state.rng.between(1, 40) as usize;
            let request = &mut state.requests[r];
            if request.phase != Phase::Open {
                return;
            }
            request.shown = (request.shown + piece).min(request.body.len());
            (request.worker, request.context, request.shown, request.shown == request.body.len())
        };
        let with = (context, shown as u32, u32::from(ends));
        let answer = self.call::<_, u32>(vm, "proxy_on_request_body", context, with);
        self.went(r, answer);
        if !ends {
            let mut state = self.state.borrow_mut();
            let wait = state.rng.between(0, 20 * MILLI);
            state.after(wait, Event::Body(r));
        }
    }

    /// Acts on what a request callback answered.
    pub fn went(self: &Rc<Self>, r: usize, answer: Option<(u32, Commit, u64)>) {
        let Some((0, commit, _)) = answer else { return };
        let (phase, kind) = {
            let state = self.state.borrow();
            (state.requests[r].phase, state.requests[r].kind)
        };
        match (phase, kind) {
            (Phase::Waiting, _) => self.granted(r, commit),
            (Phase::Open, Kind::Passing) => {
                let mut state = self.state.borrow_mut();
                state.passed += 1;
                state.requests[r].phase = Phase::Sent;
            }
            (Phase::Open, _) => self.state.borrow_mut().broken("I19", format!("request {r} passes unmetered")),
            _ => return,
        }
        self.forward(r);
    }

    pub fn leave(self: &Rc<Self>, r: usize) {
        let end = {
            let state = self.state.borrow();
            match (state.requests[r].phase, state.requests[r].kind) {
                (Phase::Over(_) | Phase::Unborn | Phase::Answered, _) => return,
                (Phase::Sent, Kind::Passing) => End::Passed,
                (Phase::Sent, _) => End::Forwarded,
                (Phase::Open | Phase::Waiting, _) => End::Left,
            }
        };
        self.finish(r, end);
    }

    /// The upstream's answer comes.
    pub fn answer(self: &Rc<Self>, r: usize) {
        let (vm, context, end, pause) = {
            let mut state = self.state.borrow_mut();
            if state.requests[r].phase != Phase::Sent {
                return;
            }
            let hidden = state.mutant == Some(Mutant::HideRetryAfter);
            let pause = state.plan.retry_after;
            let request = &mut state.requests[r];
            let status = request.status.max(200);
            request.details = "via_upstream";
            request.response = vec![(":status".to_owned(), status.to_string().into_bytes())];
            let pause = pause.filter(|_| status == 429);
            if let (Some(pause), false) = (pause, hidden) {
                let secs = (pause / SECOND).to_string().into_bytes();
                request.response.push(("retry-after".to_owned(), secs));
            }
            let end = if request.kind == Kind::Passing { End::Passed } else { End::Forwarded };
            (request.worker, request.context, end, pause)
        };
        let done = self.call::<_, u32>(vm, "proxy_on_response_headers", context, (context, 2u32, 0u32));
        // Where the host refused the change nothing was taken in.
        if let (Some(pause), Some((_, commit, _))) = (pause, done)
            && commit.number > 0
        {
            let mut state = self.state.borrow_mut();
            let until = commit.at + pause.min(state.plan.settings.retry_after_max);
            // The clock may lag behind by then, but never run ahead, so the gate is never shorter than this.
            state.checks.gate_until = state.checks.gate_until.max(until);
            state.checks.gate_commit = state.checks.gate_commit.max(commit.number.max(1));
        }
        self.call::<_, u32>(vm, "proxy_on_response_body", context, (context, 2u32, 1u32));
        if !matches!(self.state.borrow().requests[r].phase, Phase::Over(_)) {
            self.finish(r, end);
        }
    }
}
