//! How many host calls the filter makes for one request, from its first callback to its last. Each is a way out of the
//! VM and back, so none may come without a reason; docs/performance.md gives it. Needs the built module; see
//! `NIMGATE_WASM`.

use nimgate_sim::module_path;
use nimgate_sim::plan::{Faults, Plan, SECOND, Settings};
use nimgate_sim::run::process;
use nimgate_sim::state::{Kind, Phase, Request};
use nimgate_sim::vm::Machine;
use nimgate_sim::world::World;
use std::collections::BTreeMap;
use std::rc::Rc;

const OURS: &str = r#"{"messages":[{"role":"user","content":"hello"}],"model":"nvidia/test"}"#;
const OTHERS: &str = r#"{"messages":[{"role":"user","content":"hello"}],"model":"gpt-4o-mini"}"#;

/// One worker without faults, in which a first request of each kind has come and gone.
fn warm() -> Rc<World> {
    let settings = Settings {
        rate_rpm: 60,
        capacity: 1,
        queue_max: 1,
        aging: None,
        window: 60 * SECOND,
        low: 5 * SECOND,
        others: 20 * SECOND,
        fallback: false,
        floor_rpm: 1,
        retry_after_max: SECOND,
    };
    let plan = Plan {
        seed: 1,
        workers: 1,
        requests: 0,
        settings,
        gap: SECOND,
        leave: 0,
        passing: 0,
        bodies: 0,
        races: 0,
        retry_after: None,
        faults: Faults::default(),
    };
    let wasm = std::fs::read(module_path()).unwrap();
    let world = process(&Rc::new(Machine::counting(&wasm).unwrap()), plan, None, false);
    for (kind, body) in [(Kind::Passing, OTHERS), (Kind::Model, OURS)] {
        let r = come(&world, kind, body, 1);
        until_over(&world, r);
    }
    let now = world.state.borrow().now;
    while world.state.borrow().now < now + 10 * SECOND && world.step() {}
    count(&world);
    world
}

/// The host calls since the last count, and whether all has been well.
fn count(world: &World) -> BTreeMap<String, u32> {
    let broken = world.state.borrow().checks.first.clone();
    assert!(broken.is_none(), "{broken:?}");
    world.vms[0].borrow_mut().as_mut().unwrap().host_calls()
}

/// A request comes, with its body in so many pieces, and an empty end behind them as HTTP/1.1 has it.
fn come(world: &Rc<World>, kind: Kind, body: &str, pieces: usize) -> usize {
    let (r, context, root) = {
        let mut state = world.state.borrow_mut();
        let desk = &mut state.desks[0];
        desk.next_context += 1;
        let (context, root, r) = (desk.next_context, desk.root, state.requests.len());
        state.desks[0].contexts.insert(context, Some(r));
        let host = if kind == Kind::Host { "api.test" } else { "other.test" };
        let headers = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", host),
            ("content-type", "application/json"),
        ];
        state.requests.push(Request {
            worker: 0,
            context,
            root,
            connection: 1,
            priority: 2,
            kind,
            phase: Phase::Open,
            headers: headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec(),
            held: true,
            body: body.as_bytes().to_vec(),
            shown: 0,
            response: Vec::new(),
            details: "",
            arrived: 0,
            published: None,
            published_at: 0,
            fallback: false,
            sent: 0,
            status: 0,
        });
        (r, context, root)
    };
    world.call::<_, ()>(0, "proxy_on_context_create", context, (context, root));
    let answer = world.call::<_, u32>(0, "proxy_on_request_headers", context, (context, 4u32, 0u32));
    let mut held = matches!(answer, Some((1, ..)));
    world.went(r, answer);
    for piece in 1..=pieces + 1 {
        let shown = (body.len() * piece / pieces).min(body.len());
        world.state.borrow_mut().requests[r].shown = shown;
        let with = (context, shown as u32, u32::from(piece > pieces));
        let answer = world.call::<_, u32>(0, "proxy_on_request_body", context, with);
        if held && matches!(answer, Some((0, ..))) {
            held = false;
            world.went(r, answer);
        }
    }
    r
}

fn until_over(world: &Rc<World>, r: usize) {
    while !matches!(world.state.borrow().requests[r].phase, Phase::Over(_)) {
        assert!(world.step(), "the request ends");
    }
}

/// Lets a request come and go, and counts.
fn life(world: &Rc<World>, kind: Kind, body: &str, pieces: usize) -> BTreeMap<String, u32> {
    let r = come(world, kind, body, pieces);
    until_over(world, r);
    count(world)
}

#[track_caller]
fn assert_calls(counted: &BTreeMap<String, u32>, expected: &[(&str, u32)]) {
    let counted: Vec<_> = counted.iter().map(|(name, times)| (name.as_str(), *times)).collect();
    assert_eq!(counted, expected);
}

/// What a request costs that is granted at once, by host call. One that waits costs what is said below beside it.
const GRANTED: [(&str, u32); 12] = [
    ("clock_time_get", 10),
    ("proxy_get_buffer_bytes", 1),
    ("proxy_get_header_map_pairs", 2),
    ("proxy_get_property", 2),
    ("proxy_get_shared_data", 2),
    ("proxy_increment_metric", 2),
    ("proxy_record_metric", 15),
    ("proxy_replace_header_map_value", 6),
    ("proxy_set_effective_context", 2),
    ("proxy_set_property", 4),
    ("proxy_set_shared_data", 2),
    ("proxy_set_tick_period_milliseconds", 1),
];

#[test]
fn passed() {
    let world = warm();
    for pieces in [1, 16] {
        let expected = [
            ("proxy_get_buffer_bytes", pieces as u32),
            ("proxy_get_header_map_pairs", 1),
            ("proxy_increment_metric", 1),
        ];
        assert_calls(&life(&world, Kind::Passing, OTHERS, pieces), &expected);
    }
}

#[test]
fn granted_at_once() {
    let world = warm();
    assert_calls(&life(&world, Kind::Model, OURS, 1), &GRANTED);
}

#[test]
fn granted_after_a_wait() {
    let world = warm();
    let first = come(&world, Kind::Model, OURS, 1);
    until_over(&world, first);
    count(&world);
    let r = come(&world, Kind::Model, OURS, 1);
    assert_eq!(world.state.borrow().requests[r].phase, Phase::Waiting);
    until_over(&world, r);
    let more = [
        ("clock_time_get", 4),
        ("proxy_continue_stream", 1),
        ("proxy_get_shared_data", 1),
        ("proxy_increment_metric", 2),
        ("proxy_record_metric", 6),
        ("proxy_set_property", 1),
        ("proxy_set_shared_data", 1),
    ];
    let mut expected = BTreeMap::from(GRANTED);
    for (name, times) in more {
        *expected.entry(name).or_default() += times;
    }
    assert_calls(&count(&world), &expected.into_iter().collect::<Vec<_>>());
}
