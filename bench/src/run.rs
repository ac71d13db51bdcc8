//! A run from its first look at the machine to its last file.
//!
//! Results are written after every scenario, so that what was measured survives whatever ends the run. A run that is
//! stopped keeps what it has and says so; what it made on this machine goes away as at every other end.

use crate::check;
use crate::conduct::{Audience, Finding, Method, conduct};
use crate::contestant::Contestant;
use crate::doubt::{self, Reason};
use crate::executor::Failure;
use crate::histogram;
use crate::host;
use crate::interrupt::{Interrupt, Stopped};
use crate::meter::busy_and_stolen_seconds;
use crate::program::Programs;
use crate::results::{Build, Kind, Outcome, Results, Run, SCHEMA, Scenario, Target};
use crate::scale::Scale;
use crate::scenario::{self, SEED, Stage};
use crate::site::{Site, mount};
use crate::warm_up::WarmedUp;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

/// What a run is asked to do.
#[derive(Clone)]
pub(crate) struct Asked {
    pub scenarios: Vec<scenario::Scenario>,
    pub scale: Scale,
    pub trials: Option<u32>,
    pub out: PathBuf,
    /// Below this, volumes are made.
    pub dir: PathBuf,
}

/// What came of it.
pub(crate) struct Done {
    pub results: Results,
    pub stopped: bool,
}

/// The folder for results unless the user names one.
pub(crate) fn default_out() -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    Path::new("copy-bench-results").join(time.replace([':', '-'], ""))
}

/// Where volumes are made unless the user names a place: on disk, not in memory.
pub(crate) fn default_dir() -> PathBuf {
    let on_disk = Path::new("/var/tmp");
    if on_disk.is_dir() { on_disk.to_owned() } else { std::env::temp_dir() }
}

/// Runs the scenarios.
///
/// # Errors
/// Results cannot be written, or volumes not made, in words.
pub(crate) fn run(asked: &Asked) -> Result<Done, String> {
    let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let interrupt = Interrupt::catch().map_err(say("catch signals"))?;
    mount::keep_to_ourselves();
    fs::create_dir_all(&asked.out).map_err(say("make the folder for results"))?;
    let programs = Programs::find();
    let site = Site::open(&asked.dir, &interrupt).map_err(say("make a folder for volumes"))?;
    let mut session = Session::open(asked, &programs, &site);
    let mut stopped = false;
    for (at, scenario) in asked.scenarios.iter().enumerate() {
        if stopped || interrupt.is_set() {
            stopped = true;
            break;
        }
        let bar = bar(scenario.name, at + 1, asked.scenarios.len());
        stopped = session.play(scenario, &programs, &site, &interrupt, &bar)? == Played::Stopped;
        bar.finish_and_clear();
        session.save().map_err(say("write the results"))?;
    }
    session.close(stopped);
    session.save().map_err(say("write the results"))?;
    let report = crate::report::render(&session.results);
    fs::write(asked.out.join("report.html"), report).map_err(say("write the report"))?;
    Ok(Done { results: session.results, stopped })
}

/// Whether a scenario came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Played {
    Whole,
    Stopped,
}

/// A run on its way.
struct Session<'a> {
    asked: &'a Asked,
    results: Results,
    started: Instant,
    stolen_at_start: Option<f64>,
    busy_cpus: Option<f64>,
}

impl<'a> Session<'a> {
    fn open(asked: &'a Asked, programs: &Programs, site: &Site) -> Self {
        let busy_cpus = host::busy_cpus();
        let results = Results {
            schema: SCHEMA,
            build: build(),
            host: host::describe(site.path()),
            run: Run {
                started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                seconds: 0.0,
                command: std::env::args().collect(),
                quick: asked.scale != Scale::Full,
                trials: asked.trials.unwrap_or(asked.scale.trials()),
                seed: SEED,
                complete: false,
            },
            programs: programs.list(),
            scenarios: Vec::new(),
            doubts: Vec::new(),
        };
        let stolen_at_start = busy_and_stolen_seconds().map(|(_, stolen)| stolen);
        Self { asked, results, started: Instant::now(), stolen_at_start, busy_cpus }
    }

    /// Stages a scenario, lets all do their trials, and keeps what was found.
    fn play(
        &mut self,
        scenario: &scenario::Scenario,
        programs: &Programs,
        site: &Site,
        interrupt: &Interrupt,
        bar: &ProgressBar,
    ) -> Result<Played, String> {
        bar.set_message("is being staged");
        let mut stage = match scenario.stage(programs, site, self.asked.scale) {
            Ok(stage) => stage,
            Err(Failure::Stopped) => return Ok(Played::Stopped),
            Err(failure) => {
                self.results.scenarios.push(left_out(scenario, &failure));
                return Ok(Played::Whole);
            }
        };
        let trials = self.asked.trials.or(stage.trials).unwrap_or(self.asked.scale.trials());
        bar.set_length(u64::from(trials) * stage.contestants.len() as u64);
        let method = Method {
            metric: scenario.metric,
            trials,
            count_calls: stage.count_calls,
            data_bytes: stage.data_bytes,
            run_started: self.started,
        };
        let mut executor = WarmedUp {
            executor: &mut *stage.executor,
            folder: site.path().join("warm-up"),
            interrupt,
            bytes: self.asked.scale.warm_up_bytes(stage.cached_bytes),
            failed: None,
        };
        let outcome = conduct(&stage.contestants, method, &mut executor, &mut Teller(bar));
        stage
            .doubts
            .extend(executor.failed.map(|why| Reason::Blind(format!("the cost of fresh memory ({why})")).doubt()));
        let (findings, played) = match outcome {
            Ok(findings) => (findings, Played::Whole),
            Err((findings, Stopped)) => (findings, Played::Stopped),
        };
        let targets = findings.into_iter().map(|finding| self.keep(scenario.name, finding));
        let targets = targets.collect::<io::Result<_>>().map_err(|error| format!("write latencies: {error}"))?;
        self.results.scenarios.push(written(scenario, stage, targets));
        Ok(played)
    }

    /// Writes the latencies of a target to files of their own.
    fn keep(&self, scenario: &str, finding: Finding) -> io::Result<Target> {
        let Finding { mut target, latency } = finding;
        for (operation, whole) in latency {
            let name = format!("{scenario}-{}-{operation}.hgrm", target.name);
            let Some(summary) = histogram::latency(&whole, Some(name.clone())) else { continue };
            let mut file = BufWriter::new(File::create(self.asked.out.join(name))?);
            histogram::write_hgrm(&whole, &mut file)?;
            file.flush()?;
            target.latency.insert(operation, summary);
        }
        Ok(target)
    }

    /// What is only known at the end.
    fn close(&mut self, stopped: bool) {
        let elapsed = self.started.elapsed().as_secs_f64();
        let cpus = self.results.host.cpus;
        let stolen = busy_and_stolen_seconds().zip(self.stolen_at_start).map(|((_, now), then)| now - then);
        let share = stolen.map(|stolen| stolen / (elapsed * f64::from(cpus)).max(1e-9));
        self.results.doubts.extend(doubt::of_run(self.busy_cpus, cpus, share, self.results.run.trials));
        if self.asked.scale != Scale::Full {
            self.results.doubts.push(Reason::Quick.doubt());
        }
        self.results.run.complete = !stopped;
    }

    /// Writes what is there so far, whole or not at all.
    fn save(&mut self) -> io::Result<()> {
        self.results.run.seconds = self.started.elapsed().as_secs_f64();
        let mut file = tempfile::NamedTempFile::new_in(&self.asked.out)?;
        serde_json::to_writer_pretty(&mut file, &self.results)?;
        file.write_all(b"\n")?;
        let readable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
        file.as_file().set_permissions(readable)?;
        file.persist(self.asked.out.join("results.json")).map(drop).map_err(|error| error.error)
    }
}

/// A scenario in the results.
fn written(scenario: &scenario::Scenario, stage: Stage, targets: Vec<Target>) -> Scenario {
    let mut written = Scenario {
        name: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
        metric: scenario.metric,
        volume_bytes: stage.volume_bytes,
        data_bytes: stage.data_bytes,
        parameters: stage.parameters.clone(),
        axis: stage.axis.clone(),
        targets,
        goals: Vec::new(),
        doubts: stage.doubts.clone(),
    };
    written.goals = check::goals(&written);
    written
}

/// One that could not be staged.
fn left_out(scenario: &scenario::Scenario, failure: &Failure) -> Scenario {
    let mut left_out = Scenario {
        name: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
        metric: scenario.metric,
        volume_bytes: 0,
        data_bytes: 0,
        parameters: std::collections::BTreeMap::new(),
        axis: None,
        targets: Vec::new(),
        goals: Vec::new(),
        doubts: vec![Reason::Skipped(failure.to_string()).doubt()],
    };
    left_out.goals = check::goals(&left_out);
    left_out
}

/// One line for each target of ours that did not do its work.
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

/// Of the tree that this program was built from, if it is still there.
fn commit() -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
    Some(if changed { format!("{commit}+") } else { commit })
}

/// A bar on a terminal, a line elsewhere.
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

/// Tells a bar who is next.
struct Teller<'a>(&'a ProgressBar);

impl Audience for Teller<'_> {
    fn before(&mut self, contestant: &Contestant, trial: u32) {
        self.0.inc(1);
        self.0.set_message(format!("{}, trial {}", contestant.name, trial + 1));
    }
}
