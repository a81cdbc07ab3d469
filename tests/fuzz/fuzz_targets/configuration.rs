//! `scripts/fuzz configuration`; what it checks stands in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nimgate_fuzz::configuration(data));
