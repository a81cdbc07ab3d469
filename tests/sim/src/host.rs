//! The host calls that the module imports, as Envoy answers them.

pub mod kept;
mod shared;
mod streams;

pub(crate) use shared::{limit_at, without_home};

use crate::checks::Commit;
use crate::plan::{LIMITS_MAX, NAMES};
use crate::world::World;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasmtime::{Caller, Engine, Extern, ExternType, Linker, Memory, Module, Result, TypedFunc};

pub(crate) const OK: u32 = 0;
pub(crate) const NOT_FOUND: u32 = 1;
pub(crate) const BAD_ARGUMENT: u32 = 2;
pub(crate) const EMPTY: u32 = 7;
pub(crate) const CAS_MISMATCH: u32 = 8;
pub(crate) const INTERNAL_FAILURE: u32 = 10;

/// What a callback has asked for that happens after it.
pub enum Deferred {
    Done(u32),
    Resume(usize),
    Reply(usize, u16, Vec<(String, Vec<u8>)>, Vec<u8>),
}

/// What is known of the running callback.
#[derive(Default)]
pub struct Frame {
    pub real: u32,
    pub effective: u32,
    /// Whether a change of a ledger in this callback says what waits here.
    pub publishes: bool,
    /// When the clock was last read, and what had been read last when a ledger was.
    pub read_at: u64,
    pub ledger_at: u64,
    /// The limit whose ledger was read last, if the clock has not been read since.
    pub looking: Option<usize>,
    /// Whether a request's own callback has looked at its limit's ledger, and not yet at the clock since.
    pub asked: bool,
    /// What is known of each limit.
    pub limits: [OfLimit; LIMITS_MAX],
    pub deferred: Vec<Deferred>,
    pub lost_in_a_row: u32,
}

/// What is known of the running callback and a limit.
#[derive(Clone, Copy, Default)]
pub struct OfLimit {
    /// Whether the ledger was read, and no change of it was lost since.
    pub agrees: bool,
    /// The number of the change that was last read or made.
    pub version: u64,
    /// Whether shadow mode was on in what was last read, if that is known.
    pub shadow: Option<bool>,
    pub commit: Commit,
    /// The first reading of the clock after its ledger was last read: the time for which was decided.
    pub at: u64,
    /// Tokens granted less requests let go.
    pub tokens: i64,
}

/// What a store keeps for its VM's host calls.
pub struct Host {
    pub world: Rc<World>,
    pub vm: usize,
    pub memory: Option<Memory>,
    pub malloc: Option<TypedFunc<u32, u32>>,
    pub frame: Frame,
    /// How often the module has made each host call, where they are counted.
    pub calls: BTreeMap<String, u32>,
}

pub(crate) type Call<'a> = Caller<'a, Host>;

pub(crate) fn bytes(call: &Call<'_>, at: u32, size: u32) -> Vec<u8> {
    let memory = call.data().memory.expect("the module has a memory");
    memory.data(call)[at as usize..(at + size) as usize].to_vec()
}

pub(crate) fn put(call: &mut Call<'_>, at: u32, what: &[u8]) {
    let memory = call.data().memory.expect("the module has a memory");
    memory.data_mut(call)[at as usize..at as usize + what.len()].copy_from_slice(what);
}

/// Hands bytes over in memory that the module itself allocates.
pub(crate) fn give(call: &mut Call<'_>, what: &[u8], data: u32, size: u32) -> Result<u32> {
    let mut at = 0;
    if !what.is_empty() {
        let malloc = call.data().malloc.clone().expect("the module has an allocator");
        at = malloc.call(&mut *call, what.len() as u32)?;
        put(call, at, what);
    }
    put(call, data, &at.to_le_bytes());
    put(call, size, &(what.len() as u32).to_le_bytes());
    Ok(OK)
}

/// A header map as the ABI writes it.
pub(crate) fn serialise(pairs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        out.extend((name.len() as u32).to_le_bytes());
        out.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(value);
        out.push(0);
    }
    out
}

/// The other way round.
pub(crate) fn deserialise(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let count = number(0);
    let mut at = 4 + 8 * count;
    let mut pairs = Vec::new();
    for pair in 0..count {
        let (name, value) = (number(4 + 8 * pair), number(8 + 8 * pair));
        let key = String::from_utf8_lossy(&bytes[at..at + name]).into_owned();
        at += name + 1;
        pairs.push((key, bytes[at..at + value].to_vec()));
        at += value + 1;
    }
    pairs
}

/// All imports, ready to be instantiated in any number of stores.
pub fn linker(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    shared::link(&mut linker)?;
    streams::link(&mut linker)?;
    others(&mut linker)?;
    linker.define_unknown_imports_as_traps(module)?;
    Ok(linker)
}

/// The same, but each call is counted first.
pub fn counting_linker(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let plain = linker(engine, module)?;
    let mut counting = Linker::<Host>::new(engine);
    for import in module.imports() {
        let ExternType::Func(kind) = import.ty() else { continue };
        let (plain, space, name) = (plain.clone(), import.module().to_owned(), import.name().to_owned());
        counting.func_new(import.module(), import.name(), kind, move |mut call, given, answers| {
            *call.data_mut().calls.entry(name.clone()).or_default() += 1;
            let function = plain.get(&mut call, &space, &name).ok().and_then(Extern::into_func);
            function.expect("the plain linker has all imports").call(&mut call, given, answers)
        })?;
    }
    Ok(counting)
}

/// The limit that a metric is of, by its label.
fn limit_of(metric: &str) -> Option<usize> {
    let (name, _) = metric.strip_prefix("limit=.=")?.split_once(";.;")?;
    NAMES.iter().position(|known| *known == name)
}

fn others(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_log", |call: Call<'_>, level: u32, text: u32, size: u32| {
        let text = String::from_utf8_lossy(&bytes(&call, text, size)).into_owned();
        let vm = call.data().vm;
        call.data().world.state.borrow_mut().note(|| format!("worker {vm} logs at {level}: {text}"));
        OK
    })?;
    linker.func_wrap("env", "proxy_get_current_time_nanoseconds", |mut call: Call<'_>, time: u32| {
        let nanos = (1_900_000_000 * crate::plan::SECOND + call.data().world.state.borrow().now) * 1_000;
        put(&mut call, time, &nanos.to_le_bytes());
        OK
    })?;
    linker.func_wrap("wasi_snapshot_preview1", "clock_time_get", |mut call: Call<'_>, _: u32, _: u64, time: u32| {
        let vm = call.data().vm;
        let (nanos, now) = {
            let state = call.data().world.state.borrow();
            (state.clock(vm) * 1_000, state.now)
        };
        let frame = &mut call.data_mut().frame;
        (frame.read_at, frame.ledger_at) = (now, now);
        if let Some(l) = frame.looking.take() {
            frame.limits[l].at = now;
        }
        if std::mem::take(&mut frame.asked) {
            let (world, context) = (Rc::clone(&call.data().world), call.data().frame.real);
            world.arrives(vm, context, now);
        }
        put(&mut call, time, &nanos.to_le_bytes());
        OK
    })?;
    linker.func_wrap("wasi_snapshot_preview1", "environ_sizes_get", |mut call: Call<'_>, count: u32, size: u32| {
        put(&mut call, count, &0u32.to_le_bytes());
        put(&mut call, size, &0u32.to_le_bytes());
        OK
    })?;
    linker.func_wrap("wasi_snapshot_preview1", "environ_get", |_: Call<'_>, _: u32, _: u32| OK)?;
    linker.func_wrap("env", "proxy_done", |mut call: Call<'_>| {
        let (vm, root) = (call.data().vm, call.data().frame.effective);
        let pending = call.data().world.state.borrow().desks[vm].pending.contains(&root);
        if pending {
            call.data_mut().frame.deferred.push(Deferred::Done(root));
        }
        if pending { OK } else { NOT_FOUND }
    })?;
    linker.func_wrap("env", "proxy_set_tick_period_milliseconds", |call: Call<'_>, period: u32| {
        call.data().world.set_timer(call.data().vm, call.data().frame.effective, period);
        OK
    })?;
    linker.func_wrap(
        "env",
        "proxy_define_metric",
        |mut call: Call<'_>, kind: u32, name: u32, size: u32, id: u32| {
            let name = String::from_utf8_lossy(&bytes(&call, name, size)).into_owned();
            let number = {
                let mut state = call.data().world.state.borrow_mut();
                let next = state.metrics.len();
                let known = state.metric_ids.get(&name).copied();
                known.unwrap_or_else(|| {
                    state.metric_ids.insert(name.clone(), next);
                    state.metrics.push((name, kind, 0));
                    next
                })
            };
            put(&mut call, id, &(number as u32).to_le_bytes());
            OK
        },
    )?;
    linker.func_wrap("env", "proxy_record_metric", |mut call: Call<'_>, id: u32, value: u64| {
        let world = Rc::clone(&call.data().world);
        let mut state = world.state.borrow_mut();
        let Some((name, kind, _)) = state.metrics.get(id as usize).cloned() else { return NOT_FOUND };
        let limit = limit_of(&name);
        if kind != 2 {
            state.metrics[id as usize].2 = value as i64;
        }
        let Some(l) = limit else { return OK };
        let known = &mut call.data_mut().frame.limits[l];
        if kind == 2 && name.ends_with("nimgate_queue_time_milliseconds") {
            known.tokens += i64::from(known.shadow == Some(false));
            state.check_token(l, known.commit);
        } else if kind != 2 {
            let current = known.version == state.checks.limits[l].commit;
            state.check_record(l, &name, value as i64, current);
            if name.ends_with("nimgate_tokens_available") {
                state.looked.push((l, value as i64, known.at, known.version));
            }
        }
        OK
    })?;
    linker.func_wrap("env", "proxy_get_metric", |mut call: Call<'_>, id: u32, value: u32| {
        let known = call.data().world.state.borrow().metrics.get(id as usize).map(|(_, _, known)| *known);
        let Some(known) = known else { return NOT_FOUND };
        put(&mut call, value, &known.to_le_bytes());
        OK
    })?;
    // Only the console's probe makes calls, and no listener here has one.
    linker.func_wrap(
        "env",
        "proxy_http_call",
        |_: Call<'_>, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32| BAD_ARGUMENT,
    )?;
    linker.func_wrap("env", "proxy_increment_metric", |call: Call<'_>, id: u32, offset: i64| {
        let world = Rc::clone(&call.data().world);
        world.increment(call.data().vm, call.data().frame.real, id as usize, offset)
    })?;
    Ok(())
}
