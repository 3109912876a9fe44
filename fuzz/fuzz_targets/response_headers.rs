#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| equipoise_fuzz::bodies::response_headers::run(data));
