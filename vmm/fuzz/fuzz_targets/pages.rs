#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pindah_fuzz::pages::run(data));
