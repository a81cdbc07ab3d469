//! What becomes of requests when the host refuses calls that it never should: none goes unmetered, none hangs, and no two
//! workers are taken for one. Needs the built module; see `NIMGATE_WASM`.

use nimgate_sim::host::{Host, linker};
use nimgate_sim::module_path;
use nimgate_sim::plan::{Plan, SECOND, Settings};
use nimgate_sim::run::process;
use nimgate_sim::state::{Kind, Phase, Request};
use nimgate_sim::vm::Machine;
use nimgate_sim::world::World;
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use wasmtime::{Engine, Extern, ExternType, Linker, Module, Result, Val};

const INTERNAL_FAILURE: i32 = 10;
const OURS: &str = r#"{"model":"nvidia/test"}"#;
const OTHERS: &str = r#"{"model":"gpt-4o-mini"}"#;

thread_local! {
    static REFUSED: RefCell<HashSet<&'static str>> = RefCell::new(HashSet::new());
}

/// From now on the host refuses these calls, and no others.
fn refuse(calls: &[&'static str]) {
    REFUSED.set(calls.iter().copied().collect());
}

/// The simulator's host calls, but for those that are refused. `proxy_set_shared_data` is refused for the workers' counter
/// only.
fn refusing(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let plain = linker(engine, module)?;
    let mut refusing = Linker::<Host>::new(engine);
    for import in module.imports() {
        let ExternType::Func(kind) = import.ty() else { continue };
        let (plain, space, name) = (plain.clone(), import.module().to_owned(), import.name().to_owned());
        refusing.func_new(import.module(), import.name(), kind, move |mut call, given, answers| {
            let mut refused = REFUSED.with_borrow(|calls| calls.contains(name.as_str()));
            if refused && name == "proxy_set_shared_data" {
                let (at, size) = (given[0].unwrap_i32() as usize, given[1].unwrap_i32() as usize);
                let memory = call.get_export("memory").and_then(Extern::into_memory).unwrap();
                refused = memory.data(&call)[at..at + size].ends_with(b"/workers");
            }
            if refused {
                answers[0] = Val::I32(INTERNAL_FAILURE);
                return Ok(());
            }
            let function = plain.get(&mut call, &space, &name).ok().and_then(Extern::into_func);
            function.unwrap().call(&mut call, given, answers)
        })?;
    }
    Ok(refusing)
}

/// Some workers with one token for all of them.
fn workers(workers: usize) -> Rc<World> {
    refuse(&[]);
    let settings = Settings {
        rate_rpm: 60,
        capacity: 1,
        queue_max: 9,
        window: 60 * SECOND,
        low: 50 * SECOND,
        others: 50 * SECOND,
        ..Settings::default()
    };
    let plan = Plan::still(workers, settings);
    let wasm = std::fs::read(module_path()).unwrap();
    process(&Arc::new(Machine::with(&wasm, refusing).unwrap()), plan, None, false)
}

/// A request comes to a worker under its root context, with one header more and its whole body. Says which it is and
/// whether it goes on.
fn come_with(world: &Rc<World>, worker: usize, root: u32, header: &str, body: &str) -> (usize, bool) {
    let (r, context) = {
        let mut state = world.state.borrow_mut();
        // No two workers do the same at the very same time.
        state.now += 1;
        let r = state.requests.len();
        let desk = &mut state.desks[worker];
        desk.next_context += 1;
        let context = desk.next_context;
        desk.contexts.insert(context, Some(r));
        state.connections += 1;
        let connection = state.connections;
        let headers = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", "other.test"),
            ("content-type", "application/json"),
            (header, "1"),
        ];
        state.requests.push(Request {
            context,
            root,
            connection,
            phase: Phase::Open,
            headers: headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec(),
            shown: body.len(),
            ended: true,
            unread: header == "x-nimgate-limit",
            ..Request::new(worker, Kind::Model, body.as_bytes().to_vec())
        });
        (r, context)
    };
    world.call::<_, ()>(worker, "proxy_on_context_create", context, (context, root));
    let mut answer = world.call::<_, u32>(worker, "proxy_on_request_headers", context, (context, 4u32, 0u32));
    if matches!(answer, Some((1, ..))) {
        world.state.borrow_mut().requests[r].kept.hold_headers();
        answer = world.call(worker, "proxy_on_request_body", context, (context, body.len() as u32, 1u32));
    }
    world.state.borrow_mut().requests[r].kept.piece(body.len(), matches!(answer, Some((1, ..))));
    let goes_on = matches!(answer, Some((0, ..)));
    if goes_on {
        world.went(r, answer);
    }
    (r, goes_on)
}

fn come(world: &Rc<World>, worker: usize, body: &str) -> (usize, bool) {
    let root = world.state.borrow().desks[worker].root;
    come_with(world, worker, root, "user-agent", body)
}

fn run(world: &Rc<World>, requests: &[usize]) {
    while !requests.iter().all(|r| matches!(world.state.borrow().requests[*r].phase, Phase::Over(_))) {
        assert!(world.step(), "the requests end");
    }
    let broken = world.state.borrow().checks.first.clone();
    assert!(broken.is_none(), "{broken:?}");
}

/// How many requests wait, as the workers' metrics together say.
fn queue_length(world: &World) -> i64 {
    let state = world.state.borrow();
    let lengths = state.metrics.iter().filter(|(name, ..)| name.ends_with("nimgate_queue_length"));
    lengths.map(|(_, _, value)| value).sum()
}

fn passed(world: &World) -> i64 {
    world.state.borrow().metric("nimgate_passthrough_total")
}

#[test]
fn a_request_whose_headers_are_refused_is_metered() {
    for call in ["proxy_get_header_map_pairs", "proxy_remove_header_map_value"] {
        let world = workers(1);
        let (first, goes_on) = come(&world, 0, OURS);
        assert!(goes_on, "there is a token");
        refuse(&[call]);
        let root = world.state.borrow().desks[0].root;
        let (r, goes_on) = come_with(&world, 0, root, "x-nimgate-limit", OTHERS);
        assert!(!goes_on, "{call}: nothing is known of it, so it waits for a token");
        assert_eq!((world.state.borrow().requests[r].phase, passed(&world)), (Phase::Waiting, 0), "{call}");
        refuse(&[]);
        run(&world, &[first, r]);
    }
}

#[test]
fn workers_without_a_number_are_told_apart() {
    for calls in [
        &["proxy_set_shared_data"][..],
        &["proxy_register_shared_queue"],
        &["proxy_set_shared_data", "proxy_register_shared_queue"],
        &["proxy_set_shared_data", "proxy_register_shared_queue", "proxy_get_property"],
    ] {
        let world = workers(3);
        refuse(calls);
        let came: Vec<_> = (0..3).flat_map(|worker| [come(&world, worker, OURS), come(&world, worker, OURS)]).collect();
        assert_eq!(came.iter().filter(|(_, goes_on)| *goes_on).count(), 1, "one token");
        assert_eq!(queue_length(&world), 5, "{calls:?}: each worker has a line of its own");
        refuse(&[]);
        run(&world, &came.iter().map(|(r, _)| *r).collect::<Vec<_>>());
        assert_eq!(queue_length(&world), 0, "{calls:?}");
    }
}

#[test]
fn a_worker_without_a_queue_gets_one_later() {
    let world = workers(2);
    refuse(&["proxy_register_shared_queue"]);
    let came: Vec<_> = (0..2).map(|worker| come(&world, worker, OURS).0).collect();
    refuse(&[]);
    run(&world, &came);
    assert_eq!(world.state.borrow().queues.len(), 0);
    let came: Vec<_> = (0..2).map(|worker| come(&world, worker, OURS).0).collect();
    run(&world, &came);
    assert_eq!(world.state.borrow().queues.len(), 2, "each worker has one");
}

#[test]
fn a_stream_without_a_configuration_is_refused() {
    let world = workers(1);
    let root = {
        let mut state = world.state.borrow_mut();
        state.desks[0].next_context += 1;
        let root = state.desks[0].next_context;
        state.desks[0].contexts.insert(root, None);
        root
    };
    world.call::<_, ()>(0, "proxy_on_context_create", root, (root, 0u32));
    let (_, goes_on) = come_with(&world, 0, root, "user-agent", OURS);
    assert!(!goes_on);
    let state = world.state.borrow();
    assert!(state.trace.iter().any(|line| line.contains("refused: nimgate_unavailable")), "{:?}", state.trace);
}
