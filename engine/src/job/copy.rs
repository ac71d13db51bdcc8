//! Runs a copy from its spec to its report, on the thread of the job.

use super::JobState;
use super::engine_resources::EngineResources;
use super::finished::{self, FinishedCopy};
use super::prepared_pass::{ComparedVolumes, CopyInputs, PreparedPass};
use super::protection::Protection;
use super::recorder::{JournalRecorder, Recorder};
use super::report_builder::ReportBuilder;
use super::resolved_supervision::{ResolvedSupervision, record_undigested};
use super::segments::Expectation;
use super::start::{PreparedCopy, fitted, prepare};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, RangeSet};
use crate::journal::{FinishRecord, JournalDisposition, JournalFile, JournalLocation, JournalReader};
use crate::limits::SAMPLE_LEAVES_MAX;
use crate::pass::control::JobControl;
use crate::pass::durable_sample::DurableSample;
use crate::progress::{Difference, Report};
use crate::ring::clock;
use crate::shown::Shown;
use crate::spec::{CheckpointLocation, CopySpec, DigestKind, Durability, Sparse, Verify};
use crate::supervision::Supervision;
use crate::volume::{Volume, refuse_streams, source_identity};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs a copy to its end.
pub(crate) fn copy(spec: &CopySpec, supervision: Supervision, resources: &EngineResources, job: &JobState) -> Report {
    let mut report = ReportBuilder::open(resources, job);
    let outcome = Copy {
        spec,
        supervision: ResolvedSupervision::new(supervision, job.control.revoker()),
        claims: false,
        resources,
        control: &job.control,
        report: &mut report,
        marker: None,
        protection: None,
    }
    .run();
    report.close(outcome)
}

/// A copy under way.
struct Copy<'a, 'b> {
    spec: &'a CopySpec,
    supervision: ResolvedSupervision,
    /// Whether a supervisor has claimed that a part of it is durable.
    claims: bool,
    resources: &'a EngineResources,
    control: &'a Arc<JobControl>,
    report: &'b mut ReportBuilder<'a>,
    /// The journal of a copy that records nothing in it.
    marker: Option<JournalFile>,
    /// Protection, also during the verification, which reads as much as the copy.
    protection: Option<Protection>,
}

impl Copy<'_, '_> {
    fn run(&mut self) -> Result<()> {
        let CopySpec { source, destination, checkpoint, receipt, .. } = self.spec;
        let checkpoint = if let CheckpointLocation::File(path) = checkpoint { Some(path.as_path()) } else { None };
        let volumes = [(source, Side::Source), (destination, Side::Destination)];
        refuse_streams(&volumes, &[checkpoint, receipt.as_deref()], &self.supervision.given)?;
        if self.was_finished()? {
            return Ok(());
        }
        let control = Arc::clone(self.control);
        let prepared =
            prepare(&fitted(self.spec, self.resources)?, &self.supervision, &self.resources.journals, &|| {
                control.cancelled().is_some()
            })?;
        [&prepared.source, &prepared.destination].into_iter().for_each(|volume| self.report.add_volume(volume));
        self.resources.refuse_block(prepared.leaf_bytes)?;
        self.report.block_bytes = prepared.leaf_bytes;
        self.report.route(&prepared.route);
        if let CheckpointLocation::File(path) = &self.spec.checkpoint {
            let path = self.control.journal.get_or_init(|| path.shown().to_string());
            self.report.journal = Some(path.clone());
        }
        let (source, destination) = (Arc::clone(&prepared.source), Arc::clone(&prepared.destination));
        let (created, leaf_bytes) = (prepared.created, prepared.leaf_bytes);
        self.claims = prepared.claims;
        if let Some(earlier) = &prepared.earlier {
            let mut known = DurableSample::default();
            for leaf in earlier.telling_leaves().take(SAMPLE_LEAVES_MAX) {
                known.add_run(&leaf?, leaf_bytes.into());
            }
            control.add_durable_sample(&known);
        }
        control.add_durable_sample(&self.supervision.known());
        control.set_source_identity(source_identity(&*source, self.spec.changed_since.as_deref()).to_text());
        let recorder = self.move_blocks(prepared)?;
        let checked = destination.check_in_place().and_then(|()| {
            if self.spec.durability == Durability::Required && created {
                destination.sync_parent()?;
            }
            let root = recorder.reader()?.root()?;
            match self.spec.verify {
                Verify::Yes => Ok(self.check(recorder.reader()?, &source, &destination, leaf_bytes)?.or(root)),
                Verify::No => Ok(root),
            }
        });
        match checked {
            Ok(root) => {
                self.name_digest(root);
                self.finish(recorder, root)
            }
            Err(error) => {
                self.report.close_as_checkpoint(recorder);
                Err(error)
            }
        }
    }

    /// Puts the journal away if an earlier run finished the copy; returns whether it did.
    fn was_finished(&mut self) -> Result<bool> {
        let control = Arc::clone(self.control);
        let cancelled = || control.cancelled().is_some();
        let Some(found) = finished::find(self.spec, &self.supervision.given, &cancelled)? else { return Ok(false) };
        let FinishedCopy { path, journal, source, destination } = found;
        let header = journal.header();
        let (size, leaf_bytes) = (header.size_bytes, header.leaf_bytes);
        let (source, destination) = (source.into_volume(), destination.into_volume());
        [&source, &destination].into_iter().for_each(|volume| self.report.add_volume(volume));
        self.report.block_bytes = leaf_bytes;
        let mut root = None;
        if self.spec.verify == Verify::Yes {
            self.resources.refuse_block(leaf_bytes)?;
            self.control.counters.planned.store(size, Relaxed);
            root = self.check(journal, &source, &destination, leaf_bytes)?;
        }
        let finish = self.resources.journals.finish_again(path, self.keep())?;
        let counters = &self.control.counters;
        [&counters.planned, &counters.resumed, &counters.durable]
            .iter()
            .for_each(|counter| counter.store(size, Relaxed));
        self.control.count_without_io(size);
        self.control.make_durable([ByteRange::new(0, size)]);
        self.name_digest(root.or(finish.root));
        self.report.journal = self.receipt();
        Ok(true)
    }

    fn keep(&self) -> JournalDisposition<'_> {
        match (&self.spec.receipt, &self.spec.checkpoint) {
            (None, _) => JournalDisposition::Remove,
            (Some(receipt), CheckpointLocation::File(checkpoint)) if receipt == checkpoint => {
                JournalDisposition::KeepInPlace
            }
            (Some(receipt), _) => JournalDisposition::MoveTo(receipt),
        }
    }

    fn receipt(&self) -> Option<String> {
        self.spec.receipt.as_ref().map(|path| path.shown().to_string())
    }

    /// The pass that copies.
    fn move_blocks(&mut self, prepared: PreparedCopy) -> Result<JournalRecorder> {
        let PreparedCopy {
            source,
            destination,
            created: _,
            route,
            leaf_bytes,
            journal,
            earlier,
            durable,
            claims: _,
            known_zero,
            tail,
        } = prepared;
        let digest = earlier.map_or(self.spec.digest, |earlier| earlier.header().digest);
        self.protection = self.spec.protect.map(|target| {
            Protection::start(
                target,
                &source,
                &destination,
                leaf_bytes,
                self.resources.window_bytes,
                Arc::clone(self.control),
            )
        });
        let journal = self.recorded_in(journal, &durable)?;
        let start = CopyInputs { source, destination, route, leaf_bytes, digest, durable, known_zero, tail };
        let EngineResources { workers, window_bytes, .. } = self.resources;
        let prepared_pass = PreparedPass::copy(self.spec, start, workers.len(), *window_bytes, self.control);
        let pass = Arc::clone(&prepared_pass.pass);
        let controller =
            prepared_pass.into_controller(workers, JournalRecorder::new(journal, Arc::clone(self.control)), clock());
        self.report.run_pass(&pass, controller)
    }

    /// Where ranges are recorded: the job's journal, unless nothing is flushed. Then the journal says no more than that
    /// there is an unfinished copy, and the written ranges are kept aside for the digest.
    fn recorded_in(&mut self, journal: JournalFile, durable: &RangeSet) -> Result<JournalFile> {
        if self.spec.durability == Durability::Required || self.spec.checkpoint == CheckpointLocation::None {
            return Ok(journal);
        }
        let mut aside = self.resources.journals.create(JournalLocation::Scratch, journal.reader()?.header())?;
        if !durable.is_empty() {
            // Nothing is copied of it; a verification has to know that it is there.
            record_undigested(&mut aside, durable)?;
        }
        self.marker = Some(journal);
        Ok(aside)
    }

    /// The pass that reads back. Gives the root of what it saw, where the copy itself saw no data.
    fn check(
        &mut self,
        journal: JournalReader,
        source: &Arc<dyn Volume>,
        destination: &Arc<dyn Volume>,
        leaf: u32,
    ) -> Result<Option<[u8; 32]>> {
        if self.spec.durability == Durability::None {
            // What was not flushed before is flushed now.
            self.supervision.wait_for_gate(&|| self.control.cancelled().is_some())?;
        }
        self.report.verified_from = Some(destination.evict()?);
        let expectation = Expectation::Journal(Box::new(journal), Some(Arc::clone(source)));
        // What no byte was allocated for is allocated now, and a comparison does not mind.
        let sparse = if self.spec.sparse == Sparse::Read { Sparse::Read } else { Sparse::Auto };
        let pair = ComparedVolumes { reference: source, target: destination, size: source.size_bytes(), leaf, sparse };
        let root = self.report.compare(self.resources, self.control, &pair, expectation)?;
        match self.report.differences.first().copied() {
            None => Ok(root),
            Some(Difference { offset, length }) => Err(Error::new(
                Code::VerifyMismatch,
                Side::Destination,
                Operation::Verify,
                format!("{} does not hold what was written to it", destination.name()),
            )
            .at(offset, length)
            .advise("do not use it; copy again with --restart, and suspect the device or its path")),
        }
    }

    fn name_digest(&mut self, root: Option<[u8; 32]>) {
        self.report.digest = root;
        self.report.digest_reason = root.is_none().then(|| match self.spec.digest {
            DigestKind::None => "switched off by --digest none".to_owned(),
            DigestKind::Xxh3 if self.claims => {
                "a part of the data was made durable by a run elsewhere, and did not pass through the engine here; \
                 --verify reads it"
                    .to_owned()
            }
            DigestKind::Xxh3 if self.spec.changed_since.is_some() => {
                "only what has changed was copied, and passed through the engine; --verify reads it all".to_owned()
            }
            DigestKind::Xxh3 => {
                "the data, or a part of it, did not pass through the engine; --verify reads it".to_owned()
            }
        });
    }

    /// The end of a copy that is complete: the journal becomes a receipt or goes away.
    fn finish(&mut self, recorder: JournalRecorder, root: Option<[u8; 32]>) -> Result<()> {
        self.report.journal = self.receipt();
        let finish = FinishRecord { root, finished_ns: wall_clock_ns() };
        recorder.journal.finish(finish, self.keep())?;
        self.marker.take().map_or(Ok(()), |marker| marker.finish(finish, JournalDisposition::Remove))
    }
}

/// Now, in ns since the epoch.
pub(crate) fn wall_clock_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
