//! Provides real NBD servers, a proxy that can stall, and a scripted server.

mod contents;
mod export;
pub mod peer;
mod proxy;
mod server;
mod test_dirs;

pub use contents::{allocated, assert_all_there, assert_whole, content, fill};
pub use export::{Export, Kind};
pub use peer::{
    Command, Offer, Peer, PeerScript, Reaction, Request, Seen, Store, option_reply, option_reply_with, reply, wire,
};
pub use proxy::Proxy;
pub use server::{Address, Server};
pub use test_dirs::TestDirs;
