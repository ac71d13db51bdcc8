//! Starts programs, samples them while they run, and measures them from outside.
//!
//! Every program gets a process group of its own: Ctrl-C on the terminal reaches only this process, which then kills
//! its children by id. A thread per invocation waits in `wait4`, so the kernel decides when a program has ended, and
//! polling adds nothing to its time. The caller's sampler runs meanwhile.

use crate::interrupt::Interrupt;
use crate::meter::peak_rss_bytes;
use crate::target::Invocation;
use crate::trial_executor::Failure;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use wait4::{ResUse, Wait4};

/// Time between two samples of running programs.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Length of the quoted end of a program's output.
const QUOTED_CHARS: usize = 300;

/// Results of invocations that ran at the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaunchOutcome {
    /// From the first start to the last end.
    pub wall: Duration,
    pub user: Duration,
    pub system: Duration,
    /// Sum over the invocations of the peak memory of their largest step: an upper bound. `None` if one was too short
    /// to sample.
    pub peak_rss_bytes: Option<u64>,
    /// Standard output of each invocation.
    pub stdout: Vec<String>,
    /// Exit status of the last step of each invocation.
    pub statuses: Vec<ExitStatus>,
    /// End of each invocation.
    pub ended: Vec<Option<Instant>>,
    /// Standard error of each invocation.
    pub stderr: Vec<String>,
}

/// Running programs at the time of a sample.
pub(crate) struct ProcessSample {
    pub since_start: Duration,
    /// Process IDs of the running programs.
    pub running: Vec<u32>,
}

impl ProcessSample {
    /// Sends a signal to all running programs.
    pub(crate) fn signal(&self, signal: Signal) {
        for id in &self.running {
            // The program may just have ended.
            let _ = kill(pid(*id), signal);
        }
    }
}

/// Calls `on_sample` at an interval while programs run.
pub(crate) struct Sampler<'a> {
    pub interval: Duration,
    pub on_sample: &'a mut dyn FnMut(&ProcessSample),
}

/// Starts programs; their output goes to files in `folder` meanwhile.
pub(crate) struct Launcher<'a> {
    pub folder: &'a Path,
    pub interrupt: &'a Interrupt,
}

impl Launcher<'_> {
    /// Runs all invocations at the same time until they end, whether they succeed or fail.
    ///
    /// # Errors
    /// A program could not be started, or the run was interrupted; nothing that was started still runs.
    pub(crate) fn run(
        &self,
        invocations: &[Invocation],
        sampler: Option<Sampler<'_>>,
    ) -> Result<LaunchOutcome, Failure> {
        fs::create_dir_all(self.folder)
            .map_err(|error| Failure::io("create a directory for program output", &error))?;
        reset_own_peak_rss();
        let running: Vec<AtomicU32> = invocations.iter().map(|_| AtomicU32::new(0)).collect();
        let (ended, ends) = channel();
        let start = Instant::now();
        let outcomes = std::thread::scope(|scope| {
            for (at, invocation) in invocations.iter().enumerate() {
                let (ended, slot) = (ended.clone(), &running[at]);
                scope.spawn(move || self.run_invocation(at, invocation, slot, &ended));
            }
            drop(ended);
            self.wait(&ends, &running, start, sampler)
        })?;
        let peak = |outcome: &InvocationOutcome| outcome.peaks.iter().filter_map(PeakMemory::bytes).max();
        let peak_rss_bytes = outcomes.iter().map(peak).sum();
        let mut ran = LaunchOutcome { wall: start.elapsed(), peak_rss_bytes, ..LaunchOutcome::default() };
        if let Some(last) = outcomes.iter().filter_map(|outcome| outcome.ended).max() {
            ran.wall = last - start;
        }
        for outcome in outcomes {
            ran.user += outcome.user;
            ran.system += outcome.system;
            ran.stdout.push(outcome.stdout);
            ran.statuses.push(outcome.status);
            ran.ended.push(outcome.ended);
            ran.stderr.push(outcome.stderr);
        }
        Ok(ran)
    }

    /// Runs one invocation that has to succeed. Returns its standard output.
    ///
    /// # Errors
    /// As [`Launcher::run`], or the program failed.
    pub(crate) fn run_one(&self, invocation: &Invocation) -> Result<String, Failure> {
        let mut ran = self.run(std::slice::from_ref(invocation), None)?;
        ran.check_success().map_err(Failure::Failed)?;
        Ok(ran.stdout.pop().unwrap_or_default())
    }

    /// Samples the programs on the calling thread until all have ended.
    fn wait(
        &self,
        ends: &std::sync::mpsc::Receiver<InvocationOutcome>,
        running: &[AtomicU32],
        start: Instant,
        mut sampler: Option<Sampler<'_>>,
    ) -> Result<Vec<InvocationOutcome>, Failure> {
        let every = sampler.as_ref().map_or(POLL_INTERVAL, |sampler| sampler.interval);
        let mut outcomes: Vec<Option<InvocationOutcome>> = running.iter().map(|_| None).collect();
        let mut peaks = BTreeMap::new();
        let (mut left, mut stopped, mut start_error) = (running.len(), false, None);
        while left > 0 {
            match ends.recv_timeout(every) {
                Ok(mut outcome) => {
                    left -= 1;
                    outcome.peaks.iter_mut().for_each(|peak| peak.sampled = peaks.get(&peak.id).copied());
                    start_error = start_error.or_else(|| outcome.start_error.clone());
                    let at = outcome.at;
                    outcomes[at] = Some(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let ids = || running.iter().map(|id| id.load(Ordering::Acquire)).filter(|id| *id != 0).collect::<Vec<_>>();
            peaks.extend(ids().into_iter().filter_map(|id| Some((id, peak_rss_bytes(id)?))));
            if self.interrupt.is_set() {
                // Repeated at each sample: a next step may have been started meanwhile.
                for id in ids() {
                    // The program may just have ended.
                    let _ = killpg(pid(id), Signal::SIGKILL);
                }
                stopped = true;
            } else if let Some(sampler) = &mut sampler {
                (sampler.on_sample)(&ProcessSample { since_start: start.elapsed(), running: ids() });
            }
        }
        match (stopped, start_error) {
            (true, _) => Err(Failure::Stopped),
            (false, Some(why)) => Err(Failure::Failed(why)),
            (false, None) => Ok(outcomes.into_iter().flatten().collect()),
        }
    }

    /// Runs the steps of one invocation.
    fn run_invocation(&self, at: usize, invocation: &Invocation, slot: &AtomicU32, ended: &Sender<InvocationOutcome>) {
        let [stdout, stderr] = ["out", "err"].map(|name| self.folder.join(format!("{at}.{name}")));
        let mut outcome = InvocationOutcome { at, ..InvocationOutcome::default() };
        for step in &invocation.steps {
            match start(step, &stdout, &stderr, slot) {
                Ok((end, peak)) => {
                    outcome.ended = Some(Instant::now());
                    outcome.user += end.rusage.utime;
                    outcome.system += end.rusage.stime;
                    outcome.peaks.push(peak);
                    outcome.status = end.status;
                    if !end.status.success() || self.interrupt.is_set() {
                        break;
                    }
                }
                Err(error) => {
                    outcome.start_error = Some(format!("start {}: {error}", step.join(" ")));
                    break;
                }
            }
        }
        let read = |path: &PathBuf| fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
        outcome.stdout = read(&stdout).unwrap_or_default();
        outcome.stderr = read(&stderr).unwrap_or_default();
        // The receiver waits for all senders.
        let _ = ended.send(outcome);
    }
}

/// Result of one invocation.
#[derive(Debug, Default)]
struct InvocationOutcome {
    at: usize,
    user: Duration,
    system: Duration,
    /// Peak memory of its steps.
    peaks: Vec<PeakMemory>,
    status: ExitStatus,
    ended: Option<Instant>,
    stdout: String,
    stderr: String,
    /// Reason why a step could not be started.
    start_error: Option<String>,
}

/// Peak memory of one program. The kernel's number at its end includes the memory of the harness at the start of the
/// program; below that number only the last sample of the running program counts.
#[derive(Clone, Copy, Debug, Default)]
struct PeakMemory {
    id: u32,
    at_end: u64,
    of_harness: u64,
    sampled: Option<u64>,
}

impl PeakMemory {
    /// Returns the peak in bytes; `None` if the program ended before its first sample.
    fn bytes(&self) -> Option<u64> {
        if self.at_end > self.of_harness {
            Some(self.at_end)
        } else {
            self.sampled.map(|sampled| sampled.min(self.at_end))
        }
    }
}

/// Runs one program to its end. `slot` holds its process ID meanwhile.
fn start(step: &[String], stdout: &Path, stderr: &Path, slot: &AtomicU32) -> io::Result<(ResUse, PeakMemory)> {
    let [program, arguments @ ..] = step else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").process_group(0).stdin(Stdio::null());
    let mut child = command.stdout(File::create(stdout)?).stderr(File::create(stderr)?).spawn()?;
    let id = child.id();
    slot.store(id, Ordering::Release);
    let of_harness = peak_rss_bytes(std::process::id()).unwrap_or(0);
    let end = child.wait4();
    slot.store(0, Ordering::Release);
    let end = end?;
    let peak = PeakMemory { id, at_end: end.rusage.maxrss, of_harness, sampled: None };
    Ok((end, peak))
}

/// Resets the peak memory of this process: a child starts with the peak of its parent.
fn reset_own_peak_rss() {
    // Kernels without this file report the larger peak.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("the kernel's ids are positive numbers of 32 bits with sign"))
}

impl LaunchOutcome {
    /// # Errors
    /// The exit status of the first failed program, and the end of its standard error.
    pub(crate) fn check_success(&self) -> Result<(), String> {
        let failed = self.statuses.iter().position(|status| !status.success());
        failed.map_or(Ok(()), |at| Err(self.failure_message(at)))
    }

    /// Returns the exit status of an invocation, and the end of its standard error.
    pub(crate) fn failure_message(&self, at: usize) -> String {
        let end = match (self.statuses[at].code(), self.statuses[at].signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let said = self.stderr[at].trim();
        let skipped = said.chars().count().saturating_sub(QUOTED_CHARS);
        let said: String = said.chars().skip(skipped).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if said.is_empty() { end } else { format!("{end}: {said}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_launcher<T>(interrupt: &Interrupt, act: impl FnOnce(&Launcher<'_>) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        act(&Launcher { folder: folder.path(), interrupt })
    }

    #[test]
    fn steps_run_in_order_until_one_fails() {
        with_launcher(&Interrupt::default(), |launcher| {
            let good = Invocation::new(["true"]).then(["echo", "said"]);
            let bad = Invocation::new(["sh", "-c", "echo no space >&2; exit 3"]).then(["echo", "never"]);
            let ran = launcher.run(&[good, bad], None).unwrap();
            assert_eq!(ran.stdout, ["said\n", ""]);
            assert_eq!(ran.check_success(), Err("exit code 3: no space".to_owned()));
            assert!(ran.ended.iter().all(Option::is_some) && ran.wall > Duration::ZERO);
        });
    }

    #[test]
    fn a_missing_program_is_a_failure_with_a_message() {
        with_launcher(&Interrupt::default(), |launcher| {
            let failure = launcher.run_one(&Invocation::new(["no-such-program-anywhere"])).unwrap_err();
            assert!(matches!(failure, Failure::Failed(why) if why.contains("no-such-program-anywhere")));
        });
    }

    #[test]
    fn an_interrupted_run_kills_all_descendants() {
        let interrupt = Interrupt::default();
        with_launcher(&interrupt, |launcher| {
            let mut sampled = Vec::new();
            let mut on_sample = |sample: &ProcessSample| {
                sampled.clone_from(&sample.running);
                interrupt.set();
            };
            let sleeper = Invocation::new(["sh", "-c", "sleep 1000; true"]).then(["sleep", "1000"]);
            let sampler = Sampler { interval: Duration::from_millis(5), on_sample: &mut on_sample };
            assert_eq!(launcher.run(&[sleeper], Some(sampler)).unwrap_err(), Failure::Stopped);
            for id in sampled {
                assert!(!Path::new(&format!("/proc/{id}")).exists());
            }
        });
    }

    #[test]
    fn the_memory_of_the_harness_does_not_count() {
        let sampled = |at_end, sampled| PeakMemory { id: 1, at_end, of_harness: 30, sampled }.bytes();
        assert_eq!([sampled(50, Some(40)), sampled(30, Some(4)), sampled(30, None)], [Some(50), Some(4), None]);
        with_launcher(&Interrupt::default(), |launcher| {
            let ballast = vec![1_u8; 64 << 20];
            let ran = launcher.run(&[Invocation::new(["sleep", "0.2"])], None).unwrap();
            assert!(ran.peak_rss_bytes.unwrap() < 32 << 20 && !ballast.is_empty(), "{ran:?}");
        });
    }

    #[test]
    fn cpu_time_is_that_of_the_programs() {
        with_launcher(&Interrupt::default(), |launcher| {
            let busy = Invocation::new(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]);
            let ran = launcher.run(&[busy.clone(), busy], None).unwrap();
            assert!(ran.user + ran.system > Duration::ZERO);
        });
    }
}
