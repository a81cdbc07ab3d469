//! What the simulated process holds: time and what is due, shared data, queues, timers, metrics, and the requests.

use crate::checks::{Checks, Commit};
use crate::console::Visit;
use crate::host::kept::Kept;
use crate::mutant::Mutant;
use crate::plan::{LIMITS_MAX, NAMES, Plan, Settings};
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Something that will happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Arrive(usize),
    Body(usize),
    Leave(usize),
    Answer(usize),
    /// The rest of an answer, after its headers.
    AnswerEnd(usize),
    /// Envoy answers a request by itself that is still held.
    Local(usize),
    /// A connection of a worker closes, with all its streams.
    Close(usize),
    /// An operator changes rules, on the console of this worker; and someone looks at them there.
    Post(usize),
    Poll(usize),
    Tick {
        vm: usize,
        root: u32,
        armed: u64,
    },
    QueueReady(u32),
    Stall(usize),
    Crash(usize),
    StepBack,
    Corrupt,
    /// A configuration comes: a new one, or one that there was before.
    Reload,
    Configure(usize),
    RootDone {
        vm: usize,
        root: u32,
        epoch: u64,
    },
}

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Its client has not sent it yet.
    Unborn,
    /// The filter has it and has not asked for a token on its behalf.
    Open,
    /// It waits for a token.
    Waiting,
    /// It may go, and is on its way to the upstream.
    Sent,
    /// Its answer's headers have come.
    Answering,
    /// The filter has answered it.
    Answered,
    /// It is over.
    Over(End),
}

/// The ways in which a request ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    Forwarded,
    Passed,
    RateLimited,
    QueueFull,
    Left,
    /// Envoy has answered it.
    Timeout,
    Unreachable,
    TooLarge,
    Lost,
}

/// How a request comes to be metered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// By its host, at its headers.
    Host,
    /// By the model in its body.
    Model,
    /// Not at all.
    Passing,
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct Request {
    pub worker: usize,
    pub context: u32,
    pub root: u32,
    pub connection: u64,
    pub priority: usize,
    /// Which limit meters it, and which of that limit's models it asks for.
    pub limit: usize,
    pub model: Option<usize>,
    pub kind: Kind,
    pub phase: Phase,
    pub headers: Vec<(String, Vec<u8>)>,
    /// Whether the request's headers are still held, so that they can be read and changed.
    pub held: bool,
    pub body: Vec<u8>,
    pub shown: usize,
    /// Whether all of the body has come, and how it ends: with its last piece, with an empty one, or with trailers.
    pub ended: bool,
    pub ending: Ending,
    /// What Envoy keeps of it, and when a piece came last.
    pub kept: Kept,
    pub last_piece: u64,
    pub response: Vec<(String, Vec<u8>)>,
    pub details: &'static str,
    /// When the filter read the clock for its arrival.
    pub arrived: u64,
    /// Whether the filter can't know what it is, so that it gets no mark.
    pub unread: bool,
    /// The commit with which the ledger first showed it.
    pub published: Option<u64>,
    pub published_at: u64,
    /// Whether it waits outside the full queue.
    pub fallback: bool,
    /// The decision that granted it, and when its stream was told so.
    pub granted: Commit,
    pub granted_at: u64,
    pub sent: u32,
    pub status: u16,
    /// The upstream's body, or the piece of it that is shown.
    pub answer: Vec<u8>,
    /// Whether the upstream says that the workers of the model are full.
    pub is_full: bool,
    /// Router retries that have not been charged yet.
    pub retries: u64,
    /// How Envoy answers in place of the upstream, if it does.
    pub instead: Option<End>,
}

impl Request {
    /// A request that has not come yet.
    pub fn new(worker: usize, kind: Kind, body: Vec<u8>) -> Self {
        Self {
            worker,
            context: 0,
            root: 0,
            connection: 0,
            priority: 2,
            limit: 0,
            model: None,
            kind,
            phase: Phase::Unborn,
            headers: Vec::new(),
            held: true,
            body,
            shown: 0,
            ended: false,
            ending: Ending::Whole,
            kept: Kept::default(),
            last_piece: 0,
            response: Vec::new(),
            details: "",
            arrived: 0,
            unread: false,
            published: None,
            published_at: 0,
            fallback: false,
            granted: Commit::default(),
            granted_at: 0,
            sent: 0,
            status: 0,
            answer: Vec::new(),
            is_full: false,
            retries: 0,
            instead: None,
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    Whole,
    Empty,
    Trailers,
}

/// A shared queue and who is woken by it.
pub struct WakeQueue {
    pub name: Vec<u8>,
    pub vm: usize,
    pub root: u32,
    pub items: u32,
}

/// What belongs to one VM and is not inside it.
#[derive(Default, Clone)]
pub struct Desk {
    /// Counts the VMs that have had this place.
    pub epoch: u64,
    /// The root context of the configuration in use.
    pub root: u32,
    /// The console's root context; 0 if there is none.
    pub console: u32,
    /// The root context of each configuration that is in use or drains.
    pub roots: HashMap<String, u32>,
    /// Root contexts that Envoy has given up, and that have not said that they are done.
    pub pending: HashSet<u32>,
    /// Open connections, by number, and the root context of each.
    pub connections: Vec<(u64, u32)>,
    pub next_context: u32,
    pub contexts: HashMap<u32, Option<usize>>,
    /// The root contexts' timers: period and the number of the arming.
    pub timers: HashMap<u32, (u64, u64)>,
    pub stalled_until: u64,
    /// For each limit, how many left while they waited and the ledger does not know yet.
    pub untold: [i64; LIMITS_MAX],
    /// For each limit, whether its running callback has already changed the ledger.
    pub committed: [bool; LIMITS_MAX],
    /// For each limit, the number of the change with which it last said what waits there.
    pub published: [u64; LIMITS_MAX],
    pub unconfigured: bool,
    /// Router retries of which its running callback hears: of which limit, and how many.
    pub charging: Option<(usize, u64)>,
    /// For each limit, the requests that were granted and not sent, and whose tokens the ledger still counts as used.
    pub unused: [Vec<usize>; LIMITS_MAX],
    /// Requests that passed and are not in Envoy's stats yet, and since when there have been any.
    pub uncounted: (i64, u64),
}

/// Everything but the VMs.
pub struct State {
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    pub rng: Rng,
    pub now: u64,
    /// How far the clock that the VMs see is behind.
    pub behind: u64,
    pub due: BTreeMap<(u64, u64, u64), Event>,
    pub numbers: u64,
    /// How many events have happened.
    pub steps: u64,
    pub depth: u32,
    /// Whether the faults are over.
    pub healed: bool,
    pub data: HashMap<(usize, Vec<u8>), (Vec<u8>, u32)>,
    pub older: HashMap<Vec<u8>, Vec<u8>>,
    pub cas: u32,
    pub queues: Vec<WakeQueue>,
    pub metric_ids: HashMap<String, usize>,
    pub metrics: Vec<(String, u32, i64)>,
    pub desks: Vec<Desk>,
    pub requests: Vec<Request>,
    pub waiting: BTreeSet<usize>,
    /// What the upstream let in of late, by limit and model.
    pub upstream: HashMap<(usize, Option<usize>), VecDeque<u64>>,
    /// The console's requests under way.
    pub visits: HashMap<(usize, u32), Visit>,
    pub checks: Checks,
    pub trace: VecDeque<String>,
    pub verbose: bool,
    /// The active configuration, as the filter gets it.
    pub json: String,
    /// All configurations that there have been.
    pub tried: HashMap<String, Vec<Settings>>,
    /// How many connections have been opened.
    pub connections: u64,
    /// The last looks at ledgers, for the check of what they say: limit, tokens, time, number of the change.
    pub looked: Vec<(usize, i64, u64, u64)>,
    /// How often each outcome must have been counted, by limit (`None` before any took the request), priority and label.
    pub expected: BTreeMap<(Option<usize>, usize, &'static str), i64>,
    /// The same for the upstream's answers, by limit and class; and router retries, by limit.
    pub answers: BTreeMap<(usize, &'static str), i64>,
    pub retries: [i64; LIMITS_MAX],
    pub passed: i64,
    /// When the last ordinary request has come and the faults end.
    pub ends_at: u64,
}

impl State {
    /// Puts an event on the list of what is due, in a random place among those due at the same time.
    pub fn at(&mut self, time: u64, event: Event) {
        self.numbers += 1;
        let tie = self.rng.bits();
        self.due.insert((time, tie, self.numbers), event);
    }

    /// The same, so many microseconds from now.
    pub fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    /// The clock as VM `vm` sees it, in microseconds. It does not start at zero, as no machine's does.
    pub fn clock(&self, vm: usize) -> u64 {
        const BOOT: u64 = 1_000 * crate::plan::SECOND;
        let now = match self.mutant {
            Some(Mutant::FastClock) => self.now + self.now / 10,
            Some(Mutant::SkewedClock) if vm == 0 => self.now.saturating_sub(self.now.min(500_000)),
            _ => self.now,
        };
        BOOT + now - self.behind.min(BOOT)
    }

    /// Notes a line of the trace; the last ones are shown when a check fails.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() >= 50 {
            self.trace.pop_front();
        }
        let line = format!("{:>12.6} {}", self.now as f64 / 1e6, line());
        if self.verbose {
            println!("{line}");
        }
        self.trace.push_back(line);
    }

    /// A metric's value by its full name; 0 if it was never defined.
    pub fn metric(&self, name: &str) -> i64 {
        self.metric_ids.get(name).map_or(0, |id| self.metrics[*id].2)
    }

    /// A limit's metric.
    pub fn limit_metric(&self, limit: usize, name: &str) -> i64 {
        self.metric(&format!("limit=.={};.;{name}", NAMES[limit]))
    }

    /// The request of a stream's context.
    pub fn request_of(&self, vm: usize, context: u32) -> Option<usize> {
        self.desks[vm].contexts.get(&context).copied().flatten()
    }

    /// The VM that an event is for, if it is for one.
    pub fn vm_of(&self, event: Event) -> Option<usize> {
        match event {
            Event::Arrive(r)
            | Event::Body(r)
            | Event::Leave(r)
            | Event::Answer(r)
            | Event::AnswerEnd(r)
            | Event::Local(r) => Some(self.requests[r].worker),
            Event::Tick { vm, .. } | Event::Configure(vm) | Event::RootDone { vm, .. } => Some(vm),
            Event::Close(vm) | Event::Post(vm) | Event::Poll(vm) => Some(vm),
            Event::QueueReady(token) => self.queues.get(token as usize - 1).map(|queue| queue.vm),
            Event::Stall(_) | Event::Crash(_) | Event::StepBack | Event::Corrupt | Event::Reload => None,
        }
    }
}
