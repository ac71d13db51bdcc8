//! Sets up real file systems, devices and servers for tests, and takes them down when their guard is dropped.

use super::Locator;
use crate::shown::Shown;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) use blockhaul_testkit::need;

/// Runs a command to its end; its words on failure.
pub(crate) fn run<S: AsRef<OsStr>>(command: &[S]) -> Result<String, String> {
    let output = Command::new(&command[0]).args(&command[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", command[0].shown()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let command: Vec<String> = command.iter().map(|word| word.shown().to_string()).collect();
        Err(format!("{}: {}", command.join(" "), text(&output.stderr)))
    }
}

/// A directory on the file system that the tests run on.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir().expect("tests can write to the temporary directory")
}

/// A loop device, detached on drop.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing` with further options of losetup.
    pub(crate) fn attach(backing: &Path, options: &[&str]) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root for loop devices".into());
        }
        let words = ["losetup", "--find", "--show"].iter().chain(options).map(OsStr::new);
        let command: Vec<&OsStr> = words.chain([backing.as_os_str()]).collect();
        // Between finding a free device and taking it, another process may take it.
        let mut attached = run(&command);
        for _ in 0..50 {
            if attached.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            attached = run(&command);
        }
        attached.map(|path| Self { path: path.into() })
    }

    /// A device of `size` zero bytes; keep the directory as long as the device.
    pub(crate) fn blank(size: u64, options: &[&str]) -> Result<(Self, TempDir), String> {
        let directory = scratch();
        let image = directory.path().join("image");
        make_file(&image, size, &[]);
        Ok((Self::attach(&image, options)?, directory))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run(&["losetup", "--detach", self.path.to_str().unwrap_or_default()]) {
            eprintln!("left behind: {error}");
        }
    }
}

/// A mounted file system, unmounted on drop.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The mount point is in it.
    _directory: TempDir,
    point: PathBuf,
    pub device: Option<LoopDevice>,
}

impl Mounted {
    /// A fresh one of `kind` (`ext4`, `xfs`, `btrfs` or `tmpfs`) with `mib` MiB.
    pub(crate) fn fresh(kind: &str, mib: u64) -> Result<Self, String> {
        Self::named(OsStr::new("point"), kind, mib)
    }

    /// As above, at a mount point of this name.
    pub(crate) fn named(name: &OsStr, kind: &str, mib: u64) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root to mount".into());
        }
        let directory = scratch();
        if kind == "tmpfs" {
            return Self::mount(directory, name, None, &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]);
        }
        let image = directory.path().join("image");
        make_file(&image, mib << 20, &[]);
        let quiet = if kind == "ext4" { "-F" } else { "-f" };
        run(&[&format!("mkfs.{kind}"), "-q", quiet, image.to_str().unwrap()])?;
        let device = LoopDevice::attach(&image, &[])?;
        Self::on(directory, name, device, kind)
    }

    /// The file system that a device holds already.
    pub(crate) fn over(device: LoopDevice, kind: &str) -> Result<Self, String> {
        Self::on(scratch(), OsStr::new("point"), device, kind)
    }

    fn on(directory: TempDir, name: &OsStr, device: LoopDevice, kind: &str) -> Result<Self, String> {
        let from = device.path.to_str().expect("devices have plain names").to_owned();
        Self::mount(directory, name, Some(device), &["-t", kind, &from])
    }

    fn mount(directory: TempDir, name: &OsStr, device: Option<LoopDevice>, words: &[&str]) -> Result<Self, String> {
        let point = directory.path().join(name);
        fs::create_dir(&point).map_err(|error| error.to_string())?;
        let command: Vec<&OsStr> = ["mount"].iter().chain(words).map(OsStr::new).chain([point.as_os_str()]).collect();
        run(&command)?;
        Ok(Self { _directory: directory, point, device })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.point.clone()
    }

    pub(crate) fn remount(&self, options: &str) -> Result<String, String> {
        run(&["mount", "-o", &format!("remount,{options}"), self.path().to_str().unwrap()])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A command that another test starts holds every descriptor of this process for a moment.
        let path = self.path();
        let undone = (0..100).all(|_| {
            let is_busy = run(&[OsStr::new("umount"), path.as_os_str()]).is_err();
            if is_busy {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            is_busy
        });
        if undone {
            eprintln!("left behind: {}", path.display());
        }
    }
}

/// A file of `size` bytes with data in `data` (offset and length), and holes elsewhere.
pub(crate) fn make_file(path: &Path, size: u64, data: &[(u64, usize)]) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(size).unwrap();
    for &(offset, len) in data {
        file.write_all_at(&vec![0xa5; len], offset).unwrap();
    }
    file
}

/// Tells whether a server listens, without connecting: a connection would count as a client. The socket's file is there
/// before that.
fn is_listened_on(socket: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let listens = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The flag of a listening socket.
        words.get(3) == Some(&"00010000") && words.last().is_some_and(|path| Path::new(path) == socket)
    };
    table.lines().any(listens)
}

/// A server of NBD exports on a unix socket, ended on drop.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    directory: TempDir,
}

impl Server {
    /// nbdkit with these words behind its own.
    pub(crate) fn nbdkit(words: &[&str]) -> Result<Self, String> {
        Self::start("nbdkit", "--foreground --unix", words)
    }

    /// qemu-nbd with these words behind its own. It outlives its clients.
    pub(crate) fn qemu(words: &[&str]) -> Result<Self, String> {
        Self::start("qemu-nbd", "--persistent --shared=0 --socket", words)
    }

    fn start(program: &str, own: &str, words: &[&str]) -> Result<Self, String> {
        let directory = scratch();
        let socket = directory.path().join("socket");
        let mut command = Command::new(program);
        command.args(own.split(' ')).arg(&socket).args(words).stderr(Stdio::null());
        let process = command.spawn();
        let mut server = Self { process: process.map_err(|error| format!("{program}: {error}"))?, directory };
        for _ in 0..500 {
            if is_listened_on(&socket) {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.process.try_wait() {
                return Err(format!("{program} {}: {status}", words.join(" ")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{program} does not listen after 5 s"))
    }

    /// Returns the locator of an export.
    pub(crate) fn export(&self, name: &str) -> Locator {
        let socket = self.directory.path().join("socket");
        Locator::parse(&format!("nbd+unix:///{name}?socket={}", socket.display())).expect("a plain URI")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("left behind: {error}");
        }
    }
}
