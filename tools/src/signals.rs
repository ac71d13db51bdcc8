//! SIGINT and SIGTERM: the first one stops the job in good order, the second one ends the process at once.
//!
//! Signals are caught before the engine starts, so that one that arrives in between is kept and not lost. A process
//! that ends by the second signal leaves what SIGKILL would leave: the last checkpoint holds.

use crate::output::tell;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::job::{JobHandle, Reason};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Signals that were caught and not yet acted on.
#[derive(Debug)]
pub(crate) struct StopSignals(Signals);

impl StopSignals {
    /// Catches SIGINT and SIGTERM from here on.
    ///
    /// # Errors
    /// The system denied a handler or the pipe behind it.
    pub(crate) fn catch() -> Result<Self> {
        Signals::new([SIGINT, SIGTERM])
            .map(Self)
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "catch SIGINT and SIGTERM"))
    }

    /// Lets them act on `job`, from a thread that lives as long as the process.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn stop(self, job: JobHandle) -> Result<()> {
        let Self(mut signals) = self;
        let act = move || {
            let mut arrived = signals.forever();
            if let Some(signal) = arrived.next() {
                // First of all: whoever reads stderr may be slow, or gone.
                job.cancel(reason(signal));
                tell("stopping: blocks in flight are finished and recorded; a second signal ends at once");
            }
            if let Some(signal) = arrived.next() {
                // Ends the process the way the shell expects of this signal.
                let _ = emulate_default_handler(signal);
                std::process::abort();
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(act)
            .map(drop)
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start the signal thread"))
    }
}

/// People press ^C; service managers and runners send SIGTERM.
fn reason(signal: i32) -> Reason {
    if signal == SIGINT { Reason::UserCancel } else { Reason::RunnerInterrupt }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_says_who_asked() {
        assert_eq!((reason(SIGINT), reason(SIGTERM)), (Reason::UserCancel, Reason::RunnerInterrupt));
    }
}
