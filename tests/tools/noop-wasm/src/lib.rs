//! A filter that holds a request until its body has ended, looks at nothing, and lets it go. What it costs is the host's
//! price for any Wasm filter that must know a body before it decides; `scripts/bench` measures nimgate against it.
//!
//! With `read` as its configuration it has the host hand it the headers and each piece of the body, counts the request,
//! and still looks at nothing: the host's price for what nimgate can't do without.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, MetricType};
use std::hint::black_box;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root { counter: None }));
}}

/// The counter is there if this filter reads.
struct Root {
    counter: Option<u32>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        if self.get_plugin_configuration().as_deref() == Some(b"read") {
            self.counter = hostcalls::define_metric(MetricType::Counter, "noop_requests_total").ok();
            return self.counter.is_some();
        }
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(match self.counter {
            None => Box::new(Blind),
            Some(counter) => Box::new(Reader { counter, seen: 0 }),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Blind;

impl Context for Blind {}

impl HttpContext for Blind {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        until(ends_here)
    }

    fn on_http_request_body(&mut self, _: usize, ends_here: bool) -> Action {
        until(ends_here)
    }
}

struct Reader {
    counter: u32,
    /// How many bytes of the body it has been given.
    seen: usize,
}

impl Context for Reader {}

impl HttpContext for Reader {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        black_box(headers());
        until(ends_here)
    }

    fn on_http_request_body(&mut self, size: usize, ends_here: bool) -> Action {
        if size > self.seen {
            black_box(self.get_http_request_body(self.seen, size - self.seen));
            self.seen = size;
        }
        if ends_here {
            let _ = hostcalls::increment_metric(self.counter, 1);
        }
        until(ends_here)
    }
}

/// All headers as the host wrote them. The SDK would make strings of them.
fn headers() -> Vec<u8> {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    }
    const REQUEST: u32 = 0;
    let (mut data, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: the pointers are to live locals; the host allocates through the SDK, a boxed slice of `size` bytes, and
    // hands it over.
    unsafe {
        match proxy_get_header_map_pairs(REQUEST, &mut data, &mut size) {
            0 if !data.is_null() => Vec::from_raw_parts(data, size, size),
            _ => Vec::new(),
        }
    }
}

fn until(ends_here: bool) -> Action {
    if ends_here { Action::Continue } else { Action::Pause }
}
