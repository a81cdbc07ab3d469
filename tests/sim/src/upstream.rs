//! The upstream and what stands before it: its hidden limits, its errors, Envoy's retries, and Envoy's own replies.

use crate::host::OfLimit;
use crate::mutant::Mutant;
use crate::plan::{LIMITS_MAX, MILLI, ModelKind, SECOND};
use crate::state::{End, Event, Kind, Phase, State};
use crate::world::World;
use std::rc::Rc;

const FULL: &[u8] = b"{\"detail\":\"ResourceExhausted: Worker local total request limit reached (33/32)\"}";

impl State {
    /// The upstream gets a request and will answer it.
    pub fn arrives_upstream(&mut self, r: usize) {
        let latency = self.rng.between(MILLI, 400 * MILLI);
        if self.requests[r].kind != Kind::Passing {
            let local = self.plan.world.local;
            let retries = self.plan.world.retries;
            if retries > 0 && self.rng.chance(retries) {
                self.requests[r].retries = self.rng.between(1, 3);
            }
            if local > 0 && self.rng.chance(local) {
                let ends = [End::Timeout, End::Unreachable, End::Unreachable];
                self.requests[r].instead = Some(self.rng.pick(&ends));
            } else {
                self.requests[r].status = self.status(r);
                let full = self.requests[r].model.is_some_and(|model| self.is_full(model));
                self.requests[r].is_full = self.requests[r].status == 503 && full;
                self.requests[r].answer = match self.requests[r].status {
                    503 if full => FULL.to_vec(),
                    503 => b"upstream is having a bad day".to_vec(),
                    _ => b"{}".to_vec(),
                };
            }
        }
        self.after(latency, Event::Answer(r));
    }

    fn is_full(&self, model: usize) -> bool {
        matches!(self.plan.world.models[model], ModelKind::Full(_)) && !self.healed
    }

    /// What the upstream answers.
    fn status(&mut self, r: usize) -> u16 {
        let (l, model) = (self.requests[r].limit, self.requests[r].model);
        if self.healed {
            return 200;
        }
        if let Some(ModelKind::Full(permille)) = model.map(|model| self.plan.world.models[model])
            && self.rng.chance(permille)
        {
            return 503;
        }
        let odd = self.plan.world.odd;
        if odd > 0 && self.rng.chance(odd) {
            // A 503 of a model whose workers are full would be taken for theirs.
            let full = model.is_some_and(|model| self.is_full(model));
            let statuses = if full { [402, 403, 404, 500] } else { [402, 403, 500, 503] };
            return self.rng.pick(&statuses);
        }
        let rate = self.plan.limits[l].rate_rpm;
        // A limit of few requests a minute is counted over a longer time.
        let window = if rate < 600 { 10 * SECOND } else { SECOND };
        let room = |parts: u64| (rate * parts * window / (60 * SECOND * 100)).max(1) as usize;
        let weak = model.filter(|model| self.plan.world.models[*model] == ModelKind::Weak);
        let account = self.plan.faults.throttles.then_some((None, room(60)));
        let scopes: Vec<(Option<usize>, usize)> =
            account.into_iter().chain(weak.map(|model| (Some(model), room(8)))).collect();
        let now = self.now;
        for (scope, _) in &scopes {
            let sent = self.upstream.entry((l, *scope)).or_default();
            while sent.front().is_some_and(|at| at + window <= now) {
                sent.pop_front();
            }
        }
        if scopes.iter().any(|(scope, room)| self.upstream[&(l, *scope)].len() >= *room) {
            return 429;
        }
        for (scope, _) in &scopes {
            self.upstream.entry((l, *scope)).or_default().push_back(now);
        }
        200
    }

    /// Before the filter hears of the body of an answer: whether it may slow the model down.
    pub fn suspects(&mut self, r: usize) {
        let request = &self.requests[r];
        if let (Some(model), 503, true) = (request.model, request.status, request.phase == Phase::Answering) {
            self.checks.limits[request.limit].slowed[model] |= self.plan.world.models[model] != ModelKind::Plain;
        }
    }

    /// Before the filter hears of an answer: what it may do then.
    fn expects(&mut self, r: usize, has_retry_after: bool) {
        let (l, model, status) = (self.requests[r].limit, self.requests[r].model, self.requests[r].status);
        let limit = &mut self.checks.limits[l];
        let obeyed = status == 503 && has_retry_after && limit.ever(|settings| settings.obey_503);
        let full = status == 503 && self.requests[r].answer == FULL;
        let several = self.plan.world.models.len() > 1;
        if (status == 429 || obeyed) && limit.ever(|settings| settings.retreat) {
            limit.throttled = true;
        }
        if let Some(model) = model
            && (full || (several && (status == 429 || obeyed)))
        {
            (limit.slowed[model], limit.ever_slowed[model]) = (true, true);
        }
    }
}

impl World {
    /// The upstream's answer comes, or Envoy's in its place: its headers first.
    pub fn answer(self: &Rc<Self>, r: usize) {
        if self.state.borrow().requests[r].phase != Phase::Sent {
            return;
        }
        let instead = self.state.borrow().requests[r].instead;
        if let Some(end) = instead {
            return self.local(r, end);
        }
        let (vm, context, pause, before, ends, none_slowed) = {
            let mut state = self.state.borrow_mut();
            let hidden = state.mutant == Some(Mutant::HideRetryAfter);
            let pause = state.plan.retry_after;
            let ends = state.rng.chance(100);
            if let (Some(model), l) = (state.requests[r].model, state.requests[r].limit) {
                state.checks.limits[l].coming[model] += 1;
            }
            let request = &mut state.requests[r];
            let status = request.status.max(200);
            request.phase = Phase::Answering;
            request.details = "via_upstream";
            request.response = vec![(":status".to_owned(), status.to_string().into_bytes())];
            let full = request.answer == FULL;
            let pause = pause.filter(|_| status == 429 || (status == 503 && !full));
            if let (Some(pause), false) = (pause, hidden) {
                let secs = (pause / SECOND).to_string().into_bytes();
                request.response.push(("retry-after".to_owned(), secs));
            }
            if request.retries > 0 {
                let attempts = (request.retries + 1).to_string().into_bytes();
                request.response.push(("x-envoy-attempt-count".to_owned(), attempts));
            }
            let (vm, context, l) = (request.worker, request.context, request.limit);
            let ends = ends && !full;
            if request.kind != Kind::Passing {
                let class = match status {
                    429 => "429",
                    400..=499 => "4xx",
                    500..=599 => "5xx",
                    _ => "2xx",
                };
                let retries = request.retries as i64;
                *state.answers.entry((l, class)).or_default() += 1;
                state.retries[l] += retries;
                state.expects(r, pause.is_some());
            }
            let before = state.limit_metric(l, "nimgate_retreat_state");
            let none_slowed = state.limit_metric(l, "nimgate_models_slowed") == 0;
            (vm, context, pause, before, ends, none_slowed)
        };
        self.state.borrow_mut().note(|| format!("the answer to request {r} begins: {pause:?}"));
        let first = none_slowed && !self.refused_before(r);
        self.retries_begin(r);
        let done = self.call::<_, u32>(vm, "proxy_on_response_headers", context, (context, 2u32, u32::from(ends)));
        self.state.borrow_mut().desks[vm].charging = None;
        let limits = done.map(|(_, limits)| limits);
        if let Some(limits) = limits {
            self.judged(r, &limits, pause, before, first);
        }
        if ends {
            return self.answer_end(r);
        }
        let mut state = self.state.borrow_mut();
        let wait = state.rng.between(0, 50 * MILLI);
        state.after(wait, Event::AnswerEnd(r));
        let leaves = state.plan.leave;
        if leaves > 0 && state.rng.chance(leaves) {
            let wait = state.rng.between(0, 50 * MILLI);
            state.after(wait, Event::Leave(r));
        }
    }

    /// Whether the limit of a request has had a refusal before.
    fn refused_before(&self, r: usize) -> bool {
        let state = self.state.borrow();
        let limit = &state.checks.limits[state.requests[r].limit];
        limit.cut_at > 0 || limit.gate_until > 0 || limit.pause_until > 0
    }

    /// The filter has heard of an answer's headers: whether the rate controller did what it must.
    fn judged(&self, r: usize, limits: &[OfLimit; LIMITS_MAX], pause: Option<u64>, before: i64, first: bool) {
        let mut state = self.state.borrow_mut();
        let request = &state.requests[r];
        let (l, status, commit) = (request.limit, request.status, limits[request.limit].commit);
        let (granted, granted_at, is_full) = (request.granted, request.granted_at, request.is_full);
        let opens_at = granted_at + state.behind;
        // Where the host refused the change nothing was taken in.
        if request.kind == Kind::Passing || commit.number == 0 {
            return;
        }
        let phase = state.limit_metric(l, "nimgate_retreat_state");
        let rate = state.limit_metric(l, "nimgate_effective_rpm");
        let slowed = state.limit_metric(l, "nimgate_models_slowed");
        let several = state.plan.world.models.len() > 1;
        let sure = state.plan.is_calm() && !state.checks.lines_touched && (!several || state.plan.races == 0);
        // Who was quicker sets the gauges when its callback goes on.
        let vm = request.worker;
        let first = first && !state.checks.limits[l].changes.iter().any(|change| change.by != vm && !change.is_over);
        let limit = &mut state.checks.limits[l];
        let settings = limit.settings;
        let obeyed = status == 503 && pause.is_some() && settings.obey_503;
        if status != 429 && !obeyed {
            // Served, or an error that says nothing of the rate: a request sent after the last cut opens the gate.
            if !is_full {
                limit.opens(opens_at);
                limit.opened = limit.opened.max((commit.number, opens_at));
            }
            return;
        }
        if !settings.retreat {
            return;
        }
        let asked = pause.map_or(0, |pause| pause.min(settings.retry_after_max));
        let until = commit.at + asked;
        // An answer that another worker got within this callback may have opened it already.
        let opened = limit.opened.0 > commit.number && limit.opened.1 >= commit.at;
        if !several && !opened {
            // The clock may lag behind by then, but never run ahead, so the gate is never shorter than this.
            limit.gate_until = limit.gate_until.max(until);
            limit.gate_commit = limit.gate_commit.max(commit.number.max(1));
        }
        if before == 0 || phase != 0 {
            limit.pause_until = limit.pause_until.max(until);
        }
        let surely_fresh = granted.at >= limit.cut_at && granted.number > 0;
        if !several && !opened && sure && surely_fresh && asked > 0 {
            limit.half_open = Some((commit.number, 0));
        }
        if granted_at >= limit.cut_at {
            limit.cut_at = commit.at.max(1);
        }
        let cut = settings.rate_rpm >= 600 && settings.floor_rpm * 10 < settings.rate_rpm * 9;
        let slower = !cut || rate * 100 <= settings.rate_rpm as i64 * 99;
        // Where others are let in, a long pause is kept for the model alone.
        let minute = 60 * SECOND;
        let is_long = asked * 4 > if settings.window == 0 { minute } else { settings.window };
        let keeps_alone = several && is_long && slowed > 0;
        // A single refusal of a limit that is not used in full says too little, unless it asks for a pause.
        let asks = asked > 0 && pause.is_some();
        if first && asks && sure && limit.versions.len() == 1 && (phase != 1 || !slower) && !keeps_alone {
            let what = format!("the first refusal of limit {l} leaves it in state {phase} at {rate} requests a minute");
            state.broken("I16", what);
        }
    }

    /// The filter is about to hear of the router's retries for a request: they are charged with the next change of its
    /// limit's ledger in this callback. Where the host refuses that change they are lost.
    fn retries_begin(&self, r: usize) {
        let mut state = self.state.borrow_mut();
        let request = &mut state.requests[r];
        let (vm, l, retries) = (request.worker, request.limit, std::mem::take(&mut request.retries));
        state.desks[vm].charging = (retries > 0).then_some((l, retries));
    }

    /// The rest of an answer.
    pub fn answer_end(self: &Rc<Self>, r: usize) {
        let (vm, context, end, pieces) = {
            let mut state = self.state.borrow_mut();
            if state.requests[r].phase != Phase::Answering {
                return;
            }
            let cut = state.rng.between(0, 30) as usize;
            let request = &state.requests[r];
            let whole = request.answer.clone();
            let cut = cut.min(whole.len());
            let end = if request.kind == Kind::Passing { End::Passed } else { End::Forwarded };
            (request.worker, request.context, end, [whole[..cut].to_vec(), whole[cut..].to_vec()])
        };
        for (at, piece) in pieces.into_iter().enumerate() {
            let with = (context, piece.len() as u32, at as u32);
            self.state.borrow_mut().suspects(r);
            self.state.borrow_mut().requests[r].answer = piece;
            let done = self.call::<_, u32>(vm, "proxy_on_response_body", context, with);
            // What a 503 means is known when its body is.
            let mut state = self.state.borrow_mut();
            let request = &state.requests[r];
            let (l, opens_at) = (request.limit, request.granted_at + state.behind);
            let is_read = done.is_some_and(|(_, limits)| limits[l].commit.number > 0);
            if is_read && request.status == 503 && !request.is_full {
                state.checks.limits[l].opens(opens_at);
            }
        }
        self.check_workers_full(r);
        if !matches!(self.state.borrow().requests[r].phase, Phase::Over(_)) {
            self.finish(r, end);
        }
    }

    /// A model whose workers are full is slowed once the answer that says so has come.
    fn check_workers_full(&self, r: usize) {
        let mut state = self.state.borrow_mut();
        let (l, full) = (state.requests[r].limit, state.requests[r].is_full);
        let limit = &state.checks.limits[l];
        let sure = state.plan.is_calm() && limit.versions.len() == 1 && limit.settings.retreat;
        if full && sure && state.limit_metric(l, "nimgate_models_slowed") == 0 {
            state.broken("I16", format!("the workers of the model of request {r} are full, and it is not slowed down"));
        }
    }

    /// Envoy answers by itself a request that it still holds.
    pub fn locally(self: &Rc<Self>, r: usize) {
        let end = {
            let mut state = self.state.borrow_mut();
            let (phase, kind) = (state.requests[r].phase, state.requests[r].kind);
            match (phase, kind) {
                (Phase::Open, Kind::Model) | (Phase::Waiting, _) => state.rng.pick(&[End::TooLarge, End::RateLimited]),
                _ => return,
            }
        };
        self.local(r, end);
    }

    /// Envoy answers a request by itself, and that goes through the filter's response callbacks.
    pub fn local(self: &Rc<Self>, r: usize, end: End) {
        let (vm, context) = {
            let mut state = self.state.borrow_mut();
            let other = state.rng.chance(500);
            let request = &mut state.requests[r];
            let (status, details) = match end {
                End::TooLarge => (413, "request_payload_too_large"),
                End::Timeout if other => (504, "response_timeout"),
                End::Timeout => (408, "stream_idle_timeout"),
                End::Unreachable if other => (503, "upstream_reset_before_response_started{connection_termination}"),
                End::Unreachable => (503, "no_healthy_upstream"),
                _ => (408, "stream_idle_timeout"),
            };
            request.details = details;
            request.response = vec![(":status".to_owned(), status.to_string().into_bytes())];
            if request.retries > 0 {
                let attempts = (request.retries + 1).to_string().into_bytes();
                request.response.push(("x-envoy-attempt-count".to_owned(), attempts));
            }
            (request.worker, request.context)
        };
        self.state.borrow_mut().note(|| format!("Envoy answers request {r} itself: {end:?}"));
        {
            let mut state = self.state.borrow_mut();
            let request = &state.requests[r];
            let (l, retries) = (request.limit, request.retries as i64);
            let is_unused = (request.phase, request.sent) == (Phase::Sent, 0);
            state.retries[l] += retries;
            if is_unused {
                state.desks[vm].unused[l].push(r);
            }
        }
        self.retries_begin(r);
        self.call::<_, u32>(vm, "proxy_on_response_headers", context, (context, 2u32, 0u32));
        self.state.borrow_mut().desks[vm].charging = None;
        self.call::<_, u32>(vm, "proxy_on_response_body", context, (context, 2u32, 1u32));
        if matches!(self.state.borrow().requests[r].phase, Phase::Over(_)) {
            return;
        }
        self.finish(r, end);
    }
}
