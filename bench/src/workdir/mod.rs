//! The places where scenarios happen, and their end: nothing that is made here outlives the run.
//!
//! ```text
//! RunDir    one folder for the run                    removed when dropped, and when this process panics
//! └ ScenarioDir  one folder for a scenario                 dropped in this order: servers, mounts, loop devices, folder
//!   ├ Server      a process                         killed; the kernel kills it if this process is killed
//!   ├ Mount       in our own mount name space       unmounted; gone with this process in any case
//!   └ LoopDevice  held open, to go at the last close detached; gone with this process in any case
//! ```
//! A run that is killed outright can so leave a folder behind, and no mount, loop device or server.

pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod server;

use crate::executor::Failure;
use crate::interrupt::Interrupt;
use crate::launch::Launcher;
use crate::volume::{Volume, VolumePair};
use loop_device::LoopDevice;
use mount::Mount;
use server::{Listen, Server};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The folder of the run.
#[derive(Debug)]
pub(crate) struct RunDir {
    folder: TempDir,
    /// Socket names are short by law: they have a folder of their own.
    sockets: TempDir,
    interrupt: Interrupt,
}

impl RunDir {
    /// Makes it below `base`.
    ///
    /// # Errors
    /// As making a folder.
    pub(crate) fn open(base: &Path, interrupt: &Interrupt) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("copy-bench-").tempdir_in(base)?;
        let sockets = tempfile::Builder::new().prefix("copy-bench-").tempdir()?;
        remove_on_panic([folder.path(), sockets.path()].map(Path::to_owned));
        Ok(Self { folder, sockets, interrupt: interrupt.clone() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A dir of that name.
    ///
    /// # Errors
    /// As making a folder.
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

/// In release builds a panic ends the process at once, and nothing is dropped.
fn remove_on_panic(folders: [PathBuf; 2]) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        if cfg!(panic = "abort") {
            // There is no better moment, and nobody left to tell.
            folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
        }
    }));
}

/// The place of one scenario. Fields are dropped in their order.
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

    /// A file with this much space reserved and nothing written.
    ///
    /// # Errors
    /// As making a file.
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

    /// A loop device over a file.
    ///
    /// # Errors
    /// Without rights, or as `losetup`.
    pub(crate) fn loop_device(&mut self, file: &Path) -> Result<PathBuf, Failure> {
        let device = LoopDevice::attach(self, file)?;
        let path = device.path().to_owned();
        self.loop_devices.push(device);
        Ok(path)
    }

    /// A file system in a file of that size, mounted.
    ///
    /// # Errors
    /// Without rights, or as making and mounting one.
    pub(crate) fn xfs(&mut self, bytes: u64) -> Result<PathBuf, Failure> {
        let file = self.reserved("xfs", bytes)?;
        self.run_one(&["mkfs.xfs", "-q", "-m", "reflink=1", &file.display().to_string()])?;
        let device = self.loop_device(&file)?;
        self.mount(&device, "xfs", "mounted")
    }

    /// A file system in memory, mounted.
    ///
    /// # Errors
    /// Without rights, or as mounting one.
    pub(crate) fn tmpfs(&mut self) -> Result<PathBuf, Failure> {
        self.mount(Path::new("tmpfs"), "tmpfs", "memory")
    }

    fn mount(&mut self, what: &Path, kind: &'static str, name: &str) -> Result<PathBuf, Failure> {
        let point = self.path(name);
        self.mounts.push(Mount::make(what, &point, kind)?);
        Ok(point)
    }

    /// `nbdkit WORDS`, and the URI of its export.
    ///
    /// # Errors
    /// It does not start to listen.
    pub(crate) fn nbdkit(&mut self, program: &str, listen: Listen, words: &[&str]) -> Result<String, Failure> {
        let number = self.servers.len();
        let server = Server::start(program, self, number, listen, words)?;
        let uri = server.uri();
        self.servers.push(server);
        Ok(uri)
    }

    /// A folder for sockets, with a short name.
    fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// A pair with its own state, which is the `number`th here.
    pub(crate) fn pair(&self, number: usize, source: Volume, destination: Volume, bytes: u64) -> VolumePair {
        VolumePair { source, destination, bytes, state: self.path(&format!("state-{number}")) }
    }
}

/// Whether this process may mount and attach.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_site() {
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
