//! Names the reasons for which a job is asked to stop.

use crate::error::named;

named! {
    /// Reason to stop a job. The first reason given holds, and wins over errors that the stop itself provokes.
    StopReason {
        /// The user has cancelled the job.
        UserCancel => "ECancelled",
        /// The runner returns the task.
        RunnerInterrupt => "ERunnerInterrupt",
        /// The write lease has ended.
        LeaseLost => "ELeaseLost",
        /// Its time is up.
        DeadlineExceeded => "ETimeout",
    }
}
