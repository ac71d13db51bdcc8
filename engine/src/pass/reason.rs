//! Names the reasons for which a job is asked to stop.

use crate::error::named;

named! {
    /// Reason to stop a job. The first reason given holds, and wins over errors that the stop itself provokes.
    Reason {
        /// The user asked.
        UserCancel => "ECancelled",
        /// The runner gives the task back.
        RunnerInterrupt => "ERunnerInterrupt",
        /// The right to write was lost.
        LeaseLost => "ELeaseLost",
        /// Its time is up.
        DeadlineExceeded => "ETimeout",
    }
}
