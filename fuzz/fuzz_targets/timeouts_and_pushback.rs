#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| equipoise_fuzz::bodies::timeouts_and_pushback::run(data));
