//! Any bytes as a server's answers: nothing lands outside of a buffer or twice, and no read is done that is not whole.
#![no_main]

use blockhaul_engine::nbd::fuzz::fuzz_replies;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_replies(data));
