//! The schedulers of several workers on one store, in virtual time, and what became of the requests that they were given.

use super::list::{End, Ends, List, Shadowed};
use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::event::{Event as Happening, Happened};
use nimgate_core::limit::home::{Company, Home, QUIET};
use nimgate_core::limit::ledger::{GRACE, Ledger};
use nimgate_core::limit::record::tlv;
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::{LANES, Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::scheduler::{Action, Output, Scheduler};
use nimgate_core::store::{MemoryStore, Store, StoreError, Swap, Version};
use nimgate_core::units::{Instant, LimitId, RequestId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub const WORKERS: usize = 4;
pub const START: Instant = Instant::from_micros(1_000_000_000);

/// The models that clients ask for.
pub const MODELS: [&str; 4] = ["a/one", "b/two", "c/three", "d/four"];

/// A limit, as the fleet as a whole has it.
pub struct Limit {
    pub name: String,
    /// What should become of it, while all workers do at once what they are told.
    pub list: List,
    pub gauges: [i64; LANES],
    pub shadowed: Vec<Shadowed>,
    pub granted: BTreeMap<ModelKey, u32>,
    openings: Option<(Version, BTreeMap<ModelKey, Instant>)>,
    /// The ledger as it was last read, since that costs more than all else.
    read: Option<(Instant, Version, Rc<Ledger>)>,
    /// Whether models are slowed by what was read then, before time went on.
    slows: bool,
}

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub limit: usize,
    pub worker: usize,
    pub since: Instant,
    pub model: usize,
}

/// A request that was let go and whose stream has not ended.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub limit: usize,
    pub worker: usize,
    pub granted_at: Instant,
    pub model: usize,
}

/// A store that takes note of who is looked at.
pub struct Looked {
    pub inner: MemoryStore,
    looked: BTreeSet<String>,
}

impl Store for Looked {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.looked.insert(key.to_owned());
        self.inner.load(key)
    }

    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        self.inner.swap(key, value, version)
    }

    fn now(&mut self) -> Instant {
        self.inner.now
    }
}

/// The workers, on one store.
pub struct Fleet {
    pub workers: [Scheduler; WORKERS],
    pub stalled_until: [Instant; WORKERS],
    /// Wake-ups on their way.
    woken: [bool; WORKERS],
    pub store: Looked,
    pub limits: Vec<Limit>,
    pub now: Instant,
    pub waiting: BTreeMap<u32, Waiting>,
    pub streams: BTreeMap<u32, Stream>,
    pub ends: Ends,
    /// When the grants were that were sent, or may still be.
    pub sent: BTreeMap<u32, (usize, Instant)>,
    /// Whether the lists are kept up with: not where workers stall.
    with_lists: bool,
}

impl Fleet {
    pub fn new(limits: &[Rules], with_lists: bool) -> Self {
        let mut fleet = Self {
            // As the module runs: the ledger has a lease, and version 1's key is watched.
            workers: std::array::from_fn(|_| Scheduler::among(Company::Mixed(QUIET))),
            stalled_until: [START; WORKERS],
            woken: [false; WORKERS],
            store: Looked { inner: MemoryStore::at(START), looked: BTreeSet::new() },
            limits: Vec::new(),
            now: START,
            waiting: BTreeMap::new(),
            streams: BTreeMap::new(),
            ends: Ends::new(),
            sent: BTreeMap::new(),
            with_lists,
        };
        for (at, rules) in limits.iter().enumerate() {
            let name = format!("l{at}");
            for worker in &mut fleet.workers {
                worker.configure(&name, *rules, &mut fleet.store);
            }
            let list = List::new(*rules, START);
            let (gauges, shadowed, granted) = Default::default();
            fleet.limits.push(Limit {
                name,
                list,
                gauges,
                shadowed,
                granted,
                openings: None,
                read: None,
                slows: false,
            });
        }
        fleet
    }

    /// When worker `at` does something next by itself.
    pub fn next(&self, at: usize) -> Option<Instant> {
        let woken = self.woken[at].then_some(self.now);
        self.workers[at].next_wakeup().into_iter().chain(woken).min().map(|due| due.max(self.stalled_until[at]))
    }

    /// Lets time pass, from one thing that is due to the next.
    pub fn pass_to(&mut self, then: Instant) {
        let mut at_once = 0;
        while let Some((due, at)) = (0..WORKERS).filter_map(|at| Some((self.next(at)?, at))).min()
            && due <= then
        {
            at_once = if due > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 1_000, "the workers run in circles");
            self.now = self.now.max(due);
            self.wake(at);
            self.no_token_idles();
        }
        self.now = then;
        self.lists_pass();
        self.no_token_idles();
    }

    /// What the ledger of a limit says now.
    pub fn ledger(&mut self, limit: usize) -> Rc<Ledger> {
        let key = tlv::key(&self.limits[limit].name);
        let (bytes, version) = self.store.inner.load(&key).ok().flatten().expect("a record");
        if let Some((at, of, ledger)) = &self.limits[limit].read
            && (*at, *of) == (self.now, version)
        {
            return Rc::clone(ledger);
        }
        let mut ledger = Ledger::decode(&bytes).expect("a record that can be read");
        self.limits[limit].slows = !ledger.models().slowed().is_empty();
        ledger.advance(self.now, &mut Vec::new());
        let ledger = Rc::new(ledger);
        self.limits[limit].read = Some((self.now, version, Rc::clone(&ledger)));
        ledger
    }

    /// Brings the lists to the present, without what is due now.
    fn lists_pass(&mut self) {
        for limit in self.limits.iter_mut().filter(|_| self.with_lists) {
            limit.list.pass_to(self.now);
        }
    }

    /// Lets the lists do what is due now, and tells them from when on slowed models may go after that.
    fn lists_settle(&mut self) {
        for limit in 0..if self.with_lists { self.limits.len() } else { 0 } {
            let key = tlv::key(&self.limits[limit].name);
            let (bytes, version) = self.store.inner.load(&key).ok().flatten().expect("a record");
            let Limit { list, granted, openings, .. } = &mut self.limits[limit];
            list.settle();
            // Only what is written there: that time alone would change it is for the next look to say.
            if openings.as_ref().is_none_or(|(of, _)| *of != version) {
                let ledger = Ledger::decode(&bytes).expect("a record that can be read");
                *openings = Some((version, ledger.models().openings().into_iter().collect()));
            }
            if let Some((_, openings)) = openings {
                list.told_openings(openings, granted);
                list.settle();
                list.told_openings(openings, granted);
            }
        }
    }

    fn wake(&mut self, at: usize) {
        let woken = std::mem::take(&mut self.woken[at]);
        self.run(at, |worker, id, store| worker.wake(woken, id, store));
        self.lists_settle();
    }

    /// Runs one callback of a worker and does what it says.
    fn run(&mut self, at: usize, call: impl FnOnce(&mut Scheduler, WorkerId, &mut Looked) -> Output) -> Vec<Happened> {
        self.lists_pass();
        self.store.inner.now = self.now;
        self.store.looked.clear();
        let may_go_before: Vec<Rc<Ledger>> = (0..self.limits.len()).map(|limit| self.ledger(limit)).collect();
        let output = call(&mut self.workers[at], WorkerId(at as u32 + 1), &mut self.store);
        // Who looked decided by what time had changed until then.
        for (limit, ledger) in self.limits.iter_mut().zip(&may_go_before) {
            if self.with_lists && self.store.looked.contains(&tlv::key(&limit.name)) {
                limit.list.told_openings(&ledger.models().openings().into_iter().collect(), &limit.granted);
            }
        }
        self.execute(output.actions, &may_go_before);
        for (limit, event) in &output.events {
            let limit = &mut self.limits[limit.0];
            match event {
                Happening::QueueChanged(differences) => {
                    for (total, difference) in limit.gauges.iter_mut().zip(differences) {
                        *total += difference;
                    }
                }
                Happening::QueueCounted(waiting) => limit.gauges = waiting.map(i64::from),
                Happening::Shadowed { level, outcome, waited } => {
                    limit.shadowed.push((self.now, *level, outcome.label(), *waited));
                }
                // In shadow mode too, where nothing is granted otherwise.
                Happening::Granted { request, .. } => {
                    let model = request.0 as usize % (MODELS.len() + 1);
                    *limit.granted.entry(model_key(model)).or_default() += 1;
                }
                _ => {}
            }
        }
        output.events
    }

    fn execute(&mut self, actions: Vec<Action>, before: &[Rc<Ledger>]) {
        for action in actions {
            match action {
                Action::Resume { request: RequestId(id), granted_at, .. } => {
                    let Waiting { limit, worker, model, .. } = self.end(id, End::Granted);
                    let opens = before[limit].models().open_at(model_key(model));
                    let is_shadow = self.limits[limit].list.rules.shadow;
                    assert!(is_shadow || opens <= self.now, "{id} goes at {:?}, its model at {opens:?}", self.now);
                    self.streams.insert(id, Stream { limit, worker, granted_at, model });
                    self.sent.insert(id, (limit, self.now));
                    if let (Some(cap), false) = (before[limit].rules().max_in_flight, is_shadow) {
                        let in_flight = self.streams.values().filter(|stream| stream.limit == limit).count();
                        assert!(in_flight <= cap as usize, "{in_flight} in flight, and no more than {cap} may be");
                    }
                }
                Action::Reply { request, outcome: Outcome::RateLimited, .. } => {
                    self.end(request.0, End::Expired);
                }
                Action::Reply { request, outcome: Outcome::QueueFull, .. } => {
                    self.end(request.0, End::Full);
                }
                Action::Reply { outcome, .. } => panic!("a scheduler does not answer {outcome:?}"),
                Action::Wake(worker) => self.woken[worker.0 as usize - 1] = true,
            }
        }
    }

    fn end(&mut self, id: u32, how: End) -> Waiting {
        let waiting = self.waiting.remove(&id);
        let waiting = waiting.unwrap_or_else(|| panic!("{id} ends as {how:?} and does not wait"));
        self.ends.insert(id, (self.now, how));
        waiting
    }

    /// A request comes. Its number says which model it asks for, so that events need not.
    pub fn arrive(&mut self, at: usize, limit: usize, id: u32, priority: Priority) {
        let model = id as usize % (MODELS.len() + 1);
        self.waiting.insert(id, Waiting { limit, worker: at, since: self.now, model });
        let request = Request::new(RequestId(id), Lane::Queued(priority), model_key(model));
        self.run(at, |worker, me, store| worker.arrive(LimitId(limit), request, me, store));
        self.limits[limit].list.arrive(id, priority, model_key(model));
        self.lists_settle();
        self.pass_to(self.now);
    }

    pub fn leave(&mut self, id: u32) {
        let Waiting { limit, worker, .. } = self.waiting[&id];
        self.workers[worker].leave(LimitId(limit), RequestId(id));
        self.end(id, End::Left);
        self.lists_pass();
        if self.limits[limit].list.waiting.iter().any(|waiting| waiting.id == id) {
            self.limits[limit].list.end(id, End::Left);
        }
        self.pass_to(self.now);
    }

    /// The stream of a granted request ends. Answers what was said of its token and what the list says, if it was never
    /// sent and the limit's tokens are counted.
    pub fn end_stream(&mut self, id: u32, was_sent: bool) -> Option<(bool, bool)> {
        let stream = self.streams.remove(&id)?;
        self.lists_pass();
        let may_go_back = !was_sent && self.limits[stream.limit].list.may_go_back(id);
        let events = self.run(stream.worker, |worker, me, store| {
            let matters = worker.end(LimitId(stream.limit), RequestId(id), was_sent);
            if matters { worker.wake(false, me, store) } else { Output::default() }
        });
        let returned = events.iter().find_map(|(_, event)| match event {
            Happening::Unused { returned } => Some(*returned),
            _ => None,
        });
        let list = &mut self.limits[stream.limit].list;
        list.end_stream(id);
        if let Some(returned) = returned {
            list.take_back(id, stream.granted_at, returned);
            self.sent.remove(&id);
        }
        self.lists_settle();
        self.pass_to(self.now);
        returned.map(|returned| (returned, may_go_back))
    }

    /// The upstream answers a request that was let go, after some retries of Envoy's router.
    pub fn answer(&mut self, id: u32, signal: Signal, retries: u32) {
        let Stream { limit, worker, granted_at, model } = self.streams[&id];
        let name = MODELS.get(model).map_or(ModelName::NONE, |name| ModelName::new(name));
        let answer = Answer { granted_at, signal, retry_after: None, model: (model_key(model), name) };
        self.run(worker, |worker, _, store| worker.answer(LimitId(limit), answer, retries, store));
        self.limits[limit].list.charge(retries);
        self.lists_settle();
        self.pass_to(self.now);
    }

    /// Retries of which no answer tells.
    pub fn charge(&mut self, at: usize, limit: usize, retries: u32) {
        self.run(at, |worker, _, store| worker.charge(LimitId(limit), retries, store));
        self.limits[limit].list.charge(retries);
        self.lists_settle();
        self.pass_to(self.now);
    }

    /// A configuration comes, to one worker after the other.
    pub fn configure(&mut self, limit: usize, rules: Rules) {
        self.lists_pass();
        self.limits[limit].list.configure(rules);
        self.store.inner.now = self.now;
        for worker in &mut self.workers {
            worker.configure(&self.limits[limit].name, rules, &mut self.store);
        }
        self.lists_settle();
        self.pass_to(self.now);
    }

    /// An operator overrides the rules, and who waits is woken.
    pub fn override_rules(&mut self, limit: usize, rules: Rules) {
        self.lists_pass();
        self.limits[limit].list.replace_rules(rules);
        self.store.inner.now = self.now;
        let mut home = Home::new(&self.limits[limit].name, Company::Mixed(QUIET));
        let written = home.decide(None, rules, &mut self.store, |mut ledger, _, now| {
            ledger.advance(now, &mut Vec::new());
            ledger.override_rules(rules, now, &mut Vec::new());
            (Some(ledger), ())
        });
        written.expect("the store works");
        self.lists_settle();
        self.woken = [true; WORKERS];
        self.pass_to(self.now);
    }

    /// Checks that no token is there for longer than a grace for each worker that stalls while someone waits elsewhere.
    /// It holds where nothing but the bucket bounds what is granted.
    fn no_token_idles(&mut self) {
        // Who looks in this moment may yet take it: a change of the rules can free a token for a worse one, and all look
        // at once then.
        if (0..WORKERS).any(|at| self.next(at).is_some_and(|due| due <= self.now)) {
            return;
        }
        for limit in 0..self.limits.len() {
            let rules = self.limits[limit].list.rules;
            let ledger = self.ledger(limit);
            // A model that time alone has brought back to full speed is so for all with the next look; until then its
            // requests wait for the opening that they know of.
            let others = rules.window.get() > 0 || rules.max_in_flight.is_some() || self.limits[limit].slows;
            if others || rules.shadow || !ledger.bucket().is_ready() {
                continue;
            }
            for (id, Waiting { worker: at, since, .. }) in self.waiting.iter().filter(|(_, of)| of.limit == limit) {
                let start = ledger.bucket().ready_since().max(*since).max(self.stalled_until[*at]);
                let waited = self.now.since(start);
                let others_stall = self.stalled_until.iter().filter(|until| until.after(GRACE) >= start).count() as u64;
                let awake = self.stalled_until[*at] < self.now;
                assert!(
                    !awake || waited <= GRACE.times(others_stall),
                    "{id} waits {waited:?} for a token that is there"
                );
            }
        }
    }

    /// Lets time pass, and streams end, until nothing is left to do.
    pub fn come_to_rest(&mut self) {
        for _ in 0..20_000 {
            while let Some(id) = self.streams.keys().next().copied() {
                self.end_stream(id, true);
            }
            let Some(next) = (0..WORKERS).filter_map(|at| self.next(at)).min() else { return };
            self.pass_to(next.max(self.now));
        }
        panic!("the workers never come to rest");
    }
}

/// The key of a model by its number; the number after the last stands for none.
pub fn model_key(model: usize) -> ModelKey {
    MODELS.get(model).map_or(ModelKey::NONE, |name| ModelKey::of(name))
}
