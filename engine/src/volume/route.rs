//! Chooses how the bytes of a copy travel, by probing both volumes.
//!
//! What the kernel can do is known only when it is asked: the same file system may share extents or not, accept
//! `O_DIRECT` or not. Each probe leaves the destination reading as before.

use super::kernel_calls::clone_range;
use super::local::LocalVolume;
use super::open_volume::OpenVolume;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::ByteRange;
use crate::spec::{CopySpec, Direct, PathChoice, Reflink};
use nix::libc;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How operations on a local volume are submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubmitMode {
    /// Through the worker's ring.
    Ring,
    /// At once, on the worker, which is blocked meanwhile. Only memory always answers soon.
    Inline,
}

/// Whether operations on a volume pass through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Operations bypass the page cache (`O_DIRECT`).
    Direct,
    /// Operations use the page cache.
    Buffered,
    /// Operations go to a server, which has caches of its own.
    Server,
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoMode {
    /// Start of operations.
    pub submit: SubmitMode,
    /// Target of operations.
    pub cache: Cache,
}

/// Copy by the file system instead of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offload {
    /// The file system shares extents.
    Reflink,
}

/// Route of the bytes of a copy. With an offload the I/O modes are for what is left to the engine where it does not
/// work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The volume that is read.
    pub source: IoMode,
    /// The volume that is written.
    pub destination: IoMode,
    /// Offload that copies data extents, if any.
    pub offload: Option<Offload>,
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.submit, self.cache) {
            (_, Cache::Server) => "nbd",
            (SubmitMode::Ring, Cache::Direct) => "ring-direct",
            (SubmitMode::Ring, Cache::Buffered) => "ring-buffered",
            (SubmitMode::Inline, Cache::Direct) => "inline-direct",
            (SubmitMode::Inline, Cache::Buffered) => "inline",
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offload {
            Some(Offload::Reflink) => f.write_str("reflink"),
            None if self.source == self.destination => self.source.fmt(f),
            None => write!(f, "{}>{}", self.source, self.destination),
        }
    }
}

/// Bytes of the destination that are known to be zero without a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownZero {
    /// All of them: this run created the file or truncated it to 0.
    Everything,
    /// None.
    Nothing,
}

/// Refuses wishes that contradict each other, whatever the volumes are.
///
/// # Errors
/// `EBadRequest`, naming both flags.
pub(crate) fn refuse_contradiction(spec: &CopySpec) -> Result<()> {
    if spec.path == PathChoice::Inline && spec.direct == Direct::Yes {
        let message = "--path inline copies through the page cache, which --direct yes forbids; drop one of them";
        return Err(Error::bad_request(message));
    }
    Ok(())
}

/// Bypasses the caches as wanted and possible. Changes nothing that a reader could see, so it may still refuse.
///
/// # Errors
/// `EUnsupported` if `--direct yes` cannot be had, or `--reflink always` is certain to be impossible.
pub(crate) fn bypass_caches(spec: &CopySpec, source: &mut OpenVolume, destination: &mut OpenVolume) -> Result<()> {
    let direct = if spec.path == PathChoice::Inline { Direct::No } else { spec.direct };
    if spec.reflink == Reflink::Always && will_share(source, destination) == Some(false) {
        return Err(cannot_share(source, destination, None));
    }
    // What is in memory is not read from the disk again.
    if direct != Direct::Auto || !source.is_cached() {
        source.bypass_cache(direct, Side::Source)?;
    }
    destination.bypass_cache(direct, Side::Destination)
}

/// Chooses the route. The destination has its final size, and keeps what it holds, apart from a first block that is
/// shared with the source.
///
/// # Errors
/// `EUnsupported` if `--reflink always` cannot be had; errors of the destination.
pub(crate) fn probe(spec: &CopySpec, source: &OpenVolume, destination: &OpenVolume) -> Result<Route> {
    let from = source_io_mode(spec.path, source);
    let to = destination_io_mode(spec.path, destination);
    let offload = can_share(spec.reflink, source, destination)?.then_some(Offload::Reflink);
    Ok(Route { source: from, destination: to, offload })
}

/// Tells the route that [`probe`] would choose, without a change to the destination. Whether extents can be shared is
/// tried beside it.
pub(crate) fn expected_route(spec: &CopySpec, source: &OpenVolume, destination: &OpenVolume) -> Route {
    let shares = spec.reflink != Reflink::Never
        && source.volume().size_bytes() > 0
        && will_share(source, destination) == Some(true);
    Route {
        source: source_io_mode(spec.path, source),
        destination: destination_io_mode(spec.path, destination),
        offload: shares.then_some(Offload::Reflink),
    }
}

fn cache_of(volume: &OpenVolume) -> Cache {
    match volume {
        OpenVolume::Export(_) => Cache::Server,
        OpenVolume::Local(local) if local.descriptor().is_direct() => Cache::Direct,
        OpenVolume::Local(_) => Cache::Buffered,
    }
}

fn source_io_mode(path: PathChoice, source: &OpenVolume) -> IoMode {
    let cache = cache_of(source);
    let submit = match path {
        // A request to a server starts in the ring and nowhere else.
        _ if cache == Cache::Server => SubmitMode::Ring,
        PathChoice::Inline => SubmitMode::Inline,
        PathChoice::Ring | PathChoice::Threads => SubmitMode::Ring,
        // Cached reads complete at submission, the others wait for their pages without a worker.
        PathChoice::Auto if source.is_memory() => SubmitMode::Inline,
        PathChoice::Auto => SubmitMode::Ring,
    };
    IoMode { submit, cache }
}

fn destination_io_mode(path: PathChoice, destination: &OpenVolume) -> IoMode {
    let cache = cache_of(destination);
    let submit = match path {
        _ if cache == Cache::Server => SubmitMode::Ring,
        PathChoice::Inline => SubmitMode::Inline,
        PathChoice::Ring | PathChoice::Threads => SubmitMode::Ring,
        PathChoice::Auto if cache == Cache::Direct => SubmitMode::Ring,
        // The kernel would only hand them to a thread of its own.
        PathChoice::Auto if destination.is_memory() => SubmitMode::Inline,
        // It hands these to one as well, which costs little: a device that stalls holds that thread up, and not the
        // worker, which has other jobs to serve.
        PathChoice::Auto => SubmitMode::Ring,
    };
    IoMode { submit, cache }
}

/// Returns both as local volumes, if sharing is possible. Subvolumes of one btrfs have different device numbers, so
/// these say nothing; only the kernel knows.
fn may_share<'a>(source: &'a OpenVolume, destination: &'a OpenVolume) -> Option<(&'a LocalVolume, &'a LocalVolume)> {
    let (source, destination) = (source.local()?, destination.local()?);
    let (from, to) = source.both_files(destination)?;
    let alike = from.descriptor.filesystem().same_kind(to.descriptor.filesystem());
    (alike && !destination.is_memory()).then_some((source, destination))
}

/// Tries to share with a file that has no name, beside the destination; `None` if none can be made there.
pub(super) fn will_share(source: &OpenVolume, destination: &OpenVolume) -> Option<bool> {
    let Some((source, destination)) = may_share(source, destination) else { return Some(false) };
    let LocalVolume::File(file) = destination else { return None };
    let unnamed = open_unnamed(&file.directory()?).ok()?;
    Some(clone_range(&unnamed, source.volume().file().0, first_block(source)).is_ok())
}

/// A file without a name in `directory`, for trials that leave nothing behind.
pub(crate) fn open_unnamed(directory: &Path) -> std::io::Result<File> {
    let flags = libc::O_TMPFILE | libc::O_CLOEXEC;
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(directory)
}

fn first_block(source: &LocalVolume) -> ByteRange {
    let block = source.descriptor().filesystem().block_bytes.next_power_of_two().max(4096);
    ByteRange::new(0, block.min(source.volume().size_bytes()))
}

/// Shares the first block, which the copy would do next anyway.
fn can_share(wanted: Reflink, source: &OpenVolume, destination: &OpenVolume) -> Result<bool> {
    let Some((from, to)) = may_share(source, destination).filter(|_| wanted != Reflink::Never) else {
        return Ok(false);
    };
    let first = first_block(from);
    if first.is_empty() {
        return Ok(false);
    }
    match to.volume().clone_range(from.volume(), first) {
        Ok(()) => Ok(true),
        Err(error) if wanted == Reflink::Always => Err(cannot_share(source, destination, Some(error))),
        Err(_) => Ok(false),
    }
}

fn cannot_share(source: &OpenVolume, destination: &OpenVolume, cause: Option<Error>) -> Error {
    let (from, to) = (source.volume().name(), destination.volume().name());
    let message = format!("{from} and {to} cannot share extents: that takes two files on one xfs or btrfs");
    let errno = cause.and_then(|error| error.errno);
    let error = Error { errno, ..Error::new(Code::Unsupported, Side::Destination, Operation::Clone, message) };
    error.advise("use --reflink auto to copy where they cannot")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: IoMode = IoMode { submit: SubmitMode::Ring, cache: Cache::Direct };
    const BUFFERED: IoMode = IoMode { submit: SubmitMode::Ring, cache: Cache::Buffered };
    const SERVER: IoMode = IoMode { submit: SubmitMode::Ring, cache: Cache::Server };
    const INLINE: IoMode = IoMode { submit: SubmitMode::Inline, cache: Cache::Buffered };

    #[test]
    fn a_route_reads_as_reports_show_it() {
        let route = |source, destination, offload| Route { source, destination, offload }.to_string();
        assert_eq!(route(DIRECT, DIRECT, None), "ring-direct");
        assert_eq!(route(BUFFERED, BUFFERED, None), "ring-buffered");
        assert_eq!(route(INLINE, INLINE, None), "inline");
        assert_eq!(route(INLINE, DIRECT, None), "inline>ring-direct");
        assert_eq!(route(SERVER, DIRECT, None), "nbd>ring-direct");
        assert_eq!(route(SERVER, SERVER, None), "nbd");
        assert_eq!(route(DIRECT, DIRECT, Some(Offload::Reflink)), "reflink");
    }

    #[test]
    fn direct_and_inline_contradict_each_other() {
        let locator = |name| crate::volume::Locator::parse(name).unwrap();
        let mut spec = CopySpec::new(locator("a"), locator("b"));
        spec.path = PathChoice::Inline;
        assert_eq!(refuse_contradiction(&spec), Ok(()));
        spec.direct = Direct::Yes;
        assert!(refuse_contradiction(&spec).unwrap_err().message.contains("--direct yes"));
    }
}
