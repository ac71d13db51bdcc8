//! Provides the support code of the tests of the task center: a cell of nodes, and proxies between them that can fail.

mod cell;
#[path = "../../nbd/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests against servers")]
mod nbd;
mod node;
mod oldest;
mod pair;
mod permit;
mod port;
mod records;
mod task;
#[path = "../../support/taskd.rs"]
mod taskd;

pub(crate) use blockhaul_testkit::authority::{Authority, Identity};
pub(crate) use blockhaul_testkit::tcp_proxy::{Mode, TcpProxy};
pub(crate) use blockhaul_testkit::zookeeper::Settings;
pub(crate) use cell::{Cell, LONG_SESSION, NEEDS, SHORT_SESSION};
pub(crate) use nbd::{Address, MIB, Need, Server, TestDirs, assert_same, mixed, need, noise, run, text};
pub(crate) use node::Node;
pub(crate) use oldest::oldest_taskd;
pub(crate) use pair::Pair;
pub(crate) use port::{address, port};
pub(crate) use records::Records;
pub(crate) use task::Task;
