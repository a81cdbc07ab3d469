//! Calls about a stream: its headers, body and properties, whether it goes on, and replies.

use super::{BAD_ARGUMENT, Call, Deferred, Host, NOT_FOUND, OK, bytes, deserialise, give, serialise};
use crate::mutant::Mutant;
use crate::state::Phase;
use std::rc::Rc;
use wasmtime::{Linker, Result};

/// Links them.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_set_effective_context", |mut call: Call<'_>, context: u32| {
        let (vm, real) = (call.data().vm, call.data().frame.real);
        let known = {
            let mut state = call.data().world.state.borrow_mut();
            let known = context == real || state.desks[vm].contexts.contains_key(&context);
            if !known {
                state.broken("I4", format!("worker {vm} acts for context {context}, which is gone"));
            }
            known
        };
        if !known {
            return BAD_ARGUMENT;
        }
        call.data_mut().frame.effective = context;
        OK
    })?;
    linker.func_wrap("env", "proxy_continue_stream", |mut call: Call<'_>, stream: u32| {
        let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
        let context = call.data().frame.effective;
        let Some(r) = world.state.borrow().request_of(vm, context) else { return BAD_ARGUMENT };
        let dropped = world.state.borrow().mutant == Some(Mutant::DropResume);
        if stream == 0 && !dropped {
            call.data_mut().frame.deferred.push(Deferred::Resume(r));
        }
        OK
    })?;
    linker.func_wrap(
        "env",
        "proxy_send_local_response",
        |mut call: Call<'_>, status: u32, d: u32, dn: u32, b: u32, bn: u32, h: u32, hn: u32, _: i32| {
            let (details, body) = (bytes(&call, d, dn), bytes(&call, b, bn));
            let headers = deserialise(&bytes(&call, h, hn));
            let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
            let (context, at) = (call.data().frame.effective, call.data().frame.ledger_at);
            if let Some(visit) = world.state.borrow_mut().visits.get_mut(&(vm, context)) {
                visit.reply = Some((status as u16, body));
                return OK;
            }
            let Some(r) = world.state.borrow().request_of(vm, context) else { return BAD_ARGUMENT };
            let limit = world.state.borrow().requests[r].limit;
            let shadow = call.data().frame.limits[limit].shadow;
            world.refused(r, &details, at, shadow == Some(true));
            call.data_mut().frame.deferred.push(Deferred::Reply(r, status as u16, headers, body));
            OK
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_header_map_pairs",
        |mut call: Call<'_>, map: u32, data: u32, size: u32| -> Result<u32> {
            let (vm, context) = (call.data().vm, call.data().frame.effective);
            let pairs = {
                let state = call.data().world.state.borrow();
                let visit = state.visits.get(&(vm, context));
                let Some(r) = state.request_of(vm, context) else {
                    let Some(visit) = visit.filter(|_| map == 0) else { return Ok(BAD_ARGUMENT) };
                    let pairs = serialise(&visit.headers);
                    drop(state);
                    return give(&mut call, &pairs, data, size);
                };
                match map {
                    0 if state.requests[r].held => serialise(&state.requests[r].headers),
                    2 => serialise(&state.requests[r].response),
                    _ => return Ok(BAD_ARGUMENT),
                }
            };
            give(&mut call, &pairs, data, size)
        },
    )?;
    linker.func_wrap("env", "proxy_set_header_map_pairs", |call: Call<'_>, map: u32, data: u32, size: u32| {
        let headers = deserialise(&bytes(&call, data, size));
        let (vm, context) = (call.data().vm, call.data().frame.effective);
        let mut state = call.data().world.state.borrow_mut();
        match (map, state.request_of(vm, context)) {
            (2, Some(r)) => state.requests[r].response = headers,
            _ => return BAD_ARGUMENT,
        }
        OK
    })?;
    linker.func_wrap(
        "env",
        "proxy_replace_header_map_value",
        |call: Call<'_>, map: u32, k: u32, kn: u32, v: u32, vn: u32| {
            let (name, value) = (bytes(&call, k, kn), bytes(&call, v, vn));
            change_header(&call, map, &String::from_utf8_lossy(&name), Some(value))
        },
    )?;
    linker.func_wrap("env", "proxy_remove_header_map_value", |call: Call<'_>, map: u32, k: u32, kn: u32| {
        let name = bytes(&call, k, kn);
        change_header(&call, map, &String::from_utf8_lossy(&name), None)
    })?;
    linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut call: Call<'_>, kind: u32, start: u32, max: u32, data: u32, size: u32| -> Result<u32> {
            let (vm, context) = (call.data().vm, call.data().frame.effective);
            let whole = {
                let state = call.data().world.state.borrow();
                let visit = state.visits.get(&(vm, context));
                match (kind, state.request_of(vm, context)) {
                    (0, Some(r)) => state.requests[r].body[..state.requests[r].shown].to_vec(),
                    (0, None) => visit.map(|visit| visit.body.clone()).unwrap_or_default(),
                    (1, Some(r)) => state.requests[r].answer.clone(),
                    (7, _) if context == state.desks[vm].console => crate::console::JSON.to_vec(),
                    (7, _) => state.json.clone().into_bytes(),
                    _ => return Ok(NOT_FOUND),
                }
            };
            let start = (start as usize).min(whole.len());
            let end = start.saturating_add(max as usize).min(whole.len());
            give(&mut call, &whole[start..end], data, size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_property",
        |mut call: Call<'_>, path: u32, path_size: u32, data: u32, size: u32| -> Result<u32> {
            let path = bytes(&call, path, path_size);
            // Without the details nobody could tell whose an answer is, so these are always there, as in Envoy.
            if path != b"response\0code_details" && call.data().world.refuses() {
                return Ok(NOT_FOUND);
            }
            let (vm, context) = (call.data().vm, call.data().frame.effective);
            let value = {
                let state = call.data().world.state.borrow();
                let request = state.request_of(vm, context).map(|r| &state.requests[r]);
                match (path.as_slice(), request) {
                    (b"response\0code_details", Some(request)) => request.details.as_bytes().to_vec(),
                    (b"connection_id", Some(request)) => request.connection.to_le_bytes().to_vec(),
                    (b"xds\0cluster_name", Some(_)) => b"nvidia".to_vec(),
                    (b"request\0total_size", Some(request)) => {
                        let head: usize = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
                        ((head + request.shown) as u64).to_le_bytes().to_vec()
                    }
                    _ => return Ok(NOT_FOUND),
                }
            };
            give(&mut call, &value, data, size)
        },
    )?;
    linker.func_wrap("env", "proxy_set_property", |mut call: Call<'_>, p: u32, pn: u32, v: u32, vn: u32| {
        if (bytes(&call, p, pn), bytes(&call, v, vn)) == (b"nimgate.outcome".to_vec(), b"forwarded".to_vec()) {
            goes(&mut call);
        }
        OK
    })?;
    linker.func_wrap("env", "proxy_set_buffer_bytes", |_: Call<'_>, _: u32, _: u32, _: u32, _: u32, _: u32| OK)?;
    Ok(())
}

/// The access log's outcome is set: the filter lets the request of the effective context go.
fn goes(call: &mut Call<'_>) {
    let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
    let Some(r) = world.state.borrow().request_of(vm, call.data().frame.effective) else { return };
    let limit = world.state.borrow().requests[r].limit;
    let known = &mut call.data_mut().frame.limits[limit];
    if known.shadow == Some(false) {
        known.tokens -= 1;
    }
    let (commit, shadow) = (known.commit, known.shadow);
    world.granted(r, commit, shadow);
}

fn change_header(call: &Call<'_>, map: u32, name: &str, value: Option<Vec<u8>>) -> u32 {
    let (vm, context) = (call.data().vm, call.data().frame.effective);
    let mut state = call.data().world.state.borrow_mut();
    let Some(r) = state.request_of(vm, context) else { return BAD_ARGUMENT };
    let request = &mut state.requests[r];
    let headers = match map {
        0 if request.held || request.phase == Phase::Waiting => &mut request.headers,
        2 => &mut request.response,
        _ => return BAD_ARGUMENT,
    };
    headers.retain(|(other, _)| other != name);
    headers.extend(value.map(|value| (name.to_owned(), value)));
    OK
}
