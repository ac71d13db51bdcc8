//! Starts real servers for tests, in a temporary directory. Where a tool is missing, the test is skipped by name.

use super::negotiate::greet;
use crate::volume::support::{make_file, run, scratch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A real server on a unix socket; ended on drop.
#[derive(Debug)]
pub(crate) struct NbdServer {
    child: Child,
    folder: TempDir,
}

impl NbdServer {
    /// Starts what `command` makes of a socket's path, and waits until it listens.
    pub(crate) fn start(command: impl FnOnce(&Path, &Path) -> Vec<String>) -> Result<Self, String> {
        let folder = scratch();
        let command = command(&folder.path().join("socket"), folder.path());
        let child = Command::new(&command[0]).args(&command[1..]).stderr(Stdio::null()).spawn();
        let mut server = Self { child: child.map_err(|error| format!("{}: {error}", command[0]))?, folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.socket()).is_err() {
            // One that succeeds has left a daemon behind.
            if let Some(status) = server.child.try_wait().ok().flatten().filter(|status| !status.success()) {
                return Err(format!("{} ended: {status}", command[0]));
            }
            assert!(Instant::now() < deadline, "{} does not listen", command[0]);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Address of the server.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Connected and greeted.
    pub(crate) fn greeted(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        greet(&mut stream).unwrap();
        stream
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.folder.path().join("pid")) {
            let pid = pid.trim().parse().expect("a daemon writes its number");
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.kill();
        self.child.wait().expect("it is a child of ours");
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

/// `nbdkit` with these arguments.
pub(crate) fn nbdkit(arguments: &[&str]) -> Result<NbdServer, String> {
    let arguments = words(arguments);
    NbdServer::start(|socket, _| {
        let own = words(&["nbdkit", "-f", "-U", socket.to_str().unwrap()]);
        own.into_iter().chain(arguments).collect()
    })
}

/// `qemu-nbd` of a qcow2 image of 64 MiB with a bitmap, `sunday`, shared as often as one likes.
pub(crate) fn qemu(arguments: &[&str]) -> Result<NbdServer, String> {
    let arguments = words(arguments);
    NbdServer::start(|socket, folder| {
        let image = folder.join("image");
        let image = image.to_str().unwrap();
        let made = run(&["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"]);
        let made = made.and_then(|_| run(&["qemu-img", "bitmap", "--add", image, "sunday"]));
        let own = words(&["qemu-nbd", "-t", "-e", "0", "-f", "qcow2", "-k", socket.to_str().unwrap()]);
        made.map_or(words(&["qemu-img"]), |_| [own, arguments, words(&[image])].concat())
    })
}

/// The reference server with a file of 64 MiB as `golden`. It becomes a daemon.
pub(crate) fn nbd_server() -> Result<NbdServer, String> {
    NbdServer::start(|socket, folder| {
        let (image, configuration, pid) = (folder.join("image"), folder.join("configuration"), folder.join("pid"));
        make_file(&image, 64 << 20, &[]);
        let generic = format!("[generic]\nunixsock = {}\nallowlist = true\n", socket.display());
        let export = format!("[golden]\nexportname = {}\nflush = true\nfua = true\n", image.display());
        std::fs::write(&configuration, generic + &export).unwrap();
        words(&["nbd-server", "-C", configuration.to_str().unwrap(), "-p", pid.to_str().unwrap()])
    })
}
