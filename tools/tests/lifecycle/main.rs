//! The life cycle of `taskd` as its operators see it: real processes with two networks and a real ZooKeeper between them,
//! links that are cut, signals at any moment, a service manager that listens. What a host lacks skips a test by name.

#![forbid(unsafe_code)]

mod limits;
mod networks;
mod roles;
mod signals;
mod support;
mod systemd;
mod vip;
