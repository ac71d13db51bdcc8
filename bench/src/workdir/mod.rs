//! Owns the directories, servers, mounts and loop devices of a run; none of them outlives it.
//!
//! ```text
//! RunDir          one directory for the run             removed on drop, and when this process panics
//! └ ScenarioDir   one directory for a scenario          drops in this order: servers, mounts, loop devices, directory
//!   ├ Server      a process                             killed; the kernel kills it if this process is killed
//!   ├ Mount       in our own mount namespace            unmounted; ends with this process in any case
//!   └ LoopDevice  held open, detached at the last close detached; ends with this process in any case
//! ```
//! A run that is killed can leave a directory behind, but no mount, loop device or server.

pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod server;

use crate::interrupt::Interrupt;
use crate::launch::Launcher;
use crate::trial_executor::Failure;
use crate::volume::{Volume, VolumePair};
use loop_device::LoopDevice;
use mount::Mount;
use server::{Listen, Server};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The directory of the run.
#[derive(Debug)]
pub(crate) struct RunDir {
    folder: TempDir,
    /// Socket paths must be short, so they have a directory of their own.
    sockets: TempDir,
    interrupt: Interrupt,
}

impl RunDir {
    /// Creates the directory below `base`.
    ///
    /// # Errors
    /// As creating a directory.
    pub(crate) fn open(base: &Path, interrupt: &Interrupt) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("copy-bench-").tempdir_in(base)?;
        let sockets = tempfile::Builder::new().prefix("copy-bench-").tempdir()?;
        remove_on_panic([folder.path(), sockets.path()].map(Path::to_owned));
        Ok(Self { folder, sockets, interrupt: interrupt.clone() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a directory for a scenario.
    ///
    /// # Errors
    /// As creating a directory.
    pub(crate) fn scenario_dir(&self, name: &str) -> io::Result<ScenarioDir> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(self.folder.path())?;
        Ok(ScenarioDir {
            servers: Vec::new(),
            mounts: Vec::new(),
            loop_devices: Vec::new(),
            folder,
            sockets: self.sockets.path().to_owned(),
            interrupt: self.interrupt.clone(),
        })
    }
}

/// Removes the directories on panic, because a panic in a release build aborts without running destructors.
fn remove_on_panic(folders: [PathBuf; 2]) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        if cfg!(panic = "abort") {
            // The process aborts next, so an error cannot be reported.
            folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
        }
    }));
}

/// The directory of one scenario. Fields are dropped in their order.
#[derive(Debug)]
pub(crate) struct ScenarioDir {
    servers: Vec<Server>,
    mounts: Vec<Mount>,
    loop_devices: Vec<LoopDevice>,
    folder: TempDir,
    sockets: PathBuf,
    interrupt: Interrupt,
}

impl ScenarioDir {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs a program that prepares something.
    ///
    /// # Errors
    /// As [`Launcher::run_one`].
    pub(crate) fn run_one(&self, words: &[&str]) -> Result<String, Failure> {
        let launcher = Launcher { folder: &self.path("said"), interrupt: &self.interrupt };
        launcher.run_one(&crate::target::Invocation::new(words.iter().copied()))
    }

    /// Creates a file with reserved space and nothing written.
    ///
    /// # Errors
    /// As creating a file.
    pub(crate) fn reserved(&self, name: &str, bytes: u64) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        let say = |error| Failure::io("reserve a file", &error);
        let file = File::create(&path).map_err(say)?;
        let len = i64::try_from(bytes).unwrap_or(i64::MAX);
        let reserved = nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len);
        reserved.map_err(|errno| say(errno.into()))?;
        file.sync_all().map_err(say)?;
        Ok(path)
    }

    /// Attaches a loop device to a file.
    ///
    /// # Errors
    /// Without rights, or as `losetup`.
    pub(crate) fn loop_device(&mut self, file: &Path) -> Result<PathBuf, Failure> {
        let device = LoopDevice::attach(self, file)?;
        let path = device.path().to_owned();
        self.loop_devices.push(device);
        Ok(path)
    }

    /// Creates and mounts an xfs file system in a file of that size.
    ///
    /// # Errors
    /// Without rights, or as creating and mounting a file system.
    pub(crate) fn xfs(&mut self, bytes: u64) -> Result<PathBuf, Failure> {
        let file = self.reserved("xfs", bytes)?;
        self.run_one(&["mkfs.xfs", "-q", "-m", "reflink=1", &file.display().to_string()])?;
        let device = self.loop_device(&file)?;
        self.mount(&device, "xfs", "mounted")
    }

    /// Mounts a file system in memory.
    ///
    /// # Errors
    /// Without rights, or as mounting a file system.
    pub(crate) fn tmpfs(&mut self) -> Result<PathBuf, Failure> {
        self.mount(Path::new("tmpfs"), "tmpfs", "memory")
    }

    fn mount(&mut self, what: &Path, kind: &'static str, name: &str) -> Result<PathBuf, Failure> {
        let point = self.path(name);
        self.mounts.push(Mount::make(what, &point, kind)?);
        Ok(point)
    }

    /// Starts `nbdkit WORDS` and returns the URI of its export.
    ///
    /// # Errors
    /// The server does not listen in time.
    pub(crate) fn nbdkit(&mut self, program: &str, listen: Listen, words: &[&str]) -> Result<String, Failure> {
        let number = self.servers.len();
        let server = Server::start(program, self, number, listen, words)?;
        let uri = server.uri();
        self.servers.push(server);
        Ok(uri)
    }

    /// Returns the directory for sockets.
    fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Returns a pair with a state directory of its own.
    pub(crate) fn pair(&self, number: usize, source: Volume, destination: Volume, bytes: u64) -> VolumePair {
        VolumePair { source, destination, bytes, state: self.path(&format!("state-{number}")) }
    }
}

/// Returns whether this process may mount and attach devices.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_leaves_nothing() {
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        let run_dir = RunDir::open(base.path(), &Interrupt::default()).unwrap();
        let dir = run_dir.scenario_dir("dir").unwrap();
        assert_eq!(fs::metadata(dir.reserved("file", 1 << 20).unwrap()).unwrap().len(), 1 << 20);
        assert!(matches!(dir.run_one(&["false"]), Err(Failure::Failed(_))));
        let sockets = run_dir.sockets.path().to_owned();
        drop((dir, run_dir));
        assert!(fs::read_dir(base.path()).unwrap().next().is_none() && !sockets.exists());
    }
}
