//! Decides whether a task is what a client has signed.
//!
//! ```text
//!  client: Order -> JSON text, signed --> record, verbatim --> leader: checks before anything is written
//!                                                         `--> runner: checks again before anything is touched,
//!                                                              and takes the work from the text alone
//! ```
//! What always holds with `--order-keys`: a runner does no work that the text does not name; whoever can write records, or
//! leads, can hold a task back, repeat it until it has ended, and hide what became of it, but cannot change it. Everything that
//! goes wrong while an order is checked is `EPermission`.
//!
//! `docs/design/0024-signed-orders.md` describes the text, and why so.

mod content;
mod ended;
pub mod fuzz;
mod instance;
mod keys;
mod runner_orders;
mod signature;
mod signing;
mod verifier;
#[cfg(test)]
mod tests;

pub use content::Order;
pub(crate) use ended::EndedOrders;
pub use keys::OrderKeys;
pub use runner_orders::RunnerOrders;
pub(crate) use runner_orders::VerifiedTask;
pub use signing::{SigningKey, Terms};
pub use verifier::OrderVerifier;

use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

/// Longest validity of an order: nodes remember what has ended for so long.
pub const VALIDITY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Returns the refusal of an order.
fn refused(why: impl Into<String>) -> Error {
    Error::new(Code::Permission, Side::Caller, Operation::Start, format!("the order is refused: {}", why.into()))
}
