//! Tests the life cycle of `taskd` with real processes, two networks and a real ZooKeeper: cut links, signals at any
//! moment, a service manager. A test whose host lacks something is skipped by name.

#![forbid(unsafe_code)]

mod limits;
mod networks;
mod roles;
mod signals;
mod support;
mod systemd;
mod vip;
