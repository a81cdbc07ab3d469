//! A simulated Envoy: runs the shipped `nimgate.wasm` in many workers, under virtual time, chance and faults, and checks
//! what must always hold. `checks.rs` lists the invariants, `plan.rs` the faults, `mutant.rs` the planted bugs.
#![expect(missing_docs, reason = "fields of a test's state; their names say what they are")]

pub mod checks;
pub mod clients;
pub mod configurations;
pub mod console;
pub mod faults;
pub mod host;
pub mod mutant;
pub mod plan;
pub mod rest;
pub mod rng;
pub mod run;
pub mod state;
pub mod streams;
pub mod upstream;
pub mod vm;
pub mod world;

use std::path::PathBuf;
use std::sync::Arc;

/// Where the module lies: `NIMGATE_WASM`, or where `scripts/build` puts it.
pub fn module_path() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/wasm32-unknown-unknown/release/nimgate.wasm");
    std::env::var_os("NIMGATE_WASM").map_or_else(|| PathBuf::from(built), PathBuf::from)
}

/// Loads and compiles the module.
///
/// # Errors
/// A sentence when it is not there or can't be compiled.
pub fn machine() -> Result<Arc<vm::Machine>, String> {
    let path = module_path();
    let wasm = std::fs::read(&path)
        .map_err(|error| format!("{}: {error}; run scripts/build, or set NIMGATE_WASM", path.display()))?;
    vm::Machine::new(&wasm).map(Arc::new).map_err(|error| format!("{}: {error:#}", path.display()))
}
