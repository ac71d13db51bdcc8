//! Runs `blockhaul copy`: resolves flags to a job, follows it and shows its report.
//!
//! Resolving has no side effects and settles everything that depends on flags only. Refusals follow a fixed order:
//! malformed input, missing source, state directory, then the rules of the engine.

use crate::args::{CheckpointInterval, RawCopy, RawEngine, RawNetwork, RawOutput, SourceFormat};
use crate::exit::Exit;
use crate::image::{ImageFormat, ServedImage};
use crate::output::{self, print_stderr};
use crate::progress::{ProgressDisplay, wait_with_progress};
use crate::retry_command::{self, RetryMode};
use crate::signals::StopSignals;
use crate::{dry_run, start_logging, state_dir, summary};
use blockhaul_engine::engine::{Engine, EngineConfig, RingBackend};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::job::CheckReport;
use blockhaul_engine::journal::{JournalReader, default_checkpoint_path};
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::spec::{
    BlockSize, CheckpointEvery, CheckpointLocation, CopySpec, Durability, LiveSource, NetworkTerms, Overwrite,
    PathChoice, ResumePolicy, Verify,
};
use blockhaul_engine::volume::{Locator, ReadOptions, VolumeName, open_source, usual_block, usual_depth};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A copy with all flags resolved.
#[derive(Debug)]
pub(crate) struct CopyRequest {
    spec: CopySpec,
    config: EngineConfig,
    /// Directory to create for the checkpoint; `None` if the checkpoint is elsewhere or there is none.
    state_dir: Option<PathBuf>,
    dry_run: bool,
    output: RawOutput,
}

/// Copies, or prints the plan. `arguments` is the command line, used to build the command that resumes.
///
/// # Errors
/// Refusals from before a job exists.
pub(crate) fn run(mut raw: RawCopy, arguments: &[OsString]) -> Result<Exit> {
    let volumes = [&raw.source, &raw.destination].map(Path::new);
    let journals = [&raw.checkpoint, &raw.receipt].into_iter().flatten().map(PathBuf::as_path);
    output::refuse_volume_streams(volumes.into_iter().chain(journals))?;
    start_logging(std::mem::take(&mut raw.log))?;
    // Serves until the report is shown.
    let image = serve_image(&raw)?;
    if let Some(image) = &image {
        raw.source = image.uri().into();
    }
    let request = resolve(raw, |name| std::env::var_os(name))?;
    let CopySpec { source, destination, checkpoint, resume_policy, .. } = &request.spec;
    tracing::info!(%source, %destination, ?checkpoint, ?resume_policy, "copying");
    if request.dry_run {
        return Ok(dry_run::show(None, &request.spec, check(&request), request.output.json));
    }
    let signals = StopSignals::catch()?;
    let engine = start_engine(&request, state_dir::prepare)?;
    let job = engine.submit(request.spec.clone());
    signals.stop(job.clone())?;
    let report = wait_with_progress(&job, ProgressDisplay::choose(request.output));
    tracing::info!(status = report.status.as_str(), path = report.path, seconds = report.seconds, "copy ended");
    show_report(&request, &report, arguments);
    Ok(Exit::from(&report))
}

/// Serves the source if it is a disk image and the disk inside of it is wanted.
///
/// # Errors
/// `EBadRequest` if the source is an image or compressed, and nothing says what is meant; errors of its server.
fn serve_image(raw: &RawCopy) -> Result<Option<ServedImage>> {
    let source = Locator::parse(&raw.source)?;
    let Some(path) = source.path().filter(|_| raw.format != Some(SourceFormat::Raw)) else { return Ok(None) };
    let Some(format) = ImageFormat::of(path)? else { return Ok(None) };
    if raw.format.is_none() {
        return Err(format.refusal(path));
    }
    let state = state_dir::locate(raw.state_dir.as_deref(), |name| std::env::var_os(name))?;
    state_dir::prepare(&state)?;
    ServedImage::start(path, format, &Locator::parse(&raw.destination)?, &state).map(Some)
}

/// Checks the copy as a real start does, and changes nothing.
fn check(request: &CopyRequest) -> Result<CheckReport> {
    start_engine(request, state_dir::examine)?.check(&request.spec)
}

/// Starts the engine, then applies the refusals that come before a job: a missing source, and a state directory that is
/// not `usable`.
fn start_engine(request: &CopyRequest, usable: fn(&Path) -> Result<()>) -> Result<Engine> {
    let engine = Engine::start(engine_config_for(request))?;
    source_exists(&request.spec.source)?;
    if let Some(directory) = &request.state_dir {
        usable(directory).map_err(|error| source_export_error(&request.spec).unwrap_or(error))?;
    }
    Ok(engine)
}

/// Configures the engine: a resumed copy needs slots for the blocks of its first start, a copy with exports has more
/// and smaller ones.
fn engine_config_for(request: &CopyRequest) -> EngineConfig {
    let CopyRequest { spec, config, .. } = request;
    let volumes = [&spec.source, &spec.destination];
    let usual = || usual_block(&volumes, spec.changed_since.is_some());
    let earlier = || match (&spec.checkpoint, spec.resume_policy) {
        // The job reports errors of the journal.
        (CheckpointLocation::File(file), ResumePolicy::Resume) => {
            let journal = JournalReader::open(file).ok()?;
            BlockSize::new(journal.header().leaf_bytes.into()).ok()
        }
        (CheckpointLocation::File(_) | CheckpointLocation::None, _) => None,
    };
    let block_size = config.block_size.or_else(|| earlier().or_else(usual));
    // With larger blocks, or a bound on memory, the engine chooses.
    let is_usual = block_size.is_some() && block_size <= usual() && config.memory_bytes.is_none();
    let depth = config.depth.or_else(|| usual_depth(&volumes).filter(|_| is_usual));
    EngineConfig { block_size, depth, ..*config }
}

/// Resolves flags to a request. Its only input besides the flags is the environment, read through `variable`.
fn resolve(raw: RawCopy, variable: impl Fn(&str) -> Option<OsString>) -> Result<CopyRequest> {
    let RawCopy {
        source,
        destination,
        format: _,
        engine,
        network,
        changed_since,
        limit,
        protect,
        sparse,
        reflink,
        direct,
        path,
        checkpoint,
        checkpoint_every,
        no_checkpoint,
        resume,
        restart,
        state_dir,
        verify,
        digest,
        receipt,
        no_sync,
        overwrite,
        lock_wait,
        allow_live_source,
        dry_run,
        output,
        log: _,
    } = raw;
    let defaults = CopySpec::new(Locator::parse(&source)?, Locator::parse(&destination)?);
    if protect.is_some_and(|target| target.is_zero()) {
        return Err(Error::bad_request("--protect must be more than 0"));
    }
    let config = engine_config(&engine, path)?;
    let (checkpoint, state_dir) = match (checkpoint, no_checkpoint) {
        (Some(file), _) => (CheckpointLocation::File(file), None),
        (None, true) => (CheckpointLocation::None, None),
        (None, false) => {
            let directory = crate::state_dir::locate(state_dir.as_deref(), variable)?;
            (
                CheckpointLocation::File(default_checkpoint_path(&directory, &checkpoint_key(&defaults.destination))),
                Some(directory),
            )
        }
    };
    let spec = CopySpec {
        block_size: config.block_size,
        limit_bytes_per_second: limit,
        protect,
        sparse,
        reflink,
        direct,
        path,
        checkpoint,
        checkpoint_every: checkpoint_interval(&checkpoint_every),
        resume_policy: match (resume, restart) {
            (true, _) => ResumePolicy::Resume,
            (false, true) => ResumePolicy::Restart,
            (false, false) => ResumePolicy::Refuse,
        },
        receipt,
        verify: if verify { Verify::Yes } else { Verify::No },
        digest,
        durability: if no_sync { Durability::None } else { Durability::Required },
        overwrite: if overwrite { Overwrite::Yes } else { Overwrite::No },
        lock_wait: lock_wait.unwrap_or(defaults.lock_wait),
        live_source: if allow_live_source { LiveSource::Allow } else { LiveSource::Refuse },
        network: network_terms(&network),
        changed_since,
        ..defaults
    };
    spec.check()?;
    Ok(CopyRequest { spec, config, state_dir, dry_run, output })
}

/// Resolves the flags of the engine.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn engine_config(raw: &RawEngine, path: PathChoice) -> Result<EngineConfig> {
    let RawEngine { block_size, depth, cores, memory } = *raw;
    Ok(EngineConfig {
        cores,
        block_size: block_size.map(BlockSize::new).transpose()?,
        depth,
        memory_bytes: memory,
        backend: match path {
            PathChoice::Threads => RingBackend::Threads,
            PathChoice::Ring => RingBackend::Uring,
            PathChoice::Auto | PathChoice::Inline => RingBackend::Auto,
        },
    })
}

/// Resolves the flags for servers.
pub(crate) fn network_terms(raw: &RawNetwork) -> NetworkTerms {
    let RawNetwork { retry_for, request_timeout, connections } = *raw;
    let usual = NetworkTerms::default();
    NetworkTerms {
        retry_for: retry_for.unwrap_or(usual.retry_for),
        request_timeout: request_timeout.unwrap_or(usual.request_timeout),
        connections,
    }
}

/// Returns the last bound of each kind; a missing one keeps its default.
fn checkpoint_interval(bounds: &[CheckpointInterval]) -> CheckpointEvery {
    bounds.iter().fold(CheckpointEvery::default(), |every, bound| match *bound {
        CheckpointInterval::Bytes(bytes) => CheckpointEvery { bytes, ..every },
        CheckpointInterval::Time(time) => CheckpointEvery { time, ..every },
    })
}

/// Returns the name by which the checkpoint of a destination is found.
pub(crate) fn checkpoint_key(destination: &Locator) -> VolumeName {
    match destination {
        Locator::Path(path) => state_dir::absolute_destination(path).as_path().into(),
        Locator::Nbd(uri) => uri.to_string().into(),
    }
}

/// Refuses a missing source before the state directory is checked or created.
fn source_exists(source: &Locator) -> Result<()> {
    let Some(path) = source.path() else { return Ok(()) };
    std::fs::metadata(path).map(drop).map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let what = if missing { format!("find the source {source}") } else { format!("stat the source {source}") };
        Error::io(Side::Source, Operation::Open, &error, what)
    })
}

/// Returns the error of a source export that cannot be opened. Called only after a later step failed, because some
/// servers serve one client and end.
fn source_export_error(spec: &CopySpec) -> Option<Error> {
    let how = ReadOptions { network: spec.network, ..ReadOptions::new(spec.direct) };
    spec.source.path().is_none().then(|| open_source(&spec.source, &how).err())?
}

/// Prints the report, and for a copy that did not succeed the command to retry.
fn show_report(request: &CopyRequest, report: &Report, arguments: &[OsString]) {
    if let Some(error) = &report.error {
        print_stderr(error);
    }
    let touched = report.status == Status::Succeeded || changed_destination(report);
    if report.status != Status::Succeeded && touched {
        let (what, command) = retry_advice(report, request.spec.durability, arguments);
        output::print_stderr_command(
            format_args!("the destination {} is incomplete; {what}:", request.spec.destination),
            command,
        );
    }
    if request.output.json {
        output::json_event("report", report);
    } else if touched {
        summary::of_copy(report).iter().for_each(output::print_summary);
    }
}

/// Returns whether the destination may have changed. A refusal, or a cancel before the start, leaves neither a journal
/// nor a plan.
fn changed_destination(report: &Report) -> bool {
    report.journal.is_some() || report.bytes.planned > 0
}

/// Returns what can be done, and the command that does it.
fn retry_advice(report: &Report, durability: Durability, arguments: &[OsString]) -> (&'static str, String) {
    let useless = matches!(
        report.error.as_ref().map(|error| error.code),
        Some(Code::SourceChanged | Code::VerifyMismatch | Code::CheckpointCorrupt | Code::CheckpointMismatch)
    );
    let (what, mode) = match (&report.journal, useless || durability == Durability::None) {
        (Some(_), false) => ("resume with", RetryMode::Resume),
        (Some(_), true) => ("the copy cannot be resumed; start over with", RetryMode::Restart),
        (None, _) => ("there is no checkpoint; start over with", RetryMode::Overwrite),
    };
    (what, retry_command::command(arguments.iter().cloned(), mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use std::time::Duration;

    fn resolved(flags: &[&str]) -> Result<CopyRequest> {
        let words = ["blockhaul", "copy"].iter().chain(flags).chain(&["src", "/nowhere/dst"]);
        let Command::Copy(raw) = Cli::try_parse_from(words).unwrap().command else { unreachable!("it says copy") };
        resolve(*raw, |name| (name == "HOME").then(|| OsString::from("/people/me")))
    }

    #[test]
    fn without_flags_every_default_is_the_engines_but_the_checkpoint() {
        let request = resolved(&[]).unwrap();
        let state = Path::new("/people/me/.local/state/blockhaul");
        assert_eq!(request.state_dir.as_deref(), Some(state));
        let checkpoint = CheckpointLocation::File(default_checkpoint_path(state, &"/nowhere/dst".into()));
        let defaults = CopySpec::new(Locator::parse("src").unwrap(), Locator::parse("/nowhere/dst").unwrap());
        assert_eq!(request.spec, CopySpec { checkpoint, ..defaults });
        assert_eq!(request.config, EngineConfig::default());
    }

    #[test]
    fn each_flag_changes_what_it_names() {
        let request = resolved(&[
            "--block-size=64KiB",
            "--depth=4",
            "--cores=1",
            "--memory=8MiB",
            "--limit=1MiB/s",
            "--protect=2ms",
            "--sparse=never",
            "--reflink=always",
            "--direct=yes",
            "--path=threads",
            "--checkpoint=c",
            "--checkpoint-every=64MiB",
            "--checkpoint-every=5s",
            "--restart",
            "--verify",
            "--digest=none",
            "--receipt=r",
            "--overwrite",
            "--lock-wait=0s",
            "--retry-for=5m",
            "--request-timeout=2s",
            "--connections=3",
            "--allow-live-source",
        ])
        .unwrap();
        let block_size = Some(BlockSize::new(64 << 10).unwrap());
        let backend = RingBackend::Threads;
        let config = EngineConfig { cores: Some(1), block_size, depth: Some(4), memory_bytes: Some(8 << 20), backend };
        assert_eq!(request.config, config);
        assert_eq!(request.state_dir, None);
        let expected = CopySpec {
            block_size,
            limit_bytes_per_second: Some(1 << 20),
            protect: Some(Duration::from_millis(2)),
            sparse: blockhaul_engine::spec::Sparse::Never,
            reflink: blockhaul_engine::spec::Reflink::Always,
            direct: blockhaul_engine::spec::Direct::Yes,
            path: PathChoice::Threads,
            checkpoint: CheckpointLocation::File("c".into()),
            checkpoint_every: CheckpointEvery { bytes: 64 << 20, time: Duration::from_secs(5) },
            resume_policy: ResumePolicy::Restart,
            receipt: Some("r".into()),
            verify: Verify::Yes,
            digest: blockhaul_engine::spec::DigestKind::None,
            overwrite: Overwrite::Yes,
            lock_wait: Duration::ZERO,
            live_source: LiveSource::Allow,
            network: NetworkTerms {
                retry_for: Duration::from_secs(300),
                request_timeout: Duration::from_secs(2),
                connections: Some(3),
            },
            ..CopySpec::new(Locator::parse("src").unwrap(), Locator::parse("/nowhere/dst").unwrap())
        };
        assert_eq!(request.spec, expected);
    }

    #[test]
    fn invalid_values_are_bad_requests() {
        assert_eq!(resolved(&["--no-sync"]).unwrap().spec.durability, Durability::None);
        for flags in [
            &["--protect=0ms"][..],
            &["--block-size=3000"],
            &["--no-sync", "--resume"],
            &["--no-sync", "--receipt=r"],
            &["--connections=0"],
            &["--request-timeout=0s"],
            &["--changed-since=monday"],
        ] {
            assert_eq!(resolved(flags).unwrap_err().code, Code::BadRequest, "{flags:?}");
        }
    }

    #[test]
    fn exports_have_blocks_and_a_checkpoint_of_their_own() {
        let words = |more: &[&str], destination: &str| {
            let words = ["blockhaul", "copy", "nbd://HOST:10809/a"].iter().chain(more).copied().chain([destination]);
            let Command::Copy(raw) = Cli::try_parse_from(words).unwrap().command else { unreachable!("it says copy") };
            resolve(*raw, |name| (name == "HOME").then(|| OsString::from("/people/me"))).unwrap()
        };
        let block = |bytes| Some(BlockSize::new(bytes).unwrap());
        assert_eq!(engine_config_for(&words(&[], "/nowhere/dst")).block_size, block(256 << 10));
        assert_eq!(engine_config_for(&words(&["--changed-since=monday"], "/nowhere/dst")).block_size, block(64 << 10));
        assert_eq!(engine_config_for(&words(&["--block-size=4MiB"], "/nowhere/dst")).block_size, block(4 << 20));
        let state = Path::new("/people/me/.local/state/blockhaul");
        let keyed = CheckpointLocation::File(default_checkpoint_path(state, &"nbd://host/b".into()));
        for spelling in ["nbd://host/b", "nbd://HOST:10809/b", "nbd://host/%62"] {
            assert_eq!(words(&[], spelling).spec.checkpoint, keyed, "{spelling}");
        }
    }

    #[test]
    fn a_useless_checkpoint_is_not_offered_again() {
        let arguments: Vec<OsString> = ["blockhaul", "copy", "a", "b"].iter().map(OsString::from).collect();
        let failed = |code| Report {
            journal: Some("j".to_owned()),
            ..output::refusal_report(Error::new(code, Side::Source, Operation::Read, "x"))
        };
        assert_eq!(retry_advice(&failed(Code::Io), Durability::Required, &arguments).1, "blockhaul copy --resume a b");
        assert_eq!(
            retry_advice(&failed(Code::SourceChanged), Durability::Required, &arguments).1,
            "blockhaul copy --restart a b"
        );
        assert_eq!(retry_advice(&failed(Code::Io), Durability::None, &arguments).1, "blockhaul copy --restart a b");
        let lost = Report { journal: None, ..failed(Code::Io) };
        assert_eq!(retry_advice(&lost, Durability::Required, &arguments).1, "blockhaul copy --overwrite a b");
    }
}
