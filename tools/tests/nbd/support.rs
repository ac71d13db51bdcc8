//! Names what tests against servers use.

pub(crate) use blockhaul_testkit::content::{SeededRandom, assert_same, iterations, mixed};
pub(crate) use blockhaul_testkit::nbd::{
    Address, Command, Export, Kind, Offer, Peer, PeerScript, Proxy, Reaction, Request, Seen, Server, Store, TestDirs,
    allocated, assert_all_there, assert_whole, content, fill, option_reply, option_reply_with, reply, wire,
};
pub(crate) use blockhaul_testkit::programs::blockhaul as program;
pub(crate) use blockhaul_testkit::running::{Running, moving, recorded};
pub(crate) use blockhaul_testkit::scratch::{MIB, Outcome, noise};
pub(crate) use blockhaul_testkit::test_dir::{run, text};
pub(crate) use blockhaul_testkit::{Need, need};
