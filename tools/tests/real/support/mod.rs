//! Provides the support code of the tests on a real system.

mod content;
mod copying;
mod room;
#[path = "../../cli/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod scratch;

pub(crate) use blockhaul_testkit::{Need, need};
pub(crate) use content::{SeededRandom, assert_same, iterations, mixed, write_sparse};
pub(crate) use copying::{Running, moving, program, recorded};
pub(crate) use room::{TestDir, run, text};
pub(crate) use scratch::{MIB, Outcome, noise, outcome};
