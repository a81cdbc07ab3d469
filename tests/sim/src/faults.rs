//! What goes wrong: stalls, crashes, clocks, corruption.

use crate::host::limit_at;
use crate::mutant::Mutant;
use crate::plan::{MILLI, SECOND, changed};
use crate::state::{Desk, End, Event, Phase};
use crate::world::World;
use std::rc::Rc;

impl World {
    pub fn fault(self: &Rc<Self>, event: Event) {
        let workers = self.vms.len() as u64 - 2;
        let vm = self.state.borrow_mut().rng.between(0, workers - 1) as usize;
        match event {
            Event::Stall(_) => {
                let mut state = self.state.borrow_mut();
                let most = state.plan.faults.stalls;
                let until = state.now + state.rng.between(MILLI, most);
                let until = until.max(state.desks[vm].stalled_until);
                state.desks[vm].stalled_until = until;
                state.checks.lines_touched = true;
                state.note(|| format!("worker {vm} stalls until {until}"));
            }
            Event::Crash(_) => self.crash(vm),
            Event::StepBack => {
                let mut state = self.state.borrow_mut();
                let most = state.plan.faults.clock;
                let long = state.mutant == Some(Mutant::LongStepBack);
                let by = if long { 60 * SECOND } else { state.rng.between(1, most) };
                state.behind += by;
                state.checks.stepped_back = true;
                state.note(|| format!("the clock steps back by {by} us"));
            }
            Event::Corrupt => {
                let mut state = self.state.borrow_mut();
                let unsettled = state.desks.iter().any(|desk| desk.unconfigured);
                let keys: Vec<_> = state.data.keys().filter(|(_, key)| limit_at(key).is_some()).cloned().collect();
                for key in keys.into_iter().filter(|_| !unsettled) {
                    let l = limit_at(&key.1);
                    state.cas += 1;
                    let version = state.cas;
                    if state.mutant == Some(Mutant::CorruptErases) {
                        state.data.remove(&key);
                    } else {
                        state.data.insert(key, (b"rubbish".to_vec(), version));
                    }
                    // Whoever finds it begins again, at that time, with an empty bucket.
                    if let Some(l) = l {
                        state.checks.limits[l].corrupt = true;
                        state.checks.limits[l].begins_at = None;
                        state.checks.limits[l].begun_anew = true;
                    }
                    state.checks.lines_touched = true;
                    state.note(|| "the ledger is corrupted".to_owned());
                }
            }
            Event::Reload => {
                let new = {
                    let mut state = self.state.borrow_mut();
                    if state.desks.iter().any(|desk| desk.unconfigured) {
                        return;
                    }
                    let before = state.plan.limits.clone();
                    let mut known: Vec<_> = state.tried.values().cloned().collect();
                    known.sort();
                    if state.rng.chance(400) {
                        let which = state.rng.between(0, known.len() as u64 - 1) as usize;
                        known.swap_remove(which)
                    } else {
                        let modes = state.plan.world.modes;
                        before.into_iter().map(|before| changed(&mut state.rng, before, modes)).collect()
                    }
                };
                self.reload(new);
                let mut state = self.state.borrow_mut();
                for vm in 0..self.vms.len() - 1 {
                    let wait = state.rng.between(0, 50 * MILLI);
                    state.desks[vm].unconfigured = true;
                    state.after(wait, Event::Configure(vm));
                }
            }
            _ => {}
        }
    }

    /// A worker's VM is gone, and with it all its streams; another takes its place.
    fn crash(self: &Rc<Self>, vm: usize) {
        {
            let mut state = self.state.borrow_mut();
            state.note(|| format!("worker {vm} crashes"));
            state.checks.crashes += 1;
            state.checks.lines_touched = true;
            for r in 0..state.requests.len() {
                let (l, model) = (state.requests[r].limit, state.requests[r].model);
                let request = &mut state.requests[r];
                let answers = request.phase == Phase::Answering;
                let open = !matches!(request.phase, Phase::Unborn | Phase::Over(_));
                if request.worker == vm && open {
                    request.phase = Phase::Over(End::Lost);
                    state.waiting.remove(&r);
                    if let (true, Some(model)) = (answers, model) {
                        state.checks.limits[l].coming[model] -= 1;
                    }
                }
            }
            // What it had not counted yet is lost with it.
            state.passed -= state.desks[vm].uncounted.0;
            let zombie = state.mutant == Some(Mutant::Zombie);
            let desk = &mut state.desks[vm];
            if zombie {
                desk.contexts.retain(|_, request| request.is_none());
                return;
            }
            *desk = Desk { epoch: desk.epoch + 1, stalled_until: desk.stalled_until, ..Desk::default() };
        }
        *self.vms[vm].borrow_mut() = None;
        self.start(vm);
    }
}
