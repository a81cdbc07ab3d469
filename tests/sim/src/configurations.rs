//! Configurations and the root contexts that stand for them: how Envoy tries them, takes them up, drains them, and goes
//! back to one that still drains.

use crate::mutant::Mutant;
use crate::plan::{MILLI, SECOND, Settings, TOKEN};
use crate::state::{Desk, Event};
use crate::world::World;
use std::rc::Rc;

impl World {
    /// A configuration comes: a throw-away VM tries it, unless one has before. The VMs take it up later.
    pub fn reload(self: &Rc<Self>, new: Settings) {
        let canary = self.vms.len() - 1;
        let is_new = {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            let checks = &mut state.checks;
            checks.refill(now);
            // While the change is on its way either may hold.
            checks.rate = checks.rate.max(new.rate_rpm as i64);
            checks.capacity = checks.capacity.max(new.capacity as i64);
            checks.rate_max = checks.rate_max.max(new.rate_rpm as i64);
            checks.rate_min_floor = checks.rate_min_floor.min(new.floor_rpm as i64);
            checks.capacity_max = checks.capacity_max.max(new.capacity as i64);
            checks.reloaded |= now > 0;
            state.plan.settings = new;
            state.json = new.json(state.mutant);
            state.desks[canary] = Desk::default();
            if state.mutant == Some(Mutant::ReloadErases) && now > 0 {
                state.data.clear();
            }
            let json = state.json.clone();
            let is_new = !state.tried.contains_key(&json);
            state.tried.insert(json, new);
            state.note(|| format!("a configuration comes, {}: {new:?}", if is_new { "a new one" } else { "known" }));
            is_new
        };
        if is_new {
            self.start(canary);
            *self.vms[canary].borrow_mut() = None;
        }
        let mut state = self.state.borrow_mut();
        let now = state.now;
        // Envoy tells nobody that a configuration it has had before is in use again. The filter finds out by and by, so
        // until the end of the run any of them may be in force.
        // A worker that is stalled for longer than the filter waits goes on to use the old one, and may bring it back. And
        // where the host refuses changes, the new one comes when it can.
        if !is_new || state.plan.faults.stalls >= 5 * SECOND || state.plan.faults.refusals > 0 {
            state.checks.lenient |= now > 0;
        }
        let lenient = state.checks.lenient;
        let checks = &mut state.checks;
        checks.refill(now);
        if lenient {
            checks.rate = checks.rate_max;
            checks.capacity = checks.capacity_max;
        } else {
            checks.rate = new.rate_rpm as i64;
            checks.capacity = new.capacity as i64;
        }
        checks.level = checks.level.min(checks.capacity * TOKEN);
        checks.settings = Some(new);
        checks.configured_at = now;
    }

    /// Gives a VM a root context for the configuration in force: a new one, or the one that it still has.
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
