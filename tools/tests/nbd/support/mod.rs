//! Provides what tests against servers share: real servers, a proxy that can stall, and a scripted server.

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
    Act, Command, Manners, Offer, Peer, Request, Seen, Store, option_reply, option_reply_with, reply, wire,
};
pub(crate) use proxy::Proxy;
pub(crate) use real::{
    Dice, MIB, Need, Outcome, Running, assert_same, iterations, mixed, moving, need, noise, program, recorded, run,
    text,
};
pub(crate) use server::{Address, Server};
pub(crate) use site::Site;
