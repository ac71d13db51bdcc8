//! `blockhaul copy --dry-run`: what a copy would do and what it would be refused for. Touches nothing.
//!
//! Nothing is created, locked or opened for writing; servers are connected to, and only read. So this cannot know
//! everything that the start of a copy finds out: whether another copy holds the destination, whether a device is
//! claimed by somebody, which path the probes choose. What it does refuse, a copy refuses too, in the same order.

use crate::copy::CopyRequest;
use crate::exit::Exit;
use crate::map::extents;
use crate::output::{self, print_stderr};
use crate::state_dir;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::{Extent, ExtentKind};
use blockhaul_engine::journal::{JournalReader, JournalState, refuse_receipt};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::{Checkpoint, Continuation, CopySpec, Direct, Overwrite, PathChoice};
use blockhaul_engine::units::format_size;
use blockhaul_engine::volume::{
    ExportFound, Identity, Locator, NbdUri, ReadOptions, Volume, VolumeKind, look_at_device, look_at_export,
    open_source, open_verified, refuse_kernel_directory,
};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

/// What would be done.
#[derive(Debug, Serialize)]
struct Plan {
    source: String,
    destination: String,
    checkpoint: Option<String>,
    /// `None` while it is left to the probes of a real start.
    path: Option<PathChoice>,
    source_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    hole_bytes: u64,
    /// What has not changed, where only changes are copied.
    unchanged_bytes: u64,
    /// What a copy would be refused for; empty if nothing is known that stands in its way.
    refusals: Vec<Error>,
}

/// Prints the plan. The exit code is the one that the copy would end with if it were refused for what is known.
pub(crate) fn show(request: &CopyRequest, json: bool) -> Exit {
    let plan = draw(request);
    plan.refusals.iter().for_each(print_stderr);
    if json {
        output::json_event("plan", &plan);
    } else {
        describe(&plan).iter().for_each(output::print_stdout);
    }
    plan.refusals.first().map_or(Exit::Done, Exit::from)
}

fn draw(request: &CopyRequest) -> Plan {
    let spec = &request.spec;
    let mut plan = Plan {
        source: spec.source.to_string(),
        destination: spec.destination.to_string(),
        checkpoint: match &spec.checkpoint {
            Checkpoint::File(file) => Some(file.shown().to_string()),
            Checkpoint::None => None,
        },
        path: (spec.path != PathChoice::Auto).then_some(spec.path),
        source_bytes: 0,
        data_bytes: 0,
        zero_bytes: 0,
        hole_bytes: 0,
        unchanged_bytes: 0,
        refusals: Vec::new(),
    };
    let how = ReadOptions {
        live_source: spec.live_source,
        changed_since: spec.changed_since.as_deref(),
        network: spec.network,
        ..ReadOptions::new(Direct::No)
    };
    let source = open_source(&spec.source, &how);
    if let Ok(source) = &source {
        let counted = plan.count(&**source).and_then(|()| source.check_end(Side::Source));
        plan.refusals.extend(counted.err());
    }
    let source = source.map_err(|error| plan.refusals.push(error)).ok();
    let state = request.state_dir.as_deref().map_or(Ok(()), state_dir::examine);
    plan.refusals.extend(state.err());
    plan.refusals.extend(receipt(spec).err());
    plan.refusals.extend(destination(spec, source.as_deref(), &plan, &how).err());
    plan
}

impl Plan {
    fn count(&mut self, source: &dyn Volume) -> Result<()> {
        self.source_bytes = source.size_bytes();
        for extent in extents(source) {
            let Extent { range, kind } = extent?;
            *match kind {
                ExtentKind::Data => &mut self.data_bytes,
                ExtentKind::Zero => &mut self.zero_bytes,
                ExtentKind::Hole => &mut self.hole_bytes,
                ExtentKind::Unchanged => &mut self.unchanged_bytes,
            } += range.len();
        }
        Ok(())
    }
}

/// A file that a receipt would not replace.
fn receipt(spec: &CopySpec) -> Result<()> {
    let is_checkpoint = |path: &Path| matches!(&spec.checkpoint, Checkpoint::File(file) if file == path);
    match spec.receipt.as_deref().filter(|path| !is_checkpoint(path)) {
        Some(path) => refuse_receipt(path),
        None => Ok(()),
    }
}

/// The first thing about the destination that stands in the way.
fn destination(spec: &CopySpec, source: Option<&dyn Volume>, plan: &Plan, how: &ReadOptions<'_>) -> Result<()> {
    let path = match &spec.destination {
        Locator::Path(path) => path,
        Locator::Nbd(uri) => {
            export(spec, uri, source, how)?;
            return unfinished_journal(spec);
        }
    };
    match path.metadata() {
        Ok(_) => existing(spec, path, source, how)?,
        Err(error) if error.kind() == ErrorKind::NotFound && spec.changed_since.is_some() => {
            let message = format!("the destination {} does not exist, so it is no older copy", path.shown());
            return Err(Error::new(Code::NotFound, side(), Operation::Open, message));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => refuse_kernel_directory(parent(path), path, side())
            .and_then(|()| may_write(parent(path)))
            .map_err(|error| error.advise(format_args!("{} is to be created there", path.shown())))?,
        Err(error) => return Err(Error::io(side(), Operation::Open, &error, format_args!("open {}", path.shown()))),
    }
    unfinished_journal(spec)?;
    if path.is_file() || !path.exists() { room(path, plan.data_bytes) } else { Ok(()) }
}

fn existing(spec: &CopySpec, path: &Path, source: Option<&dyn Volume>, how: &ReadOptions<'_>) -> Result<()> {
    may_write(path)?;
    let volume = open_verified(&spec.destination, side(), how)?;
    if let Some(source) = source {
        if same(source.identity(), volume.identity()) {
            return Err(same_volume(source.name(), volume.name()));
        }
        let grows = volume.kind() == VolumeKind::File && spec.changed_since.is_none();
        if !grows {
            large_enough(source, &*volume)?;
        }
    }
    if data_is_expected(spec) {
        return Ok(());
    }
    let found = match (volume.kind(), volume.size_bytes()) {
        (VolumeKind::File, 0) => None,
        (VolumeKind::File, bytes) => Some(format!("{bytes} bytes")),
        (VolumeKind::Device | VolumeKind::Export, _) => look_at_device(path)?.map(|found| found.to_string()),
    };
    found.map_or(Ok(()), |found| Err(not_empty(volume.name(), found)))
}

/// Connects to what would be written, and writes nothing.
fn export(spec: &CopySpec, uri: &NbdUri, source: Option<&dyn Volume>, how: &ReadOptions<'_>) -> Result<()> {
    if matches!(&spec.source, Locator::Nbd(source) if source.to_string() == uri.to_string()) {
        return Err(same_volume(&spec.source, uri));
    }
    let ExportFound { volume, is_read_only, occupied } = look_at_export(uri, how)?;
    if is_read_only {
        let message = format!("the destination {uri} is a read-only export");
        return Err(Error::new(Code::ReadOnly, side(), Operation::Open, message));
    }
    source.map_or(Ok(()), |source| large_enough(source, &*volume))?;
    match occupied.filter(|_| !data_is_expected(spec)) {
        Some(found) => Err(not_empty(volume.name(), found)),
        None => Ok(()),
    }
}

fn same_volume(source: impl Display, destination: impl Display) -> Error {
    let message = format!("{source} and {destination} are the same volume");
    Error::new(Code::SameVolume, Side::Caller, Operation::Open, message)
}

fn large_enough(source: &dyn Volume, destination: &dyn Volume) -> Result<()> {
    let (have, need) = (destination.size_bytes(), source.size_bytes());
    if have >= need {
        return Ok(());
    }
    let message = format!("{} holds {have} bytes, {} has {need}", destination.name(), source.name());
    Err(Error::new(Code::SizeMismatch, side(), Operation::Stat, message))
}

/// With a checkpoint to go on from, or an older copy to bring up to date, there is data.
fn data_is_expected(spec: &CopySpec) -> bool {
    spec.overwrite == Overwrite::Yes
        || spec.changed_since.is_some()
        || spec.continuation == Continuation::Restart
        || (spec.continuation == Continuation::Resume && unfinished(spec).is_some())
}

fn not_empty(name: impl Display, holds: impl Display) -> Error {
    let message = format!("the destination {name} is not empty: it holds {holds}");
    Error::new(Code::Exists, side(), Operation::Open, message).advise("write over it with --overwrite")
}

fn side() -> Side {
    Side::Destination
}

fn same(source: &Identity, destination: &Identity) -> bool {
    source.kind == destination.kind
        && source.device == destination.device
        && (source.kind == VolumeKind::Device || source.inode == destination.inode)
}

fn may_write(path: &Path) -> Result<()> {
    access(path, AccessFlags::W_OK)
        .map_err(|errno| Error::os(side(), Operation::Open, errno, format_args!("write to {}", path.shown())))
}

fn unfinished_journal(spec: &CopySpec) -> Result<()> {
    match unfinished(spec) {
        Some(file) if spec.continuation == Continuation::Refuse => Err(Error::new(
            Code::Exists,
            Side::Caller,
            Operation::Journal,
            format!(
                "{} holds the checkpoint of an unfinished copy; --resume goes on, --restart discards it",
                file.shown()
            ),
        )),
        _ => Ok(()),
    }
}

/// The journal that a copy would find.
fn unfinished(spec: &CopySpec) -> Option<&Path> {
    let Checkpoint::File(file) = &spec.checkpoint else { return None };
    let unfinished = JournalReader::open(file).is_ok_and(|journal| journal.state() == JournalState::Unfinished);
    unfinished.then_some(file)
}

fn room(path: &Path, data_bytes: u64) -> Result<()> {
    let directory = parent(path);
    let facts = statvfs(directory)
        .map_err(|errno| Error::os(side(), Operation::Stat, errno, format_args!("ask {}", directory.shown())))?;
    // What an existing file holds is given back before it is written over.
    let own = path.metadata().map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
    let free = facts.blocks_available() as u64 * facts.fragment_size() as u64 + own;
    if data_bytes <= free {
        return Ok(());
    }
    let message =
        format!("{} has {} free, the data needs {}", directory.shown(), format_size(free), format_size(data_bytes));
    Err(Error::new(Code::NoSpace, side(), Operation::Allocate, message))
}

/// The directory of a file; a bare name is in the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn describe(plan: &Plan) -> Vec<String> {
    let Plan { source, destination, checkpoint, path, source_bytes, refusals, .. } = plan;
    let Plan { data_bytes, zero_bytes, hole_bytes, unchanged_bytes, .. } = plan;
    let unchanged = match unchanged_bytes {
        0 => String::new(),
        _ => format!(", unchanged {}", format_size(*unchanged_bytes)),
    };
    vec![
        format!("source       {source}, {} ({source_bytes} bytes)", format_size(*source_bytes)),
        format!(
            "             data {}, zeros {}, holes {}{unchanged}",
            format_size(*data_bytes),
            format_size(*zero_bytes),
            format_size(*hole_bytes)
        ),
        format!("destination  {destination}"),
        format!("checkpoint   {}", checkpoint.as_deref().unwrap_or("none: the copy could not be resumed")),
        format!("path         {}", path.map_or("chosen by probing both volumes at the start", PathChoice::as_str)),
        match refusals.len() {
            0 => "verdict      nothing is known that stands in the way".to_owned(),
            _ => "verdict      would be refused; nothing was touched".to_owned(),
        },
    ]
}
