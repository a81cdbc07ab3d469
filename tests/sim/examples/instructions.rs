//! How many WebAssembly instructions a passed request takes, exactly and the same on any machine: by callback, and by
//! function where the module has names. `scripts/measure profile` starts it.
//!
//!     instructions MODULE...
//!
//! The engine counts the instructions ("fuel"), and at each function's entry and each turn of a loop it stops to be asked
//! how many there were and where. What a function does after it has called another is put down to that other until the
//! next such stop. The host does next to nothing, and what it does counts for nothing.

use std::collections::BTreeMap;
use std::error::Error;
use wasmtime::{
    Caller, Config, Engine, Extern, ExternType, Instance, Linker, Memory, Module, Result, Store, UpdateDeadline, Val,
    ValType, WasmBacktrace,
};

const SIZES: [usize; 2] = [1024, 256 * 1024];
const PIECE: usize = 64 * 1024;
const HEADERS: [(&str, &str); 7] = [
    (":authority", "localhost:10000"),
    (":path", "/v1/chat/completions"),
    (":method", "POST"),
    (":scheme", "http"),
    ("content-type", "application/json"),
    ("x-forwarded-proto", "http"),
    ("x-request-id", "4b1c9a3e-6a5f-4f0e-9d68-0a5d3c2b1e7f"),
];
/// Requests before the one that is looked at, so that tables and memory have their size.
const BEFORE: u32 = 50;
const SHOWN: usize = 20;
const ROOT: u32 = 1;
const NOT_FOUND: i32 = 1;

#[derive(Default)]
struct Host {
    body: Vec<u8>,
    metrics: u32,
    /// Whether functions are told apart, which takes long.
    by_function: bool,
    fuel: u64,
    function: String,
    functions: BTreeMap<String, u64>,
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    for path in std::env::args().skip(1) {
        println!("{path}");
        let wasm = std::fs::read(&path)?;
        for size in SIZES {
            request_of(&wasm, size)?;
        }
    }
    Ok(())
}

fn request_of(wasm: &[u8], size: usize) -> Result<()> {
    let mut config = Config::new();
    config.consume_fuel(true).epoch_interruption(true);
    let engine = Engine::new(&config)?;
    let module = Module::new(&engine, wasm)?;
    let mut store = Store::new(&engine, Host { body: chat(size), ..Host::default() });
    store.set_fuel(u64::MAX)?;
    // The deadline is always over, so that the engine asks wherever it looks.
    store.set_epoch_deadline(0);
    store.epoch_deadline_callback(|mut store| {
        if store.data().by_function {
            let fuel = store.get_fuel()?;
            let trace = WasmBacktrace::capture(&store);
            let function = trace.frames().first().and_then(|frame| frame.func_name()).unwrap_or("?").to_owned();
            let host = store.data_mut();
            let used = host.fuel.saturating_sub(fuel);
            *host.functions.entry(std::mem::replace(&mut host.function, function)).or_default() += used;
            host.fuel = fuel;
        }
        Ok(UpdateDeadline::Continue(0))
    });
    let instance = linker(&engine, &module)?.instantiate(&mut store, &module)?;
    call(&instance, &mut store, "_initialize", &[])?;
    call(&instance, &mut store, "proxy_on_context_create", &[ROOT, 0])?;
    call(&instance, &mut store, "proxy_on_vm_start", &[ROOT, 0])?;
    call(&instance, &mut store, "proxy_on_configure", &[ROOT, 0])?;
    for context in 0..BEFORE {
        request(&instance, &mut store, 2 + context)?;
    }
    let callbacks = request(&instance, &mut store, 2 + BEFORE)?;
    let fuel = store.get_fuel()?;
    let host = store.data_mut();
    (host.by_function, host.fuel, host.function) = (true, fuel, "?".to_owned());
    request(&instance, &mut store, 3 + BEFORE)?;

    let all: u64 = callbacks.iter().map(|(_, used)| used).sum();
    println!("  {} KB: {all} instructions", size / 1024);
    for (name, used) in callbacks {
        println!("    {used:>8}  {name}");
    }
    let mut functions: Vec<_> = store.data().functions.iter().collect();
    functions.sort_by_key(|(_, used)| std::cmp::Reverse(**used));
    for (name, used) in functions.into_iter().filter(|(name, _)| *name != "?").take(SHOWN) {
        println!("      {used:>8}  {name:#}");
    }
    Ok(())
}

/// One request from its first callback to its last, as Envoy makes them; says how many instructions each took.
fn request(instance: &Instance, store: &mut Store<Host>, context: u32) -> Result<Vec<(&'static str, u64)>> {
    let size = store.data().body.len();
    let mut calls = vec![
        ("proxy_on_context_create", vec![context, ROOT]),
        ("proxy_on_request_headers", vec![context, HEADERS.len() as u32, 0]),
    ];
    let pieces = (1..=size.div_ceil(PIECE)).map(|piece| (piece * PIECE).min(size) as u32);
    calls.extend(pieces.map(|seen| ("proxy_on_request_body", vec![context, seen, 0])));
    calls.push(("proxy_on_request_body", vec![context, size as u32, 1]));
    calls.push(("proxy_on_response_headers", vec![context, 4, 0]));
    calls.push(("proxy_on_response_body", vec![context, 64, 1]));
    calls.extend(["proxy_on_log", "proxy_on_done", "proxy_on_delete"].map(|name| (name, vec![context])));
    let mut took = Vec::new();
    for (name, given) in calls {
        let before = store.get_fuel()?;
        call(instance, store, name, &given)?;
        took.push((name, before - store.get_fuel()?));
    }
    Ok(took)
}

/// Makes a callback, if the module has it.
fn call(instance: &Instance, store: &mut Store<Host>, name: &str, given: &[u32]) -> Result<()> {
    let Some(function) = instance.get_func(&mut *store, name) else { return Ok(()) };
    let given: Vec<Val> = given.iter().map(|value| Val::I32(value.cast_signed())).collect();
    let mut answers = vec![Val::I32(0); function.ty(&mut *store).results().len()];
    function.call(store, &given, &mut answers)
}

fn linker(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    for import in module.imports() {
        let ExternType::Func(kind) = import.ty() else { continue };
        let name = import.name().to_owned();
        linker.func_new(import.module(), import.name(), kind.clone(), move |mut call, given, answers| {
            let number = |at: usize| given[at].unwrap_i32().cast_unsigned() as usize;
            let status = match name.as_str() {
                "proxy_get_header_map_pairs" => give(&mut call, &header_map(), number(1), number(2))?,
                "proxy_get_buffer_bytes" => {
                    let whole = if number(0) == 7 { Vec::new() } else { call.data().body.clone() };
                    let end = number(1).saturating_add(number(2)).min(whole.len());
                    give(&mut call, &whole[number(1).min(end)..end], number(3), number(4))?
                }
                "proxy_define_metric" => {
                    call.data_mut().metrics += 1;
                    let id = call.data().metrics;
                    put(&mut call, number(3), &id.to_le_bytes())
                }
                "clock_time_get" => put(&mut call, number(2), &1_000_000_000u64.to_le_bytes()),
                "proxy_get_shared_data" | "proxy_get_property" => NOT_FOUND,
                _ => 0,
            };
            if let (Some(answer), Some(ValType::I32)) = (answers.first_mut(), kind.results().next()) {
                *answer = Val::I32(status);
            }
            Ok(())
        })?;
    }
    Ok(linker)
}

fn memory(call: &mut Caller<'_, Host>) -> Memory {
    call.get_export("memory").and_then(Extern::into_memory).expect("the module has a memory")
}

fn put(call: &mut Caller<'_, Host>, at: usize, what: &[u8]) -> i32 {
    let memory = memory(call);
    memory.data_mut(call)[at..at + what.len()].copy_from_slice(what);
    0
}

/// Hands bytes over in memory that the module allocates, which is the module's own work.
fn give(call: &mut Caller<'_, Host>, what: &[u8], data: usize, size: usize) -> Result<i32> {
    let allocate = call.get_export("malloc").and_then(Extern::into_func).expect("the module has an allocator");
    let mut at = [Val::I32(0)];
    if !what.is_empty() {
        allocate.call(&mut *call, &[Val::I32(what.len() as i32)], &mut at)?;
    }
    let at = at[0].unwrap_i32();
    put(call, at.cast_unsigned() as usize, what);
    put(call, data, &at.to_le_bytes());
    Ok(put(call, size, &(what.len() as u32).to_le_bytes()))
}

fn header_map() -> Vec<u8> {
    let headers = HEADERS.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let mut map = (headers.len() as u32).to_le_bytes().to_vec();
    for (name, value) in &headers {
        map.extend((name.len() as u32).to_le_bytes());
        map.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in &headers {
        map.extend(name.as_bytes());
        map.push(0);
        map.extend(value);
        map.push(0);
    }
    map
}

/// A conversation of long prompts, with an escape here and there, of about this size.
fn chat(size: usize) -> Vec<u8> {
    let words = "Explain what a token bucket is and why it is used.\\nThen say when a leaky one is better. ";
    let turns = (size / 4096).clamp(1, 40);
    let message = format!("{{\"role\": \"user\", \"content\": \"{}\"}}", words.repeat(size / turns / words.len()));
    let messages = vec![message; turns].join(", ");
    format!("{{\"model\": \"gpt-4o-mini\", \"messages\": [{messages}], \"temperature\": 0.2, \"stream\": true}}")
        .into_bytes()
}
