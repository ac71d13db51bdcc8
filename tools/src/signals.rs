//! Stops a job on a signal; a second signal ends the process at once.
//!
//! | signal | effect |
//! | --- | --- |
//! | SIGINT | stops the job as cancelled by the user |
//! | SIGTERM, SIGHUP | stop the job as interrupted; SIGHUP stays ignored if it was (`nohup`) |
//! | SIGUSR1 | prints the progress on stderr |
//! | SIGXFSZ | none: the write beyond the limit fails, and the job reports it |
//!
//! Signals are caught before the engine starts, so that none is lost in between. A process that ends by the second
//! signal leaves what SIGKILL would leave: the last checkpoint is valid.

use crate::output::print_stderr_nowait;
use crate::progress;
use blockhaul_control::standard_streams;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::job::{JobHandle, StopReason};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;

/// What signals stop.
pub(crate) trait StopTarget: Send + 'static {
    /// Asks for the stop; returns at once.
    fn stop(&self, reason: StopReason);

    /// Returns the progress as one line.
    fn status(&self) -> String;
}

impl StopTarget for JobHandle {
    fn stop(&self, reason: StopReason) {
        self.cancel(reason);
    }

    fn status(&self) -> String {
        progress::status(self)
    }
}

/// Signals that were caught but not handled yet.
#[derive(Debug)]
pub(crate) struct StopSignals(Signals);

impl StopSignals {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// The system denied a handler or the pipe behind it.
    pub(crate) fn catch() -> Result<Self> {
        let failed = |error| Error::io(Side::Engine, Operation::Start, &error, "catch signals");
        // A handler that does nothing. Ignoring the signal would be inherited by other programs.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
        // The file contains the process name, which may not be UTF-8.
        let status = std::fs::read("/proc/self/status").unwrap_or_default();
        let hang_up = (!is_ignored(&String::from_utf8_lossy(&status), SIGHUP)).then_some(SIGHUP);
        Signals::new([SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hang_up)).map(Self).map_err(failed)
    }

    /// Handles the signals for `target` on a thread that runs until the process ends.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn stop(self, target: impl StopTarget) -> Result<()> {
        let Self(mut signals) = self;
        let act = move || {
            let mut asked = false;
            for signal in signals.forever() {
                if signal == SIGUSR1 {
                    print_stderr_nowait(target.status());
                } else if asked {
                    // Ends the process as the shell expects for this signal.
                    let _ = emulate_default_handler(signal);
                    std::process::abort();
                } else {
                    target.stop(reason(signal));
                    standard_streams::stop();
                    print_stderr_nowait(
                        "stopping: finishing and recording blocks in flight; send a second signal to stop at once",
                    );
                    asked = true;
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(act)
            .map(drop)
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start the signal thread"))
    }
}

/// Maps SIGINT to a cancel by the user; service managers, runners and closed terminals send SIGTERM or SIGHUP.
fn reason(signal: i32) -> StopReason {
    if signal == SIGINT { StopReason::UserCancel } else { StopReason::RunnerInterrupt }
}

/// Returns whether the process was started with this signal ignored, according to its `/proc/PID/status`.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_determines_the_reason() {
        let asked = [SIGINT, SIGTERM, SIGHUP].map(reason);
        assert_eq!(asked, [StopReason::UserCancel, StopReason::RunnerInterrupt, StopReason::RunnerInterrupt]);
    }

    #[test]
    fn signals_ignored_at_the_start_are_known() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert_eq!([SIGHUP, SIGINT, 13].map(|signal| is_ignored(status, signal)), [true, false, true]);
        assert!(!is_ignored("", SIGHUP));
    }
}
