//! Sound journals, spoiled as a seed says: they never say more than what was recorded.
#![no_main]

use blockhaul_engine::journal::fuzz::fuzz_mutation;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|seed: u64| fuzz_mutation(seed));
