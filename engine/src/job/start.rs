//! Starts a copy: turns a spec into two open volumes, a journal and a route.
//!
//! A crash or a refusal can interrupt the start anywhere. So the order is: open or create the destination, lock it,
//! make sure that its path still leads to it, refuse what must be refused, ask for admission, sync the directory, write
//! and sync the journal's header. Only then is the destination changed: whenever it has been touched, a journal says
//! so. A refusal leaves the destination as it was and removes a file that was created for it.

use super::content_check::ContentCheck;
use super::engine_resources::EngineResources;
use super::resolved_supervision::ResolvedSupervision;
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, RangeSet};
use crate::journal::{
    FinishRecord, Header, JournalDisposition, JournalFile, JournalLocation, JournalReader, JournalService,
    JournalState, check_place, refuse_receipt,
};
use crate::limits::{BLOCK_BYTES_DIRECT, BLOCK_BYTES_SMALL};
use crate::shown::Shown;
use crate::spec::{BlockSize, CheckpointLocation, CopySpec, Overwrite, ResumePolicy};
use crate::volume::{
    Identity, KnownZero, LockWait, OpenMode, OpenVolume, OpenedCopy, Route, UnprovenIdentity, Volume, VolumeKind,
    bypass_caches, choose_block, is_destination, may_keep, probe, refuse_block, refuse_contradiction, refuse_file_of,
    refuse_full, refuse_other, refuse_unfinished_copy, source_identity,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything a copy needs before its first block.
#[derive(Debug)]
pub(crate) struct PreparedCopy {
    /// Open for reading.
    pub source: Arc<dyn Volume>,
    /// Open for writing, with its final size; locked, unless it is an export.
    pub destination: Arc<dyn Volume>,
    /// Whether this run created the destination.
    pub created: bool,
    /// Route of the bytes.
    pub route: Route,
    /// Block of the copy: the spec's, or the journal's where there is one, or chosen by the route.
    pub leaf_bytes: u32,
    /// Open, locked, with its header on stable storage.
    pub journal: JournalFile,
    /// Journal of an earlier run.
    pub earlier: Option<JournalReader>,
    /// Ranges that earlier runs made durable. Never touched again.
    pub durable: RangeSet,
    /// Whether some of these ranges are claimed, and recorded without digests.
    pub claims: bool,
    /// Ranges that need no zeroing.
    pub known_zero: KnownZero,
    /// Its bytes from the source's end to the next multiple of its alignment, so that the last block can be written
    /// whole and keeps them. Fewer than 64 KiB; empty for files, unless they are older copies.
    pub tail: Vec<u8>,
}

/// Prepares a copy. Blocks: for the destination's lock up to the spec's `lock_wait`, for servers up to their request
/// timeout (connections that fail are not tried again), for an admission and a closed gate as long as they take, else
/// for a few disk accesses.
///
/// # Errors
/// The refusals of a copy, in this order: `EBadRequest`, `ENotFound`, `EPermission`, `ESameVolume`, `EBusy`,
/// `EReadOnly`, `ESizeMismatch`, `EExists`, `ENoSpace`; for a resumed one `ECheckpointCorrupt`, `ECheckpointMismatch`
/// and `ESourceChanged` in place of a destination that holds data; `EUnsupported` for demands that cannot be met;
/// `ECancelled` until the destination is touched; `EUnreachable` and `EProtocol` of servers.
pub(crate) fn prepare(
    spec: &CopySpec,
    supervision: &ResolvedSupervision,
    journals: &JournalService,
    cancelled: &dyn Fn() -> bool,
) -> Result<PreparedCopy> {
    let (opened, start) = open_checked(spec, supervision, OpenMode::Copy, &|path| journals.reopen(path), cancelled)?;
    supervision.ask_admission(&opened, matches!(start, StartPoint::Resumed(..)))?;
    refuse_cancelled(cancelled)?;
    if opened.is_created() {
        opened.destination.volume().sync_parent()?;
    }
    let changes = FirstChanges { spec, supervision, cancelled };
    match start {
        StartPoint::Resumed(journal, earlier, _) => changes.go_on(opened, journal, *earlier),
        StartPoint::Fresh => changes.start_fresh(opened, journals),
    }
}

/// Opens both ends and applies every refusal that comes before the destination is changed, in their order. `reopen`
/// opens the journal of an earlier run. Until [`OpenedCopy::keep`] the destination holds what it held before.
pub(super) fn open_checked<J>(
    spec: &CopySpec,
    supervision: &ResolvedSupervision,
    mode: OpenMode,
    reopen: &dyn Fn(&Path) -> Result<(J, JournalReader)>,
    cancelled: &dyn Fn() -> bool,
) -> Result<(OpenedCopy, StartPoint<J>)> {
    refuse_contradiction(spec)?;
    supervision.refuse_unwanted(spec)?;
    let mut opened = open(spec, supervision, mode, cancelled)?;
    refuse_journal_on_volume(spec, &opened)?;
    let start = decide(spec, reopen, &opened, cancelled)?;
    supervision.refuse_lost(&opened)?;
    bypass_caches(spec, &mut opened.source, &mut opened.destination)?;
    opened.source.volume().check_end(Side::Source)?;
    if let StartPoint::Resumed(_, earlier, unproven) = &start {
        refuse_other_content(spec, earlier, *unproven, &opened, cancelled)?;
    }
    supervision.refuse_others(&opened, cancelled)?;
    refuse_full(&opened.source, &opened.destination, spec, cancelled)?;
    refuse_cancelled(cancelled)?;
    Ok((opened, start))
}

fn refuse_cancelled(cancelled: &dyn Fn() -> bool) -> Result<()> {
    if !cancelled() {
        return Ok(());
    }
    let message = "cancelled before the destination was touched";
    Err(Error::new(Code::Cancelled, Side::Caller, Operation::Start, message))
}

/// Start of a copy.
pub(super) enum StartPoint<J> {
    /// At the beginning, with a new journal.
    Fresh,
    /// Where an earlier run stopped; what is left to prove by content.
    Resumed(J, Box<JournalReader>, UnprovenIdentity),
}

pub(super) fn checkpoint(spec: &CopySpec) -> Option<&Path> {
    match &spec.checkpoint {
        CheckpointLocation::File(path) => Some(path),
        CheckpointLocation::None => None,
    }
}

fn is_empty_file(spec: &CopySpec) -> bool {
    let found = checkpoint(spec).and_then(|path| path.metadata().ok());
    found.is_some_and(|found| found.is_file() && found.len() == 0)
}

/// The journal of an earlier copy at the checkpoint's place, unlocked; `None` if there is none.
fn earlier_journal(spec: &CopySpec) -> Result<Option<JournalReader>> {
    match checkpoint(spec).map(JournalReader::open) {
        None => Ok(None),
        Some(Err(error)) if error.code == Code::NotFound => Ok(None),
        // An empty file may be a reserved journal; only resuming needs content.
        Some(Err(_)) if spec.resume_policy != ResumePolicy::Resume && is_empty_file(spec) => Ok(None),
        Some(reader) => reader.map(Some),
    }
}

/// Opens both ends. A destination that a checkpoint is about must be there already.
fn open(
    spec: &CopySpec,
    supervision: &ResolvedSupervision,
    mode: OpenMode,
    cancelled: &dyn Fn() -> bool,
) -> Result<OpenedCopy> {
    let rights = || refuse_unwritable_journal(spec);
    let missing = || match (spec.resume_policy, earlier_journal(spec)) {
        (ResumePolicy::Refuse | ResumePolicy::Restart, _) | (ResumePolicy::Resume, Ok(None)) => {
            refuse_missing(spec).and_then(|()| supervision.refuse_missing(spec))
        }
        (ResumePolicy::Resume, Err(error)) => Err(error),
        (ResumePolicy::Resume, Ok(Some(journal))) => {
            let (was, is) = (&journal.header().destination.name, &spec.destination);
            let message = format!("the checkpoint is about {was}, but {is} does not exist");
            let error = Error::new(Code::CheckpointMismatch, Side::Destination, Operation::Journal, message);
            Err(error.advise("name the destination of the first start, or start over with --restart"))
        }
    };
    let lock_wait = LockWait::new(spec.lock_wait, cancelled);
    OpenedCopy::open(spec, &supervision.given, &lock_wait, mode, &rights, &missing)
}

/// A copy of changes is of use to an older copy only.
fn refuse_missing(spec: &CopySpec) -> Result<()> {
    if spec.changed_since.is_none() {
        return Ok(());
    }
    let message = format!("the destination {} does not exist, so it is no older copy", spec.destination);
    let error = Error::new(Code::NotFound, Side::Destination, Operation::Open, message);
    Err(error.advise("copy in full first, without --changed-since"))
}

fn refuse_unwritable_journal(spec: &CopySpec) -> Result<()> {
    if let Some(path) = checkpoint(spec) {
        may_keep(path, "the checkpoint", "name a writable place with --checkpoint or --state-dir")?;
        check_place(path)?;
    }
    match &spec.receipt {
        Some(path) => {
            may_keep(path, "the receipt", "name a writable place with --receipt")?;
            check_place(path)
        }
        None => Ok(()),
    }
}

/// Refuses a journal path that leads to an end of the copy, to a device or file below one, or to a file that is no
/// journal.
fn refuse_journal_on_volume(spec: &CopySpec, opened: &OpenedCopy) -> Result<()> {
    let files = [(checkpoint(spec), "--checkpoint"), (spec.receipt.as_deref(), "--receipt")];
    for (path, flag) in files.into_iter().filter_map(|(path, flag)| Some((path?, flag))) {
        refuse_file_of(path, flag, opened.volumes())?;
    }
    // What lies at the checkpoint's own place is for the rules of going on.
    match &spec.receipt {
        Some(receipt) if checkpoint(spec) != Some(receipt) => refuse_receipt(receipt),
        Some(_) | None => Ok(()),
    }
}

/// Resumes, or applies the rules of a fresh start: an empty destination, then no unfinished journal.
fn decide<J>(
    spec: &CopySpec,
    reopen: &dyn Fn(&Path) -> Result<(J, JournalReader)>,
    opened: &OpenedCopy,
    cancelled: &dyn Fn() -> bool,
) -> Result<StartPoint<J>> {
    let earlier = earlier_journal(spec);
    match (spec.resume_policy, checkpoint(spec)) {
        (ResumePolicy::Resume, Some(path)) if !matches!(earlier, Ok(None)) => {
            let (journal, reader) = reopen(path)?;
            let (source, destination) = (source_of(spec, opened), opened.destination.volume().identity());
            let unproven = refuse_other(reader.header(), reader.durable(), &source, destination)?;
            refuse_block(reader.header().leaf_bytes, opened.volumes())?;
            Ok(StartPoint::Resumed(journal, Box::new(reader), unproven))
        }
        (ResumePolicy::Restart, _) => {
            match leftover(&earlier, opened, cancelled) {
                Some(unfinished) => refuse_unfinished_copy(spec, unfinished, opened.source.volume())?,
                None => refuse_data(spec, opened, false)?,
            }
            Ok(StartPoint::Fresh)
        }
        (ResumePolicy::Refuse | ResumePolicy::Resume, path) => {
            refuse_data(spec, opened, matches!(earlier, Ok(Some(_))))?;
            match (earlier?, path) {
                (Some(journal), Some(path)) => Err(exists(path, &journal)),
                (Some(_) | None, _) => Ok(StartPoint::Fresh),
            }
        }
    }
}

/// Refuses to go on where a volume does not hold what the journal says, or nothing tells that it is the one. Nothing
/// recorded is nothing to mix: then a destination that may be another one is judged as that of a fresh start.
fn refuse_other_content(
    spec: &CopySpec,
    earlier: &JournalReader,
    unproven: UnprovenIdentity,
    opened: &OpenedCopy,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    if earlier.durable().is_empty() {
        return if unproven.destination { refuse_data(spec, opened, true) } else { Ok(()) };
    }
    ContentCheck::of(earlier, cancelled)?.refuse_others(&opened.source, &opened.destination, unproven)
}

/// Returns the header of an unfinished copy to the destination, whose data a restart may discard. `None` if the
/// destination holds none of that data: then its content belongs to another owner.
fn leftover<'a>(
    earlier: &'a Result<Option<JournalReader>>,
    opened: &OpenedCopy,
    cancelled: &dyn Fn() -> bool,
) -> Option<&'a Header> {
    let journal = earlier.as_ref().ok()?.as_ref()?;
    let identity = opened.destination.volume().identity();
    let is_it = journal.state() == JournalState::Unfinished && is_destination(journal.header(), identity);
    let check = ContentCheck::of(journal, cancelled).ok()?;
    (is_it && check.holds_some(&opened.destination, Side::Destination)).then(|| journal.header())
}

/// The source as the journal knows it.
fn source_of(spec: &CopySpec, opened: &OpenedCopy) -> Identity {
    source_identity(opened.source.volume(), spec.changed_since.as_deref())
}

fn exists(path: &Path, journal: &JournalReader) -> Error {
    let what = match journal.state() {
        JournalState::Unfinished => "an unfinished copy",
        JournalState::Finished => "a finished copy",
    };
    let (path, to) = (path.shown(), &journal.header().destination.name);
    let message = format!("{path} is the journal of {what} to {to}");
    let error = Error::new(Code::Exists, Side::Engine, Operation::Journal, message);
    error.advise("go on with --resume, start over with --restart, or name another file with --checkpoint")
}

fn refuse_data(spec: &CopySpec, opened: &OpenedCopy, has_journal: bool) -> Result<()> {
    let is_expected = spec.overwrite == Overwrite::Yes || spec.changed_since.is_some();
    if is_expected {
        return Ok(());
    }
    let content = opened.content()?;
    if content.is_empty() {
        return Ok(());
    }
    let message = format!("the destination {} is not empty: it holds {content}", opened.destination.volume().name());
    let error = Error::new(Code::Exists, Side::Destination, Operation::Open, message);
    Err(match checkpoint(spec).filter(|_| has_journal) {
        Some(path) => error.advise(format_args!(
            "{} is the journal of an earlier copy: go on with --resume, start over with --restart, or write over it \
             with --overwrite",
            path.shown()
        )),
        None => error.advise("write over it with --overwrite"),
    })
}

/// Makes the first changes to a destination; the gate is checked before each of them.
struct FirstChanges<'a> {
    spec: &'a CopySpec,
    supervision: &'a ResolvedSupervision,
    cancelled: &'a dyn Fn() -> bool,
}

impl FirstChanges<'_> {
    fn start_fresh(&self, mut opened: OpenedCopy, journals: &JournalService) -> Result<PreparedCopy> {
        let spec = self.spec;
        let leaf_bytes = leaf_bytes(spec, &opened)?;
        let mut journal = journals.create(journal_place(spec), &header(spec, &opened, leaf_bytes))?;
        let before = opened.destination.volume().size_bytes();
        let is_fresh = !self.supervision.has_claims();
        let touched = self.touch(&mut opened, is_fresh, before).and_then(|touched| {
            let size = opened.source.volume().size_bytes();
            let claimed = self.supervision.record(&mut journal, &RangeSet::new(), size, leaf_bytes)?;
            Ok((touched, claimed))
        });
        match touched {
            Ok((touched, claimed)) => Ok(prepared(opened, touched, leaf_bytes, journal, None, claimed)),
            Err(error) => {
                // Nothing of a created file is worth going on with; anything else is, once the cause is gone.
                if opened.is_created()
                    && let Err(left) =
                        journal.finish(FinishRecord { root: None, finished_ns: now_ns() }, JournalDisposition::Remove)
                {
                    tracing::warn!(error = %left, "journal of a copy that could not start was not removed");
                }
                Err(error)
            }
        }
    }

    fn go_on(&self, mut opened: OpenedCopy, mut journal: JournalFile, earlier: JournalReader) -> Result<PreparedCopy> {
        let touched = self.touch(&mut opened, false, earlier.header().destination.size_bytes)?;
        let (size, leaf_bytes) = (earlier.header().size_bytes, earlier.header().leaf_bytes);
        let claimed = self.supervision.record(&mut journal, earlier.durable(), size, leaf_bytes)?;
        Ok(prepared(opened, touched, leaf_bytes, journal, Some(earlier), claimed))
    }

    /// The first changes to the destination, which had so many bytes `before` the copy: size, then the probes that
    /// need it.
    fn touch(&self, opened: &mut OpenedCopy, is_fresh: bool, before: u64) -> Result<ChangedDestination> {
        let is_older_copy = self.spec.changed_since.is_some();
        if is_older_copy {
            opened.destination.keep_bytes(before);
        }
        let (source, destination) = (opened.source.volume(), opened.destination.volume());
        let known_zero = match destination.kind() {
            VolumeKind::File if is_fresh && !is_older_copy => {
                self.wait_for_gate()?;
                destination.resize(0)?;
                KnownZero::Everything
            }
            VolumeKind::File | VolumeKind::Device | VolumeKind::Export => KnownZero::Nothing,
        };
        self.wait_for_gate()?;
        destination.resize(source.size_bytes())?;
        self.wait_for_gate()?;
        let route = probe(self.spec, &opened.source, &opened.destination)?;
        let keeps_rest = is_older_copy || destination.kind() != VolumeKind::File;
        let tail = if keeps_rest { tail(&opened.destination, source.size_bytes())? } else { Vec::new() };
        Ok(ChangedDestination { route, known_zero, tail })
    }

    fn wait_for_gate(&self) -> Result<()> {
        self.supervision.wait_for_gate(self.cancelled)
    }
}

/// Returns the location of the journal of a fresh start.
pub(super) fn journal_place(spec: &CopySpec) -> JournalLocation<'_> {
    match (checkpoint(spec), spec.resume_policy) {
        (None, _) => JournalLocation::Scratch,
        (Some(path), ResumePolicy::Restart) => JournalLocation::Replace(path),
        (Some(path), ResumePolicy::Refuse | ResumePolicy::Resume) => JournalLocation::File(path),
    }
}

/// Facts that are known once the destination was changed for the first time.
struct ChangedDestination {
    route: Route,
    known_zero: KnownZero,
    tail: Vec<u8>,
}

/// See [`PreparedCopy::tail`].
fn tail(destination: &OpenVolume, end: u64) -> Result<Vec<u8>> {
    let volume = destination.volume();
    let align = u64::from(volume.align_bytes());
    let (start, stop) = (end / align * align, end.next_multiple_of(align).min(volume.size_bytes()));
    if stop <= end {
        return Ok(Vec::new());
    }
    let unit = destination.read(ByteRange::new(start, stop), Side::Destination)?;
    let kept = usize::try_from(end - start).expect("less than the alignment");
    Ok(unit.get(kept..).unwrap_or_default().to_vec())
}

fn prepared(
    opened: OpenedCopy,
    touched: ChangedDestination,
    leaf_bytes: u32,
    journal: JournalFile,
    earlier: Option<JournalReader>,
    claimed: RangeSet,
) -> PreparedCopy {
    let ChangedDestination { route, known_zero, tail } = touched;
    let created = opened.is_created();
    let (source, destination) = opened.keep();
    let mut durable = earlier.as_ref().map(|reader| reader.durable().clone()).unwrap_or_default();
    claimed.iter().for_each(|range| durable.insert(range));
    let (source, destination) = (source.into_volume(), destination.into_volume());
    let claims = !claimed.is_empty();
    PreparedCopy {
        source,
        destination,
        created,
        route,
        leaf_bytes,
        journal,
        earlier,
        durable,
        claims,
        known_zero,
        tail,
    }
}

/// Decided before the journal is created, which records it: by the caches, not by the whole route.
pub(super) fn leaf_bytes(spec: &CopySpec, opened: &OpenedCopy) -> Result<u32> {
    let is_direct = opened.source.is_direct() && opened.destination.is_direct();
    let usual = if is_direct && spec.protect.is_none() { BLOCK_BYTES_DIRECT } else { BLOCK_BYTES_SMALL };
    let chosen = choose_block(spec.block_size, spec.changed_since.is_some(), opened.volumes())?;
    Ok(chosen.unwrap_or(usual))
}

fn header(spec: &CopySpec, opened: &OpenedCopy, leaf_bytes: u32) -> Header {
    let (source, destination) = (opened.source.volume(), opened.destination.volume());
    Header {
        source: source_of(spec, opened),
        destination: destination.identity().clone(),
        size_bytes: source.size_bytes(),
        leaf_bytes,
        digest: spec.digest,
        started_ns: now_ns(),
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The spec without contradictions, with a block that fits the engine's slots.
pub(super) fn fitted(spec: &CopySpec, resources: &EngineResources) -> Result<CopySpec> {
    spec.check()?;
    let mut spec = spec.clone();
    match spec.block_size {
        Some(size) => resources.refuse_block(size.bytes())?,
        None if resources.block_bytes < BLOCK_BYTES_DIRECT => {
            spec.block_size = Some(BlockSize::new(resources.block_bytes.into())?)
        }
        None => {}
    }
    Ok(spec)
}

#[cfg(test)]
#[path = "start_tests/mod.rs"]
mod tests;
