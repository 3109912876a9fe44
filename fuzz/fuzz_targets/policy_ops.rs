#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| equipoise_fuzz::ops::run_bytes(data));
