//! Holds the nodes of the simulated service, and the one function that checks a write.
//!
//! A [`Transaction`] is the effect of a write: nodes as they are after it. The leader's tree makes transactions, and
//! every server's tree replays them in order. Two trees that have replayed the same transactions are equal.

use crate::coord::{CoordError, CreateMode, Done, Op, Refusal, SessionId, Stat, Znode, Zxid};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Path of a node, and the node after a write; `None` if it is deleted.
pub(super) type ChangedZnode = (Arc<str>, Option<Arc<Znode>>);

/// A committed write.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) zxid: Zxid,
    pub(super) changes: Vec<ChangedZnode>,
}

/// Nodes by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree(BTreeMap<Arc<str>, Arc<Znode>>);

impl Tree {
    /// Returns the node at a path. The root always exists and cannot be changed.
    pub(super) fn get(&self, path: &str) -> Option<&Arc<Znode>> {
        self.0.get(path)
    }

    /// Returns the names of the children, in order.
    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let prefix = if path == "/" { String::from("/") } else { format!("{path}/") };
        let below = self.from(&prefix).take_while(|(path, _)| path.starts_with(&prefix));
        below.map(|(path, _)| &path[prefix.len()..]).filter(|name| !name.contains('/')).map(String::from).collect()
    }

    fn from(&self, path: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<Znode>)> {
        self.0.range::<str, _>((Bound::Included(path), Bound::Unbounded))
    }

    /// Returns the paths of the nodes that a session owns.
    pub(super) fn owned_by(&self, session: SessionId) -> Vec<Arc<str>> {
        self.0.iter().filter(|(_, node)| node.stat.owner == Some(session)).map(|(path, _)| path.clone()).collect()
    }

    /// Tells whether a node exists at a path; the root always does.
    pub(super) fn exists(&self, path: &str) -> bool {
        path == "/" || self.0.contains_key(path)
    }

    pub(super) fn replay(&mut self, changes: &[ChangedZnode]) {
        for (path, node) in changes {
            match node {
                Some(node) => self.0.insert(path.clone(), node.clone()),
                None => self.0.remove(path),
            };
        }
    }

    /// Returns every node below a path, in order of the paths.
    pub(super) fn below(&self, prefix: &str) -> impl Iterator<Item = (&str, &Znode)> {
        let below = self.from(prefix).take_while(move |(path, _)| path.starts_with(prefix));
        below.map(|(path, node)| (&**path, &**node))
    }

    /// Returns the effect of `ops` as transaction `zxid`; the tree is unchanged.
    pub(super) fn evaluate(
        &self,
        ops: &[Op],
        session: SessionId,
        zxid: Zxid,
    ) -> Result<(Vec<ChangedZnode>, Vec<Done>), CoordError> {
        let mut draft = Draft { tree: self, changed: BTreeMap::new(), order: Vec::new(), session, zxid };
        let mut done = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            done.push(draft.apply(op).map_err(|why| CoordError::Refused { index, why })?);
        }
        let Draft { mut changed, order, .. } = draft;
        let changes = order.into_iter().filter_map(|path| changed.remove(&path).map(|node| (path, node))).collect();
        Ok((changes, done))
    }
}

/// Tree after the first operations of a multi.
struct Draft<'a> {
    tree: &'a Tree,
    changed: BTreeMap<Arc<str>, Option<Arc<Znode>>>,
    order: Vec<Arc<str>>,
    session: SessionId,
    zxid: Zxid,
}

impl Draft<'_> {
    fn get(&self, path: &str) -> Option<&Arc<Znode>> {
        self.changed.get(path).map_or_else(|| self.tree.get(path), Option::as_ref)
    }

    fn put(&mut self, path: &str, node: Option<Znode>) {
        let path: Arc<str> = path.into();
        if self.changed.insert(path.clone(), node.map(Arc::new)).is_none() {
            self.order.push(path);
        }
    }

    fn expect(&self, path: &str, version: i32) -> Result<Arc<Znode>, Refusal> {
        let node = self.get(path).ok_or(Refusal::NoNode)?;
        if node.stat.version == version { Ok(node.clone()) } else { Err(Refusal::BadVersion) }
    }

    fn has_children(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        let exists = |(path, _): (&str, &Znode)| self.get(path).is_some();
        let is_new = |(path, node): (&Arc<str>, &Option<Arc<Znode>>)| path.starts_with(&prefix) && node.is_some();
        self.tree.below(&prefix).any(exists) || self.changed.iter().any(is_new)
    }

    fn apply(&mut self, op: &Op) -> Result<Done, Refusal> {
        match op {
            Op::Check { path, version } => self.expect(path, *version).map(|_| Done::Plain),
            Op::Create { path, data, mode } => self.create(path, data, *mode),
            Op::Set { path, data, version } => {
                let old = self.expect(path, *version)?;
                let stat = Stat { version: version.wrapping_add(1), modified: self.zxid, ..old.stat };
                self.put(path, Some(Znode { data: data.clone(), stat }));
                Ok(Done::Set(stat))
            }
            Op::Delete { path, version } => {
                self.expect(path, *version)?;
                if self.has_children(path) {
                    return Err(Refusal::NotEmpty);
                }
                self.put(path, None);
                Ok(Done::Plain)
            }
        }
    }

    fn create(&mut self, path: &str, data: &[u8], mode: CreateMode) -> Result<Done, Refusal> {
        let (parent, _) = path.rsplit_once('/').ok_or(Refusal::Impossible)?;
        match self.get(parent) {
            None if !parent.is_empty() => return Err(Refusal::NoNode),
            _ if self.get(path).is_some() => return Err(Refusal::NodeExists),
            Some(parent) if parent.stat.owner.is_some() => return Err(Refusal::Impossible),
            _ => {}
        }
        let owner = (mode == CreateMode::Ephemeral).then_some(self.session);
        let stat = Stat { version: 0, created: self.zxid, modified: self.zxid, owner };
        self.put(path, Some(Znode { data: data.to_vec(), stat }));
        Ok(Done::Plain)
    }
}
