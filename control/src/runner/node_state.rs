//! Stores what a node remembers across the incarnations of its `taskd`: its earlier incarnations, and the highest
//! leader epoch seen.
//!
//! ```text
//! STATE_DIR/node.lock      flock, held while this process runs, so that earlier ones have ended
//!           incarnations   the last 16 incarnations of this node, one in a line, the latest last
//!           leader_epoch   the highest epoch of a leader that was seen, as a decimal number
//!           run            this run of `taskd`, and, once it is over, how it ended: see `last_run`
//!           starts         how often a `taskd` was started here, as a decimal number
//!           center         the identity of the center that all of this belongs to
//! ```
//! What always holds: an incarnation is stored before it is registered, an epoch before it is acted on, and the center
//! before any session with it is used. Epochs and checkpoints of one center mean nothing in another one.

use crate::model::{Epoch, Incarnation};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::{Mutex, PoisonError};

/// Number of incarnations that are remembered.
const INCARNATIONS_KEPT: usize = 16;

/// State of a node. While it is held no other process of the node has it.
pub trait NodeState: Send + Sync + std::fmt::Debug {
    /// Returns the incarnations of this node, the latest last.
    ///
    /// # Errors
    /// The error of reading the state.
    fn incarnations(&self) -> Result<Vec<Incarnation>>;

    /// Adds an incarnation; does nothing if it is stored.
    ///
    /// # Errors
    /// The error of writing the state: then the incarnation must not be registered.
    fn remember(&self, incarnation: &Incarnation) -> Result<()>;

    /// Returns the highest epoch of a leader that was seen.
    ///
    /// # Errors
    /// The error of reading the state.
    fn leader_epoch(&self) -> Result<Epoch>;

    /// Stores a higher epoch.
    ///
    /// # Errors
    /// The error of writing the state: then calls with this epoch must be refused.
    fn raise_leader_epoch(&self, epoch: Epoch) -> Result<()>;
}

/// Locked state directory of a node.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Locks the state directory for this process; creates it (0700) where it is missing.
    ///
    /// # Errors
    /// `EBusy` while another process has it, and errors of the system.
    pub fn lock(path: &Path) -> Result<Self> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed(&error, "create", path))?;
        let name = path.join("node.lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&name);
        let file = file.map_err(|error| failed(&error, "open", &name))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let message = format!("another taskd of this node uses the state directory {}", path.shown());
                let error = Error::new(Code::Busy, Side::Caller, Operation::Lock, message);
                Err(error.advise("stop it first, or use another --state-dir"))
            }
            Err((_, errno)) => Err(failed(&errno.into(), "lock", &name)),
        }
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counts this start. Returns the number of earlier ones, which is for information only: a malformed count starts
    /// over.
    ///
    /// # Errors
    /// The error of reading or writing the file.
    pub fn count_start(&self) -> Result<u64> {
        let before = self.read("starts")?.trim().parse().unwrap_or(0_u64);
        self.write("starts", &format!("{}\n", before.saturating_add(1)))?;
        Ok(before)
    }

    /// Binds this directory to `center`, unless it belongs to a center already.
    ///
    /// # Errors
    /// `EBadRequest` if it belongs to another center, with both identities; errors of reading or writing the file.
    pub fn bind(&self, center: &str) -> Result<()> {
        let known = self.read("center")?;
        match known.trim() {
            known if known == center => Ok(()),
            "" => self.write("center", &format!("{center}\n")),
            known => {
                let folder = self.path.shown();
                let message = format!(
                    "this node belongs to center {}, but the coordination service holds center {}",
                    known.escape_debug(),
                    center.escape_debug()
                );
                Err(Error::new(Code::BadRequest, Side::Coordination, Operation::Start, message).advise(format!(
                    "correct --zookeeper; or, to make it a node of the new center (it was moved, or the center was set up \
again), stop it and remove {folder}/center and {folder}/leader_epoch: checkpoints of its earlier tasks are lost"
                )))
            }
        }
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(failed(&error, "read", &path)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        replace(&self.path, name, text)
    }
}

impl NodeState for StateDir {
    fn incarnations(&self) -> Result<Vec<Incarnation>> {
        Ok(self.read("incarnations")?.lines().map(|line| Incarnation(line.to_owned())).collect())
    }

    fn remember(&self, incarnation: &Incarnation) -> Result<()> {
        let mut known = self.incarnations()?;
        if known.contains(incarnation) {
            return Ok(());
        }
        known.push(incarnation.clone());
        let surplus = known.len().saturating_sub(INCARNATIONS_KEPT);
        let text: String = known[surplus..].iter().map(|Incarnation(name)| format!("{name}\n")).collect();
        self.write("incarnations", &text)
    }

    fn leader_epoch(&self) -> Result<Epoch> {
        let text = self.read("leader_epoch")?;
        if text.is_empty() {
            return Ok(Epoch(0));
        }
        text.trim().parse().map(Epoch).map_err(|_| {
            let path = self.path.join("leader_epoch");
            let message = format!("{} does not hold a number", path.shown());
            let error = Error::new(Code::CheckpointCorrupt, Side::Engine, Operation::Journal, message);
            error.advise("make sure that no older leader is running, then remove it")
        })
    }

    fn raise_leader_epoch(&self, epoch: Epoch) -> Result<()> {
        self.write("leader_epoch", &format!("{epoch}\n"))
    }
}

/// State in memory, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Memory {
    incarnations: Mutex<Vec<Incarnation>>,
    leader_epoch: Mutex<i64>,
}

#[cfg(test)]
impl NodeState for Memory {
    fn incarnations(&self) -> Result<Vec<Incarnation>> {
        Ok(self.incarnations.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn remember(&self, incarnation: &Incarnation) -> Result<()> {
        let mut known = self.incarnations.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(incarnation) {
            known.push(incarnation.clone());
        }
        Ok(())
    }

    fn leader_epoch(&self) -> Result<Epoch> {
        Ok(Epoch(*self.leader_epoch.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn raise_leader_epoch(&self, epoch: Epoch) -> Result<()> {
        *self.leader_epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch.0;
        Ok(())
    }
}

/// Replaces a file of a folder durably: afterwards it holds `text`, or its earlier content.
pub(super) fn replace(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(folder)?.sync_all()
    };
    written().map_err(|error| failed(&error, "write", &path))
}

/// Returns the kernel's boot id.
#[must_use]
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn failed(error: &std::io::Error, verb: &str, path: &Path) -> Error {
    let error = Error::io(Side::Caller, Operation::Journal, error, format!("{verb} {}", path.shown()));
    error.advise("taskd keeps its state in --state-dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_process_and_outlives_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/state");
        let state = StateDir::lock(&path).unwrap();
        assert_eq!(StateDir::lock(&path).map(drop).unwrap_err().code, Code::Busy);
        assert_eq!(state.leader_epoch().unwrap(), Epoch(0));
        state.raise_leader_epoch(Epoch(1 << 40)).unwrap();
        drop(state);
        assert_eq!(StateDir::lock(&path).unwrap().leader_epoch().unwrap(), Epoch(1 << 40));
    }

    #[test]
    fn the_last_incarnations_are_remembered_in_their_order_and_once() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::lock(root.path()).unwrap();
        let incarnation = |number: usize| Incarnation(format!("{number:032x}"));
        for number in 0..20 {
            state.remember(&incarnation(number)).unwrap();
            state.remember(&incarnation(number)).unwrap();
        }
        assert_eq!(state.incarnations().unwrap(), (4..20).map(incarnation).collect::<Vec<_>>());
    }

    #[test]
    fn starts_are_counted_across_incarnations() {
        let root = tempfile::tempdir().unwrap();
        for before in 0..3 {
            assert_eq!(StateDir::lock(root.path()).unwrap().count_start().unwrap(), before);
        }
        std::fs::write(root.path().join("starts"), "many").unwrap();
        assert_eq!(StateDir::lock(root.path()).unwrap().count_start().unwrap(), 0);
    }

    #[test]
    fn a_state_directory_belongs_to_one_center() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::lock(root.path()).unwrap();
        state.raise_leader_epoch(Epoch(7)).unwrap();
        state.bind("one").unwrap();
        state.bind("one").unwrap();
        drop(state);
        let state = StateDir::lock(root.path()).unwrap();
        let error = state.bind("two").unwrap_err();
        assert_eq!(error.code, Code::BadRequest);
        for part in ["center one", "center two", "--zookeeper", "/center and", "/leader_epoch"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        // The advice of the message works.
        for name in ["center", "leader_epoch"] {
            std::fs::remove_file(root.path().join(name)).unwrap();
        }
        state.bind("two").unwrap();
        assert_eq!(state.leader_epoch().unwrap(), Epoch(0));
    }

    #[test]
    fn a_damaged_epoch_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::lock(root.path()).unwrap();
        std::fs::write(root.path().join("leader_epoch"), "12x").unwrap();
        let error = state.leader_epoch().unwrap_err();
        assert!(error.code == Code::CheckpointCorrupt && error.message.contains("leader_epoch"), "{error}");
    }
}
