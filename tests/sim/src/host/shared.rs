//! Calls to what workers share: values with versions, and queues.

use super::{CAS_MISMATCH, Call, EMPTY, Host, INTERNAL_FAILURE, NOT_FOUND, OK, bytes, give, put};
use crate::checks::Commit;
use crate::mutant::Mutant;
use crate::plan::NAMES;
use std::rc::Rc;
use wasmtime::{Linker, Result};

/// The limit whose ledger lies at a key, in a fleet that has no module of version 1.
fn ledger_of(key: &[u8]) -> Option<usize> {
    limit_at(key).filter(|_| !key.starts_with(b"nimgate/1/"))
}

/// The limit of which something lies at a key: its ledger, or what tells modules of version 1 that they must not use it.
pub(crate) fn limit_at(key: &[u8]) -> Option<usize> {
    let at = key.windows(8).position(|part| part == b"/ledger/")?;
    NAMES.iter().position(|name| name.as_bytes() == &key[at + 8..])
}

/// A record without its head and its first section, which says where the ledger lives.
pub(crate) fn without_home(record: &[u8]) -> &[u8] {
    let length = |at: usize| record.get(at).map_or(0, |byte| usize::from(byte & 0x7f));
    let home = length(HEAD_BYTES + 1) + (length(HEAD_BYTES + 2) << 7);
    record.get(HEAD_BYTES + 3 + home..).unwrap_or(record)
}

/// The magic and the length of the rest.
const HEAD_BYTES: usize = 7;

/// Links them.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut call: Call<'_>, key: u32, key_size: u32, data: u32, size: u32, cas: u32| -> Result<u32> {
            let key = bytes(&call, key, key_size);
            let (world, vm) = (Rc::clone(&call.data().world), call.data().vm);
            let ledger = ledger_of(&key);
            if let Some(l) = ledger {
                let frame = &mut call.data_mut().frame;
                frame.ledger_at = frame.read_at;
                frame.limits[l].agrees = true;
                frame.looking = Some(l);
                let (context, at, publishes) = (frame.real, frame.ledger_at, frame.publishes);
                if publishes {
                    call.data_mut().frame.asked = true;
                    world.asks(vm, context, l, at);
                }
            }
            if world.refuses() {
                // A look that comes to nothing does not date again what was dated before.
                let frame = &mut call.data_mut().frame;
                frame.asked &= ledger.is_none_or(|l| frame.limits[l].at == 0);
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
            if let Some(l) = ledger {
                let (version, shadow) = {
                    let state = world.state.borrow();
                    let limit = &state.checks.limits[l];
                    (limit.commit, (!state.checks.lenient && !limit.in_flux).then_some(limit.settings.shadow))
                };
                let known = &mut call.data_mut().frame.limits[l];
                (known.version, known.shadow) = (version, shadow);
            }
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
            let (ledger, of) = (ledger_of(&key), limit_at(&key));
            let (done, commit, decided) = world.swap(vm, key, value, cas);
            let frame = &mut call.data_mut().frame;
            if let Some(l) = ledger {
                frame.limits[l].agrees = done;
            }
            frame.lost_in_a_row = if done { 0 } else { frame.lost_in_a_row + 1 };
            if frame.lost_in_a_row > 16 {
                world.state.borrow_mut().broken("I13", "a decision is made again for the 17th time".to_owned());
            }
            if let (true, None, Some(l)) = (done, ledger, of) {
                // Where the move to this version's record breaks off here, the bucket begins all the same.
                let at = frame.read_at;
                world.state.borrow_mut().checks.limits[l].begins_at.get_or_insert(at);
            }
            let frame = &mut call.data_mut().frame;
            if let (true, true, Some(l)) = (done, decided, ledger) {
                // The filter reads the clock after the ledger, so the last reading is the decision's time.
                let made = Commit { number: commit, at: frame.read_at };
                (frame.limits[l].commit, frame.limits[l].version) = (made, commit);
                let (publishes, context) = (frame.publishes, frame.real);
                world.committed(vm, context, l, publishes, made);
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
            if taken { give(&mut call, b"2", data, size) } else { Ok(EMPTY) }
        },
    )?;
    linker.func_wrap("env", "proxy_enqueue_shared_queue", |call: Call<'_>, token: u32, _: u32, _: u32| {
        let host = call.data();
        if !host.world.refuses() && host.world.enqueue(host.vm, token) { OK } else { NOT_FOUND }
    })?;
    Ok(())
}
