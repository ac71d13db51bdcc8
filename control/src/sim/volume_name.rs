//! Finds a volume of the simulated world by any of its names in a task's spec.

use super::disk::Disks;
use crate::model::{NodeId, TaskSpec, TaskVolume};

/// Server of the world's exports.
const SERVER: &str = "nbd://store:10809/";

/// A volume by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeName {
    /// Node of a local volume; `None` behind the server.
    pub(super) node: Option<String>,
    name: String,
}

impl VolumeName {
    /// Parses a name: `file://NODE/PATH`, a path with the task's node, or an export. `/alias/X` is another path of
    /// `/vol/X`, and an export may be spelled without its port and with another scheme.
    pub(super) fn parse(text: &str, node: Option<&NodeId>) -> Self {
        if let Some((_, export)) = text.split_once("store:10809/").or_else(|| text.split_once("store/")) {
            return Self { node: None, name: export.to_owned() };
        }
        let (node, path) = match text.strip_prefix("file://") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => (node.map_or("", NodeId::as_str), text.trim_start_matches('/')),
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        Self { node: Some(node.to_owned()), name: name.to_owned() }
    }

    /// Returns the name of a volume.
    pub(super) fn of(volume: &TaskVolume) -> Self {
        Self::parse(&volume.to_string(), volume.node())
    }

    /// Returns the name that [`Disks`] uses.
    pub(super) fn name(&self) -> String {
        match &self.node {
            Some(node) => format!("{node}/{}", self.name),
            None => format!("{SERVER}{}", self.name),
        }
    }

    /// Returns the identity by which the destination is claimed.
    pub(super) fn identity(&self) -> String {
        match &self.node {
            Some(node) => format!("{node}:inode-of-{}", self.name),
            None => format!("nbd://store/{}", self.name),
        }
    }

    /// Returns the destination of a task that has one.
    pub(super) fn destination(spec: &TaskSpec) -> Option<String> {
        match spec {
            TaskSpec::Copy(copy) => Some(Self::parse(&copy.destination, copy.node.as_ref()).name()),
            TaskSpec::Noop(_) | TaskSpec::Run(_) | TaskSpec::Verify(_) | TaskSpec::Group(_) => None,
        }
    }

    /// Returns the content that a task's destination must get.
    pub(super) fn data(spec: &TaskSpec, disks: &Disks) -> Vec<u64> {
        match spec {
            TaskSpec::Copy(copy) => disks.blocks(&Self::parse(&copy.source, copy.node.as_ref()).name()),
            TaskSpec::Noop(_) | TaskSpec::Run(_) | TaskSpec::Verify(_) | TaskSpec::Group(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_volume_has_many_names() {
        let node = NodeId::new("n1").unwrap();
        let local = VolumeName::parse("file://n1/vol/d0", None);
        assert_eq!(local, VolumeName::parse("/alias/d0", Some(&node)));
        assert_eq!((local.name(), local.node.as_deref()), (String::from("n1/d0"), Some("n1")));
        let export = VolumeName::parse("nbd://store:10809/d0", None);
        assert_eq!(export, VolumeName::parse("nbds://store/d0", None));
        let uri = blockhaul_engine::nbd::NbdUri::parse("nbd://store/d0").unwrap();
        assert_eq!((export.identity(), export.node), (uri.to_string(), None));
    }
}
