//! `scripts/fuzz ledger`; what it checks stands in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nimgate_fuzz::ledger(data));
