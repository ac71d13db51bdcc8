//! Holds the parts that all nodes of a simulation share: network, disks, the speed of disks, and the checkers.

use super::defect::Defect;
use super::disk::Disks;
use super::hooks::HookRuns;
use super::invariants::InvariantChecker;
use super::net::Net;
use crate::dispatcher::FenceProgram;
use crate::model::TaskId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

/// Durable blocks according to a journal, by task and its time of creation.
pub(super) type Journals = Arc<Mutex<BTreeMap<(TaskId, u64), BTreeSet<usize>>>>;

/// Behaviour of the disks.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskBehaviour {
    /// Duration of a write in milliseconds: least and most.
    pub(super) write_ms: (u64, u64),
    /// Share of writes that take up to 15 s.
    pub(super) hang: f64,
    /// Share of jobs that fail half-way.
    pub(super) fail: f64,
    /// Share of jobs with an export that fail by a fault of their node, and may succeed on another one.
    pub(super) unfit: f64,
}

/// State that all nodes of a world share.
#[derive(Clone, Debug)]
pub(super) struct SimEnvironment {
    pub(super) net: Net,
    pub(super) disks: Disks,
    pub(super) hooks: HookRuns,
    pub(super) invariants: InvariantChecker,
    pub(super) disk_behaviour: Arc<Mutex<DiskBehaviour>>,
    pub(super) jobs: Arc<AtomicU64>,
    pub(super) fence: Arc<dyn FenceProgram>,
    pub(super) defect: Option<Defect>,
}
