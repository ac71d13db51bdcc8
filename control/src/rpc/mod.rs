//! Tasks over gRPC: what clients ask, what nodes tell each other.
//!
//! | file | what |
//! | --- | --- |
//! | `wire` | what `proto/blockhaul.proto` describes |
//! | `fault` | failures on their way over the wire |
//! | `order` | what a client asks for, checked |
//! | `records`, `view` | records as messages, tasks as their readers see them |
//! | `desk` | what the services stand on: the dispatcher that leads, the runner of this node |
//! | `center`, `nodes` | the services |
//! | `addressee` | whom a call between nodes is for |
//! | `admission`, `listener`, `service_endpoint`, `handshake` | where they listen, and for how many |
//! | `tls`, `certificates` | by what both ends of a connection know each other, and until when |
//! | `channels`, `calls`, `client`, `trouble` | the other end, and why it cannot be had |
//!
//! Nothing here decides anything: a call is checked, handed to whom it concerns, and its answer is packed. Everything
//! that waits has a bound in [`limits`].

mod addressee;
pub(crate) mod admission;
pub mod calls;
mod center;
mod certificates;
pub mod channels;
pub mod client;
mod connect_failure;
mod convert;
pub mod desk;
pub mod error;
mod handshake;
pub mod limits;
pub mod listener;
mod nodes;
mod service_endpoint;
pub mod task_view;
pub mod tls;
mod validate;

pub use crate::wire;
