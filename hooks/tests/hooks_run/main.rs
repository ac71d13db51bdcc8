//! Runs real programs as hooks: harmless ones, and ones that do all that a hook must not do.
//!
//! Goal: a run ends when it has to, nothing of it is left, and it costs nobody else anything. Method: the hooks are shell
//! scripts. Tests wait for conditions, never for times; the limits of the waits are far beyond what a test takes.

#![forbid(unsafe_code)]

mod crash;
mod ending;
mod files;
mod running;
mod site;
mod starting;
