//! The host calls of proxy-wasm ABI 0.2.1, and the few of WASI, that the filter makes. Nothing else names one.
//!
//! The SDK's own wrappers panic on statuses they don't expect, and a panic hangs every request that this worker holds.
//! These don't: a refusal by the host is a value, and callers decide what it means. Numbers are checked against the
//! ABI's own list, since a newer host may answer what this code has never heard of.

use core::cell::Cell;
use core::ptr::null_mut;
use nimgate_core::units::{Instant, Micros};

/// A call that the host refused, with the ABI's status number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused(pub u32);

/// Maps of headers.
#[derive(Clone, Copy)]
pub enum Map {
    Request = 0,
    Response = 2,
    CallResponse = 6,
}

/// Buffers.
#[derive(Clone, Copy)]
pub enum Buffer {
    RequestBody = 0,
    ResponseBody = 1,
    PluginConfiguration = 7,
}

/// Kinds of metrics.
#[derive(Clone, Copy)]
pub enum MetricKind {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

const OK: u32 = 0;
const EMPTY: u32 = 7;
const NOT_FOUND: u32 = 1;
const CAS_MISMATCH: u32 = 8;

mod raw {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
        pub fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        pub fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
        pub fn proxy_set_effective_context(context: u32) -> u32;
        pub fn proxy_get_buffer_bytes(
            buffer: u32,
            start: usize,
            max: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_set_buffer_bytes(buffer: u32, start: usize, size: usize, data: *const u8, len: usize) -> u32;
        pub fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub fn proxy_set_header_map_pairs(map: u32, data: *const u8, size: usize) -> u32;
        pub fn proxy_replace_header_map_value(
            map: u32,
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> u32;
        pub fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
        pub fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> u32;
        pub fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
            cas: *mut u32,
        ) -> u32;
        pub fn proxy_set_shared_data(
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
            cas: u32,
        ) -> u32;
        pub fn proxy_register_shared_queue(name: *const u8, size: usize, token: *mut u32) -> u32;
        pub fn proxy_dequeue_shared_queue(token: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub fn proxy_enqueue_shared_queue(token: u32, data: *const u8, size: usize) -> u32;
        pub fn proxy_done() -> u32;
        pub fn proxy_continue_stream(stream: u32) -> u32;
        pub fn proxy_send_local_response(
            status: u32,
            details: *const u8,
            details_size: usize,
            body: *const u8,
            body_size: usize,
            headers: *const u8,
            headers_size: usize,
            grpc_status: i32,
        ) -> u32;
        pub fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
        pub fn proxy_record_metric(id: u32, value: u64) -> u32;
        pub fn proxy_increment_metric(id: u32, offset: i64) -> u32;
        pub fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    }

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        pub fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u32;
        pub fn environ_sizes_get(count: *mut usize, size: *mut usize) -> u32;
        pub fn environ_get(pointers: *mut *mut u8, bytes: *mut u8) -> u32;
    }
}

fn checked(status: u32) -> Result<(), Refused> {
    if status == OK { Ok(()) } else { Err(Refused(status)) }
}

/// Takes over a buffer that the host filled. The host allocates it through the SDK's `malloc`, as a boxed slice of
/// exactly `size` bytes, so a vector of that size and capacity owns it.
fn owned(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: see above; the host hands each buffer over once.
    unsafe { Vec::from_raw_parts(data, size, size) }
}

/// Writes one line to Envoy's log. A refusal can't be reported anywhere, so it is dropped.
pub fn log(level: u32, text: &str) {
    // SAFETY: the pointer and length are those of a live string.
    let _ = unsafe { raw::proxy_log(level, text.as_ptr(), text.len()) };
}

/// Monotonic time. The same clock for all workers of the process; zero should the host refuse.
pub fn now() -> Instant {
    Instant::from_micros(now_nanos() / 1_000)
}

/// The same in nanoseconds.
pub fn now_nanos() -> u64 {
    const MONOTONIC: u32 = 1;
    let mut nanos = 0u64;
    // SAFETY: the pointer is to a live local.
    let status = unsafe { raw::clock_time_get(MONOTONIC, 1_000, &mut nanos) };
    let nanos = if status == OK { nanos } else { 0 };
    LATEST.set(nanos);
    nanos
}

/// What [`now`] has last answered in this VM. Within a callback that has read the clock this is the present for all that
/// need not be measured.
pub fn latest() -> Instant {
    Instant::from_micros(LATEST.get() / 1_000)
}

/// Seconds since 1970 on the wall clock; zero should the host refuse.
pub fn wall_clock_s() -> u64 {
    let mut nanos = 0u64;
    // SAFETY: the pointer is to a live local.
    let status = unsafe { raw::proxy_get_current_time_nanoseconds(&mut nanos) };
    if status == OK { nanos / 1_000_000_000 } else { 0 }
}

/// A context, and the root context that it belongs to: itself for a root context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextRef {
    pub context: u32,
    pub root: u32,
}

thread_local! {
    /// The context in effect in the running callback of a root context, if it is another one's.
    static EFFECTIVE: Cell<Option<ContextRef>> = const { Cell::new(None) };
    static LATEST: Cell<u64> = const { Cell::new(0) };
}

/// A callback of a root context begins. The host puts each callback's own context in effect.
pub fn begin(root: u32) -> ContextRef {
    EFFECTIVE.set(None);
    ContextRef { context: root, root }
}

/// Runs `work` with the context `on` in effect, in a callback of `running`.
///
/// The host calls of a stream's callback rely on its own context, so that is put back. Those of a root context's callback
/// do not: there the context stays, until another is needed or the callback ends.
///
/// # Errors
/// [`Refused`] when the context is gone; `work` has then not run.
pub fn on_behalf_of<T>(on: ContextRef, running: ContextRef, work: impl FnOnce() -> T) -> Result<T, Refused> {
    let is_root = running.context == running.root;
    let effective = if is_root { EFFECTIVE.get().unwrap_or(running) } else { running };
    if on.context == effective.context {
        return Ok(work());
    }
    // SAFETY: no pointers.
    checked(unsafe { raw::proxy_set_effective_context(on.context) })?;
    if is_root {
        EFFECTIVE.set(Some(on));
        return Ok(work());
    }
    let done = work();
    // SAFETY: no pointers. It is the context of the running callback, so it exists.
    let _ = unsafe { raw::proxy_set_effective_context(running.context) };
    Ok(done)
}

/// Arms the timer of a root context, or switches it off with [`Micros::ZERO`]. Whole milliseconds, rounded up; the timer
/// repeats until it is set again. The host takes the root context of whatever context is in effect.
pub fn set_timer(root: u32, running: ContextRef, after: Micros) -> Result<(), Refused> {
    let millis = u32::try_from(after.as_millis_ceil()).unwrap_or(u32::MAX);
    // SAFETY: no pointers.
    let set = || checked(unsafe { raw::proxy_set_tick_period_milliseconds(millis) });
    let is_root = running.context == running.root;
    let effective = if is_root { EFFECTIVE.get().unwrap_or(running) } else { running };
    if effective.root == root { set() } else { on_behalf_of(ContextRef { context: root, root }, running, set)? }
}

/// A part of a buffer; empty when there is nothing.
pub fn buffer(buffer: Buffer, start: usize, max: usize) -> Result<Vec<u8>, Refused> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    match unsafe { raw::proxy_get_buffer_bytes(buffer as u32, start, max, &mut data, &mut size) } {
        OK => Ok(owned(data, size)),
        NOT_FOUND => Ok(Vec::new()),
        status => Err(Refused(status)),
    }
}

/// Replaces `size` bytes of a buffer.
pub fn replace_buffer(buffer: Buffer, size: usize, with: &[u8]) -> Result<(), Refused> {
    // SAFETY: the pointer and length are those of a live slice.
    checked(unsafe { raw::proxy_set_buffer_bytes(buffer as u32, 0, size, with.as_ptr(), with.len()) })
}

/// All headers of a map, as the host wrote them: read them with [`super::headers::pairs`].
pub fn header_map(map: Map) -> Result<Vec<u8>, Refused> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    checked(unsafe { raw::proxy_get_header_map_pairs(map as u32, &mut data, &mut size) })?;
    Ok(owned(data, size))
}

/// Puts these headers in place of all those of a map; see [`super::headers`] for their form.
pub fn set_header_map(map: Map, headers: &[u8]) -> Result<(), Refused> {
    // SAFETY: the pointer and length are those of a live slice.
    checked(unsafe { raw::proxy_set_header_map_pairs(map as u32, headers.as_ptr(), headers.len()) })
}

/// Sets a header, in place of all others of its name.
pub fn set_header(map: Map, name: &str, value: &[u8]) -> Result<(), Refused> {
    // SAFETY: the pointers and lengths are those of live slices.
    checked(unsafe {
        raw::proxy_replace_header_map_value(map as u32, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Removes all headers of a name.
pub fn remove_header(map: Map, name: &[u8]) -> Result<(), Refused> {
    // SAFETY: the pointer and length are those of a live slice.
    checked(unsafe { raw::proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) })
}

/// A property of the stream or the node; `None` when it has no value. `path` holds the segments, each ended by NUL but
/// the last.
pub fn property(path: &str) -> Option<Vec<u8>> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals and the pointer and length of a live string.
    match unsafe { raw::proxy_get_property(path.as_ptr(), path.len(), &mut data, &mut size) } {
        OK => Some(owned(data, size)),
        _ => None,
    }
}

/// Writes a property of the effective stream. It lies in the stream's filter state as `wasm.` and the path.
pub fn set_property(path: &str, value: &[u8]) -> Result<(), Refused> {
    // SAFETY: the pointers and lengths are those of live slices.
    checked(unsafe { raw::proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

/// A whole number among the properties.
pub fn property_u64(path: &str) -> Option<u64> {
    let bytes = property(path)?;
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

/// A value in shared data and its version; `None` when there is none, or an empty one.
pub fn shared_data(key: &str) -> Result<Option<(Vec<u8>, u32)>, Refused> {
    let (mut data, mut size, mut cas) = (null_mut(), 0, 0);
    // SAFETY: the pointers are to live locals and the pointer and length of a live string.
    match unsafe { raw::proxy_get_shared_data(key.as_ptr(), key.len(), &mut data, &mut size, &mut cas) } {
        OK => Ok(Some((owned(data, size), cas))),
        NOT_FOUND => Ok(None),
        status => Err(Refused(status)),
    }
}

/// Puts a value into shared data if it still has the version `cas`; answers whether it did.
pub fn swap_shared_data(key: &str, value: &[u8], cas: u32) -> Result<bool, Refused> {
    // SAFETY: the pointers and lengths are those of live slices.
    match unsafe { raw::proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) } {
        OK => Ok(true),
        CAS_MISMATCH => Ok(false),
        status => Err(Refused(status)),
    }
}

/// Registers a shared queue for the effective root context and returns its token.
pub fn register_queue(name: &str) -> Result<u32, Refused> {
    let mut token = 0;
    // SAFETY: the pointer is to a live local; the pointer and length of a live string.
    checked(unsafe { raw::proxy_register_shared_queue(name.as_ptr(), name.len(), &mut token) })?;
    Ok(token)
}

/// Takes one message from a queue; `None` if there is none.
pub fn dequeue(token: u32) -> Result<Option<Message>, Refused> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    match unsafe { raw::proxy_dequeue_shared_queue(token, &mut data, &mut size) } {
        OK => Ok(Some(if owned(data, size) == WAKE { Message::Wake } else { Message::WakeOfVersion1 })),
        EMPTY => Ok(None),
        status => Err(Refused(status)),
    }
}

/// What one worker tells another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Look at the ledgers.
    Wake,
    /// The same, from a module that knows the record of version 1 only.
    WakeOfVersion1,
}

/// Those modules write `w`, and read nothing.
const WAKE: &[u8] = b"2";

/// Puts a message into a queue, which wakes the worker that registered it.
pub fn enqueue(token: u32) -> Result<(), Refused> {
    // SAFETY: the pointer and length are those of a static slice.
    checked(unsafe { raw::proxy_enqueue_shared_queue(token, WAKE.as_ptr(), WAKE.len()) })
}

/// Lets the effective root context go, which had answered that it was not done yet.
pub fn done() -> Result<(), Refused> {
    // SAFETY: no pointers.
    checked(unsafe { raw::proxy_done() })
}

/// Lets the effective stream's request go on, after the running callback.
pub fn resume_request() -> Result<(), Refused> {
    const REQUEST: u32 = 0;
    // SAFETY: no pointers.
    checked(unsafe { raw::proxy_continue_stream(REQUEST) })
}

/// Answers the effective stream, after the running callback. `details` becomes the response code details in Envoy's
/// access log.
pub fn reply(status: u16, details: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Refused> {
    const NO_GRPC_STATUS: i32 = -1;
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let headers = super::headers::serialise(&headers);
    // SAFETY: the pointers and lengths are those of live slices.
    checked(unsafe {
        raw::proxy_send_local_response(
            u32::from(status),
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            NO_GRPC_STATUS,
        )
    })
}

/// Defines a metric and returns its number. The same name gives the same metric in every worker.
pub fn define_metric(kind: MetricKind, name: &str) -> Result<u32, Refused> {
    let mut id = 0;
    // SAFETY: the pointer is to a live local; the pointer and length of a live string.
    checked(unsafe { raw::proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

/// Sets a gauge, or adds a value to a histogram.
pub fn record_metric(id: u32, value: u64) {
    // SAFETY: no pointers. A metric that can't be written is no reason to treat a request differently.
    let _ = unsafe { raw::proxy_record_metric(id, value) };
}

/// Raises a counter or changes a gauge.
pub fn add_to_metric(id: u32, offset: i64) {
    if offset != 0 {
        // SAFETY: no pointers. As above.
        let _ = unsafe { raw::proxy_increment_metric(id, offset) };
    }
}

/// The value of a counter or gauge, as all workers of the process made it; 0 should the host refuse.
pub fn metric(id: u32) -> u64 {
    let mut value = 0;
    // SAFETY: the pointer is to a live local.
    let status = unsafe { raw::proxy_get_metric(id, &mut value) };
    if status == OK { value } else { 0 }
}

/// Sends a request to a cluster; the answer comes as the running context's `on_http_call_response`.
///
/// # Errors
/// [`Refused`] when the host knows no such cluster or can't send there; no answer comes then.
pub fn call(cluster: &str, headers: &[(&str, &str)], timeout: Micros) -> Result<(), Refused> {
    let timeout = core::time::Duration::from_millis(timeout.as_millis_ceil());
    // The SDK delivers answers only to calls that went through it. It panics on statuses other than these two and OK;
    // Envoy has none, since its own implementation of the call answers nothing else.
    #[expect(clippy::disallowed_methods, reason = "an answer to a call made past the SDK would make it panic")]
    let sent = proxy_wasm::hostcalls::dispatch_http_call(cluster, headers.to_vec(), None, Vec::new(), timeout);
    sent.map(|_| ()).map_err(|status| Refused(status as u32))
}

/// An environment variable of the VM (`vm_config.environment_variables`). The standard library can't read them on this
/// target, so the WASI calls are made by hand.
pub fn environment(name: &str) -> Option<String> {
    let (mut count, mut size) = (0usize, 0usize);
    // SAFETY: the pointers are to live locals.
    checked(unsafe { raw::environ_sizes_get(&mut count, &mut size) }).ok()?;
    let mut pointers = vec![null_mut(); count];
    let mut bytes = vec![0u8; size];
    // SAFETY: the host writes `count` pointers and `size` bytes, as it has just said, and both vectors hold that many.
    checked(unsafe { raw::environ_get(pointers.as_mut_ptr(), bytes.as_mut_ptr()) }).ok()?;
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|entry| core::str::from_utf8(entry).ok()?.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}
