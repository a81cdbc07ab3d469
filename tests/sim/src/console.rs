//! The console: someone looks at `/status` and changes rules through `POST /config`, on any worker.

use crate::plan::{NAMES, Settings, changed};
use crate::state::{Desk, State};
use crate::world::World;
use std::rc::Rc;

/// The configuration of the console's listener.
pub const JSON: &[u8] = br#"{"console":{"admin_token":"token-of-the-simulation"},"log_level":"error"}"#;

/// A request of the console.
pub struct Visit {
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// The limit that it changes and what that then is, until it is.
    pub change: Option<(usize, Settings)>,
    pub reply: Option<(u16, Vec<u8>)>,
}

impl State {
    /// A context with a number that this worker has not used before.
    fn new_context(desk: &mut Desk) -> u32 {
        desk.next_context += 1;
        desk.contexts.insert(desk.next_context, None);
        desk.next_context
    }
}

impl World {
    /// Gives a worker the console's root context, where the run has a console.
    pub fn open_console(self: &Rc<Self>, vm: usize) {
        let (root, size) = {
            let mut state = self.state.borrow_mut();
            if vm >= state.plan.workers || state.plan.world.posts + state.plan.world.polls == 0 {
                return;
            }
            let root = State::new_context(&mut state.desks[vm]);
            state.desks[vm].console = root;
            (root, JSON.len() as u32)
        };
        self.call::<_, ()>(vm, "proxy_on_context_create", root, (root, 0u32));
        self.call::<_, u32>(vm, "proxy_on_vm_start", root, (root, 0u32));
        if let Some((0u32, ..)) = self.call(vm, "proxy_on_configure", root, (root, size)) {
            self.state.borrow_mut().broken("I22", format!("worker {vm} refuses the console's configuration"));
        }
    }

    /// Someone changes the rules of a limit.
    pub fn post(self: &Rc<Self>, vm: usize) {
        let (l, body) = {
            let mut state = self.state.borrow_mut();
            // While an older configuration may be active again nobody could say over which one the change lies.
            if state.checks.lenient || state.desks.iter().any(|desk| desk.unconfigured) {
                return;
            }
            let last = state.plan.limits.len() as u64 - 1;
            let l = state.rng.between(0, last) as usize;
            let (before, modes) = (state.checks.limits[l].settings, state.plan.world.modes);
            let new = changed(&mut state.rng, before, modes);
            let aging = new.aging.map_or(0, |aging| aging / crate::plan::SECOND);
            let fields = new.fields(state.mutant);
            let body = format!("{{\"limit\":\"{}\",{fields},\"aging_s\":{aging}}}", NAMES[l]);
            (l, (new != before).then_some((body, new)))
        };
        let Some((body, new)) = body else { return };
        let Some(visit) = self.visit(vm, "POST", "/config", body.into_bytes(), Some((l, new))) else { return };
        let mut state = self.state.borrow_mut();
        let status = visit.reply.as_ref().map(|(status, _)| *status);
        let made = visit.change.is_none();
        // An unreadable ledger, a host that refuses and lost races are answered with 503.
        let expected = if state.plan.is_calm() && !state.checks.lines_touched { made } else { true };
        if made != (status == Some(200)) || !expected {
            state.broken("I22", format!("POST /config is answered with {status:?}, and changed: {made}"));
        }
    }

    /// Someone looks at the limits.
    pub fn poll(self: &Rc<Self>, vm: usize) {
        let Some(visit) = self.visit(vm, "GET", "/status", Vec::new(), None) else { return };
        let mut state = self.state.borrow_mut();
        let Some((200, body)) = visit.reply else {
            state.broken("I22", "GET /status is not answered with 200".to_owned());
            return;
        };
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let exact = state.plan.is_calm() && !state.checks.lines_touched && state.plan.races == 0;
        for (l, name) in NAMES.into_iter().enumerate().take(state.plan.limits.len()) {
            let limits = status["limits"].as_array();
            let seen = limits.and_then(|limits| limits.iter().find(|limit| limit["name"] == name));
            let Some(seen) = seen else {
                // Where the host refuses, the list of limits may not have been written.
                if state.plan.faults.refusals == 0 {
                    state.broken("I22", format!("/status does not know limit {l}"));
                }
                return;
            };
            let active = &seen["rules"]["in_force"]["rate_rpm"];
            let rate = state.checks.limits[l].settings.rate_rpm;
            let outcomes = seen["requests"]["outcomes"].as_object();
            let forwarded = outcomes.and_then(|outcomes| outcomes["forwarded"].as_i64()).unwrap_or(-1);
            let counted: i64 = state
                .expected
                .iter()
                .filter(|((of, _, label), _)| *of == Some(l) && *label == "forwarded")
                .map(|(_, n)| n)
                .sum();
            if exact && !state.checks.limits[l].corrupt && (*active != rate || forwarded != counted) {
                let what =
                    format!("/status says of limit {l}: {active} rpm, of {rate}; {forwarded} forwarded, of {counted}");
                state.broken("I22", what);
            }
        }
    }

    /// A request of the console comes and is answered, in its own callbacks.
    fn visit(
        self: &Rc<Self>,
        vm: usize,
        method: &str,
        path: &str,
        body: Vec<u8>,
        change: Option<(usize, Settings)>,
    ) -> Option<Visit> {
        let (context, root, size) = {
            let mut state = self.state.borrow_mut();
            if self.vms[vm].try_borrow_mut().is_err() || state.desks[vm].console == 0 {
                return None;
            }
            let context = State::new_context(&mut state.desks[vm]);
            state.note(|| format!("worker {vm} is asked {method} {path}: {}", String::from_utf8_lossy(&body)));
            let size = body.len() as u32;
            let pairs = [
                (":method", method),
                (":path", path),
                (":authority", "127.0.0.1:9191"),
                ("authorization", "Bearer token-of-the-simulation"),
                ("content-type", "application/json"),
            ];
            let headers = pairs.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
            state.visits.insert((vm, context), Visit { headers, body, change, reply: None });
            (context, state.desks[vm].console, size)
        };
        self.call::<_, ()>(vm, "proxy_on_context_create", context, (context, root));
        self.call::<_, u32>(vm, "proxy_on_request_headers", context, (context, 5u32, u32::from(size == 0)));
        if size > 0 {
            self.call::<_, u32>(vm, "proxy_on_request_body", context, (context, size, 1u32));
        }
        self.call::<_, ()>(vm, "proxy_on_log", context, context);
        self.call::<_, u32>(vm, "proxy_on_done", context, context);
        self.call::<_, ()>(vm, "proxy_on_delete", context, context);
        let mut state = self.state.borrow_mut();
        state.desks[vm].contexts.remove(&context);
        state.visits.remove(&(vm, context))
    }
}
