//! The shell: Envoy's callbacks in, host calls out.
//!
//! It turns callbacks into inputs of the core and carries the core's actions out, and knows no rules: what a priority,
//! a rate or a status means is decided in the core. One [`worker::Worker`] per VM holds the scheduler; root contexts
//! (one per plugin configuration) and streams refer to it.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

/// What the module exports, for the linker (`scripts/lib/wasm_linker`). It stands here so that a change of it has the module
/// linked again; `tests/sim/tests/exports.rs` compares it with the callbacks that are implemented here.
const _: &str = include_str!("../exports.txt");

mod console;
mod headers;
mod holding;
mod host;
mod http;
mod kept_body;
mod logging;
mod metrics;
mod root;
mod shared_data;
mod stream;
mod worker;

proxy_wasm::main! {{
    logging::install();
    proxy_wasm::set_root_context(|id| Box::new(root::Root::new(id)));
}}
