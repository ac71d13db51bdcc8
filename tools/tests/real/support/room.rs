//! Creates the directory of one test, with the file systems and loop devices that it needs.
//!
//! Everything below the directory is removed at the end of the test, also of a failed one; after a test that was
//! killed, the next run removes it. Ownership is proved, not remembered: mounts whose mount point, and loop devices
//! whose backing file, lie below the directory belong to it. A directory in use is known by the lock that its test
//! holds; the kernel drops the lock with the process. What cannot be proved to be abandoned is left alone.

use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Rooms lie next to the build: the usual temporary directory is often memory, with little of it.
const TEST_DIRS: &str = env!("CARGO_TARGET_TMPDIR");
/// How the names of rooms begin.
const PREFIX: &str = "blockhaul-room-";
/// Held by the test that uses the room.
const LOCK: &str = "in-use";
/// Of a room's name within one process.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Tries to unmount, 20 ms apart.
const UNMOUNT_TRIES: u32 = 250;
/// Abandoned rooms are looked for once in a process.
static LEFTOVERS: Once = Once::new();

/// One test's directory.
#[derive(Debug)]
pub(crate) struct TestDir {
    path: PathBuf,
    _in_use: Flock<File>,
}

impl TestDir {
    /// An empty room.
    pub(crate) fn new() -> Self {
        Self::within(Path::new(TEST_DIRS))
    }

    /// An empty room that every user can reach, which cannot be said of the build.
    pub(crate) fn public() -> Self {
        Self::within(&std::env::temp_dir())
    }

    fn within(place: &Path) -> Self {
        LEFTOVERS.call_once(|| {
            sweep_leftovers(Path::new(TEST_DIRS));
            sweep_leftovers(&std::env::temp_dir());
        });
        let number = NEXT.fetch_add(1, Relaxed);
        let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let lock = lock(&path).expect("nobody else knows the room yet");
        Self { path, _in_use: lock }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file with these bytes.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    /// A directory in memory, for images whose flushes should cost nothing.
    pub(crate) fn memory(&self, name: &str) -> PathBuf {
        let at = self.mount_point(name);
        run("mount", &["-t", "tmpfs", "tmpfs", text(&at)]);
        at
    }

    /// An image of a new file system, not mounted.
    pub(crate) fn image(&self, name: &str, filesystem: &str, bytes: u64) -> PathBuf {
        let image = self.sparse(name, bytes);
        let quiet: &[&str] = match filesystem {
            "xfs" => &["-q", "-f"],
            "ext2" | "ext3" | "ext4" => &["-q", "-F", "-m", "0"],
            "btrfs" => &["-q", "-f", "--mixed"],
            _ => &[],
        };
        let args: Vec<&str> = quiet.iter().copied().chain([text(&image)]).collect();
        run(&format!("mkfs.{filesystem}"), &args);
        image
    }

    /// A new file system, mounted below the room at `name`. Its image lies beside it, as `name.img`.
    pub(crate) fn filesystem(&self, name: &str, filesystem: &str, bytes: u64) -> PathBuf {
        let image = self.image(&format!("{name}.img"), filesystem, bytes);
        self.mount(&image, name)
    }

    /// Mounts an image. The loop device in between goes away with the mount.
    pub(crate) fn mount(&self, image: &Path, name: &str) -> PathBuf {
        let at = self.mount_point(name);
        run("mount", &["-o", "loop", text(image), text(&at)]);
        at
    }

    pub(crate) fn unmount(&self, at: &Path) {
        assert!(at.starts_with(&self.path), "{} is not ours", at.display());
        unmount(text(at));
        assert!(!mounts_below(at).iter().any(|point| Path::new(point) == at), "{} is still in use", at.display());
    }

    /// A loop device over `backing`, a file of the room, with sectors of `sector` bytes.
    pub(crate) fn loop_device(&self, backing: &Path, sector: u32) -> PathBuf {
        assert!(backing.starts_with(&self.path), "{} is not ours: it would not be detached", backing.display());
        let sector = sector.to_string();
        PathBuf::from(run("losetup", &["--find", "--show", "--sector-size", &sector, text(backing)]).trim())
    }

    /// A file of `bytes`, all of them hole.
    pub(crate) fn sparse(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        path
    }

    /// A new directory, to mount something at.
    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        let at = self.path(name);
        fs::create_dir_all(&at).unwrap_or_else(|error| panic!("create {}: {error}", at.display()));
        at
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        sweep(&self.path);
    }
}

fn lock(dir: &Path) -> Option<Flock<File>> {
    let file = File::options().create(true).append(true).open(dir.join(LOCK)).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// Sweeps the rooms of tests that are gone.
fn sweep_leftovers(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Without the lock's file the room is younger than its lock: somebody is just moving in.
        if ours && path.join(LOCK).is_file() && lock(&path).is_some() {
            sweep(&path);
        }
    }
}

/// Unmounts as soon as the kernel lets go of the files of processes that are gone: a killed ring is taken apart behind
/// its process's back.
fn unmount(at: &str) {
    for _ in 0..UNMOUNT_TRIES {
        let output = command("umount", &[at]).output();
        if output.is_ok_and(|output| output.status.success()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes down what lies below `dir`, then the room. What is still in use stays for a later run.
fn sweep(dir: &Path) {
    // The innermost mount was made last.
    mounts_below(dir).iter().rev().for_each(|mount| {
        detach(mount.as_ref());
        unmount(mount);
    });
    detach(dir);
    if mounts_below(dir).is_empty() {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Detaches the loop devices over files below `place`; those of mounts go away with them.
fn detach(place: &Path) {
    for device in loop_devices_below(place) {
        let _ = command("losetup", &["--detach", &device]).output();
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    // Others have mount points and files with names that are no text.
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

fn loop_devices_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(OsStr::from_bytes(backing.trim_ascii_end())).starts_with(dir) {
            found.push(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// A path as an argument; rooms have names in ASCII.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("rooms have plain names")
}

/// Runs a program of the system, which must succeed; gives what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = command(program, args).output().unwrap_or_else(|error| panic!("run {program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}: {stderr}", args.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")).args(args);
    command
}
