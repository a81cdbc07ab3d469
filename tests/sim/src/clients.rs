//! What clients and the upstream do, and the callbacks that this leads to.

use crate::host::OfLimit;
use crate::mutant::Mutant;
use crate::plan::LIMITS_MAX;
use crate::plan::{HOSTS, MILLI, NAMES, Plan, SECOND};
use crate::rng::Rng;
use crate::state::{End, Ending, Event, Kind, Phase, Request};
use crate::world::World;
use std::rc::Rc;

/// Draws a client's request.
pub fn draw(rng: &mut Rng, plan: &Plan, r: usize) -> Request {
    let probe = r >= plan.requests as usize;
    let kind = match (rng.chance(plan.passing) && !probe, rng.chance(plan.bodies)) {
        (true, _) => Kind::Passing,
        (false, true) => Kind::Model,
        (false, false) => Kind::Host,
    };
    let worker = if probe { r % plan.workers } else { rng.between(0, plan.workers as u64 - 1) as usize };
    let drawn = rng.between(0, plan.limits.len() as u64 - 1) as usize;
    // Probes ask every limit, so that each shows what it has at rest.
    let limit = if probe { r / plan.workers % plan.limits.len() } else { drawn };
    let model = rng.between(0, plan.world.models.len() as u64 - 1) as usize;
    let has_body = rng.chance(plan.world.uploads);
    let body = match kind {
        Kind::Model => format!("{{\"messages\":[],\"model\":\"{}/m{model}\"}}", NAMES[limit]).into_bytes(),
        Kind::Passing if has_body => br#"{"messages":[],"model":"another/one"}"#.to_vec(),
        Kind::Host if has_body => b"{\"messages\":[]}".to_vec(),
        _ => Vec::new(),
    };
    Request {
        priority: rng.between(0, 3) as usize,
        limit,
        model: (kind == Kind::Model).then_some(model),
        ending: rng.pick(&[Ending::Whole, Ending::Whole, Ending::Empty, Ending::Trailers]),
        ..Request::new(worker, kind, body)
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
            let local = state.plan.world.local / 3;
            if local > 0 && state.rng.chance(local) {
                let wait = state.rng.between(0, 3 * SECOND);
                state.after(wait, Event::Local(r));
            }
            let crowded = if state.plan.world.closes > 0 { 950 } else { 300 };
            let vm = state.requests[r].worker;
            let desk = &mut state.desks[vm];
            desk.next_context += 1;
            let (context, current) = (desk.next_context, desk.root);
            desk.contexts.insert(context, Some(r));
            let open = desk.connections.len() as u64;
            let again = open > 0 && state.rng.chance(crowded) && r < state.plan.requests as usize;
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
            let host = if metered { HOSTS[request.limit] } else { "other.test" };
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
            let ends = request.body.is_empty();
            state.note(|| format!("request {r} ({level}) comes to worker {vm} as context {context}"));
            (vm, context, root, ends)
        };
        self.call::<_, ()>(vm, "proxy_on_context_create", context, (context, root));
        let answer = self.call::<_, u32>(vm, "proxy_on_request_headers", context, (context, 5u32, u32::from(ends)));
        if let Some((1, _)) = answer {
            self.state.borrow_mut().requests[r].kept.hold_headers();
        }
        self.went(r, answer);
        if !ends {
            let mut state = self.state.borrow_mut();
            let wait = state.rng.between(0, 20 * MILLI);
            state.after(wait, Event::Body(r));
        }
    }

    /// A piece of a body comes.
    pub fn body(self: &Rc<Self>, r: usize) {
        let (vm, context, came, shown, ends) = {
            let mut state = self.state.borrow_mut();
            let piece = state.rng.between(1, 40) as usize;
            let request = &mut state.requests[r];
            if !matches!(request.phase, Phase::Open | Phase::Waiting | Phase::Sent) {
                return;
            }
            let complete = request.shown == request.body.len();
            let before = request.shown;
            request.shown = (request.shown + piece).min(request.body.len());
            let ends = complete || (request.ending == Ending::Whole && request.shown == request.body.len());
            request.ended |= ends;
            (request.worker, request.context, request.shown - before, request.shown, ends)
        };
        let trailers = ends && self.state.borrow().requests[r].ending == Ending::Trailers;
        let answer = if trailers {
            self.call::<_, u32>(vm, "proxy_on_request_trailers", context, (context, 1u32))
        } else {
            let with = (context, shown as u32, u32::from(ends));
            self.call::<_, u32>(vm, "proxy_on_request_body", context, with)
        };
        if let Some((answer, _)) = answer {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            let request = &mut state.requests[r];
            request.last_piece = now;
            request.kept.piece(came, answer == 1);
            if request.kept.has_lost(request.shown) {
                state.broken("I3", format!("request {r} has lost a piece of its body"));
            }
        }
        self.went(r, answer);
        if !ends {
            let mut state = self.state.borrow_mut();
            let wait = state.rng.between(0, 20 * MILLI);
            state.after(wait, Event::Body(r));
        }
    }

    /// Acts on what a request callback answered.
    pub fn went(self: &Rc<Self>, r: usize, answer: Option<(u32, [OfLimit; LIMITS_MAX])>) {
        let Some((answer, limits)) = answer else { return };
        let (phase, kind, sent, l) = {
            let state = self.state.borrow();
            let request = &state.requests[r];
            (request.phase, request.kind, request.sent, request.limit)
        };
        match (answer, phase, kind) {
            (0, Phase::Open, Kind::Passing) => {
                let mut state = self.state.borrow_mut();
                state.passed += 1;
                let (vm, now) = (state.requests[r].worker, state.now);
                let uncounted = &mut state.desks[vm].uncounted;
                *uncounted = (uncounted.0 + 1, if uncounted.0 == 0 { now } else { uncounted.1 });
                state.requests[r].phase = Phase::Sent;
            }
            (0, Phase::Open, _) => {
                return self.state.borrow_mut().broken("I19", format!("request {r} passes unmetered"));
            }
            (0, Phase::Sent, Kind::Host | Kind::Model) if sent == 0 && self.is_too_large(r) => {
                return self.local(r, End::TooLarge);
            }
            (0, Phase::Waiting | Phase::Sent, _) if sent == 0 => {}
            (1, Phase::Waiting, _) if limits[l].shadow == Some(true) && self.is_shadow_sure(l) => {
                return self.state.borrow_mut().broken("I21", format!("request {r} is held in shadow mode"));
            }
            _ => return,
        }
        self.forward(r);
    }

    /// Whether the piece with which a request goes on is the one that no longer fits into Envoy's buffer.
    fn is_too_large(&self, r: usize) -> bool {
        let mut state = self.state.borrow_mut();
        let permille = state.plan.world.local;
        state.requests[r].shown > 0 && permille > 0 && state.rng.chance(permille)
    }

    fn is_shadow_sure(&self, l: usize) -> bool {
        let state = self.state.borrow();
        !state.checks.limits[l].is_shadow_unsure(state.plan.faults.refusals)
    }

    pub fn leave(self: &Rc<Self>, r: usize) {
        let end = {
            let state = self.state.borrow();
            let request = &state.requests[r];
            match (request.phase, request.kind) {
                (Phase::Over(_) | Phase::Unborn | Phase::Answered, _) => return,
                (Phase::Sent | Phase::Answering, Kind::Passing) => End::Passed,
                (Phase::Sent | Phase::Answering, _) => End::Forwarded,
                (Phase::Open | Phase::Waiting, _) => End::Left,
            }
        };
        self.finish(r, end);
    }

    /// A connection closes, and all its streams end one after the other.
    pub fn close(self: &Rc<Self>, vm: usize) {
        let crowd: Vec<usize> = {
            let mut state = self.state.borrow_mut();
            let count = state.desks[vm].connections.len() as u64;
            if count == 0 {
                return;
            }
            let which = state.rng.between(0, count - 1) as usize;
            let (connection, _) = state.desks[vm].connections.swap_remove(which);
            state.note(|| format!("connection {connection} of worker {vm} closes"));
            state.checks.closing = Some(vm);
            let requests = state.requests.iter().enumerate();
            requests.filter(|(_, q)| q.worker == vm && q.connection == connection).map(|(r, _)| r).collect()
        };
        for r in crowd {
            self.leave(r);
        }
        self.state.borrow_mut().checks.closing = None;
    }
}
