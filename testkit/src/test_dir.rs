//! Creates the directory of one test, with the file systems and loop devices that it needs.
//!
//! Everything below the directory is removed at the end of the test, also of a failed one; after a test that was
//! killed, the next run removes it. Ownership is proved, not remembered: mounts whose mount point, and loop devices
//! whose backing file, lie below the directory belong to it. A directory is in use while its test holds its lock, which
//! the kernel releases with the process. A directory that is not certainly abandoned is left alone.

use crate::programs::temporary_folder;
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Prefix of the names of test directories.
const PREFIX: &str = "blockhaul-test-";
/// Lock file, held by the test that uses the directory.
const LOCK: &str = "in-use";
/// Number of the next test directory of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Attempts to unmount, 20 ms apart.
const UNMOUNT_TRIES: u32 = 250;
/// Abandoned directories are removed once in each process.
static LEFTOVERS: Once = Once::new();

/// The directory of one test.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
    _in_use: Flock<File>,
}

impl TestDir {
    /// Creates an empty directory.
    pub fn new() -> Self {
        Self::within(&temporary_folder())
    }

    /// Creates an empty directory that every user can reach, unlike the build directory.
    pub fn public() -> Self {
        Self::within(&std::env::temp_dir())
    }

    fn within(place: &Path) -> Self {
        LEFTOVERS.call_once(|| {
            sweep_leftovers(&temporary_folder());
            sweep_leftovers(&std::env::temp_dir());
        });
        let number = NEXT.fetch_add(1, Relaxed);
        let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let lock = lock(&path).expect("no other process knows the directory yet");
        Self { path, _in_use: lock }
    }

    pub fn root(&self) -> &Path {
        &self.path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file; returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    /// Mounts a tmpfs, for images whose flushes should cost nothing.
    pub fn memory(&self, name: &str) -> PathBuf {
        let at = self.mount_point(name);
        run("mount", &["-t", "tmpfs", "tmpfs", text(&at)]);
        at
    }

    /// Creates an image with a new file system, without mounting it.
    pub fn image(&self, name: &str, filesystem: &str, bytes: u64) -> PathBuf {
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

    /// Mounts a new file system at `name`, with its image in `name.img`.
    pub fn filesystem(&self, name: &str, filesystem: &str, bytes: u64) -> PathBuf {
        let image = self.image(&format!("{name}.img"), filesystem, bytes);
        self.mount(&image, name)
    }

    /// Mounts an image. Its loop device is detached with the mount.
    pub fn mount(&self, image: &Path, name: &str) -> PathBuf {
        let at = self.mount_point(name);
        run("mount", &["-o", "loop", text(image), text(&at)]);
        at
    }

    pub fn unmount(&self, at: &Path) {
        assert!(at.starts_with(&self.path), "{} is not ours", at.display());
        unmount(text(at));
        assert!(!mounts_below(at).iter().any(|point| Path::new(point) == at), "{} is still in use", at.display());
    }

    /// Attaches a loop device to `backing`, a file of this directory, with sectors of `sector` bytes.
    pub fn loop_device(&self, backing: &Path, sector: u32) -> PathBuf {
        assert!(
            backing.starts_with(&self.path),
            "{} is not below the test directory: it would not be detached",
            backing.display()
        );
        let sector = sector.to_string();
        PathBuf::from(run("losetup", &["--find", "--show", "--sector-size", &sector, text(backing)]).trim())
    }

    /// Creates a file that is a hole of `bytes` bytes.
    pub fn sparse(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        path
    }

    /// Creates a directory as a mount point.
    pub fn mount_point(&self, name: &str) -> PathBuf {
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

/// Removes the directories of tests that have ended.
fn sweep_leftovers(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Without a lock file the directory is just being created.
        if ours && path.join(LOCK).is_file() && lock(&path).is_some() {
            sweep(&path);
        }
    }
}

/// Unmounts as soon as the kernel has closed the files of ended processes: the ring of a killed process is closed
/// asynchronously.
fn unmount(at: &str) {
    for _ in 0..UNMOUNT_TRIES {
        let output = command("umount", &[at]).output();
        if output.is_ok_and(|output| output.status.success()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Unmounts and detaches everything below `dir`, then removes it. What is still in use is left for a later run.
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

/// Detaches the loop devices of files below `place`; those of mounts are detached with the mounts.
fn detach(place: &Path) {
    for device in loop_devices_below(place) {
        let _ = command("losetup", &["--detach", &device]).output();
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    // Mount points of other programs may have names that are not UTF-8.
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

/// Returns a path as text; test directories have ASCII names.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are ASCII")
}

/// Runs a program that must succeed; returns its stdout.
pub fn run(program: &str, args: &[&str]) -> String {
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
