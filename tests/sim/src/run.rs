//! A run: what happens at each event, the faults, and the end, at which everything must be at rest.

use crate::checks::{Checks, Limit, Violation};
use crate::clients::draw;
use crate::mutant::Mutant;
use crate::plan::{MILLI, Plan, SECOND, json};
use crate::rng::Rng;
use crate::state::{Desk, End, Event, Phase, State};
use crate::vm::Machine;
use crate::world::World;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// How a run went.
pub struct Report {
    pub violation: Option<Violation>,
    pub trace: Vec<String>,
    pub grants: u64,
    pub ends: BTreeMap<End, u64>,
    pub worst_idle: u64,
}

/// A bug that is looked for: in the simulated host, or the one with this number in the module.
#[derive(Clone, Copy, Debug)]
pub enum Planted {
    Host(Mutant),
    Filter(u32),
}

/// Runs a plan to its end or to the first broken invariant.
pub fn run(machine: &Arc<Machine>, plan: Plan, planted: Option<Planted>, verbose: bool) -> Report {
    let world = process(machine, plan, planted, verbose);
    world.schedule();
    while world.state.borrow().checks.first.is_none() && world.step() {}
    if world.state.borrow().checks.first.is_none() {
        world.at_rest();
    }
    // The VMs hold the world: without this neither would ever go.
    for vm in &world.vms {
        *vm.borrow_mut() = None;
    }
    let state = world.state.borrow();
    let mut ends = BTreeMap::new();
    for request in &state.requests {
        if let Phase::Over(end) = request.phase {
            *ends.entry(end).or_default() += 1;
        }
    }
    Report {
        violation: state.checks.first.clone(),
        trace: state.trace.iter().cloned().collect(),
        grants: state.checks.grants,
        ends,
        worst_idle: state.checks.worst_idle,
    }
}

/// A process whose workers have started and in which nothing happens yet.
pub fn process(machine: &Arc<Machine>, plan: Plan, planted: Option<Planted>, verbose: bool) -> Rc<World> {
    let workers = plan.workers;
    let (mutant, planted) = match planted {
        Some(Planted::Host(mutant)) => (Some(mutant), 0),
        Some(Planted::Filter(number)) => (None, number),
        None => (None, 0),
    };
    let world = Rc::new(World {
        machine: Arc::clone(machine),
        state: RefCell::new(begin(plan, mutant, verbose)),
        planted,
        vms: (0..workers + 2).map(|_| RefCell::new(None)).collect(),
    });
    let first = world.state.borrow().plan.limits.clone();
    world.reload(first);
    for vm in 0..=workers {
        world.start(vm);
    }
    world
}

fn begin(plan: Plan, mutant: Option<Mutant>, verbose: bool) -> State {
    let mut rng = Rng::new(plan.seed);
    let probes = 6 * plan.workers;
    let requests = (0..plan.requests as usize + probes).map(|r| draw(&mut rng, &plan, r)).collect();
    let models = plan.world.models.len();
    State {
        desks: vec![Desk::default(); plan.workers + 2],
        ends_at: plan.gap * plan.requests,
        checks: Checks {
            limits: plan.limits.iter().map(|settings| Limit::new(*settings, models)).collect(),
            ..Checks::default()
        },
        json: json(&plan.limits, mutant),
        plan,
        mutant,
        rng,
        now: 0,
        behind: 0,
        due: BTreeMap::new(),
        numbers: 0,
        steps: 0,
        depth: 0,
        healed: false,
        data: HashMap::new(),
        older: HashMap::new(),
        cas: 0,
        queues: Vec::new(),
        metric_ids: HashMap::new(),
        metrics: Vec::new(),
        requests,
        waiting: BTreeSet::new(),
        upstream: HashMap::new(),
        visits: HashMap::new(),
        trace: VecDeque::new(),
        verbose,
        expected: BTreeMap::new(),
        passed: 0,
        tried: HashMap::new(),
        connections: 0,
        looked: Vec::new(),
        answers: BTreeMap::new(),
        retries: Default::default(),
    }
}

impl State {
    /// How late the next tick is.
    pub fn tick_lateness(&mut self) -> u64 {
        let most = if self.healed { 0 } else { self.plan.faults.late_ticks };
        self.rng.between(0, most.max(2 * MILLI))
    }
}

impl World {
    /// Puts what starts the run on the list.
    fn schedule(&self) {
        let mut state = self.state.borrow_mut();
        let (ends_at, ordinary) = (state.ends_at, state.plan.requests as usize);
        state.at(0, Event::Arrive(0));
        for r in ordinary..state.requests.len() {
            // In two waves: with the second the filter knows which configuration is in use.
            let wave = if r % 2 == 0 { 45 } else { 52 };
            let calm = ends_at + wave * SECOND + state.rng.between(0, SECOND);
            state.at(calm, Event::Arrive(r));
        }
        let faults = state.plan.faults;
        let mut times = |on: bool, event: Event| {
            for _ in 0..if on { state.rng.between(1, 4) } else { 0 } {
                let at = state.rng.between(0, ends_at);
                state.at(at, event);
            }
        };
        times(faults.corrupt, Event::Corrupt);
        times(faults.clock > 0, Event::StepBack);
        times(faults.reloads, Event::Reload);
        times(faults.reloads, Event::Reload);
        times(faults.stalls > 0, Event::Stall(usize::MAX));
        times(faults.crashes, Event::Crash(usize::MAX));
        let (world, workers) = (state.plan.world.clone(), state.plan.workers as u64);
        type OfWorker = fn(usize) -> Event;
        let kinds: [(u64, OfWorker); 3] =
            [(world.posts, Event::Post), (world.polls, Event::Poll), (world.closes, Event::Close)];
        for (count, event) in kinds {
            for _ in 0..count {
                let (at, vm) = (state.rng.between(0, ends_at), state.rng.between(0, workers - 1) as usize);
                state.at(at, event(vm));
            }
        }
    }

    /// Lets the next thing happen; says whether there was one.
    pub fn step(self: &Rc<Self>) -> bool {
        let event = {
            let mut state = self.state.borrow_mut();
            let Some(((time, ..), event)) = state.due.pop_first() else { return false };
            if time > state.now {
                state.check_waiting(time);
                state.now = time;
            }
            if time > state.ends_at && !state.healed {
                state.healed = true;
                state.note(|| "the faults are over".to_owned());
            }
            // What a minute's window has learned is forgotten after four hours.
            if time > state.ends_at + 18_000 * SECOND {
                state.broken("I10", "five hours after the last request timers still run".to_owned());
            }
            event
        };
        self.happen(event);
        let mut state = self.state.borrow_mut();
        state.steps += 1;
        if state.steps > state.plan.steps_max() {
            let steps = state.steps;
            state.broken("I13", format!("after {steps} events there is still something to do"));
        }
        state.check_tokens();
        state.check_gauges();
        true
    }

    /// Lets an event happen, unless the worker it is for is stalled.
    pub fn happen(self: &Rc<Self>, event: Event) {
        {
            let mut state = self.state.borrow_mut();
            if let Some(vm) = state.vm_of(event) {
                let until = state.desks[vm].stalled_until;
                if until > state.now {
                    let late = state.rng.between(0, MILLI);
                    state.at(until + late, event);
                    return;
                }
            }
        }
        match event {
            Event::Arrive(r) => self.arrive(r),
            Event::Body(r) => self.body(r),
            Event::Leave(r) => self.leave(r),
            Event::Answer(r) => self.answer(r),
            Event::AnswerEnd(r) => self.answer_end(r),
            Event::Local(r) => self.locally(r),
            Event::Close(vm) => self.close(vm),
            Event::Post(vm) => self.post(vm),
            Event::Poll(vm) => self.poll(vm),
            Event::Tick { vm, root, armed } => self.tick(vm, root, armed),
            Event::QueueReady(token) => {
                let (vm, root) = {
                    let state = self.state.borrow();
                    let queue = &state.queues[token as usize - 1];
                    (queue.vm, queue.root)
                };
                // Envoy delivers to whatever context has that number now.
                if self.state.borrow().desks[vm].contexts.contains_key(&root) {
                    self.call::<_, ()>(vm, "proxy_on_queue_ready", root, (root, token));
                }
            }
            Event::Configure(vm) => self.configure(vm),
            Event::RootDone { vm, root, epoch } => self.root_done(vm, root, epoch),
            fault => self.fault(fault),
        }
    }

    fn tick(self: &Rc<Self>, vm: usize, root: u32, armed: u64) {
        {
            let state = self.state.borrow();
            let current = state.desks[vm].timers.get(&root).is_some_and(|(_, number)| *number == armed);
            let stopped = state.mutant == Some(Mutant::CrashSpreads) && state.checks.crashes > 0;
            if !current || stopped || (state.mutant == Some(Mutant::DropTicks) && vm == 0) {
                return;
            }
        }
        self.state.borrow_mut().note(|| format!("worker {vm} ticks"));
        self.call::<_, ()>(vm, "proxy_on_tick", root, root);
        // As in Envoy the timer is armed again after the callback, unless that has set it itself.
        let mut state = self.state.borrow_mut();
        if let Some((period, number)) = state.desks[vm].timers.get(&root).copied()
            && number == armed
            && period > 0
        {
            let late = state.tick_lateness();
            state.after(period + late, Event::Tick { vm, root, armed });
        }
    }
}
