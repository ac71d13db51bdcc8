//! Runs the engine as a library in a process of its own.
//!
//! The process is this program, started again with a request as its argument; it prints a report. CPU time and memory
//! of a trial are therefore the engine's and not the harness's, and the harness survives a crash and cleans up. The
//! clock runs from the first submission to the last report, because users of the library start an engine once.

use blockhaul_engine::engine::{Engine, EngineConfig, RingBackend};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::spec::{
    BlockSize, CheckpointLocation, CopySpec, DigestKind, Direct, Overwrite, PathChoice, Reflink, ResumePolicy, Verify,
};
use blockhaul_engine::volume::{Locator, usual_block, usual_depth};
use hdrhistogram::Histogram;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the hidden command that runs the engine process.
pub(crate) const COMMAND: &str = "engine-process";

/// Time between two samples of the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two samples while waiting for the moment to cancel.
const FAST_POLL_INTERVAL: Duration = Duration::from_micros(500);

/// Request to the engine process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EngineRequest {
    /// Source, destination and journal directory of each job.
    pub jobs: Vec<(String, String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    /// As `--path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// As `--direct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<String>,
    /// As `--reflink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflink: Option<String>,
    #[serde(skip_serializing_if = "is_not")]
    pub no_digest: bool,
    #[serde(skip_serializing_if = "is_not")]
    pub verify: bool,
    #[serde(skip_serializing_if = "is_not")]
    pub overwrite: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protect_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_second: Option<u64>,
    /// Number of written bytes at which the jobs are cancelled; the report then says how long stopping took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_at_bytes: Option<u64>,
}

/// Returns whether a flag is left out of the request that people read.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_not(choice: &bool) -> bool {
    !choice
}

/// Report of the engine process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct EngineReport {
    /// From the first submission to the last report.
    pub seconds: f64,
    /// The first error.
    pub error: Option<String>,
    /// `succeeded`, or how the first job that did not succeed ended.
    pub status: String,
    pub quiesced: bool,
    /// I/O path of the first job.
    pub path: String,
    pub system_calls: u64,
    pub durable_bytes: u64,
    /// From the cancel to the last report.
    pub cancel_us: Option<u64>,
    /// Seconds, bytes written so far, and bytes in flight.
    pub progress: Vec<(f64, u64, u64)>,
    /// Value in microseconds and count, by operation.
    pub latency: BTreeMap<String, Vec<(u64, u64)>>,
}

impl EngineReport {
    /// Parses the standard output of an engine process.
    ///
    /// # Errors
    /// The text is not a report.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text.trim()).map_err(|error| format!("the engine process printed no report: {error}"))
    }
}

/// Runs the request and prints the report. Returns whether all jobs ended as expected.
pub(crate) fn main(request: &str) -> bool {
    // The kernel kills this process with the harness; where that is denied, the jobs run to their end.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let report = serde_json::from_str(request)
        .map_err(|error| format!("invalid request: {error}"))
        .and_then(|request: EngineRequest| run_jobs(&request))
        .unwrap_or_else(|error| EngineReport {
            status: "failed".to_owned(),
            error: Some(error),
            ..EngineReport::default()
        });
    match serde_json::to_string(&report) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("cannot write the report: {error}"),
    }
    report.error.is_none()
}

fn run_jobs(request: &EngineRequest) -> Result<EngineReport, String> {
    let specs: Vec<CopySpec> = request.jobs.iter().map(|job| request.spec(job)).collect::<Result<_, _>>()?;
    let engine = Engine::start(request.config(&specs)?).map_err(|error| error.to_string())?;
    let start = Instant::now();
    let jobs: Vec<JobHandle> = specs.into_iter().map(|spec| engine.submit(spec)).collect();
    let (progress, cancelled) = watch(&jobs, request.cancel_at_bytes, start);
    let reports: Vec<Report> = jobs.iter().map(JobHandle::wait).collect();
    let ended = Instant::now();
    let cancel_us = cancelled.map(|at| u64::try_from((ended - at).as_micros()).unwrap_or(u64::MAX));
    Ok(EngineReport {
        seconds: (ended - start).as_secs_f64(),
        cancel_us,
        progress,
        ..summarize(&reports, cancelled.is_some())
    })
}

impl EngineRequest {
    /// Configures the engine as `blockhaul copy` does by default: for exports with more and smaller slots.
    fn config(&self, specs: &[CopySpec]) -> Result<EngineConfig, String> {
        let volumes: Vec<&Locator> = specs.iter().flat_map(|spec| [&spec.source, &spec.destination]).collect();
        let block_size_wanted = self.block_bytes.map(BlockSize::new).transpose().map_err(|error| error.to_string())?;
        let block_size = block_size_wanted.or_else(|| usual_block(&volumes, false));
        let depth = if block_size_wanted.is_none() { usual_depth(&volumes) } else { None };
        let backend = if self.path.as_deref() == Some("threads") { RingBackend::Threads } else { RingBackend::Auto };
        Ok(EngineConfig { cores: self.cores, block_size, depth, backend, ..EngineConfig::default() })
    }

    fn spec(&self, (source, destination, state): &(String, String, String)) -> Result<CopySpec, String> {
        let volume = |name: &str| Locator::parse(name).map_err(|error| error.to_string());
        Ok(CopySpec {
            block_size: self.block_bytes.map(BlockSize::new).transpose().map_err(|error| error.to_string())?,
            path: chosen(self.path.as_deref(), PathChoice::ALL, PathChoice::as_str)?.unwrap_or(PathChoice::Auto),
            direct: chosen(self.direct.as_deref(), Direct::ALL, Direct::as_str)?.unwrap_or(Direct::Auto),
            reflink: chosen(self.reflink.as_deref(), Reflink::ALL, Reflink::as_str)?.unwrap_or(Reflink::Auto),
            digest: if self.no_digest { DigestKind::None } else { DigestKind::Xxh3 },
            verify: if self.verify { Verify::Yes } else { Verify::No },
            overwrite: if self.overwrite { Overwrite::Yes } else { Overwrite::No },
            protect: self.protect_us.map(Duration::from_micros),
            limit_bytes_per_second: self.limit_bytes_per_second,
            // As `blockhaul copy` does by default: a copy that can be resumed.
            checkpoint: CheckpointLocation::File(Path::new(state).join("journal")),
            resume_policy: ResumePolicy::Refuse,
            ..CopySpec::new(volume(source)?, volume(destination)?)
        })
    }
}

/// Parses the name of a choice.
fn chosen<T: Copy>(name: Option<&str>, all: &[T], name_of: fn(T) -> &'static str) -> Result<Option<T>, String> {
    let Some(name) = name else { return Ok(None) };
    let found = all.iter().copied().find(|value| name_of(*value) == name);
    found.map(Some).ok_or_else(|| format!("invalid choice '{name}'"))
}

/// Samples the jobs until all have ended. Returns the samples and the time of the cancel, if one was sent.
fn watch(jobs: &[JobHandle], cancel_at: Option<u64>, start: Instant) -> (Vec<(f64, u64, u64)>, Option<Instant>) {
    let (mut seen, mut cancelled) = (Vec::new(), None);
    for job in jobs {
        loop {
            let pause = if cancel_at.is_some() && cancelled.is_none() { FAST_POLL_INTERVAL } else { POLL_INTERVAL };
            if job.wait_for(pause).is_some() {
                break;
            }
            let progress: Vec<_> = jobs.iter().map(JobHandle::progress).collect();
            let written = progress.iter().map(|progress| progress.written).sum();
            let issued: u64 = progress.iter().map(|progress| progress.issued).sum();
            seen.push((start.elapsed().as_secs_f64(), written, issued.saturating_sub(written)));
            if cancelled.is_none() && cancel_at.is_some_and(|bytes| written >= bytes) {
                cancelled = Some(Instant::now());
                jobs.iter().for_each(|job| job.cancel(StopReason::RunnerInterrupt));
            }
        }
    }
    (seen, cancelled)
}

fn summarize(reports: &[Report], cancelled: bool) -> EngineReport {
    let expected = |status| status == Status::Succeeded || (cancelled && status == Status::Interrupted);
    let bad = reports.iter().find(|report| !expected(report.status));
    let shown = bad.or_else(|| reports.iter().find(|report| report.status != Status::Succeeded));
    let describe = |report: &Report| report.error.as_ref().map_or_else(|| report.status.to_string(), |e| e.to_string());
    let mut latency: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for report in reports {
        let parts =
            [("read", report.latency.read()), ("write", report.latency.write()), ("flush", report.latency.flush())];
        for (name, histogram) in parts {
            latency.entry(name.to_owned()).or_default().extend(counts(histogram));
        }
    }
    EngineReport {
        error: bad.map(describe),
        status: shown.map_or(Status::Succeeded, |report| report.status).to_string(),
        quiesced: reports.iter().all(|report| report.quiesced),
        path: reports.first().map(|report| report.path.clone()).unwrap_or_default(),
        // Each job reports the calls of the whole engine while it ran.
        system_calls: reports.iter().map(|report| report.syscalls).max().unwrap_or_default(),
        durable_bytes: reports.iter().map(|report| report.bytes.durable).sum(),
        latency,
        ..EngineReport::default()
    }
}

fn counts(histogram: &Histogram<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(folder: &Path, bytes: usize) -> EngineRequest {
        std::fs::write(folder.join("source"), vec![7; bytes]).unwrap();
        let name = |name: &str| folder.join(name).display().to_string();
        EngineRequest { jobs: vec![(name("source"), name("destination"), name(""))], ..EngineRequest::default() }
    }

    #[test]
    fn a_request_survives_json_and_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&request(folder.path(), 3 << 20)).unwrap();
        let report = run_jobs(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((report.error.as_deref(), &*report.status, report.durable_bytes), (None, "succeeded", 3 << 20));
        assert!(report.quiesced && report.seconds > 0.0 && !report.latency["write"].is_empty());
        assert_eq!(std::fs::read(folder.path().join("destination")).unwrap(), vec![7; 3 << 20]);
    }

    #[test]
    fn a_cancelled_job_is_no_error_and_reports_how_long_it_took() {
        let folder = tempfile::tempdir().unwrap();
        let request = request(folder.path(), 8 << 20);
        let request = EngineRequest { cancel_at_bytes: Some(1), limit_bytes_per_second: Some(4 << 20), ..request };
        let report = run_jobs(&request).unwrap();
        assert_eq!((report.error.as_deref(), &*report.status), (None, "interrupted"));
        assert!(report.cancel_us.is_some());
    }

    #[test]
    fn an_invalid_request_is_refused_with_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let odd = EngineRequest { direct: Some("sideways".to_owned()), ..request(folder.path(), 1) };
        assert!(run_jobs(&odd).unwrap_err().contains("sideways"));
        let missing =
            EngineRequest { jobs: vec![("none".into(), "other".into(), "state".into())], ..EngineRequest::default() };
        assert!(run_jobs(&missing).unwrap().error.unwrap().contains("ENotFound"));
        assert!(EngineReport::parse("nonsense").is_err());
    }
}
