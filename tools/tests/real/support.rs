//! Names what tests on a real system use.

pub(crate) use blockhaul_testkit::content::{SeededRandom, assert_same, iterations, mixed, write_sparse};
pub(crate) use blockhaul_testkit::programs::blockhaul as program;
pub(crate) use blockhaul_testkit::running::{Running, moving, recorded};
pub(crate) use blockhaul_testkit::scratch::{MIB, Outcome, noise, outcome};
pub(crate) use blockhaul_testkit::test_dir::{TestDir, run, text};
pub(crate) use blockhaul_testkit::{Need, need};
