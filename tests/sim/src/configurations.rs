//! Configurations and the root contexts that stand for them: how Envoy tries them, takes them up, drains them, and goes
//! back to one that still drains.

use crate::mutant::Mutant;
use crate::plan::{MILLI, Settings, json};
use crate::state::{Desk, Event};
use crate::world::World;
use std::rc::Rc;

impl World {
    /// A configuration comes: a throw-away VM tries it, unless one has before. The VMs take it up later.
    pub fn reload(self: &Rc<Self>, new: Vec<Settings>) {
        let canary = self.vms.len() - 1;
        {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            state.checks.reloaded |= now > 0;
            state.json = json(&new, state.mutant);
            if state.tried.contains_key(&state.json) {
                // Envoy tells nobody that a configuration it has had before is in use again; an operator who goes back to
                // one changes its revision, so that it is another.
                let revision = state.tried.len();
                state.json = state.json.replacen('{', &format!("{{\"revision\":{revision},"), 1);
            }
            state.plan.limits.clone_from(&new);
            state.desks[canary] = Desk::default();
            if state.mutant == Some(Mutant::ReloadErases) && now > 0 {
                state.data.clear();
            }
            let json = state.json.clone();
            state.tried.insert(json, new.clone());
            state.note(|| format!("a configuration comes: {new:?}"));
            // A worker that is stalled takes up an old one late, and for a moment brings its rules back. And where the host
            // refuses changes, the new one comes when it can.
            if state.plan.faults.stalls > 0 || state.plan.faults.refusals > 0 {
                state.checks.lenient |= now > 0;
            }
            for (limit, new) in state.checks.limits.iter_mut().zip(&new) {
                limit.changed_at = now;
                // Settings that an operator has changed stay until the configuration's own change.
                limit.in_flux = *new != limit.configured;
                if limit.in_flux {
                    limit.may_change(*new, now);
                }
            }
        }
        self.start(canary);
        *self.vms[canary].borrow_mut() = None;
        let mut state = self.state.borrow_mut();
        let (now, lenient) = (state.now, state.checks.lenient);
        for (limit, new) in state.checks.limits.iter_mut().zip(new) {
            if std::mem::take(&mut limit.in_flux) {
                limit.configured = new;
                if lenient {
                    limit.settings = new;
                } else {
                    limit.change(new, now);
                }
            }
        }
    }

    /// Gives a VM a root context for the active configuration: a new one, or the one that it still has.
    pub fn configure(self: &Rc<Self>, vm: usize) {
        let (root, size, is_new) = {
            let mut state = self.state.borrow_mut();
            let (json, size) = (state.json.clone(), state.json.len() as u32);
            let desk = &mut state.desks[vm];
            let (old, epoch) = (desk.root, desk.epoch);
            let known = desk.roots.get(&json).copied();
            let root = known.unwrap_or(desk.next_context + 1);
            if known.is_none() {
                desk.next_context = root;
                desk.contexts.insert(root, None);
                desk.roots.insert(json, root);
            }
            desk.root = root;
            desk.unconfigured = false;
            if old != 0 && old != root {
                let wait = state.rng.between(100, 9_000) * MILLI;
                state.after(wait, Event::RootDone { vm, root: old, epoch });
            }
            state.note(|| format!("worker {vm} uses root context {root}"));
            (root, size, known.is_none())
        };
        if !is_new {
            return;
        }
        self.call::<_, ()>(vm, "proxy_on_context_create", root, (root, 0u32));
        self.call::<_, u32>(vm, "proxy_on_vm_start", root, (root, 0u32));
        if let Some((0u32, ..)) = self.call(vm, "proxy_on_configure", root, (root, size)) {
            self.state.borrow_mut().broken("I15", format!("worker {vm} refuses a valid configuration"));
        }
    }

    /// An old root context goes when its last stream has gone, if it is not in use again.
    pub fn root_done(self: &Rc<Self>, vm: usize, root: u32, epoch: u64) {
        {
            let mut state = self.state.borrow_mut();
            let desk = &mut state.desks[vm];
            if desk.epoch != epoch || desk.root == root || !desk.roots.values().any(|known| *known == root) {
                return;
            }
            // No stream comes on its connections any more.
            desk.connections.retain(|(_, of)| *of != root);
            let open = state.desks[vm].contexts.values().flatten().any(|r| state.requests[*r].root == root);
            if open {
                state.after(500 * MILLI, Event::RootDone { vm, root, epoch });
                return;
            }
            state.desks[vm].roots.retain(|_, known| *known != root);
            state.desks[vm].pending.insert(root);
            state.note(|| format!("worker {vm} gives up root context {root}"));
        }
        if let Some((1u32, ..)) = self.call(vm, "proxy_on_done", root, root) {
            self.done(vm, root);
        }
    }

    /// A root context that Envoy has given up is done, and goes.
    pub fn done(self: &Rc<Self>, vm: usize, root: u32) {
        if !self.state.borrow_mut().desks[vm].pending.remove(&root) {
            return;
        }
        self.call::<_, ()>(vm, "proxy_on_delete", root, root);
        let mut state = self.state.borrow_mut();
        state.desks[vm].contexts.remove(&root);
        state.desks[vm].timers.remove(&root);
    }
}
