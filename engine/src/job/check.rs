//! Checks a copy without making it: opens both ends, applies every refusal of a start in its order, and counts what
//! there is to copy.
//!
//! It runs the code of [`start`](super::start) up to the point where a copy first changes something. Nothing is created
//! or changed: a file without a name stands for a missing destination, and the journal of an earlier run is only read.
//! The destination's lock is taken as a copy takes it, and released before this returns.
//!
//! A start can still fail afterwards: while it writes, if `--reflink always` turns out to be impossible only then, and
//! because of whatever has changed meanwhile.

use super::engine_resources::EngineResources;
use super::finished::{self, FinishedCopy};
use super::resolved_supervision::ResolvedSupervision;
use super::start::{StartPoint, checkpoint, fitted, journal_place, leaf_bytes, open_checked};
use crate::error::{Result, Side};
use crate::extent::{ByteRange, ExtentKind};
use crate::journal::JournalService;
use crate::limits::EXTENTS_PER_SCAN;
use crate::spec::CopySpec;
use crate::volume::{OpenMode, OpenedCopy, Volume, expected_route, free_bytes, refuse_streams};
use serde::Serialize;
use std::time::Duration;

/// Time between two requests for extents that a server has not returned yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Plan of a copy that is not refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Size of the source.
    pub source_bytes: u64,
    /// Bytes of the source in extents of data.
    pub data_bytes: u64,
    /// Bytes of the source that are known to be zero.
    pub zero_bytes: u64,
    /// Bytes of the source in holes.
    pub hole_bytes: u64,
    /// Bytes that have not changed, where only changes are copied.
    pub unchanged_bytes: u64,
    /// Bytes that are durable on the destination by the checkpoint that the copy would resume; `None` if it would start
    /// from the beginning.
    pub resumed_bytes: Option<u64>,
    /// Bytes that the file system of the destination has for the copy, those of the destination included; `None` if the
    /// destination is no file, or there is no bound.
    pub free_bytes: Option<u64>,
    /// Path of the bytes, as in a report; `None` if nothing is left to copy.
    pub path: Option<String>,
    /// Block of the copy.
    pub block_size_bytes: u32,
}

/// Checks a copy in this engine.
///
/// # Errors
/// The refusals of a copy, in the order of a start.
pub(crate) fn check(
    spec: &CopySpec,
    supervision: &ResolvedSupervision,
    resources: &EngineResources,
    cancelled: &dyn Fn() -> bool,
) -> Result<CheckReport> {
    let volumes = [(&spec.source, Side::Source), (&spec.destination, Side::Destination)];
    refuse_streams(&volumes, &[checkpoint(spec), spec.receipt.as_deref()], &supervision.given)?;
    if let Some(FinishedCopy { journal, source, .. }) = finished::find(spec, &supervision.given, cancelled)? {
        let (resumed_bytes, block_size_bytes) = (Some(journal.header().size_bytes), journal.header().leaf_bytes);
        let report = CheckReport { resumed_bytes, block_size_bytes, ..CheckReport::default() };
        return report.counted(source.volume());
    }
    let (opened, report) = check_start(&fitted(spec, resources)?, supervision, cancelled)?;
    resources.refuse_block(report.block_size_bytes)?;
    let path = report.path.map(|path| path.replace("ring", resources.ring()));
    CheckReport { path, ..report }.counted(opened.source.volume())
}

/// The part that does not depend on the engine's configuration.
pub(super) fn check_start(
    spec: &CopySpec,
    supervision: &ResolvedSupervision,
    cancelled: &dyn Fn() -> bool,
) -> Result<(OpenedCopy, CheckReport)> {
    let reopen = |path: &_| JournalService::check_reopen(path).map(|reader| ((), reader));
    let (opened, start) = open_checked(spec, supervision, OpenMode::Check, &reopen, cancelled)?;
    let (block_size_bytes, resumed_bytes) = match start {
        StartPoint::Resumed((), earlier, _) => (earlier.header().leaf_bytes, Some(earlier.durable().bytes())),
        StartPoint::Fresh => {
            let leaf_bytes = leaf_bytes(spec, &opened)?;
            JournalService::check_create(journal_place(spec))?;
            (leaf_bytes, None)
        }
    };
    let report = CheckReport {
        resumed_bytes,
        free_bytes: free_bytes(&opened.destination)?,
        path: Some(expected_route(spec, &opened.source, &opened.destination).to_string()),
        block_size_bytes,
        ..CheckReport::default()
    };
    Ok((opened, report))
}

impl CheckReport {
    /// Adds the extents of the source.
    fn counted(mut self, source: &dyn Volume) -> Result<Self> {
        self.source_bytes = source.size_bytes();
        let mut at = 0;
        while at < self.source_bytes {
            let Some(extents) = source.extents(ByteRange::new(at, self.source_bytes), EXTENTS_PER_SCAN)? else {
                std::thread::sleep(RETRY_INTERVAL);
                continue;
            };
            for extent in &extents {
                *match extent.kind {
                    ExtentKind::Data => &mut self.data_bytes,
                    ExtentKind::Zero => &mut self.zero_bytes,
                    ExtentKind::Hole => &mut self.hole_bytes,
                    ExtentKind::Unchanged => &mut self.unchanged_bytes,
                } += extent.range.len();
            }
            at = extents.last().map_or(self.source_bytes, |extent| extent.range.end());
        }
        Ok(self)
    }
}
