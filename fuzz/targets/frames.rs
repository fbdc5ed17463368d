#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ethhook_fuzz::frames(bytes));
