//! Tests sources whose use is hard to detect: mounts of another namespace, and processes that write to mapped pages.

use crate::support::{MIB, Need, Running, TestDir, need, noise, program, run, text};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

/// A helper process that has reported to be ready; ended on drop.
struct HelperProcess(Child);

impl HelperProcess {
    fn start(dir: &TestDir, program: &str, args: &[&str]) -> Self {
        let mut command = dir.command(Path::new(program), args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("its need was checked");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("asked for")).read_line(&mut line).expect("it is ours");
        assert_eq!(line, "ready\n", "{program} {args:?}");
        Self(child)
    }
}

impl Drop for HelperProcess {
    fn drop(&mut self) {
        // The process ends with its input; its mounts are gone once it has ended.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_source_that_is_mounted_in_another_namespace_is_live() {
    let test = "a_source_that_is_mounted_in_another_namespace_is_live";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Program("unshare")]);
    let dir = TestDir::new();
    let image = dir.image("disk.img", "ext4", 16 << 20);
    let device = dir.loop_device(&image, 512);
    let point = dir.mount_point("point");
    let (from, at) = (text(&device), text(&point));
    let script = format!("mount {from} {at} && echo ready && read end; umount {at}");
    let mounted = HelperProcess::start(&dir, "unshare", &["--mount", "--propagation", "private", "sh", "-c", &script]);
    let table = std::fs::read("/proc/self/mountinfo").expect("procfs is there");
    assert!(!String::from_utf8_lossy(&table).contains(text(&point)), "the mount is not in this namespace");
    for flags in [&[][..], &["--dry-run"]] {
        let args = [&["copy", text(&device), "copy"], flags].concat();
        let outcome = dir.blockhaul(&args);
        assert_eq!(outcome.code, Some(1), "{args:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("blockhaul: EBusy: "), "{args:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("another mount namespace"), "{args:?}: {outcome:#?}");
        assert!(outcome.stderr.contains("--allow-live-source"), "{args:?}: {outcome:#?}");
        assert!(!dir.path("copy").exists(), "{args:?}");
    }
    dir.blockhaul(&["copy", text(&device), "copy", "--allow-live-source"]).assert_done();
    drop(mounted);
    dir.blockhaul(&["copy", text(&device), "copy", "--overwrite"]).assert_done();
}

/// A disk of 512-byte sectors with two partitions of 16 MiB, from 1 MiB on.
fn partitioned() -> Vec<u8> {
    let mut disk = vec![0; 40 * MIB];
    for (entry, start) in [(446, 2048_u32), (462, 2048 + 32768)] {
        disk[entry + 4] = 0x83;
        disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&32768_u32.to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[test]
fn a_partition_that_is_mounted_in_another_namespace_makes_its_disk_live() {
    let test = "a_partition_that_is_mounted_in_another_namespace_makes_its_disk_live";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Program("partx")]);
    let dir = TestDir::new();
    let image = dir.file("disk.img", &partitioned());
    // Detached with the test directory, which has its backing file.
    let device = run("losetup", &["--find", "--show", "--partscan", text(&image)]);
    // The kernel may lack the format of the partition table: then partx reads it.
    run("partx", &["--update", device.trim()]);
    let part = |number: u8| format!("{}p{number}", device.trim());
    if !Path::new(&part(2)).exists() {
        // In a container neither udev nor devtmpfs creates the nodes of partitions.
        return blockhaul_testkit::unmet(test, "the nodes of partitions");
    }
    run("mkfs.ext4", &["-q", "-F", &part(1)]);
    let point = dir.mount_point("point");
    let script = format!("mount {} {point} && echo ready && read end; umount {point}", part(1), point = text(&point));
    let mounted = HelperProcess::start(&dir, "unshare", &["--mount", "--propagation", "private", "sh", "-c", &script]);
    for source in [device.trim().to_owned(), part(1)] {
        dir.blockhaul(&["copy", &source, "copy"]).assert_failed(1, "EBusy");
    }
    // The other partition is not in use.
    dir.blockhaul(&["copy", &part(2), "copy"]).assert_done();
    drop(mounted);
    dir.blockhaul(&["copy", &part(1), "copy", "--overwrite"]).assert_done();
}

#[test]
fn a_source_that_is_mounted_read_only_is_copied() {
    let test = "a_source_that_is_mounted_read_only_is_copied";
    need!(test, &[Need::Root, Need::LoopDevices, Need::Filesystem("ext4")]);
    let dir = TestDir::new();
    let image = dir.image("disk.img", "ext4", 16 << 20);
    let device = dir.loop_device(&image, 512);
    let point = dir.mount_point("point");
    run("mount", &["-o", "ro", text(&device), text(&point)]);
    dir.blockhaul(&["copy", text(&device), "copy"]).assert_done();
    dir.unmount(&point);
}

/// Script that writes to every page of a mapped file, reports it, and repeats until its input ends.
const REWRITER: &str = "
import mmap, os, select, sys
file = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(file).st_size
pages = mmap.mmap(file, size)
def rewrite(value):
    for at in range(0, size, 4096):
        pages[at] = value
rewrite(1)
print('ready', flush=True)
value = 1
while not select.select([0], [], [], 0)[0]:
    value = (value + 1) % 256
    rewrite(value)
";

#[test]
fn a_source_whose_mapped_pages_are_rewritten_has_changed() {
    let test = "a_source_whose_mapped_pages_are_rewritten_has_changed";
    need!(test, &[Need::Program("python3")]);
    let dir = TestDir::new();
    dir.file("a", &noise(4 * MIB, 9));
    let rewriter = HelperProcess::start(&dir, "python3", &["-c", REWRITER, text(&dir.path("a"))]);
    let args = ["copy", "a", "b", "--direct", "no", "--reflink", "never", "--limit", "8MiB/s", "--json"];
    let outcome = Running::spawn(&mut dir.command(&program(), &args)).end();
    drop(rewriter);
    assert_eq!((outcome.code, outcome.error_code()), (Some(1), &"ESourceChanged".into()), "{outcome:#?}");
}

/// Script that maps a file, reads every page, and keeps the mapping until its input ends.
const HOLDER: &str = "
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
pages = mmap.mmap(file, 0, prot=mmap.PROT_READ)
seen = sum(pages[at] for at in range(0, len(pages), 4096))
print('ready', flush=True)
sys.stdin.read()
";

#[test]
fn a_verification_of_mapped_pages_is_reported_as_from_memory() {
    let test = "a_verification_of_mapped_pages_is_reported_as_from_memory";
    need!(test, &[Need::Program("python3")]);
    let dir = TestDir::new();
    let bytes = noise(MIB, 10);
    dir.file("a", &bytes);
    dir.file("b", &bytes);
    let verify = || dir.blockhaul(&["verify", "a", "b", "--direct", "no"]);
    let holder = HelperProcess::start(&dir, "python3", &["-c", HOLDER, text(&dir.path("b"))]);
    let outcome = verify();
    outcome.assert_done();
    assert_eq!(outcome.report()["verified_from"], "memory", "mapped pages stay cached: {outcome:#?}");
    drop(holder);
}
