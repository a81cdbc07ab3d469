//! What the module asks of a Wasm engine beyond the first version of WebAssembly.
//!
//! SIMD, in which the scanner searches; and what every compiler of today takes for granted. V8 has had all of it since 2021,
//! and with it every Envoy that nimgate supports. An engine that lacks it refuses the module when it is loaded, in a
//! sentence that names what is missing, so nobody runs into it later.

use wasmtime::{Config, Engine, Module};

/// An engine without the younger proposals, such as threads, tail calls or memories of 64 bits.
fn plain() -> Config {
    let mut config = Config::new();
    config
        .wasm_relaxed_simd(false)
        .wasm_tail_call(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_extended_const(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false);
    config
}

fn validate(config: &Config) -> Result<(), String> {
    let path = std::env::var("NIMGATE_WASM").expect("NIMGATE_WASM must name the module");
    let module = std::fs::read(path).expect("the module can be read");
    let engine = Engine::new(config).map_err(|error| format!("{error:#}"))?;
    Module::validate(&engine, &module).map_err(|error| format!("{error:#}"))
}

#[test]
fn an_engine_of_2021_takes_the_module() {
    assert_eq!(validate(&plain()), Ok(()));
}

#[test]
fn an_engine_without_simd_refuses_it_and_says_so() {
    let mut config = plain();
    config.wasm_simd(false);
    let refused = validate(&config).expect_err("the module uses SIMD");
    assert!(refused.contains("SIMD"), "{refused}");
}
