//! Decides which caller may make which call: by the name in its certificate, and the file of `--roles`.
//!
//! | file | what |
//! | --- | --- |
//! | `caller` | who is at the other end of a connection |
//! | `method` | the calls of clients, and what each of them needs |
//! | `rules` | what the file says: names of nodes, and roles of clients |
//! | `control` | the rules that are in force, and the decision |
//!
//! What always holds: a name is that of a node, or has one role, or has no right at all. Roles are ordered, and each
//! includes the ones below it. A call that the table does not know does not exist. Without the file every caller may do
//! everything. Why so: `docs/design/0020-roles-and-audit.md`.

mod caller;
mod control;
mod method;
mod rules;

pub(crate) use caller::{Caller, certificate_name};
pub(crate) use control::AccessControl;
pub(crate) use method::{Impact, Method};
pub(crate) use rules::ClientRole;
