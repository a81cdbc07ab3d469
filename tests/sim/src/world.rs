//! The process: the VMs and all they share, and how one callback leads to others.

use crate::checks::{Change, Commit};
use crate::host::{Deferred, OfLimit, without_home};
use crate::mutant::Mutant;
use crate::plan::{LIMITS_MAX, MILLI, SECOND};
use crate::state::{Event, State, WakeQueue};
use crate::vm::{Machine, Vm};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use wasmtime::{WasmParams, WasmResults};

/// The most messages that may lie in a queue: each of many workers wakes another for each event of many.
const MESSAGES_MAX: u32 = 1_000;

/// A place for a VM.
type Place = RefCell<Option<Vm>>;

/// The process.
pub struct World {
    pub machine: Arc<Machine>,
    pub state: RefCell<State>,
    /// The number of the bug that is planted in the module; 0 for none.
    pub planted: u32,
    /// The workers' VMs, then the main thread's, then the throw-away one.
    pub vms: Vec<Place>,
}

impl World {
    /// Makes a callback, and then what it asked for. `None` if the VM is not there or trapped.
    pub fn call<P: WasmParams, R: WasmResults>(
        self: &Rc<Self>,
        vm: usize,
        name: &str,
        context: u32,
        with: P,
    ) -> Option<(R, [OfLimit; LIMITS_MAX])> {
        let (result, limits, read_at, publishes, deferred) = {
            let mut place = self.vms[vm].try_borrow_mut().ok()?;
            let machine = place.as_mut()?;
            if OPTIONAL.contains(&name) && !machine.exports(name) {
                return None;
            }
            let result = machine.call::<P, R>(name, context, with);
            let frame = machine.frame();
            (result, frame.limits, frame.read_at, frame.publishes, machine.deferred())
        };
        for (l, known) in limits.iter().enumerate() {
            if publishes && known.agrees {
                // What waits here has been compared with the record, and nothing had to be changed.
                self.published(vm, l, read_at);
            }
            if known.tokens != 0 {
                self.state.borrow_mut().check_pairs(vm, l, known.tokens);
            }
        }
        {
            let mut state = self.state.borrow_mut();
            state.desks[vm].committed = Default::default();
            state.follow(vm);
        }
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                self.state.borrow_mut().broken("trap", format!("worker {vm} in {name}: {error:#}"));
                return None;
            }
        };
        for action in deferred {
            match action {
                Deferred::Done(root) => self.done(vm, root),
                Deferred::Resume(r) => self.resumed(r),
                Deferred::Reply(r, status, headers, body) => self.reply(r, status, headers, &body),
            }
        }
        Some((result, limits))
    }

    /// Starts a VM in a place, with a root context for the active configuration.
    pub fn start(self: &Rc<Self>, vm: usize) {
        match Vm::new(&self.machine, self, vm) {
            Ok(made) => *self.vms[vm].borrow_mut() = Some(made),
            Err(error) => self.state.borrow_mut().broken("trap", format!("VM {vm} does not start: {error:#}")),
        }
        self.configure(vm);
        self.open_console(vm);
    }

    /// Whether the host refuses a call.
    pub fn refuses(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let permille = if state.healed { 0 } else { state.plan.faults.refusals };
        permille > 0 && state.rng.chance(permille)
    }

    /// Lets another worker run inside a host call: what is due for it next happens now.
    pub fn race(self: &Rc<Self>) {
        let event = {
            let mut state = self.state.borrow_mut();
            let races = state.plan.races;
            if state.depth >= 3 || !state.rng.chance(races) {
                return;
            }
            let window = state.rng.between(0, 2 * MILLI);
            let until = (state.now + window + 1, 0, 0);
            let found = state.due.range(..until).find_map(|(key, event)| {
                let vm = state.vm_of(*event)?;
                let free = self.vms[vm].try_borrow_mut().is_ok() && state.desks[vm].stalled_until <= state.now;
                let simple =
                    !matches!(event, Event::Configure(_) | Event::RootDone { .. } | Event::Close(_) | Event::Post(_));
                (free && simple).then_some((*key, *event))
            });
            let Some((key, event)) = found else { return };
            state.due.remove(&key);
            state.now = state.now.max(key.0);
            state.depth += 1;
            state.note(|| format!("  meanwhile: {event:?}"));
            event
        };
        self.happen(event);
        self.state.borrow_mut().depth -= 1;
    }

    /// Puts a value into shared data; says whether it did, the number of the change, and whether the value decides anything.
    pub fn swap(&self, vm: usize, key: Vec<u8>, value: Vec<u8>, cas: u32) -> (bool, u64, bool) {
        let mut state = self.state.borrow_mut();
        let mutant = state.mutant;
        let space = if mutant == Some(Mutant::OwnData) { vm } else { 0 };
        let present = state.data.get(&(space, key.clone())).cloned();
        let matches = present.as_ref().is_none_or(|(_, version)| cas == 0 || *version == cas);
        let permille = if state.healed { 0 } else { state.plan.faults.lost_cas };
        let spurious = state.rng.chance(permille);
        let sabotaged = mutant == Some(Mutant::LostCasApplied) && state.rng.chance(100);
        let forever = mutant == Some(Mutant::LostForever) && state.checks.commits > 40;
        let done = (matches || mutant == Some(Mutant::Overwrite)) && !spurious && !sabotaged && !forever;
        state.checks.lost_in_a_row = if done || spurious { 0 } else { state.checks.lost_in_a_row + 1 };
        if state.checks.lost_in_a_row > 200 {
            state.broken("I13", "200 swaps in a row were lost, so nobody gets on".to_owned());
        }
        // A lease that is renewed decides nothing.
        let decided = present.as_ref().is_none_or(|(old, _)| without_home(old) != without_home(&value));
        if done || sabotaged {
            state.cas += 1;
            let version = state.cas;
            if let Some((old, _)) = present {
                state.older.insert(key.clone(), old);
            }
            state.data.insert((space, key), (value, version));
        }
        if done && decided {
            state.checks.commits += 1;
        }
        (done, state.checks.commits, decided)
    }

    /// A VM has changed the ledger of a limit; if its callback publishes, all that waits there is known from now on.
    pub fn committed(&self, vm: usize, context: u32, l: usize, publishes: bool, made: Commit) {
        let mut state = self.state.borrow_mut();
        let visit = state.visits.get_mut(&(vm, context)).filter(|visit| visit.change.is_some_and(|(of, _)| of == l));
        let change = visit.and_then(|visit| visit.change.take());
        let unused = if publishes { std::mem::take(&mut state.desks[vm].unused[l]) } else { Vec::new() };
        let limit = &mut state.checks.limits[l];
        limit.commit = made.number;
        let flow = change.map(|(_, new)| limit.change_settings(new, made.at));
        limit.posted |= flow.is_some();
        let begins_anew = std::mem::take(&mut limit.corrupt);
        // A new record is written before what the callback decides on it.
        let charging = state.desks[vm].charging.take_if(|(of, _)| *of == l && !begins_anew);
        let retries = charging.map_or(0, |(_, retries)| retries);
        let limit = &mut state.checks.limits[l];
        let change = Change { by: vm, commit: made, begins_anew, flow, unused, retries, ..Change::default() };
        limit.changes.push_back(change);
        if begins_anew {
            // The new record says nothing of who waits; each worker looks at it within the time between two of its looks.
            let waiting: Vec<usize> = state.waiting.iter().copied().collect();
            for r in waiting {
                let request = &mut state.requests[r];
                if request.limit == l && request.published_at > 0 {
                    request.published = None;
                    request.published_at = made.at + 2 * SECOND;
                }
            }
        }
        if !publishes {
            return;
        }
        state.desks[vm].committed[l] = true;
        state.desks[vm].published[l] = made.number;
        drop(state);
        self.published(vm, l, made.at);
    }

    /// The record of a limit says of a worker what waits there.
    fn published(&self, vm: usize, l: usize, at: u64) {
        let mut state = self.state.borrow_mut();
        state.desks[vm].untold[l] = 0;
        let number = state.checks.commits;
        let unknown: Vec<usize> =
            state.waiting.iter().copied().filter(|r| state.requests[*r].published.is_none()).collect();
        for r in unknown {
            if state.requests[r].worker == vm && state.requests[r].limit == l {
                state.requests[r].published = Some(number);
                state.requests[r].published_at = at;
            }
        }
    }

    /// Registers a queue; the last one to do so for a name is woken.
    pub fn register_queue(&self, vm: usize, context: u32, name: Vec<u8>) -> u32 {
        let mut state = self.state.borrow_mut();
        let root = match state.request_of(vm, context) {
            Some(r) => state.requests[r].root,
            None => context,
        };
        let known = state.queues.iter().position(|queue| queue.name == name);
        let at = known.unwrap_or_else(|| {
            state.queues.push(WakeQueue { name, vm, root, items: 0 });
            state.queues.len() - 1
        });
        state.queues[at].vm = vm;
        state.queues[at].root = root;
        at as u32 + 1
    }

    /// Puts a message into a queue; its owner is told a little later.
    pub fn enqueue(&self, vm: usize, token: u32) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(queue) = state.queues.get_mut((token as usize).wrapping_sub(1)) else { return false };
        queue.items += 1;
        let (woken, items) = (queue.vm, queue.items);
        state.note(|| format!("worker {vm} wakes worker {woken}"));
        if items > MESSAGES_MAX {
            state.broken("I13", format!("{items} messages lie in one queue: they are answered with more"));
        }
        let permille = if state.healed { 0 } else { state.plan.faults.lost_wakes };
        let lost = state.mutant == Some(Mutant::DropWakes) || state.rng.chance(permille);
        if !lost {
            let wait = state.rng.between(10, 1_000);
            state.after(wait, Event::QueueReady(token));
        }
        true
    }

    /// Arms the timer of a context's root context.
    pub fn set_timer(&self, vm: usize, context: u32, period: u32) {
        let mut state = self.state.borrow_mut();
        let root = match state.request_of(vm, context) {
            Some(r) => state.requests[r].root,
            None => context,
        };
        state.numbers += 1;
        let armed = state.numbers;
        let period = u64::from(period) * MILLI;
        state.desks[vm].timers.insert(root, (period, armed));
        state.note(|| format!("worker {vm} sets the timer of {root} to {period} us"));
        if period > 0 {
            let late = state.tick_lateness();
            state.after(period + late, Event::Tick { vm, root, armed });
        }
    }

    /// Changes a counter or gauge.
    pub fn increment(&self, vm: usize, context: u32, id: usize, offset: i64) -> u32 {
        let mut state = self.state.borrow_mut();
        let Some((name, kind, _)) = state.metrics.get(id).cloned() else { return 1 };
        if kind == 2 || (kind == 0 && offset <= 0) {
            return 2;
        }
        let lost = match state.mutant {
            Some(Mutant::DropCounts) => kind == 0 && state.rng.chance(50),
            Some(Mutant::DropGauge) => kind == 1 && offset < 0 && state.rng.chance(50),
            _ => false,
        };
        if !lost {
            state.metrics[id].2 += offset;
        }
        state.note(|| format!("worker {vm} adds {offset} to {name}"));
        // Only the callback of the request itself makes it fall back, so that tells which one it is.
        if name.ends_with("nimgate_fallback_total")
            && let Some(r) = state.request_of(vm, context)
        {
            state.requests[r].fallback = true;
        }
        if name == "nimgate_passthrough_total" {
            let (uncounted, since) = state.desks[vm].uncounted;
            state.desks[vm].uncounted.0 -= offset;
            let late = state.now.saturating_sub(since.max(state.desks[vm].stalled_until));
            if uncounted > 0 && late > 2 * SECOND + state.plan.faults.late_ticks {
                state.broken("I20", format!("a request that passed is counted {late} µs later"));
            }
        }
        0
    }
}

/// Callbacks that a module may lack; Envoy then goes on without them.
const OPTIONAL: [&str; 2] = ["proxy_on_vm_start", "proxy_on_log"];
