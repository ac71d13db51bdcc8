//! Estimates whether the destination's file system has room for the source's data.
//!
//! An early refusal saves hours. It is no reservation. Most copies are decided by an estimate that takes two system
//! calls. Only a source that seems too large is scanned extent by extent. The scan of a source behind a network stops
//! early if it takes many questions.

use super::file::FileVolume;
use super::local::LocalVolume;
use super::open_volume::OpenVolume;
use super::route::will_share;
use super::{Volume, VolumeKind};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, ExtentKind};
use crate::limits::EXTENTS_PER_SCAN;
use crate::spec::{CopySpec, Reflink, Sparse};
use crate::units::format_size;
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;

/// Questions to a server before a byte moves: enough for most volumes, and no long wait for an estimate.
const QUESTIONS_MAX: u64 = 32;

/// Refuses a copy that cannot fit: data extents (all bytes with [`Sparse::Never`]) against the free bytes and those
/// that the destination holds already, be it data that this copy replaces or, when it is resumed, what it wrote before.
///
/// Counts no more once it is `cancelled`.
///
/// # Errors
/// `ENoSpace` with both numbers.
pub(crate) fn refuse_full(
    source: &OpenVolume,
    destination: &OpenVolume,
    spec: &CopySpec,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    let Some(room) = free_bytes(destination)? else { return Ok(()) };
    if estimate_bytes(source, spec.sparse) <= room {
        return Ok(());
    }
    let needed = exact_bytes(source.volume(), spec.sparse, room, cancelled)?;
    // Shared extents take no room.
    if needed <= room || (spec.reflink != Reflink::Never && will_share(source, destination) == Some(true)) {
        return Ok(());
    }
    let message = format!(
        "the file system of {} has room for {} ({room} bytes), but the data of {} needs {} ({needed} bytes or more)",
        destination.volume().name(),
        format_size(room),
        source.volume().name(),
        format_size(needed)
    );
    let error = Error::new(Code::NoSpace, Side::Destination, Operation::Allocate, message);
    Err(error.advise("free space there or name another destination"))
}

/// Returns the bytes that the destination's file system has free for a copy, those that the destination holds included.
/// `None` for what is no file, and where there is no bound.
///
/// # Errors
/// The file system does not answer.
pub(crate) fn free_bytes(destination: &OpenVolume) -> Result<Option<u64>> {
    match destination {
        OpenVolume::Local(LocalVolume::File(file)) => room_bytes(file),
        OpenVolume::Local(_) | OpenVolume::Export(_) => Ok(None),
    }
}

/// Free bytes for this user plus what the destination holds; `None` if there is no bound.
fn room_bytes(destination: &FileVolume) -> Result<Option<u64>> {
    let stat = fstatvfs(destination.descriptor.file()).map_err(|errno: Errno| {
        let what = format!("ask for the free space of {}", destination.name());
        Error::os(Side::Destination, Operation::Stat, errno, what)
    })?;
    if stat.blocks() == 0 {
        return Ok(None);
    }
    let blocks = if geteuid().is_root() { stat.blocks_free() } else { stat.blocks_available() };
    Ok(Some(blocks.saturating_mul(stat.fragment_size()).saturating_add(destination.allocated_bytes()?)))
}

/// Estimates the bytes that a source needs, without a scan: too much where space is reserved past its data, too little
/// where its file system compresses.
fn estimate_bytes(source: &OpenVolume, sparse: Sparse) -> u64 {
    let size = source.volume().size_bytes();
    match source {
        OpenVolume::Local(LocalVolume::File(file)) if sparse != Sparse::Never => file.allocated_bytes().unwrap_or(size),
        OpenVolume::Local(_) | OpenVolume::Export(_) => size,
    }
}

/// Counts bytes of data until they exceed `enough` or the job is cancelled; of a server with short replies, only those
/// found early.
fn exact_bytes(source: &dyn Volume, sparse: Sparse, enough: u64, cancelled: &dyn Fn() -> bool) -> Result<u64> {
    let size = source.size_bytes();
    if sparse == Sparse::Never || source.kind() == VolumeKind::Device {
        return Ok(size);
    }
    let (mut needed, mut at) = (0_u64, 0);
    let mut questions = if source.kind() == VolumeKind::Export { QUESTIONS_MAX } else { u64::MAX };
    while at < size && needed <= enough && questions > 0 && !cancelled() {
        questions -= 1;
        let extents = source.extents(ByteRange::new(at, size), EXTENTS_PER_SCAN)?.unwrap_or_default();
        let data = extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
        needed += data.map(|extent| extent.range.len()).sum::<u64>();
        at = extents.last().map_or(size, |extent| extent.range.end());
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Direct;
    use crate::volume::support::{make_file, scratch};
    use crate::volume::{ReadOptions, open_source};
    use std::cell::Cell;

    #[test]
    fn a_count_of_many_extents_ends_when_it_is_cancelled() {
        let (directory, extents) = (scratch(), 4 * EXTENTS_PER_SCAN as u64);
        let path = directory.path().join("source");
        let data: Vec<(u64, usize)> = (0..extents).map(|index| (index << 16, 4096)).collect();
        make_file(&path, extents << 16, &data);
        let source = open_source(&path.into(), &ReadOptions::new(Direct::No)).unwrap();
        let (asked, most) = (Cell::new(0), Cell::new(usize::MAX));
        let count = || {
            asked.set(0);
            let cancelled = || asked.replace(asked.get() + 1) >= most.get();
            exact_bytes(&*source, Sparse::Auto, u64::MAX, &cancelled).unwrap()
        };
        let all = count();
        assert!(all >= extents * 4096 && asked.get() > 4, "{all} in {} parts", asked.get());
        most.set(1);
        let some = count();
        assert!(some > 0 && some < all / 2, "{some} of {all}");
    }
}
