//! Goal: every refusal of a copy has its code, a message that names the fix, and leaves the destination as it was.
//! Method: real files, file systems, loop devices and servers; each test prepares a copy and checks what is left.

mod busy;
mod export;
mod journal;
mod names;
mod route;
mod rules;
mod same;

use super::super::check::check_start;
use super::*;
use crate::extent::ByteRange;
use crate::journal::{Content, Run};
use crate::spec::{Direct, LiveSource, PathChoice, Reflink, Sparse};
use crate::volume::Locator;
use crate::volume::support::{LoopDevice, Mounted, make_file, need, run, scratch};
use blockhaul_testkit::{Need, skipped, unmet};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Waits for locks: a command that another test starts holds every descriptor of this process for a moment.
fn spec(source: &Path, destination: &Path) -> CopySpec {
    CopySpec::new(source.into(), destination.into())
}

fn start(spec: &CopySpec) -> Result<PreparedCopy> {
    prepare(spec, &ResolvedSupervision::default(), &JournalService::start().unwrap(), &|| false)
}

/// A check of the same copy.
fn check(spec: &CopySpec) -> Result<()> {
    check_start(spec, &ResolvedSupervision::default(), &|| false).map(drop)
}

/// The refusal of a copy, and of its check, which must have left the destination (if there is one) alone.
#[track_caller]
fn refused(spec: &CopySpec, code: Code, words: &[&str]) -> Error {
    let look = || spec.destination.path().and_then(snapshot);
    let before = look();
    let checked = check(spec).expect_err("a refusal");
    assert_eq!(look(), before, "the check touched the destination");
    let error = start(spec).expect_err("a refusal");
    assert_eq!(checked, error, "a check refuses what a copy refuses, with the same words");
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.message.contains(word), "'{word}' is missing in: {error}");
    }
    assert_eq!(look(), before, "the destination was touched");
    error
}

/// State of a volume that must not change.
#[derive(Debug, PartialEq)]
struct Snapshot {
    size: u64,
    inode: u64,
    blocks: u64,
    modified: (i64, i64),
    ends: Vec<u8>,
}

/// `None` if there is nothing.
fn snapshot(path: &Path) -> Option<Snapshot> {
    let stat = fs::metadata(path).ok()?;
    let modified = (stat.mtime(), stat.mtime_nsec());
    let has_bytes = stat.is_file() || stat.file_type().is_block_device();
    let ends = if has_bytes { first_and_last(path) } else { Vec::new() };
    Some(Snapshot { size: stat.len(), inode: stat.ino(), blocks: stat.blocks(), modified, ends })
}

/// The first sector, where mounted file systems change nothing, and the last 64 KiB.
fn first_and_last(path: &Path) -> Vec<u8> {
    use std::io::{Seek, SeekFrom};
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    let end = file.seek(SeekFrom::End(0)).unwrap();
    let start = end.saturating_sub(65536);
    let mut bytes = vec![0; usize::try_from(512.min(end) + end - start).unwrap()];
    let (first, last) = bytes.split_at_mut(512.min(end) as usize);
    file.read_exact_at(first, 0).unwrap();
    file.read_exact_at(last, start).unwrap();
    bytes
}

/// A directory with a source of 1 MiB and a name for a destination.
fn pair() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = scratch();
    let (source, destination) = (directory.path().join("source"), directory.path().join("destination"));
    make_file(&source, MIB, &[(0, 65536)]);
    (directory, source, destination)
}

fn one_of(mounted: &Mounted) -> PathBuf {
    mounted.device.as_ref().expect("not a tmpfs").path.clone()
}
