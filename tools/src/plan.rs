//! `blockhaul copy --dry-run`: what a copy would do and what it would be refused for. Touches nothing.
//!
//! Nothing is created, locked or opened for writing. So this cannot know everything that the start of a copy finds
//! out: whether another copy holds the destination, whether a device is claimed by somebody, which path the probes
//! choose. What it does refuse, a copy refuses too, in the same order.

use crate::copy::CopyRequest;
use crate::exit::Exit;
use crate::map::extents;
use crate::output::{self, tell};
use crate::state_dir;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::{Extent, ExtentKind};
use blockhaul_engine::journal::JournalReader;
use blockhaul_engine::journal::JournalState;
use blockhaul_engine::spec::{Checkpoint, Continuation, CopySpec, Direct, Overwrite, PathChoice};
use blockhaul_engine::units::format_size;
use blockhaul_engine::volume::{Identity, Volume, VolumeKind};
use blockhaul_engine::volume::{open_source, open_verified};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// A device counts as empty if so many bytes at its start are zero.
const EMPTY_BYTES: u64 = 1 << 20;

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
    /// What a copy would be refused for; empty if nothing is known that stands in its way.
    refusals: Vec<Error>,
}

/// Prints the plan. The exit code is the one that the copy would end with if it were refused for what is known.
pub(crate) fn show(request: &CopyRequest, json: bool) -> Exit {
    let plan = draw(request);
    plan.refusals.iter().for_each(tell);
    if json {
        output::event("plan", &plan);
    } else {
        describe(&plan).iter().for_each(output::say);
    }
    plan.refusals.first().map_or(Exit::Done, Exit::from)
}

fn draw(request: &CopyRequest) -> Plan {
    let spec = &request.spec;
    let mut plan = Plan {
        source: spec.source.to_string(),
        destination: spec.destination.to_string(),
        checkpoint: match &spec.checkpoint {
            Checkpoint::File(file) => Some(file.display().to_string()),
            Checkpoint::None => None,
        },
        path: (spec.path != PathChoice::Auto).then_some(spec.path),
        source_bytes: 0,
        data_bytes: 0,
        zero_bytes: 0,
        hole_bytes: 0,
        refusals: Vec::new(),
    };
    let source = open_source(&spec.source, Direct::No, spec.live_source);
    if let Ok(source) = &source {
        let counted = plan.count(&**source);
        plan.refusals.extend(counted.err());
    }
    let source = source.map_err(|error| plan.refusals.push(error)).ok();
    let state = request.state_dir.as_deref().map_or(Ok(()), state_dir::examine);
    plan.refusals.extend(state.err());
    plan.refusals.extend(destination(spec, source.as_deref(), plan.data_bytes).err());
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
            } += range.len();
        }
        Ok(())
    }
}

/// The first thing about the destination that stands in the way.
fn destination(spec: &CopySpec, source: Option<&dyn Volume>, data_bytes: u64) -> Result<()> {
    let path = spec.destination.path();
    match path.metadata() {
        Ok(_) => existing(spec, path, source)?,
        Err(error) if error.kind() == ErrorKind::NotFound => may_write(parent(path))
            .map_err(|error| error.advise(format_args!("{} is to be created there", path.display())))?,
        Err(error) => return Err(Error::io(side(), Operation::Open, &error, format_args!("open {}", path.display()))),
    }
    unfinished_journal(spec)?;
    if path.is_file() || !path.exists() { room(path, data_bytes) } else { Ok(()) }
}

fn existing(spec: &CopySpec, path: &Path, source: Option<&dyn Volume>) -> Result<()> {
    may_write(path)?;
    let volume = open_verified(&spec.destination, side(), Direct::No)?;
    if let Some(source) = source {
        if same(source.identity(), volume.identity()) {
            let message = format!("{} and {} are the same volume", source.name(), volume.name());
            return Err(Error::new(Code::SameVolume, Side::Caller, Operation::Open, message));
        }
        if volume.kind() == VolumeKind::Device && volume.size_bytes() < source.size_bytes() {
            let (have, need) = (volume.size_bytes(), source.size_bytes());
            let message = format!("{} holds {have} bytes, {} has {need}", volume.name(), source.name());
            return Err(Error::new(Code::SizeMismatch, side(), Operation::Stat, message));
        }
    }
    // With a checkpoint to go on from, data is what is expected.
    let expected = spec.overwrite == Overwrite::Yes
        || spec.continuation == Continuation::Restart
        || (spec.continuation == Continuation::Resume && unfinished(spec).is_some());
    if expected || empty(path, &*volume)? {
        return Ok(());
    }
    let message = format!("{} is not empty; --overwrite writes over it", volume.name());
    Err(Error::new(Code::Exists, side(), Operation::Open, message))
}

fn side() -> Side {
    Side::Destination
}

fn same(source: &Identity, destination: &Identity) -> bool {
    source.kind == destination.kind
        && source.device == destination.device
        && (source.kind == VolumeKind::Device || source.inode == destination.inode)
}

/// A file without bytes, or a device that begins with zeros.
fn empty(path: &Path, volume: &dyn Volume) -> Result<bool> {
    if volume.kind() == VolumeKind::File {
        return Ok(volume.size_bytes() == 0);
    }
    let mut start = Vec::new();
    File::open(path)
        .and_then(|device| device.take(EMPTY_BYTES).read_to_end(&mut start))
        .map_err(|error| Error::io(side(), Operation::Read, &error, volume.describe(Operation::Read)))?;
    Ok(start.iter().all(|&byte| byte == 0))
}

fn may_write(path: &Path) -> Result<()> {
    access(path, AccessFlags::W_OK)
        .map_err(|errno| Error::os(side(), Operation::Open, errno, format_args!("write to {}", path.display())))
}

fn unfinished_journal(spec: &CopySpec) -> Result<()> {
    match unfinished(spec) {
        Some(file) if spec.continuation == Continuation::Refuse => Err(Error::new(
            Code::Exists,
            Side::Caller,
            Operation::Journal,
            format!(
                "{} holds the checkpoint of an unfinished copy; --resume goes on, --restart discards it",
                file.display()
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
        .map_err(|errno| Error::os(side(), Operation::Stat, errno, format_args!("ask {}", directory.display())))?;
    // What an existing file holds is given back before it is written over.
    let own = path.metadata().map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
    let free = facts.blocks_available() as u64 * facts.fragment_size() as u64 + own;
    if data_bytes <= free {
        return Ok(());
    }
    let message =
        format!("{} has {} free, the data needs {}", directory.display(), format_size(free), format_size(data_bytes));
    Err(Error::new(Code::NoSpace, side(), Operation::Allocate, message))
}

/// The directory of a file; a bare name is in the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn describe(plan: &Plan) -> Vec<String> {
    let Plan { source, destination, checkpoint, path, source_bytes, data_bytes, zero_bytes, hole_bytes, refusals } =
        plan;
    vec![
        format!("source       {source}, {} ({source_bytes} bytes)", format_size(*source_bytes)),
        format!(
            "             data {}, zeros {}, holes {}",
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
