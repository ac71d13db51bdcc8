//! Any bytes, read as files of keys, as signed orders, and as their signatures.
#![no_main]

use blockhaul_control::order::fuzz::{fuzz_keys, fuzz_order};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzz_keys(data);
    fuzz_order(data);
});
