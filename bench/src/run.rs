//! Runs the chosen scenarios and writes their results.
//!
//! Results are written after every scenario, so that measured numbers survive whatever ends the run. An interrupted run
//! keeps its numbers and is marked incomplete. Everything it made on this machine is removed as at any other end.

use crate::goals;
use crate::histogram;
use crate::host;
use crate::interrupt::{Interrupt, Stopped};
use crate::meter::busy_and_stolen_seconds;
use crate::pretouch::PretouchExecutor;
use crate::program::Programs;
use crate::results::{Build, Kind, Outcome, Results, Run, SCHEMA, ScenarioResult, TargetResult};
use crate::scale::Scale;
use crate::scenario::{self, PreparedScenario, SEED};
use crate::target::Target;
use crate::trial_executor::Failure;
use crate::trial_loop::{TargetRun, TrialSettings, run_trials};
use crate::warning::{self, WarningKind};
use crate::workdir::{RunDir, mount};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

/// Scenarios to run, and their directories.
#[derive(Clone)]
pub(crate) struct RunOptions {
    pub scenarios: Vec<scenario::Scenario>,
    pub scale: Scale,
    pub trials: Option<u32>,
    pub out: PathBuf,
    /// Directory below which volumes are created.
    pub dir: PathBuf,
}

/// Results of a run.
pub(crate) struct RunOutcome {
    pub results: Results,
    pub stopped: bool,
}

/// Returns the directory for results unless the user names one.
pub(crate) fn default_out() -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    Path::new("copy-bench-results").join(time.replace([':', '-'], ""))
}

/// Returns the directory for volumes unless the user names one: on disk, not in memory.
pub(crate) fn default_dir() -> PathBuf {
    let on_disk = Path::new("/var/tmp");
    if on_disk.is_dir() { on_disk.to_owned() } else { std::env::temp_dir() }
}

/// Runs the scenarios.
///
/// # Errors
/// Results cannot be written or volumes not created.
pub(crate) fn run(options: &RunOptions) -> Result<RunOutcome, String> {
    let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let interrupt = Interrupt::catch().map_err(say("catch signals"))?;
    mount::keep_to_ourselves();
    fs::create_dir_all(&options.out).map_err(say("create the results directory"))?;
    let programs = Programs::find();
    let run_dir = RunDir::open(&options.dir, &interrupt).map_err(say("create a directory for volumes"))?;
    let mut session = Session::open(options, &programs, &run_dir);
    let mut stopped = false;
    for (at, scenario) in options.scenarios.iter().enumerate() {
        if stopped || interrupt.is_set() {
            stopped = true;
            break;
        }
        let bar = bar(scenario.name, at + 1, options.scenarios.len());
        stopped = session.run_scenario(scenario, &programs, &run_dir, &interrupt, &bar)? == ScenarioEnd::Stopped;
        bar.finish_and_clear();
        session.save().map_err(say("write the results"))?;
    }
    session.finish(stopped);
    session.save().map_err(say("write the results"))?;
    let report = crate::report::render(&session.results);
    fs::write(options.out.join("report.html"), report).map_err(say("write the report"))?;
    Ok(RunOutcome { results: session.results, stopped })
}

/// Outcome of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScenarioEnd {
    Complete,
    Stopped,
}

/// A run in progress.
struct Session<'a> {
    options: &'a RunOptions,
    results: Results,
    started: Instant,
    stolen_at_start: Option<f64>,
    busy_cpus: Option<f64>,
}

impl<'a> Session<'a> {
    fn open(options: &'a RunOptions, programs: &Programs, run_dir: &RunDir) -> Self {
        let busy_cpus = host::busy_cpus();
        let results = Results {
            schema: SCHEMA,
            build: build(),
            host: host::describe(run_dir.path()),
            run: Run {
                started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                seconds: 0.0,
                command: std::env::args().collect(),
                quick: options.scale != Scale::Full,
                trials: options.trials.unwrap_or(options.scale.trials()),
                seed: SEED,
                complete: false,
            },
            programs: programs.list(),
            scenarios: Vec::new(),
            warnings: Vec::new(),
        };
        let stolen_at_start = busy_and_stolen_seconds().map(|(_, stolen)| stolen);
        Self { options, results, started: Instant::now(), stolen_at_start, busy_cpus }
    }

    /// Prepares a scenario, runs the trials of all targets and keeps their results.
    fn run_scenario(
        &mut self,
        scenario: &scenario::Scenario,
        programs: &Programs,
        run_dir: &RunDir,
        interrupt: &Interrupt,
        bar: &ProgressBar,
    ) -> Result<ScenarioEnd, String> {
        bar.set_message("is being staged");
        let mut prepared = match scenario.prepare(programs, run_dir, self.options.scale) {
            Ok(prepared) => prepared,
            Err(Failure::Stopped) => return Ok(ScenarioEnd::Stopped),
            Err(failure) => {
                let mut result = scenario_result(scenario, None, Vec::new());
                result.warnings.push(WarningKind::Skipped(failure.to_string()).warning());
                self.results.scenarios.push(result);
                return Ok(ScenarioEnd::Complete);
            }
        };
        let trials = self.options.trials.or(prepared.trials).unwrap_or(self.options.scale.trials());
        bar.set_length(u64::from(trials) * prepared.targets.len() as u64);
        let settings = TrialSettings {
            metric: scenario.metric,
            trials,
            count_calls: prepared.count_calls,
            data_bytes: prepared.data_bytes,
            run_started: self.started,
        };
        let mut executor = PretouchExecutor {
            executor: &mut *prepared.executor,
            folder: run_dir.path().join("warm-up"),
            interrupt,
            bytes: self.options.scale.pretouch_bytes(prepared.cached_bytes),
            failed: None,
        };
        let mut on_trial = |target: &Target, trial: u32| {
            bar.inc(1);
            bar.set_message(format!("{}, trial {}", target.name, trial + 1));
        };
        let outcome = run_trials(&prepared.targets, settings, &mut executor, &mut on_trial);
        prepared.warnings.extend(
            executor.failed.map(|why| WarningKind::NotMeasured(format!("the cost of fresh memory ({why})")).warning()),
        );
        let (runs, end) = match outcome {
            Ok(runs) => (runs, ScenarioEnd::Complete),
            Err((runs, Stopped)) => (runs, ScenarioEnd::Stopped),
        };
        let targets = runs.into_iter().map(|run| self.write_latencies(scenario.name, run));
        let targets = targets.collect::<io::Result<_>>().map_err(|error| format!("write latencies: {error}"))?;
        self.results.scenarios.push(scenario_result(scenario, Some(prepared), targets));
        Ok(end)
    }

    /// Writes the latencies of a target, one file for each operation.
    fn write_latencies(&self, scenario: &str, run: TargetRun) -> io::Result<TargetResult> {
        let TargetRun { mut result, latency } = run;
        for (operation, whole) in latency {
            let name = format!("{scenario}-{}-{operation}.hgrm", result.name);
            let Some(summary) = histogram::latency(&whole, Some(name.clone())) else { continue };
            let mut file = BufWriter::new(File::create(self.options.out.join(name))?);
            histogram::write_hgrm(&whole, &mut file)?;
            file.flush()?;
            result.latency.insert(operation, summary);
        }
        Ok(result)
    }

    /// Adds what is only known at the end of the run.
    fn finish(&mut self, stopped: bool) {
        let elapsed = self.started.elapsed().as_secs_f64();
        let cpus = self.results.host.cpus;
        let stolen = busy_and_stolen_seconds().zip(self.stolen_at_start).map(|((_, now), then)| now - then);
        let share = stolen.map(|stolen| stolen / (elapsed * f64::from(cpus)).max(1e-9));
        self.results.warnings.extend(warning::of_run(self.busy_cpus, cpus, share, self.results.run.trials));
        if self.options.scale != Scale::Full {
            self.results.warnings.push(WarningKind::Quick.warning());
        }
        self.results.run.complete = !stopped;
    }

    /// Replaces the results file atomically with the results so far.
    fn save(&mut self) -> io::Result<()> {
        self.results.run.seconds = self.started.elapsed().as_secs_f64();
        let mut file = tempfile::NamedTempFile::new_in(&self.options.out)?;
        serde_json::to_writer_pretty(&mut file, &self.results)?;
        file.write_all(b"\n")?;
        let readable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
        file.as_file().set_permissions(readable)?;
        file.persist(self.options.out.join("results.json")).map(drop).map_err(|error| error.error)
    }
}

/// Builds the result of a scenario and evaluates its goals. One that could not be prepared has no `prepared` and no
/// targets.
fn scenario_result(
    scenario: &scenario::Scenario,
    prepared: Option<PreparedScenario>,
    targets: Vec<TargetResult>,
) -> ScenarioResult {
    let mut result = ScenarioResult {
        name: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
        metric: scenario.metric,
        volume_bytes: 0,
        data_bytes: 0,
        parameters: BTreeMap::new(),
        axis: None,
        targets,
        goals: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(PreparedScenario { volume_bytes, data_bytes, parameters, axis, warnings, .. }) = prepared {
        result = ScenarioResult { volume_bytes, data_bytes, parameters, axis, warnings, ..result };
    }
    result.goals = goals::goals(&result);
    result
}

/// Returns a line for each of our targets that failed or wrote wrong bytes.
pub(crate) fn failures(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for scenario in &results.scenarios {
        for target in scenario.targets.iter().filter(|target| matches!(target.kind, Kind::Engine | Kind::Command)) {
            match &target.outcome {
                Outcome::Ran | Outcome::Missing(_) => {}
                Outcome::Failed(why) => lines.push(format!("failed: {}/{}: {why}", scenario.name, target.name)),
                Outcome::WrongBytes(how) => {
                    lines.push(format!("wrong bytes: {}/{}: {how}", scenario.name, target.name));
                }
            }
        }
    }
    lines
}

fn build() -> Build {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    Build { version: env!("CARGO_PKG_VERSION").to_owned(), commit: commit(), profile: profile.to_owned() }
}

/// Returns the commit of the tree that this program was built from, if the tree is still there.
fn commit() -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
    Some(if changed { format!("{commit}+") } else { commit })
}

/// Shows a progress bar on a terminal; prints a line elsewhere.
fn bar(name: &'static str, number: usize, of: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        eprintln!("{number}/{of} {name}");
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:>24} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(format!("{number}/{of} {name}"));
    bar
}
