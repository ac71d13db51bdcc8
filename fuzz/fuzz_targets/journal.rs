//! Any bytes, read as a journal.
#![no_main]

use blockhaul_engine::journal::fuzz::fuzz_journal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_journal(data));
