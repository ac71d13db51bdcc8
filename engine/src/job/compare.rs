//! Runs a comparison: a job of its own, or the verification at the end of a copy.

use super::JobState;
use super::copy::wall_clock_ns;
use super::engine_resources::EngineResources;
use super::prepared_pass::{ComparedVolumes, PreparedPass};
use super::recorder::{JournalRecorder, Recorder};
use super::report_builder::ReportBuilder;
use super::segments::Expectation;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::journal::{Header, JournalLocation, JournalReader};
use crate::limits::BLOCK_BYTES_DIRECT;
use crate::pass::control::JobControl;
use crate::progress::Report;
use crate::ring::clock;
use crate::shown::Shown;
use crate::spec::{DigestKind, LiveSource, Reference, VerifySpec};
use crate::supervision::OpenedVolumes;
use crate::volume::{
    GivenVolumes, ReadOptions, Volume, VolumeKind, choose_block, open_source_by, open_verified_by, refuse_block,
    refuse_streams,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Runs a comparison to its end.
pub(crate) fn verify(spec: &VerifySpec, opened: OpenedVolumes, resources: &EngineResources, job: &JobState) -> Report {
    let mut report = ReportBuilder::open(resources, job);
    let outcome = compare(spec, opened, resources, &job.control, &mut report);
    report.close(outcome)
}

impl ReportBuilder<'_> {
    /// A pass that compares. Gives the root of what both hold, unless they differ.
    pub(crate) fn compare(
        &mut self,
        resources: &EngineResources,
        control: &Arc<JobControl>,
        pair: &ComparedVolumes<'_>,
        expectation: Expectation,
    ) -> Result<Option<[u8; 32]>> {
        let header = Header {
            source: pair.reference.identity().clone(),
            destination: pair.target.identity().clone(),
            size_bytes: pair.size,
            leaf_bytes: pair.leaf,
            digest: DigestKind::Xxh3,
            started_ns: wall_clock_ns(),
        };
        let recorder =
            JournalRecorder::new(resources.journals.create(JournalLocation::Scratch, &header)?, Arc::clone(control));
        let prepared_pass = PreparedPass::compare(pair, expectation, resources.workers.len(), control);
        let pass = Arc::clone(&prepared_pass.pass);
        let controller = prepared_pass.into_controller(&resources.workers, recorder, clock());
        let recorder = self.run_pass(&pass, controller)?;
        self.differences = pass.differences();
        if self.differences.is_empty() { recorder.reader()?.root() } else { Ok(None) }
    }
}

/// A comparison of its own.
fn compare(
    spec: &VerifySpec,
    opened: OpenedVolumes,
    resources: &EngineResources,
    control: &Arc<JobControl>,
    report: &mut ReportBuilder<'_>,
) -> Result<()> {
    spec.check()?;
    let cancelled = || control.cancelled().is_some();
    let how = ReadOptions {
        live_source: LiveSource::Allow,
        network: spec.network,
        cancelled: &cancelled,
        ..ReadOptions::new(spec.direct)
    };
    let given = GivenVolumes::to_compare(control.revoker(), opened.reference, opened.volume);
    if let Reference::Volume(reference) = &spec.reference {
        given.refuse_misplaced(reference, &spec.volume)?;
    }
    let (reference, receipt) = match &spec.reference {
        Reference::Volume(locator) => (Some((locator, Side::Source)), None),
        Reference::Receipt(path) => (None, Some(path.as_path())),
    };
    let volumes: Vec<_> = reference.into_iter().chain([(&spec.volume, Side::Destination)]).collect();
    refuse_streams(&volumes, &[receipt], &given)?;
    let target = open_verified_by(&spec.volume, Side::Destination, &how, &given)?;
    report.add_volume(&target);
    let usual = BLOCK_BYTES_DIRECT.min(resources.block_bytes);
    let (reference, size, leaf, expectation) = match &spec.reference {
        Reference::Volume(locator) => {
            let reference = open_source_by(locator, &how, &given)?;
            report.add_volume(&reference);
            let size = reference.size_bytes();
            let chosen = choose_block(spec.block_size, false, [&*reference, &*target])?.unwrap_or(usual);
            let wanted = if spec.block_size.is_none() { chosen.min(resources.block_bytes) } else { chosen };
            (Arc::clone(&reference), size, wanted, Expectation::Volume(reference))
        }
        Reference::Receipt(path) => {
            let receipt = match opened.receipt {
                Some(file) => JournalReader::of_file(file.into(), path)?,
                None => JournalReader::open(path)?,
            };
            check_receipt(&receipt, path)?;
            let Header { size_bytes, leaf_bytes, .. } = *receipt.header();
            refuse_block(leaf_bytes, [&*target, &*target])?;
            (Arc::clone(&target), size_bytes, leaf_bytes, Expectation::Journal(Box::new(receipt), None))
        }
    };
    resources.refuse_block(leaf)?;
    report.block_bytes = leaf;
    report.name_path(path(report.ring(), &*reference, &*target));
    control.counters.planned.store(size, Relaxed);
    check_sizes(&spec.reference, &*reference, &*target, size)?;
    check_ends(&*reference, &*target)?;
    report.verified_from = Some(target.evict()?);
    let root = report.compare(
        resources,
        control,
        &ComparedVolumes { reference: &reference, target: &target, size, leaf, sparse: spec.sparse },
        expectation,
    )?;
    check_ends(&*reference, &*target)?;
    report.digest = root;
    report.digest_reason = root.is_none().then(|| "the volumes differ".to_owned());
    Ok(())
}

fn check_receipt(receipt: &JournalReader, path: &Path) -> Result<()> {
    match receipt.finish() {
        Some(_) => Ok(()),
        None => Err(Error::new(
            Code::CheckpointCorrupt,
            Side::Caller,
            Operation::Journal,
            format!(
                "{} is the checkpoint of an unfinished copy, not a receipt: finish the copy with --resume --receipt first",
                path.shown()
            ),
        )),
    }
}

/// Checks that both volumes end at their sizes, at first and after they were read.
fn check_ends(reference: &dyn Volume, target: &dyn Volume) -> Result<()> {
    target.check_end(Side::Destination)?;
    reference.check_end(Side::Source)
}

/// Names the paths of both volumes.
fn path(ring: &str, reference: &dyn Volume, target: &dyn Volume) -> String {
    let way = |volume: &dyn Volume| if volume.export().is_some() { "nbd" } else { ring };
    let (from, to) = (way(reference), way(target));
    if from == to { from.to_owned() } else { format!("{from}>{to}") }
}

/// Files must have one size; a device or export may be larger than what is compared with it.
fn check_sizes(reference: &Reference, source: &dyn Volume, target: &dyn Volume, size: u64) -> Result<()> {
    let found = target.size_bytes();
    let larger_device = target.kind() != VolumeKind::File && found > size;
    if found == size || larger_device {
        return Ok(());
    }
    let what = match reference {
        Reference::Volume(_) => source.name().to_string(),
        Reference::Receipt(path) => format!("the copy of {}", path.shown()),
    };
    Err(Error::new(
        Code::SizeMismatch,
        Side::Destination,
        Operation::Verify,
        format!("{} has {found} bytes, {what} has {size}", target.name()),
    ))
}
