//! Finds out whether a device or export holds data, by a few reads.
//!
//! The order is: the first and the last MiB, where nearly every format leaves its marks; the other places of
//! signatures; then the map of what is allocated, where there is one. If the map shows holes only, the volume is empty.
//! A few MiB of data are read in full. More data beside holes counts as data, whatever it reads. Without a map, or
//! where everything is allocated, samples are read across the whole length. At most some 8 MiB are read, and a bounded
//! number of questions is asked, whatever the size of the volume.
//!
//! So data may be overlooked only where there is no map, and then only if it is sparse: an unbroken stretch that is
//! longer than a 256th part of the volume is always met.

use super::signature::{SIGNATURES, Signature, ZFS_LABEL_BYTES, ZFS_LABELS, zfs};
use crate::error::Result;
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::units::format_size;
use std::fmt;

/// Bytes that are read at either end.
const END_BYTES: u64 = 1 << 20;
/// Data up to so many bytes is read in full.
const WHOLE_BYTES: u64 = 4 << 20;
/// Bytes read at a time.
const READ_BYTES: u64 = 256 << 10;
/// Bytes that are read around a signature.
const PLACE_BYTES: u64 = 4 << 10;
/// Samples of one unit each at even distances,
const SAMPLES_EVEN: u64 = 256;
/// and at uneven ones, for what lies at even distances itself.
const SAMPLES_UNEVEN: u64 = 64;
/// Parts of the map that are asked for. A server tells some GiB at a time.
const MAP_PARTS_MAX: usize = 256;
/// Extents of data that are kept of a map.
const MAP_EXTENTS_MAX: usize = 512;

/// A volume that is searched for data.
pub(super) trait ProbeTarget {
    fn size_bytes(&self) -> u64;

    /// Reads start and end at multiples of this, or at the end.
    fn unit_bytes(&self) -> u64;

    fn read(&self, range: ByteRange) -> Result<Vec<u8>>;

    /// Returns the map from the start of `within` on, as far as one reply reaches; `None` if there is no map.
    fn map(&self, within: ByteRange) -> Result<Option<Vec<Extent>>>;
}

/// Data found on a device or export that should be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// Description, with an article.
    pub what: &'static str,
    /// Offset of what was found: of the signature, or of a byte that is not zero.
    pub at: u64,
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)?;
        if self.at >= 1 << 20 { write!(f, " ({})", format_size(self.at)) } else { Ok(()) }
    }
}

/// Returns what occupies a volume; `None` if nothing was found.
///
/// # Errors
/// The volume cannot be read.
pub(super) fn occupied(volume: &dyn ProbeTarget) -> Result<Option<Occupied>> {
    let size = volume.size_bytes();
    let places = ends(size).into_iter().chain(signature_places(size));
    let found = match first_data(volume, places)? {
        Some(at) => Some(at),
        None => match mapped(volume)? {
            MapFindings::Whole(data) => first_data(volume, data)?,
            MapFindings::Many(first) => return Ok(Some(Occupied { what: "allocated space", at: first })),
            MapFindings::Part(data) => first_data(volume, data.into_iter().chain(samples(size)))?,
        },
    };
    let Some(at) = found else { return Ok(None) };
    let named = signature(volume)?;
    Ok(Some(named.unwrap_or(Occupied { what: "data", at })))
}

/// The first byte in `ranges` that is not zero.
fn first_data(volume: &dyn ProbeTarget, ranges: impl IntoIterator<Item = ByteRange>) -> Result<Option<u64>> {
    for range in ranges {
        for piece in aligned(volume, range).split(READ_BYTES.next_multiple_of(volume.unit_bytes())) {
            if let Some(at) = volume.read(piece)?.iter().position(|&byte| byte != 0) {
                return Ok(Some(piece.start() + at as u64));
            }
        }
    }
    Ok(None)
}

fn aligned(volume: &dyn ProbeTarget, range: ByteRange) -> ByteRange {
    range.align_out(volume.unit_bytes(), volume.size_bytes())
}

/// The first and the last MiB.
fn ends(size: u64) -> Vec<ByteRange> {
    if size <= WHOLE_BYTES {
        return vec![ByteRange::new(0, size)];
    }
    vec![ByteRange::new(0, END_BYTES), ByteRange::new(size - END_BYTES, size)]
}

/// Further offsets of signatures.
fn signature_places(size: u64) -> impl Iterator<Item = ByteRange> {
    let place = move |at: u64| ByteRange::new(at, (at + PLACE_BYTES).min(size));
    let is_apart = move |&at: &u64| size > WHOLE_BYTES && at >= END_BYTES && at < size - END_BYTES;
    SIGNATURES.iter().filter_map(move |signature| signature.at.byte(size)).filter(is_apart).map(place)
}

/// Allocated ranges of a volume, by its map.
enum MapFindings {
    /// All that is allocated, and not much; perhaps nothing.
    Whole(Vec<ByteRange>),
    /// More than is read in full, from this byte on, and holes beside it.
    Many(u64),
    /// Some of what is allocated, or nothing: there is no map, none with holes, or too much of one.
    Part(Vec<ByteRange>),
}

fn mapped(volume: &dyn ProbeTarget) -> Result<MapFindings> {
    let size = volume.size_bytes();
    let (mut data, mut bytes, mut has_holes, mut at) = (Vec::new(), 0, false, 0);
    for _ in 0..MAP_PARTS_MAX {
        let Some(part) = (at < size).then(|| volume.map(ByteRange::new(at, size))).transpose()? else { break };
        let Some(part) = part else { return Ok(MapFindings::Part(Vec::new())) };
        for Extent { range, kind } in part {
            at = at.max(range.end());
            match kind {
                ExtentKind::Zero | ExtentKind::Hole => has_holes = true,
                ExtentKind::Data | ExtentKind::Unchanged => {
                    bytes += range.len();
                    data.push(range);
                }
            }
        }
        if let Some(first) = data.first().filter(|_| has_holes && bytes > WHOLE_BYTES) {
            return Ok(MapFindings::Many(first.start()));
        }
        if data.len() > MAP_EXTENTS_MAX {
            break;
        }
    }
    Ok(match has_holes {
        true if at >= size => MapFindings::Whole(data),
        true => MapFindings::Part(data),
        false => MapFindings::Part(Vec::new()),
    })
}

/// Places across a volume, in ascending order of each kind.
fn samples(size: u64) -> impl Iterator<Item = ByteRange> {
    // Grows to the one unit that it lies in.
    let sample = |at: u64| ByteRange::at(at, 1);
    let part = move |index: u64, of: u64| u64::try_from(u128::from(size) * u128::from(index) / u128::from(of));
    let even = (0..SAMPLES_EVEN).filter_map(move |index| part(index, SAMPLES_EVEN).ok());
    let uneven = (0..SAMPLES_UNEVEN).filter_map(move |index| {
        // The same ones every time, and nowhere near a fixed fraction of a stride.
        let drop = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        part((index << 32) + drop, SAMPLES_UNEVEN << 32).ok()
    });
    even.chain(uneven).filter(move |&at| at < size).map(sample)
}

/// Returns the format that has left its signature on the volume.
fn signature(volume: &dyn ProbeTarget) -> Result<Option<Occupied>> {
    let size = volume.size_bytes();
    let mut cache = ReadCache { range: ByteRange::new(0, 0), bytes: Vec::new() };
    for &Signature { what, at, magic } in SIGNATURES {
        let Some(at) = at.byte(size) else { continue };
        if cache.bytes(volume, at, magic.len() as u64)?.starts_with(magic) {
            return Ok(Some(Occupied { what, at }));
        }
    }
    for place in ZFS_LABELS {
        let Some(at) = place.byte(size) else { continue };
        if let Some(what) = zfs(cache.bytes(volume, at, ZFS_LABEL_BYTES)?) {
            return Ok(Some(Occupied { what, at }));
        }
    }
    Ok(None)
}

/// The part of the volume that was read last: many signatures lie close together.
struct ReadCache {
    range: ByteRange,
    bytes: Vec<u8>,
}

impl ReadCache {
    /// `length` bytes from `at` on, fewer at the end of the volume.
    fn bytes(&mut self, volume: &dyn ProbeTarget, at: u64, length: u64) -> Result<&[u8]> {
        let size = volume.size_bytes();
        let wanted = ByteRange::new(at, at.saturating_add(length).min(size));
        if self.range.is_empty() || !self.range.contains(wanted) {
            self.range =
                aligned(volume, ByteRange::new(at, wanted.end().max(at.saturating_add(PLACE_BYTES).min(size))));
            self.bytes = volume.read(self.range)?;
        }
        let from = usize::try_from(at - self.range.start()).expect("within what was read");
        let end = from.saturating_add(usize::try_from(wanted.len()).expect("no longer than a label"));
        Ok(self.bytes.get(from..end.min(self.bytes.len())).unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "occupancy_tests.rs"]
mod tests;
