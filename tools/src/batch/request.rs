//! Resolves a batch file and flags to what the engine is to do. Reads the file, and changes nothing.

use crate::args::{RawBatch, RawOutput};
use crate::copy::{checkpoint_key, engine_config, network_terms};
use blockhaul_control::batch::{self, Batch, HookRun, Member, Place, Work};
use blockhaul_control::model::{NodeId, TaskSpec, TaskVolume};
use blockhaul_engine::engine::EngineConfig;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::journal::{JournalReader, default_checkpoint_path};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::{BlockSize, CheckpointLocation, CopySpec, Overwrite, PathChoice, Reference, VerifySpec};
use blockhaul_engine::volume::{Locator, ReadOptions, open_source, usual_block, usual_depth};
use blockhaul_hooks::{HookFolder, HookName, HookOrder, HookRequest};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Largest batch file, in bytes: [`batch::MEMBERS_MAX`] members with long names fit.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// A batch with all flags resolved.
#[derive(Debug)]
pub(super) struct BatchRequest {
    pub(super) batch: Batch,
    /// Number of members that run at once.
    pub(super) parallel: usize,
    /// What each member is, in the order of the batch's members.
    pub(super) jobs: Vec<MemberJob>,
    /// Absolute path of the batch file.
    pub(super) file: PathBuf,
    /// Folder of hooks, if a member runs one.
    pub(super) hooks: Option<HookFolder>,
    pub(super) config: EngineConfig,
    pub(super) state_dir: PathBuf,
    pub(super) mode: RunMode,
    pub(super) dry_run: bool,
    pub(super) output: RawOutput,
}

/// What is done with an earlier run of the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunMode {
    /// It goes on.
    Resume,
    /// It is forgotten, with the checkpoints of its copies.
    Restart,
    /// It ends: only clean-up runs.
    Cancel,
}

/// Work of a member.
#[derive(Clone, Debug)]
pub(super) enum MemberJob {
    Copy(Box<CopySpec>),
    Verify(Box<VerifySpec>),
    Run(Box<(HookName, HookRequest)>),
}

impl BatchRequest {
    /// Resolves flags and the file. `variable` reads the environment.
    ///
    /// # Errors
    /// `EBadRequest` for what is wrong with the file or the flags, and what the system says about the file.
    pub(super) fn resolve(raw: RawBatch, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let RawBatch {
            file,
            engine,
            network,
            parallel,
            node,
            hooks_dir,
            state_dir,
            overwrite,
            restart,
            cancel,
            dry_run,
            output,
            log: _,
        } = raw;
        let config = engine_config(&engine, PathChoice::Auto)?;
        let here = node.map_or_else(local_node, NodeId::new)?;
        let text = read_batch_file(&file)?;
        let file = file.canonicalize().map_err(|error| read_error(&file, &error))?;
        let batch = batch::parse(&text, &Place::Local(here.clone()), &identify)?;
        let parallel = parallel.map_or_else(|| batch.parallel.unwrap_or(batch::PARALLEL_DEFAULT), usize::from);
        let state_dir = crate::state_dir::locate(state_dir.as_deref(), variable)?;
        let network = network_terms(&network);
        let hooks = open_hooks(&batch, hooks_dir.as_deref())?;
        let mut jobs = Vec::with_capacity(batch.members.len());
        for member in &batch.members {
            check_node(member, &here)?;
            jobs.push(match &member.work {
                Work::Run(run) => {
                    let request = HookRequest {
                        arguments: run.arguments.clone(),
                        input: run.input.clone(),
                        timeout: run.timeout,
                        group: Some(group_of(&file)),
                        ..HookRequest::new(member.id.as_str(), here.as_str(), 1, 0)
                    };
                    let checked = HookOrder::try_from(request.clone()).and(find_hook(hooks.as_ref(), run));
                    checked.map_err(|error| of_member(member, error))?;
                    MemberJob::Run(Box::new((run.hook.clone(), request)))
                }
                Work::Task(TaskSpec::Copy(copy)) => {
                    let mut spec = copy.job()?.spec();
                    if overwrite {
                        spec.overwrite = Overwrite::Yes;
                    }
                    let checkpoint = default_checkpoint_path(&state_dir, &checkpoint_key(&spec.destination));
                    let checkpoint = CheckpointLocation::File(checkpoint);
                    MemberJob::Copy(Box::new(CopySpec { block_size: config.block_size, network, checkpoint, ..spec }))
                }
                Work::Task(TaskSpec::Verify(verify)) => {
                    let spec = verify.job()?.spec();
                    MemberJob::Verify(Box::new(VerifySpec { block_size: config.block_size, network, ..spec }))
                }
                // Hooks of a batch are `Work::Run`.
                Work::Task(spec @ (TaskSpec::Noop(_) | TaskSpec::Run(_) | TaskSpec::Group(_))) => {
                    let message = format!("a batch file cannot describe a {}", spec.summary().kind);
                    return Err(Error::bad_request(message));
                }
            });
        }
        jobs.iter().try_for_each(MemberJob::check)?;
        let mode = match (restart, cancel) {
            (true, _) => RunMode::Restart,
            (false, true) => RunMode::Cancel,
            (false, false) => RunMode::Resume,
        };
        let config = engine_config_for(&jobs, config);
        check_own_files(&batch, &file, [Some(state_dir.as_path()), hooks.as_ref().map(HookFolder::path)])?;
        Ok(Self { batch, parallel, jobs, file, hooks, config, state_dir, mode, dry_run, output })
    }

    /// Returns the local volumes and receipts of all members.
    pub(super) fn paths(&self) -> Vec<&Path> {
        self.jobs.iter().flat_map(MemberJob::paths).collect()
    }
}

impl MemberJob {
    fn check(&self) -> Result<()> {
        match self {
            Self::Copy(spec) => spec.check(),
            Self::Verify(spec) => spec.check(),
            Self::Run(_) => Ok(()),
        }
    }

    fn volumes(&self) -> Vec<&Locator> {
        match self {
            Self::Copy(spec) => vec![&spec.source, &spec.destination],
            Self::Verify(spec) => match &spec.reference {
                Reference::Volume(reference) => vec![reference, &spec.volume],
                Reference::Receipt(_) => vec![&spec.volume],
            },
            Self::Run(_) => Vec::new(),
        }
    }

    fn paths(&self) -> Vec<&Path> {
        let receipt = match self {
            Self::Verify(spec) => match &spec.reference {
                Reference::Receipt(receipt) => Some(receipt.as_path()),
                Reference::Volume(_) => None,
            },
            Self::Copy(_) | Self::Run(_) => None,
        };
        self.volumes().into_iter().filter_map(Locator::path).chain(receipt).collect()
    }

    /// Returns the local path that a copy writes.
    pub(super) fn destination_file(&self) -> Option<&Path> {
        match self {
            Self::Copy(spec) => spec.destination.path(),
            Self::Verify(_) | Self::Run(_) => None,
        }
    }

    /// Returns the name of what it does.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Copy(_) => "copy",
            Self::Verify(_) => "verify",
            Self::Run(_) => "run",
        }
    }

    /// Returns the file of the checkpoint.
    pub(super) fn checkpoint(&self) -> Option<&Path> {
        match self {
            Self::Copy(spec) => match &spec.checkpoint {
                CheckpointLocation::File(file) => Some(file),
                CheckpointLocation::None => None,
            },
            Self::Verify(_) | Self::Run(_) => None,
        }
    }
}

/// Configures the one engine of all members: its slots hold the largest block that one of them needs.
fn engine_config_for(jobs: &[MemberJob], config: EngineConfig) -> EngineConfig {
    let moves = |job: &&MemberJob| !matches!(job, MemberJob::Run(_));
    let usual = |job: &MemberJob| usual_block(&job.volumes(), false);
    // `None` is the engine's own choice, which is larger than that of exports.
    let blocks: Option<Vec<BlockSize>> = jobs.iter().filter(moves).map(usual).collect();
    let resumed = jobs.iter().filter_map(|job| {
        let journal = JournalReader::open(job.checkpoint()?).ok()?;
        BlockSize::new(journal.header().leaf_bytes.into()).ok()
    });
    let usual = blocks.and_then(|blocks| blocks.into_iter().max());
    let largest = resumed.max();
    let needed = match usual {
        Some(usual) => Some(largest.map_or(usual, |largest| largest.max(usual))),
        None => largest.filter(|&largest| largest > BlockSize::DEFAULT),
    };
    let block_size = config.block_size.or(needed);
    let is_usual = usual.is_some() && block_size <= usual && config.memory_bytes.is_none();
    let depths = || {
        jobs.iter().filter(moves).map(|job| usual_depth(&job.volumes())).collect::<Option<Vec<_>>>()?.into_iter().max()
    };
    let depth = config.depth.or_else(|| depths().filter(|_| is_usual));
    EngineConfig { block_size, depth, ..config }
}

/// Refuses a member of another node.
fn check_node(member: &Member, here: &NodeId) -> Result<()> {
    match member.work.node()? {
        Some(node) if node != *here => {
            Err(Error::bad_request(format!("member {}: it belongs to node {node}, and this host is {here}", member.id))
                .advise("submit the batch to a task center (blockhaul submit batch), or name this host with --node"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Opens the folder of hooks, if a member runs a hook.
fn open_hooks(batch: &Batch, folder: Option<&Path>) -> Result<Option<HookFolder>> {
    let Some(member) = batch.members.iter().find(|member| matches!(member.work, Work::Run(_))) else { return Ok(None) };
    let Some(folder) = folder else {
        let message = format!("member {} runs a hook: name the folder of hooks with --hooks-dir", member.id);
        return Err(Error::bad_request(message));
    };
    HookFolder::open(folder).map(Some)
}

fn find_hook(hooks: Option<&HookFolder>, run: &HookRun) -> Result<()> {
    hooks.map_or(Ok(()), |hooks| hooks.hook(&run.hook).map(drop))
}

/// Returns the name of the batch for its hooks: that of its file, without characters that an identifier cannot have.
fn group_of(file: &Path) -> String {
    let name = Path::new(file.file_name().unwrap_or_default()).shown().to_string();
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

fn of_member(member: &Member, error: Error) -> Error {
    let message = format!("member {}: {}", member.id, error.message);
    Error { message, ..error }
}

/// Opens what a comparison reads, and closes it again.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn open_volumes(spec: &VerifySpec) -> Result<()> {
    let how = ReadOptions { network: spec.network, ..ReadOptions::new(spec.direct) };
    match &spec.reference {
        Reference::Volume(reference) => open_source(reference, &how).map(drop)?,
        Reference::Receipt(receipt) => JournalReader::open(receipt).map(drop)?,
    }
    open_source(&spec.volume, &how).map(drop)
}

/// Returns the name of this host, which is its node's usual name.
fn local_node() -> Result<NodeId> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.and_then(|name| NodeId::new(name).ok()).map_or_else(|| NodeId::new("localhost"), Ok)
}

/// Returns a text that is the same for two names of one volume: of a local one by what its path leads to.
fn identify(volume: &TaskVolume) -> String {
    let TaskVolume::Path { path, .. } = volume else { return volume.key() };
    match path.metadata() {
        Ok(stat) if stat.file_type().is_block_device() => format!("device {}", stat.rdev()),
        Ok(stat) => format!("inode {}:{}", stat.dev(), stat.ino()),
        // It is created.
        Err(_) => format!("path {}", crate::state_dir::absolute_destination(path).shown()),
    }
}

/// Refuses a destination that is the batch file, or lies in one of these folders.
fn check_own_files(batch: &Batch, file: &Path, folders: [Option<&Path>; 2]) -> Result<()> {
    let inode = |path: &Path| path.metadata().ok().map(|stat| (stat.dev(), stat.ino()));
    let folders: Vec<_> = folders.into_iter().flatten().filter_map(inode).collect();
    for member in &batch.members {
        let Some(TaskVolume::Path { path, .. }) = member.work.destination()? else { continue };
        let resolved = path.canonicalize().unwrap_or_else(|_| crate::state_dir::absolute_destination(&path));
        let is_file = inode(&path).is_some_and(|found| Some(found) == inode(file));
        let is_inside = resolved.ancestors().filter_map(inode).any(|folder| folders.contains(&folder));
        if is_file || is_inside {
            let what = "its destination is the batch file, or lies in the state directory or the folder of hooks";
            return Err(of_member(member, Error::bad_request(what)));
        }
    }
    Ok(())
}

fn read_error(file: &Path, error: &std::io::Error) -> Error {
    Error::io(Side::Caller, Operation::Read, error, format!("read the batch file {}", file.shown()))
}

pub(crate) fn read_batch_file(file: &Path) -> Result<String> {
    let failed = |error: &std::io::Error| read_error(file, error);
    // A pipe has no path by which a second run would find its state.
    if !file.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(Error::bad_request(format!("{} is no batch file: it is no regular file", file.shown())));
    }
    let opened = std::fs::File::open(file).map_err(|error| failed(&error))?;
    let mut text = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::bad_request(format!("{} is no batch file: it has more than 32 MiB", file.shown())));
    }
    String::from_utf8(text).map_err(|_| Error::bad_request(format!("{} is no batch file: it is no text", file.shown())))
}
