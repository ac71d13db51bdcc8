//! Reads both clocks together, for one decision.

use std::time::Duration;

/// The two clocks, read together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// For waiting: never jumps.
    pub(crate) boot: Duration,
    /// For what records say, in milliseconds since 1970.
    pub(crate) unix_ms: u64,
    /// The same by the slowest clock that is known of, and without leaps: the time that has surely come. `None` as long as
    /// nobody was asked.
    pub(crate) sure_ms: Option<u64>,
}

impl Now {
    /// When the wall clock will show `unix_ms`, if it does not jump.
    pub(crate) fn at_unix(self, unix_ms: u64) -> Duration {
        self.boot + Duration::from_millis(unix_ms.saturating_sub(self.unix_ms))
    }
}
