//! Provides the support code of the tests against servers: real servers, a proxy that can stall, and a scripted server.

mod export;
mod judge;
mod peer;
mod proxy;
#[path = "../../real/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests on a real system")]
mod real;
mod server;
mod site;

pub(crate) use export::{Export, Kind};
pub(crate) use judge::{allocated, assert_all_there, assert_whole, content, fill};
pub(crate) use peer::{
    Command, Offer, Peer, PeerScript, Reaction, Request, Seen, Store, option_reply, option_reply_with, reply, wire,
};
pub(crate) use proxy::Proxy;
pub(crate) use real::{
    MIB, Need, Outcome, Running, SeededRandom, assert_same, iterations, mixed, moving, need, noise, program, recorded,
    run, text,
};
pub(crate) use server::{Address, Server};
pub(crate) use site::TestDirs;
