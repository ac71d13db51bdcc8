//! Defines the records in which nodes describe themselves and operators mark nodes.

use super::{Incarnation, NodeId, OpId, Record, is_zero};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The schema of all records, checked by every `taskd` before it does anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// 1.
    pub schema: u32,
    /// Random, for telling centers apart.
    pub center: String,
}

/// Who leads, or led last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Where its clients reach it, as `HOST:PORT`.
    pub address: String,
    /// Of the write that made it leader.
    pub op: OpId,
}

/// A runner that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Of the kernel: tells a restarted process from a restarted node.
    pub boot_id: String,
    /// Where the dispatcher reaches it, as `HOST:PORT`.
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
    /// It gives back what it holds and takes nothing more.
    pub stopping: bool,
    /// Where peers probe it in the storage network; none: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<SocketAddr>,
    /// How often its `taskd` was started before, in the same state directory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// Of the write that made it what it is.
    pub op: OpId,
}

/// A committed sign of life: the only thing that extends a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Whose.
    pub incarnation: Incarnation,
    /// Counts them.
    pub count: u64,
    /// The node's wall clock when it was sent, in milliseconds since 1970: shows clocks that differ, decides nothing.
    pub unix_ms: u64,
}

/// An operator's wish that a node gets no new tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether what it runs was asked back, too.
    pub now: bool,
    /// Of the write.
    pub op: OpId,
}

impl Record for Meta {}
impl Record for Leader {}
impl Record for Registration {}
impl Record for Renewal {}
impl Record for Drain {}

#[cfg(test)]
impl Registration {
    /// Of a node that offers nothing.
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
        assert!(!text.contains("data") && !text.contains("restarts"), "an older taskd reads it: {text}");
        assert_eq!(Registration::decode(text.as_bytes()).unwrap(), plain);
        let newer = Registration { data: Some("10.0.0.1:7401".parse().unwrap()), restarts: 3, ..plain };
        assert_eq!(Registration::decode(&newer.encode()).unwrap(), newer);
    }
}
