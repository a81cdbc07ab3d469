//! Calls to what workers share: values with versions, and queues.

use super::{CAS_MISMATCH, Call, EMPTY, Host, INTERNAL_FAILURE, NOT_FOUND, OK, bytes, give, put};
use crate::checks::Commit;
use crate::mutant::Mutant;
use std::rc::Rc;
use wasmtime::{Linker, Result};

fn is_ledger(key: &[u8]) -> bool {
    key.windows(8).any(|part| part == b"/ledger/")
}

/// Links them.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut call: Call<'_>, key: u32, key_size: u32, data: u32, size: u32, cas: u32| -> Result<u32> {
            let key = bytes(&call, key, key_size);
            let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
            if is_ledger(&key) {
                let frame = &mut call.data_mut().frame;
                frame.ledger_at = frame.read_at;
                frame.agrees = true;
                let (context, at, publishes) = (frame.real, frame.ledger_at, frame.publishes);
                if publishes {
                    world.asks(vm, context, at);
                }
            }
            if world.refuses() {
                return Ok(INTERNAL_FAILURE);
            }
            world.race();
            let found = {
                let mut state = world.state.borrow_mut();
                let space = if state.mutant == Some(Mutant::OwnData) { vm } else { 0 };
                let stale = state.mutant == Some(Mutant::StaleGet) && state.rng.chance(100);
                let older = if stale { state.older.get(&key).cloned() } else { None };
                let found = state.data.get(&(space, key)).cloned();
                found.map(|(value, cas)| (older.unwrap_or(value), cas))
            };
            let Some((value, version)) = found else { return Ok(NOT_FOUND) };
            put(&mut call, cas, &version.to_le_bytes());
            give(&mut call, &value, data, size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut call: Call<'_>, key: u32, key_size: u32, value: u32, value_size: u32, cas: u32| -> u32 {
            let (key, value) = (bytes(&call, key, key_size), bytes(&call, value, value_size));
            let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
            if world.refuses() {
                return INTERNAL_FAILURE;
            }
            world.race();
            let ledger = is_ledger(&key);
            let (done, commit) = world.swap(vm, key, value, cas);
            let frame = &mut call.data_mut().frame;
            if ledger {
                frame.agrees = done;
            }
            frame.lost_in_a_row = if done { 0 } else { frame.lost_in_a_row + 1 };
            if frame.lost_in_a_row > 16 {
                world.state.borrow_mut().broken("I13", "a decision is made anew for the 17th time".to_owned());
            }
            if done && ledger {
                // The filter reads the clock after the ledger, so the last reading is the decision's time.
                frame.commit = Commit { number: commit, at: frame.read_at };
                let (publishes, at) = (frame.publishes, frame.read_at);
                world.committed(vm, publishes, at);
            }
            if done { OK } else { CAS_MISMATCH }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_register_shared_queue",
        |mut call: Call<'_>, name: u32, size: u32, token: u32| {
            if call.data().world.refuses() {
                return INTERNAL_FAILURE;
            }
            let name = bytes(&call, name, size);
            let (vm, effective) = (call.data().vm, call.data().frame.effective);
            let number = call.data().world.register_queue(vm, effective, name);
            put(&mut call, token, &number.to_le_bytes());
            OK
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_dequeue_shared_queue",
        |mut call: Call<'_>, token: u32, data: u32, size: u32| -> Result<u32> {
            if call.data().world.refuses() {
                return Ok(INTERNAL_FAILURE);
            }
            let taken = {
                let mut state = call.data().world.state.borrow_mut();
                match state.queues.get_mut((token as usize).wrapping_sub(1)) {
                    None => return Ok(NOT_FOUND),
                    Some(queue) if queue.items == 0 => false,
                    Some(queue) => {
                        queue.items -= 1;
                        true
                    }
                }
            };
            if taken { give(&mut call, b"w", data, size) } else { Ok(EMPTY) }
        },
    )?;
    linker.func_wrap("env", "proxy_enqueue_shared_queue", |call: Call<'_>, token: u32, _: u32, _: u32| {
        if !call.data().world.refuses() && call.data().world.enqueue(token) { OK } else { NOT_FOUND }
    })?;
    Ok(())
}
