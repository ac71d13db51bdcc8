//! Defines the records in which nodes describe themselves and operators mark nodes.

use super::{Incarnation, NodeId, OpId, Record, is_zero};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Schema of all records, checked by every `taskd` before it does anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Level of the center: see `docs/design/0025-levels.md`.
    pub schema: u32,
    /// Random identity of the center.
    pub center: String,
}

/// Current or last leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Address at which clients reach it, as `HOST:PORT`.
    pub address: String,
    /// Operation id of the write that made it leader.
    pub op: OpId,
}

/// Registered runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Boot id of the kernel: tells a restarted process from a restarted node.
    pub boot_id: String,
    /// Address at which the dispatcher reaches it, as `HOST:PORT`.
    pub address: String,
    /// Tasks that it runs at once.
    pub slots: u32,
    /// Free text for operators.
    pub labels: BTreeMap<String, String>,
    /// Folders and devices that it may touch.
    pub allow_paths: Vec<String>,
    /// Servers that it may use; empty: all.
    pub allow_nbd: Vec<String>,
    /// Version of its program.
    pub build: String,
    /// Whether it returns its tasks and accepts no more.
    pub stopping: bool,
    /// Address at which peers probe it in the storage network; none: not probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<SocketAddr>,
    /// Number of earlier starts of its `taskd` in the same state directory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// How the last run of its `taskd` has ended, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<LastEnd>,
    /// Operation id of the last write.
    pub op: OpId,
}

/// How a run of `taskd` has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEnd {
    /// `stopped`, `stopped-at-once`, `stop-timed-out`, `failed`, `crashed` or `host-restarted`.
    pub how: String,
    /// Signal or error, if there was one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// When, in milliseconds since 1970, if it could still say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// Committed renewal: the only thing that extends a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Incarnation of the writer.
    pub incarnation: Incarnation,
    /// Number of renewals.
    pub count: u64,
    /// Wall clock of the node when it was sent, in milliseconds since 1970: shows clock skew, decides nothing.
    pub unix_ms: u64,
}

/// Operator's request that a node gets no new tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it was made, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether its running tasks were asked back, too.
    pub now: bool,
    /// When it ends by itself, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Operation id of the write.
    pub op: OpId,
}

impl Record for Meta {}
impl Record for Leader {}
impl Record for Registration {}
impl Record for Renewal {}
impl Record for Drain {}

#[cfg(test)]
impl Leader {
    /// Returns the record of a leader.
    pub(crate) fn example(name: &str) -> Self {
        let Registration { node, incarnation, address, .. } = Registration::example(name);
        Self { node, incarnation, address, op: OpId::fresh() }
    }
}

#[cfg(test)]
impl Registration {
    /// Returns the registration of a node that offers nothing.
    pub(crate) fn example(name: &str) -> Self {
        Self {
            node: NodeId::new(name).expect("tests use plain names"),
            incarnation: Incarnation(format!("{name}-life")),
            boot_id: String::from("boot"),
            address: format!("{name}:1"),
            slots: 4,
            labels: BTreeMap::new(),
            allow_paths: Vec::new(),
            allow_nbd: Vec::new(),
            build: String::new(),
            stopping: false,
            data: None,
            restarts: 0,
            last_end: None,
            op: OpId(String::from("op")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_read_with_and_without_what_came_later() {
        let plain = Registration::example("n");
        let text = String::from_utf8(plain.encode()).unwrap();
        assert!(
            ["data", "restarts", "last_end"].iter().all(|later| !text.contains(later)),
            "an older taskd reads it: {text}"
        );
        assert_eq!(Registration::decode(text.as_bytes()).unwrap(), plain);
        let end = LastEnd { how: String::from("stopped"), detail: String::from("SIGTERM"), at_ms: Some(5) };
        let newer =
            Registration { data: Some("10.0.0.1:7401".parse().unwrap()), restarts: 3, last_end: Some(end), ..plain };
        assert_eq!(Registration::decode(&newer.encode()).unwrap(), newer);
    }
}
