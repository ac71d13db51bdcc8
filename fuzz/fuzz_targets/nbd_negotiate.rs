//! Any bytes as a server's side of the handshake.
#![no_main]

use blockhaul_engine::nbd::fuzz::fuzz_negotiate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_negotiate(data));
