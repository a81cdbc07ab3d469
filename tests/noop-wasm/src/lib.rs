//! A filter that holds a request until its body has ended, looks at nothing, and lets it go. What it costs is the host's
//! price for any Wasm filter that must know a body before it decides; `scripts/bench` measures nimgate against it.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Stream;

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, ends_here: bool) -> Action {
        until(ends_here)
    }

    fn on_http_request_body(&mut self, _: usize, ends_here: bool) -> Action {
        until(ends_here)
    }
}

fn until(ends_here: bool) -> Action {
    if ends_here { Action::Continue } else { Action::Pause }
}
