//! Holds the nodes of a service that lives in this process, and their watches. Does no I/O.
//!
//! What always holds: a [`Tree`] applies a multi wholly or not at all, and refuses in ZooKeeper's order of conditions.
//! Every node but the root has a parent, which lists it. No ephemeral node has children.

use super::{CreateMode, Done, Op, Refusal, SessionId, Stat, Znode, Zxid};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::oneshot;

const ROOT: &str = "/";

/// All nodes by their paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Slot>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    node: Znode,
    children: BTreeSet<String>,
}

/// Effect of a multi on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZnodeChange {
    pub(crate) path: String,
    pub(crate) kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Created,
    Set,
    Deleted,
}

/// State of a node before a change, to undo it.
struct Undo(String, Option<Znode>);

impl Tree {
    /// Creates a tree with the root only.
    pub(crate) fn new() -> Self {
        let stat = Stat { version: 0, created: Zxid(0), modified: Zxid(0), owner: None };
        let root = Slot { node: Znode { data: Vec::new(), stat }, children: BTreeSet::new() };
        Self(BTreeMap::from([(ROOT.to_owned(), root)]))
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Znode> {
        self.0.get(path).map(|slot| &slot.node)
    }

    /// Returns the children in order of their names; `None` if the node does not exist.
    pub(crate) fn children(&self, path: &str) -> Option<impl Iterator<Item = &String>> {
        self.0.get(path).map(|slot| slot.children.iter())
    }

    /// Returns the ephemeral nodes of every session that `is_over`.
    pub(crate) fn ephemerals(&self, is_over: impl Fn(SessionId) -> bool) -> Vec<String> {
        let gone = self.0.iter().filter(|(_, slot)| slot.node.stat.owner.is_some_and(&is_over));
        gone.map(|(path, _)| path.clone()).collect()
    }

    /// Sets a node to this state, or removes it. `false` if it has no parent: nothing is done then.
    pub(crate) fn put(&mut self, path: &str, node: Option<Znode>) -> bool {
        let Some(node) = node else {
            self.remove(path);
            return true;
        };
        if let Some(slot) = self.0.get_mut(path) {
            slot.node = node;
            return true;
        }
        let (parent, name) = split(path);
        let Some(parent) = self.0.get_mut(parent) else { return false };
        parent.children.insert(name.to_owned());
        self.0.insert(path.to_owned(), Slot { node, children: BTreeSet::new() });
        true
    }

    fn remove(&mut self, path: &str) {
        self.0.remove(path);
        let (parent, name) = split(path);
        if let Some(parent) = self.0.get_mut(parent) {
            parent.children.remove(name);
        }
    }

    /// Does all of `ops` as transaction `zxid` of `session`, or nothing: then returns the position of the refused one.
    pub(crate) fn apply(
        &mut self,
        ops: Vec<Op>,
        session: SessionId,
        zxid: Zxid,
    ) -> Result<(Vec<Done>, Vec<ZnodeChange>), (usize, Refusal)> {
        let (mut done, mut changes, mut undo) = (Vec::new(), Vec::new(), Vec::new());
        for (index, op) in ops.into_iter().enumerate() {
            match self.apply_one(op, session, zxid, &mut undo) {
                Ok((result, change)) => {
                    done.push(result);
                    changes.extend(change);
                }
                Err(why) => {
                    for Undo(path, before) in undo.into_iter().rev() {
                        self.put(&path, before);
                    }
                    return Err((index, why));
                }
            }
        }
        Ok((done, changes))
    }

    fn apply_one(
        &mut self,
        op: Op,
        session: SessionId,
        zxid: Zxid,
        undo: &mut Vec<Undo>,
    ) -> Result<(Done, Option<ZnodeChange>), Refusal> {
        match op {
            Op::Check { path, version } => self.at(&path, version).map(|_| (Done::Plain, None)),
            Op::Create { path, data, mode } => {
                self.check_creation(&path)?;
                let owner = (mode == CreateMode::Ephemeral).then_some(session);
                let stat = Stat { version: 0, created: zxid, modified: zxid, owner };
                self.put(&path, Some(Znode { data, stat }));
                undo.push(Undo(path.clone(), None));
                Ok((Done::Plain, Some(ZnodeChange { path, kind: ChangeKind::Created })))
            }
            Op::Set { path, data, version } => {
                let old = self.at(&path, version)?.stat;
                let stat = Stat { version: old.version.wrapping_add(1), modified: zxid, ..old };
                undo.push(Undo(path.clone(), self.get(&path).cloned()));
                self.put(&path, Some(Znode { data, stat }));
                Ok((Done::Set(stat), Some(ZnodeChange { path, kind: ChangeKind::Set })))
            }
            Op::Delete { path, version } => {
                self.at(&path, version)?;
                if self.children(&path).is_some_and(|mut children| children.next().is_some()) {
                    return Err(Refusal::NotEmpty);
                }
                undo.push(Undo(path.clone(), self.get(&path).cloned()));
                self.remove(&path);
                Ok((Done::Plain, Some(ZnodeChange { path, kind: ChangeKind::Deleted })))
            }
        }
    }

    fn at(&self, path: &str, version: i32) -> Result<&Znode, Refusal> {
        let node = self.get(path).ok_or(Refusal::NoNode)?;
        if node.stat.version == version { Ok(node) } else { Err(Refusal::BadVersion) }
    }

    fn check_creation(&self, path: &str) -> Result<(), Refusal> {
        let parent = self.get(split(path).0).ok_or(Refusal::NoNode)?;
        if self.get(path).is_some() {
            return Err(Refusal::NodeExists);
        }
        if parent.stat.owner.is_some() { Err(Refusal::Impossible) } else { Ok(()) }
    }
}

/// Splits a path into parent and name.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => (ROOT, name),
        Some(parts) => parts,
        None => (ROOT, path),
    }
}

/// Watches on nodes. Dropping it wakes all waiters.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    nodes: BTreeMap<String, Vec<Waiting>>,
    children: BTreeMap<String, Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    session: SessionId,
    fire: oneshot::Sender<()>,
}

impl Watches {
    /// Adds a watch that fires when the node is created, set or deleted.
    pub(crate) fn add_to_node(&mut self, path: &str, session: SessionId, fire: oneshot::Sender<()>) {
        add(&mut self.nodes, path, Waiting { session, fire });
    }

    /// Adds a watch that fires when a child is created or deleted, or the node itself is deleted.
    pub(crate) fn add_to_children(&mut self, path: &str, session: SessionId, fire: oneshot::Sender<()>) {
        add(&mut self.children, path, Waiting { session, fire });
    }

    /// Removes and returns the watches that a change fires; the caller sends on them.
    pub(crate) fn take_fired(&mut self, change: &ZnodeChange) -> Vec<oneshot::Sender<()>> {
        let ZnodeChange { path, kind } = change;
        let mut waiting = self.nodes.remove(path).unwrap_or_default();
        if *kind == ChangeKind::Deleted {
            waiting.extend(self.children.remove(path).unwrap_or_default());
        }
        if *kind != ChangeKind::Set {
            waiting.extend(self.children.remove(split(path).0).unwrap_or_default());
        }
        waiting.into_iter().map(|waiter| waiter.fire).collect()
    }

    /// Removes a session's watches.
    pub(crate) fn end(&mut self, session: SessionId) {
        for watches in [&mut self.nodes, &mut self.children] {
            watches.retain(|_, waiting| {
                waiting.retain(|waiter| waiter.session != session);
                !waiting.is_empty()
            });
        }
    }
}

/// Adds a watch, and removes those of the same node whose waiters are gone.
fn add(watches: &mut BTreeMap<String, Vec<Waiting>>, path: &str, waiter: Waiting) {
    let waiting = watches.entry(path.to_owned()).or_default();
    waiting.retain(|waiter| !waiter.fire.is_closed());
    waiting.push(waiter);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few paths and versions, so that operations meet each other.
    fn op() -> impl Strategy<Value = Op> {
        let path = prop::sample::select(vec!["/a", "/b", "/a/a", "/a/b", "/a/a/a"]).prop_map(str::to_owned);
        let mode = prop::sample::select(vec![CreateMode::Persistent, CreateMode::Ephemeral]);
        (0..4, path, 0..3, mode, any::<u8>()).prop_map(|(kind, path, version, mode, byte)| match kind {
            0 => Op::Create { path, data: vec![byte], mode },
            1 => Op::Set { path, data: vec![byte], version },
            2 => Op::Delete { path, version },
            _ => Op::Check { path, version },
        })
    }

    /// Checks the invariants of the module's head.
    fn check(tree: &Tree) {
        for (path, slot) in &tree.0 {
            let (parent, name) = split(path);
            let is_listed = tree.0.get(parent).is_some_and(|parent| parent.children.contains(name));
            assert!(path == ROOT || is_listed, "{path} is not listed by {parent}");
            assert!(slot.children.is_empty() || slot.node.stat.owner.is_none(), "{path} is ephemeral");
        }
        let listed: usize = tree.0.values().map(|slot| slot.children.len()).sum();
        assert_eq!(listed + 1, tree.0.len());
    }

    proptest! {
        #[test]
        fn a_multi_is_done_wholly_or_not_at_all(multis in prop::collection::vec(prop::collection::vec(op(), 1..5), 1..30)) {
            let mut tree = Tree::new();
            for (number, ops) in (1..).zip(multis) {
                let mut one_by_one = tree.clone();
                let before = tree.clone();
                let results: Vec<_> =
                    ops.iter().map(|op| one_by_one.apply(vec![op.clone()], SessionId(1), Zxid(number))).collect();
                let refused = results.iter().position(Result::is_err);
                match tree.apply(ops, SessionId(1), Zxid(number)) {
                    Ok((done, changes)) => {
                        let (each_done, each_changes): (Vec<_>, Vec<_>) = results.into_iter().flatten().unzip();
                        prop_assert_eq!((done, changes), (each_done.concat(), each_changes.concat()));
                        prop_assert_eq!(&tree, &one_by_one);
                    }
                    Err((index, _)) => {
                        prop_assert_eq!(Some(index), refused);
                        prop_assert_eq!(&tree, &before);
                    }
                }
                check(&tree);
            }
        }
    }
}
