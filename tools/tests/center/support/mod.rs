//! Names what tests of the task center use, and reads the center's records.

mod records;

pub(crate) use blockhaul_testkit::authority::{Authority, Identity};
pub(crate) use blockhaul_testkit::content::{assert_same, mixed};
pub(crate) use blockhaul_testkit::nbd::{Address, Server, TestDirs};
pub(crate) use blockhaul_testkit::safe_dir::SafeDir;
pub(crate) use blockhaul_testkit::scratch::{MIB, noise};
pub(crate) use blockhaul_testkit::tcp_proxy::{Mode, TcpProxy};
pub(crate) use blockhaul_testkit::test_cluster::{
    ExportPair, LONG_SESSION, NEEDS, Node, SHORT_SESSION, Task, TestCluster, address, oldest_taskd, port,
};
pub(crate) use blockhaul_testkit::test_dir::{run, text};
pub(crate) use blockhaul_testkit::zookeeper::Settings;
pub(crate) use blockhaul_testkit::{Need, need};
pub(crate) use records::{ClusterRecords, Records};
