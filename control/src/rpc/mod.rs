//! Serves and calls the task center over gRPC: requests of clients, and calls between nodes.
//!
//! | file | what |
//! | --- | --- |
//! | `wire` | what `proto/blockhaul.proto` describes |
//! | `error` | failures on their way over the wire |
//! | `validate`, `schedules` | a client's request, checked; schedules as messages |
//! | `convert`, `digest` | records as messages, digests of requests |
//! | `task_view`, `schedule_view`, `change_view` | tasks, schedules and changes as clients see them |
//! | `local_roles` | handles of this node's dispatcher and runner, which the services call |
//! | `center`, `all_tasks`, `logs`, `checks`, `nodes` | the services |
//! | `guarded_center` | who may call the first one, and its audit log |
//! | `addressee` | the process that a call between nodes is for |
//! | `connection_limit`, `listener` | where the services listen, and for how many connections |
//! | `service_endpoint`, `handshake` | what an accepted connection goes through first |
//! | `tls`, `certificates` | how both ends of a connection authenticate, and until when |
//! | `channels`, `calls`, `client`, `connect_failure` | the calling end, and why a connection fails |
//!
//! Nothing here decides anything: a call is checked and handed on, and its answer is encoded. Everything that waits has
//! a bound in [`limits`].

mod addressee;
mod all_tasks;
pub(crate) mod connection_limit;
pub mod calls;
mod center;
mod checks;
mod certificates;
pub mod change_view;
pub mod channels;
pub mod client;
pub mod digest;
mod connect_failure;
mod convert;
pub mod error;
pub(crate) mod guarded_center;
pub(crate) mod handshake;
pub mod limits;
pub mod listener;
pub mod local_roles;
mod logs;
mod nodes;
mod schedules;
mod service_endpoint;
pub mod schedule_view;
pub mod task_view;
pub mod tls;
mod validate;

pub use crate::wire;

#[cfg(test)]
mod tests;
