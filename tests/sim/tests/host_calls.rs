//! How many host calls the filter makes for one request, from its first callback to its last. Each is a way out of the
//! VM and back, so none may come without a reason: the table in docs/performance.md gives it, and is what is compared
//! with. Needs the built module; see `NIMGATE_WASM`.

use nimgate_sim::module_path;
use nimgate_sim::plan::{Plan, SECOND, Settings};
use nimgate_sim::run::process;
use nimgate_sim::state::{Kind, Phase, Request};
use nimgate_sim::vm::Machine;
use nimgate_sim::world::World;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
const OURS: &str = r#"{"messages":[{"role":"user","content":"hello"}],"model":"nvidia/test"}"#;
const OTHERS: &str = r#"{"messages":[{"role":"user","content":"hello"}],"model":"gpt-4o-mini"}"#;

/// One worker without faults, in which a first request of each kind has come and gone.
fn warm() -> Rc<World> {
    let settings = Settings {
        rate_rpm: 60,
        capacity: 1,
        queue_max: 1,
        window: 60 * SECOND,
        low: 5 * SECOND,
        others: 20 * SECOND,
        ..Settings::default()
    };
    let plan = Plan::still(1, settings);
    let wasm = std::fs::read(module_path()).unwrap();
    let world = process(&Arc::new(Machine::counting(&wasm).unwrap()), plan, None, false);
    for (kind, body) in [(Kind::Passing, OTHERS), (Kind::Model, OURS)] {
        let r = come(&world, kind, JSON, body, 1);
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

/// A request comes, with its body in so many pieces, and an empty end after them as HTTP/1.1 has it.
fn come(world: &Rc<World>, kind: Kind, content_type: &str, body: &str, pieces: usize) -> usize {
    let (r, context, root) = {
        let mut state = world.state.borrow_mut();
        let desk = &mut state.desks[0];
        desk.next_context += 1;
        let (context, root, r) = (desk.next_context, desk.root, state.requests.len());
        state.desks[0].contexts.insert(context, Some(r));
        let headers = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", "other.test"),
            ("content-type", content_type),
        ];
        state.requests.push(Request {
            context,
            root,
            connection: 1,
            phase: Phase::Open,
            headers: headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec(),
            ..Request::new(0, kind, body.as_bytes().to_vec())
        });
        (r, context, root)
    };
    world.call::<_, ()>(0, "proxy_on_context_create", context, (context, root));
    let answer = world.call::<_, u32>(0, "proxy_on_request_headers", context, (context, 4u32, 0u32));
    let mut held = matches!(answer, Some((1, ..)));
    if held {
        world.state.borrow_mut().requests[r].kept.hold_headers();
    }
    world.went(r, answer);
    for piece in 1..=pieces + 1 {
        let shown = (body.len() * piece / pieces).min(body.len());
        let came = {
            let request = &mut world.state.borrow_mut().requests[r];
            let before = request.shown;
            (request.shown, request.ended) = (shown, piece > pieces);
            shown - before
        };
        let with = (context, shown as u32, u32::from(piece > pieces));
        let answer = world.call::<_, u32>(0, "proxy_on_request_body", context, with);
        world.state.borrow_mut().requests[r].kept.piece(came, matches!(answer, Some((1, ..))));
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
fn life(world: &Rc<World>, kind: Kind, content_type: &str, body: &str, pieces: usize) -> BTreeMap<String, u32> {
    let r = come(world, kind, content_type, body, pieces);
    until_over(world, r);
    count(world)
}

/// The columns of the document's table of host calls, by their heads: how often each call is made.
fn told() -> BTreeMap<String, BTreeMap<String, u32>> {
    let document = include_str!("../../../docs/performance.md");
    let (_, from) = document.split_once("<!-- host calls -->").unwrap();
    let (table, _) = from.split_once("<!-- /host calls -->").unwrap();
    let mut rows = table.trim().lines().map(|line| line.trim_matches('|').split('|').map(str::trim));
    let heads: Vec<_> = rows.next().unwrap().collect();
    let mut columns: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
    for mut row in rows.skip(1) {
        let call = row.next().unwrap().trim_matches('`');
        // The last column says why.
        for (head, times) in heads[1..heads.len() - 1].iter().zip(row) {
            let column = columns.entry((*head).to_owned()).or_default();
            if !times.is_empty() {
                column.insert(call.to_owned(), times.parse().unwrap());
            }
        }
    }
    columns
}

/// Compares with the document, which says why each call is needed.
#[track_caller]
fn assert_as_told(head: &str, counted: &BTreeMap<String, u32>) {
    assert_eq!(told().get(head), Some(counted), "the column {head:?} of docs/performance.md");
}

/// So many requests that pass come at once, and are over and counted.
fn crowd(world: &Rc<World>, content_type: &str, pieces: usize, size: u32) -> BTreeMap<String, u32> {
    let counted = world.state.borrow().metric("nimgate_passthrough_total");
    let all: Vec<_> = (0..size).map(|_| come(world, Kind::Passing, content_type, OTHERS, pieces)).collect();
    all.into_iter().for_each(|r| until_over(world, r));
    let now = world.state.borrow().now;
    while world.state.borrow().now < now + 2 * SECOND && world.step() {}
    assert_eq!(world.state.borrow().metric("nimgate_passthrough_total"), counted + i64::from(size));
    count(world)
}

/// The calls for a request that passes. Those that come within a second are counted together, so what is the same for one
/// and for many is no request's.
fn passing(world: &Rc<World>, content_type: &str, pieces: usize) -> BTreeMap<String, u32> {
    let (one, many) = (crowd(world, content_type, pieces, 1), crowd(world, content_type, pieces, 101));
    let each = many.into_iter().map(|(call, times)| {
        let more = times - one.get(&call).unwrap_or(&0);
        assert_eq!(more % 100, 0, "{call}: {more} for 100 requests");
        (call, more / 100)
    });
    each.filter(|(_, times)| *times > 0).collect()
}

#[test]
fn passed_by_its_headers() {
    assert_as_told("passed by its headers", &passing(&warm(), BYTES, 1));
}

#[test]
fn passed_by_its_body() {
    let world = warm();
    let whole = passing(&world, JSON, 1);
    assert_as_told("passed by its body", &whole);

    let mut expected = whole;
    *expected.get_mut("proxy_get_buffer_bytes").unwrap() = 5;
    assert_eq!(passing(&world, JSON, 5), expected, "each further piece of a body is one call more");
}

#[test]
fn passed_requests_are_counted_once_a_second() {
    let together = [("clock_time_get", 2), ("proxy_increment_metric", 1), ("proxy_set_tick_period_milliseconds", 2)];
    let mut expected: BTreeMap<_, _> = together.map(|(call, times)| (call.to_owned(), times)).into();
    expected.insert("proxy_get_header_map_pairs".to_owned(), 50);
    assert_eq!(crowd(&warm(), BYTES, 1, 50), expected);
}

#[test]
fn granted_at_once() {
    let world = warm();
    assert_as_told("granted at once", &life(&world, Kind::Model, JSON, OURS, 1));
}

#[test]
fn granted_after_a_wait() {
    let world = warm();
    let first = come(&world, Kind::Model, JSON, OURS, 1);
    until_over(&world, first);
    count(&world);
    let r = come(&world, Kind::Model, JSON, OURS, 1);
    assert_eq!(world.state.borrow().requests[r].phase, Phase::Waiting);
    until_over(&world, r);
    assert_as_told("granted after a wait", &count(&world));
}
