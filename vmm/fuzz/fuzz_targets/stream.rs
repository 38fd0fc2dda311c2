#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pindah_fuzz::stream::run(data));
